"""gluon-aa models list | show"""
from typing import Any, Dict, List, Optional, Tuple

import click
from tabulate import tabulate

from gluon_aa.cli.options import key_options
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.errors import UsageError
from gluon_aa.training.config import parse_size

ARCHITECTURE_KEYS = ('placement', 'num_heads', 'key_ratio', 'value_ratio', 'min_key_channels_per_head', 'relative',
                     'dropout', 'stem')


@click.group()
def models() -> None:
    """The networks: which there are, and what each is made of."""


@models.command('list')
@json_option
def list_command(json_path: Optional[str]) -> None:
    """Names of networks. wrn<6n+4>_<k> and aa_wrn<6n+4>_<k> take any n and k."""
    from gluon_aa.models import list_models
    names = list_models()
    printer(json_path)('\n'.join(names))
    write_result(json_path, names)


def _input_size(ctx: click.Context, parameter: click.Parameter, value: str) -> Tuple[int, int]:
    try:
        return parse_size(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


@models.command()
@click.argument('net')
@click.option('--classes', default=10, show_default=True, help='Number of classes.')
@click.option('--input-size', default='32x32', show_default=True, metavar='HxW', callback=_input_size,
              help='Size of the images in pixels.')
@click.option('--in-channels', default=3, show_default=True, type=click.IntRange(min=1), help='Channels of the images.')
@key_options(*ARCHITECTURE_KEYS)
@json_option
def show(net: str, classes: int, input_size: Tuple[int, int], in_channels: int, json_path: Optional[str],
         **options: Any) -> None:
    """Layers of NET with sizes, parameters and FLOPs (2 x multiply-adds, one image forward)."""
    from gluon_aa.models import get_model
    from gluon_aa.models.registry import GLUONCV_PREFIX
    from gluon_aa.models.summary import summarize
    options = {key: value for key, value in options.items() if value is not None}
    if not net.startswith(GLUONCV_PREFIX):
        options.setdefault('attention_backend', 'folded')  # all count the same, and auto might have to compile one
    summary = summarize(get_model(net, classes, input_size=input_size, **options), input_size, in_channels)
    printer(json_path)(_table(net, summary))
    write_result(json_path, {'net': net, 'classes': classes, **summary})


def _table(net: str, summary: Dict[str, Any]) -> str:
    rows: List[Tuple[Any, ...]] = []
    for layer in summary['layers']:
        attention = layer.get('attention')
        heads = '' if attention is None else (
            f'{attention["num_heads"]} heads, {attention["key_channels"]}/{attention["value_channels"]} channels '
            f'on {attention["height"]}x{attention["width"]}')
        rows.append((layer['name'], layer['kind'], layer['channels'], f'{layer["height"]}x{layer["width"]}',
                     f'{layer["parameters"]:,}', f'{layer["flops"] / 1e6:,.1f}', heads))
    headers = ('layer', 'kind', 'channels', 'map', 'parameters', 'MFLOPs', 'attention (keys/values)')
    table = tabulate(rows, headers, colalign=('left', 'left', 'right', 'right', 'right', 'right', 'left'),
                     disable_numparse=True)
    share = summary['attention']['share']
    augmented = sum(layer['augmented'] for layer in summary['layers'])
    return (f'{table}\n\n{net}: {summary["parameters"]:,} parameters, {summary["flops"] / 1e9:.2f} GFLOPs an image; '
            f'{augmented} layers augmented, attention {share["parameters"]:.1%} of parameters '
            f'and {share["flops"]:.1%} of FLOPs')
