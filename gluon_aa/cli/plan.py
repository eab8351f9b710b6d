"""gluon-aa plan"""
import shlex
from typing import Any, Dict, List, Optional, Tuple

import click
from tabulate import tabulate

from gluon_aa.cli.options import key_options
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.configs import find_recipe
from gluon_aa.errors import UsageError
from gluon_aa.memory.devices import DEVICES, Device, find_device, in_words, parse_bytes
from gluon_aa.training.config import FIELDS, TrainConfig, load, override, parse_size

#: Keys that decide what a training step needs; `accumulate` where trainings have it.
KEYS = tuple(key for key in (
    'net', 'batch_size', 'placement', 'num_heads', 'key_ratio', 'value_ratio', 'min_key_channels_per_head', 'relative',
    'attention_backend', 'memory_mode', 'tile', 'recompute', 'accumulate', 'dtype', 'optimizer', 'momentum', 'dropout',
    'stem', 'hybridize', 'gpus', 'cpus', 'dataset', 'input_size') if key in FIELDS)

Row = Dict[str, Any]


@click.command()
@click.option('--device', 'device_name', default='cpu', show_default=True, metavar='NAME',
              help=f'What to train on: {", ".join(DEVICES)}. The CPU is the one here.')
@click.option('--memory-budget', metavar='SIZE', callback=lambda ctx, parameter, value: value and parse_bytes(value),
              help="Memory of each device, such as 11GiB.  [default: the device's; on the CPU, what is available now]")
@click.option('--config', 'recipe', metavar='FILE', help='YAML file of keys, or a recipe of ours, such as cpu/digits.')
@key_options(*KEYS)
@click.option('--classes', type=click.IntRange(1), help="Classes of a folder's images.  [default: 10]")
@json_option
def plan(device_name: str, memory_budget: Optional[int], recipe: Optional[str], classes: Optional[int],
         json_path: Optional[str], **options: Any) -> None:
    """What of a training fits a device: known beforehand, without running a step and without the device.

    Tells the bytes of a training step, the largest batch, the deepest augmentation, and where it does not fit the
    cheapest change that makes it fit, as a command. Keys and flags are those of gluon-aa train; --gpus 0,1 are two such
    devices that share the batch. Exits with 0 whether it fits or not: --json tells in `cells[0].fits`.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if 'dataset' not in given and (given.get('input_size') or classes) and not recipe:
        given['dataset'] = 'folder'
    config = load(find_recipe(recipe) if recipe else None, given)
    device = find_device(device_name, memory_budget)
    config = _on(config, device, given)
    from gluon_aa.data.form import form_of
    classes, image_shape = form_of(config.dataset, config.input_size and parse_size(config.input_size), classes)
    from gluon_aa.memory import advice
    found = advice.advise(config, classes, image_shape, device)
    words = ['gluon-aa', 'train', *(['--config', recipe] if recipe else [])]
    if config.gpus:
        given['gpus'] = config.gpus
    for change in found['changes']:
        change['command'] = shlex.join([*words, *advice.flags({**given, **change['keys']})])
    echo = printer(json_path)
    echo(_answer(found, device))
    echo(_ways(found))
    echo(_bytes(found))
    write_result(json_path, found)


def _on(config: TrainConfig, device: Device, given: Row) -> TrainConfig:
    """`config` on devices of this kind: where none are named, on one."""
    if device.gpu and 'cpus' in given:
        raise UsageError(f'--cpus are not for a {device.title}: name --gpus, such as 0,1 for two')
    if not device.gpu and config.gpus:
        raise UsageError(f'which GPUs? Name their kind: --device {", ".join(n for n in DEVICES if DEVICES[n].gpu)}')
    return config if config.gpus or not device.gpu else override(config, {'gpus': (0,)})


def _answer(found: Row, device: Device) -> str:
    cell = found['cells'][0]
    on = f'{cell["devices"]} x {device.title}' if cell['devices'] > 1 else device.title
    safe = cell['total_bytes'] + cell['uncertainty_bytes']
    each = ' a device' if cell['devices'] > 1 else ''
    lines = [f'{cell["net"]} at batch {cell["batch_size"]} {"fits" if cell["fits"] else "does not fit"} {on}: '
             f'{in_words(safe)} of {in_words(found["budget_bytes"])}{each}, modelled',
             *_facts(found)]
    return '\n'.join([*lines, *_advice(found)])


def _facts(found: Row) -> List[str]:
    cell = found['cells'][0]
    facts = [('computed', f'{cell["way"]}, {cell["dtype"]}'), ('largest batch', _batch(cell))]
    if found['eligible']:
        facts.append((f'deepest at {cell["batch_size"]}', _depth(cell, found)))
    if cell['seconds_at_peak']:
        facts.append(('a step', f'at least {cell["seconds_at_peak"]:.2f} s, at the peak of the device'))
    return [f'  {name:<16}{text}' for name, text in facts]


def _batch(cell: Row) -> str:
    return f'{cell["largest_batch"]:,}' if cell['largest_batch'] else 'none'


def _depth(cell: Row, found: Row) -> str:
    deepest, eligible = cell['deepest'], found['eligible']
    if deepest is None:
        return 'none'
    return f'all {eligible} of {eligible}' if deepest == eligible else f'last:{deepest} of {eligible}'


def _advice(found: Row) -> List[str]:
    if found['cells'][0]['fits']:
        return []
    if not found['changes']:
        least = found['least']
        return ['', f'Nothing that could be changed makes it fit: the least there is, {least["way"]} at batch '
                f'{least["batch_size"]}, needs {in_words(least["total_bytes"] + least["uncertainty_bytes"])}.']
    first, *others = found['changes']
    lines = ['', f'The cheapest change that makes it fit: {first["why"]}', '', f'  {first["command"]}']
    if others:
        rows = [(shlex.join(change['flags']), in_words(change['safe_bytes']), f'{change["extra_time"]:+.1%}',
                 change['effect']) for change in others]
        headers = ('or', 'needs', 'time', 'alters')
        lines += ['', tabulate(rows, headers, disable_numparse=True, colalign=('left', 'right', 'right', 'left'))]
    return lines


def _ways(found: Row) -> str:
    depth = bool(found['eligible'])
    batch = found['cells'][0]['batch_size']
    rows = [(cell['way'], _batch(cell), *([_depth(cell, found)] if depth else []), f'{cell["relative_time"]:.3f}')
            for cell in found['cells']]
    headers = ('way', 'largest batch', *([f'deepest at batch {batch}'] if depth else []), 'time by FLOPs')
    table = tabulate(rows, headers, disable_numparse=True,
                     colalign=('left', 'right', *(['right'] if depth else []), 'right'))
    return f'\n{table}'


def _bytes(found: Row) -> str:
    cell = found['cells'][0]
    rows = [(name, _mebibytes(count)) for name, count in cell['bytes'].items() if count]
    rows += [('total', _mebibytes(cell['total_bytes']))]
    if cell['uncertainty_bytes']:
        rows.append(('uncertainty', _mebibytes(cell['uncertainty_bytes'])))
    rows.append(('usable', _mebibytes(found['budget_bytes'])))
    return '\n' + str(tabulate(rows, (cell['way'], 'MiB'), disable_numparse=True, colalign=('left', 'right')))


def _mebibytes(count: int) -> str:
    return f'{count / 2 ** 20:,.1f}'
