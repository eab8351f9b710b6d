"""gluon-aa plan"""
import shlex
from typing import Any, Dict, List, Optional, Sequence, Tuple

import click
from tabulate import tabulate

from gluon_aa.cli.options import key_options
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.configs import find_recipe
from gluon_aa.errors import UsageError
from gluon_aa.memory.devices import DEVICES, POOL_RESERVE, Device, find_device, in_words, parse_bytes
from gluon_aa.training.config import FIELDS, TrainConfig, load, override, parse_size

#: Keys that decide what a training step needs.
KEYS = ('net', 'batch_size', 'accumulate', 'placement', 'num_heads', 'key_ratio', 'value_ratio',
        'min_key_channels_per_head', 'relative', 'attention_backend', 'memory_mode', 'tile', 'recompute', 'dtype',
        'optimizer', 'momentum', 'dropout', 'stem', 'gpus', 'cpus', 'dataset', 'input_size')

NOTE = ('Modelled: no step was run. Time by FLOPs is how much there is to compute, not how fast a backend is:\n'
        'gluon-aa bench attention measures that.')

Row = Dict[str, Any]


@click.command()
@click.option('--device', 'device_name', default='cpu', show_default=True, metavar='NAME',
              help=f'What to train on: {", ".join(DEVICES)}. The CPU is the one here.')
@click.option('--memory-budget', metavar='SIZE',
              help="Memory of each device, such as 11GiB.  [default: the device's; on the CPU, what is available now]")
@click.option('--config', 'recipe', metavar='FILE', help='YAML file of keys, or a recipe of ours, such as cpu/digits.')
@key_options(*KEYS)
@click.option('--classes', type=click.IntRange(1), help="Classes of a folder's images.  [default: 10]")
@json_option
def plan(device_name: str, recipe: Optional[str], classes: Optional[int], json_path: Optional[str],
         **options: Any) -> None:
    """What of a training fits a device: known beforehand, without running a step and without the device.

    Tells the bytes of a training step, the largest batch, the deepest augmentation, and where it does not fit the
    cheapest change that makes it fit, as a command. Keys and flags are those of gluon-aa train; --gpus 0,1 are two such
    devices that share the batch. Exits with 0 whether it fits or not: --json tells in `cells[0].fits`.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if not recipe:
        given.setdefault('net', FIELDS['net'].default)
    if 'dataset' not in given and (given.get('input_size') or classes) and not recipe:
        given['dataset'] = 'folder'
    config = load(find_recipe(recipe) if recipe else None, given)
    device = find_device(device_name, parse_bytes(config.memory_budget) if config.memory_budget else None)
    config = _on(config, device, given)
    from gluon_aa.data.form import form_of
    size = parse_size(config.input_size) if config.input_size else None
    classes, image_shape = form_of(config.dataset, size, classes)
    from gluon_aa.memory import advice
    found = advice.advise(config, classes, image_shape, device)
    words = ['gluon-aa', 'train', *(['--config', recipe] if recipe else [])]
    for change in found['changes']:
        change['command'] = shlex.join([*words, *advice.flags(_keys(config, given, change['keys']))])
    printer(json_path)('\n\n'.join([_answer(found, device), *_advice(found), *_ways(found), _bytes(found), NOTE]))
    write_result(json_path, found)


def _on(config: TrainConfig, device: Device, given: Row) -> TrainConfig:
    """`config` on devices of this kind: where none are named, on one."""
    if device.gpu and 'cpus' in given:
        raise UsageError(f'--cpus are not for a {device.title}: name --gpus, such as 0,1 for two')
    if not device.gpu and config.gpus:
        raise UsageError(f'which GPUs? Name their kind: --device {", ".join(n for n in DEVICES if DEVICES[n].gpu)}')
    return config if config.gpus or not device.gpu else override(config, {'gpus': (0,)})


def _keys(config: TrainConfig, given: Row, changed: Row) -> Row:
    """What a training is told, in the order of the configuration; not the budget, as no choice is left to it."""
    keys = {**given, **changed, **({'gpus': config.gpus} if config.gpus else {})}
    if config.dataset == 'folder':
        keys.setdefault('data_dir', config.data_dir or 'DIRECTORY')
    return {key: keys[key] for key in FIELDS if key in keys and key != 'memory_budget'}


def _answer(found: Row, device: Device) -> str:
    """Whether it fits, and the figures that one asks for next."""
    cell = found['cells'][0]
    on = f'{cell["devices"]} x {device.title}' if cell['devices'] > 1 else device.title
    verdict = 'fits' if cell['fits'] else 'does not fit'
    facts = _facts(found, device)
    width = max(len(name) for name, _ in facts)
    return '\n'.join([f'{cell["net"]} at batch {cell["batch_size"]:,} {verdict} {on}', '',
                      *(f'  {name:<{width}}  {text}' for name, text in facts)])


def _facts(found: Row, device: Device) -> List[Tuple[str, str]]:
    cell = found['cells'][0]
    uncertain = f' + {in_words(cell["uncertainty_bytes"])} uncertainty' if cell['uncertainty_bytes'] else ''
    each = ' a device' if cell['devices'] > 1 else ''
    of = f'{each} available now' if device.memory is None else (
        f' of {in_words(device.memory)}{each}: MXNet leaves {POOL_RESERVE:.0%} to others' if device.gpu else each)
    facts = [('computed', f'{cell["way"]}, {cell["dtype"]}'),
             ('needs', f'{in_words(cell["total_bytes"])}{uncertain}{each}, modelled'),
             ('may take', f'{in_words(found["budget_bytes"])}{of}'),
             ('largest batch', _batch(cell))]
    if found['eligible']:
        facts.append((f'deepest at batch {cell["batch_size"]:,}', _depth(cell, found)))
    if cell['seconds_at_peak']:
        seconds = cell['seconds_at_peak']
        shown = f'{seconds:.2f} s' if seconds >= 1 else f'{1e3 * seconds:.3g} ms'
        peak = device.flops[cell['dtype']] / 1e12
        facts.append(('a step takes', f"at least {shown}, at the data sheet's {peak:g} TFLOP/s"))
    return facts


def _batch(cell: Row) -> str:
    from gluon_aa.memory.ways import LARGEST
    if cell['largest_batch'] > LARGEST - cell['devices'] * cell['accumulate']:
        return f'{cell["largest_batch"]:,} or more'
    return f'{cell["largest_batch"]:,}' if cell['largest_batch'] else 'none'


def _depth(cell: Row, found: Row) -> str:
    deepest, eligible = cell['deepest'], found['eligible']
    if not deepest:
        return 'does not fit' if deepest is None else f'none of {eligible}'
    return f'all {eligible} of {eligible}' if deepest == eligible else f'last:{deepest} of {eligible}'


def _advice(found: Row) -> List[str]:
    """How to make it fit, where it does not."""
    if found['cells'][0]['fits']:
        return []
    if not found['changes']:
        least = found['least']
        return [f'No change makes it fit: the least, {least["way"]} at batch {least["batch_size"]}, needs '
                f'{in_words(least["total_bytes"] + least["uncertainty_bytes"])}.']
    first, *others = found['changes']
    answer = [f'The cheapest change that makes it fit: {first["why"]}', f'  {first["command"]}']
    rows = [(shlex.join(change['flags']), in_words(change['safe_bytes']), f'{change["extra_time"]:+.1%}',
             change['effect'] or 'nothing') for change in others]
    return answer + [_table(rows, ('or', 'needs', 'time by FLOPs', 'alters'), 'lrrl')] if rows else answer


def _ways(found: Row) -> List[str]:
    """What fits for every way to compute it, the asked one first."""
    cells, of_depth = found['cells'], bool(found['eligible'])
    if found['least']:
        return []
    rows = [(cell['way'], _batch(cell), f'{cell["relative_time"]:.2f}', *([_depth(cell, found)] if of_depth else []))
            for cell in cells]
    headers = ('attention' if of_depth else 'memory mode', 'largest batch', 'time by FLOPs')
    return [_table(rows, (*headers, f'deepest at batch {cells[0]["batch_size"]:,}') if of_depth else headers,
                   'lrrl' if of_depth else 'lrr')]


def _bytes(found: Row) -> str:
    cell = found['cells'][0]
    rows = [(name, f'{count / 2 ** 20:,.1f}', f'{count / cell["total_bytes"]:.1%}')
            for name, count in (*cell['bytes'].items(), ('total', cell['total_bytes'])) if count]
    if cell['uncertainty_bytes']:
        rows.append(('uncertainty', f'{cell["uncertainty_bytes"] / 2 ** 20:,.1f}', ''))
    return _table(rows, ('a device holds', 'MiB', 'share'), 'lrr')


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str) -> str:
    sides = {'l': 'left', 'r': 'right'}
    return str(tabulate(rows, headers, disable_numparse=True, colalign=[sides[side] for side in align]))
