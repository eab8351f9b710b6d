"""gluon-aa bench throughput"""
import pathlib
from typing import Any, Dict, List, Optional, Tuple

import click
from tabulate import tabulate

from gluon_aa.cli.lists import list_of
from gluon_aa.cli.output import json_option, printer, writable, write_result
from gluon_aa.errors import FailedError, UsageError, unknown
from gluon_aa.training.config import DTYPES

HYBRIDIZE = {'on': (True,), 'off': (False,), 'both': (True, False)}


@click.command()
@click.option('--net', 'nets', default='resnet34', show_default=True, callback=list_of(str), help='Networks: a,b.')
@click.option('--batch-size', 'batch_sizes', default='128', show_default=True, callback=list_of(int),
              help='Images a step, over all devices: 32,128.')
@click.option('--dtype', 'dtypes', default='float32', show_default=True, callback=list_of(str),
              help=f'Number formats: {",".join(DTYPES)}.')
@click.option('--hybridize', type=click.Choice(tuple(HYBRIDIZE)), default='on', show_default=True,
              help='Compiled graphs, eager execution, or both.')
@click.option('--cpus', callback=list_of(int), help='Numbers of CPU contexts: 1,2.  [default: 1]')
@click.option('--gpus', callback=list_of(int), help='GPU ids, all of them together: 0,1.')
@click.option('--phase', 'phases', default='training,inference', show_default=True, callback=list_of(str),
              help='What to measure.')
@click.option('--input-size', metavar='HxW', help='Size of the images in pixels.  [default: 32x32]')
@click.option('--warm-up', type=click.IntRange(1), default=3, show_default=True, help='Steps before the clock starts.')
@click.option('--steps', type=click.IntRange(1), default=5, show_default=True, help='Steps a repeat.')
@click.option('--repeats', type=click.IntRange(1), default=5, show_default=True,
              help='Repeats; their median, slowest and fastest are shown.')
@click.option('--plot', metavar='PNG', callback=writable, help='File to draw the figures into.')
@json_option
def throughput(nets: Tuple[str, ...], batch_sizes: Tuple[int, ...], dtypes: Tuple[str, ...], hybridize: str,
               cpus: Tuple[int, ...], gpus: Tuple[int, ...], phases: Tuple[str, ...], input_size: Optional[str],
               warm_up: int, steps: int, repeats: int, plot: Optional[pathlib.Path], json_path: Optional[str]) -> None:
    """Images/s of training and inference for every combination, on synthetic images.

    Each combination runs in a process of its own, one after the other. A training step is the trainer's, from a batch
    in host memory to the updated weights; other work on the machine shows as a wide spread.
    """
    from gluon_aa.training import throughput as measuring
    if cpus and gpus:
        raise UsageError('--cpus and --gpus exclude each other: choose one')
    for name in phases:
        if name not in measuring.PHASES:
            raise unknown('phase', name, measuring.PHASES)
    places: List[Dict[str, Any]] = [{'gpus': gpus}] if gpus else [{'cpus': number} for number in cpus or (1,)]
    protocol = measuring.Protocol(warm_up, steps, repeats, phases)
    configs = measuring.combinations(nets, batch_sizes, dtypes, HYBRIDIZE[hybridize], places, input_size)
    if not configs or not phases:
        raise UsageError('there is nothing to measure: name at least one of each')
    _check_nets(nets)
    rows, echo = [], printer(json_path)
    for row in measuring.measure_all(configs, protocol):
        rows.append(row)
        figure = row.get('error') or f'{row["phase"]} {row["images_per_second"]:,.1f} images/s'
        click.echo(f'{measuring.label(row)}: {figure}', err=True)
    good = [row for row in rows if 'error' not in row]
    conditions = measuring.conditions(protocol)
    write_result(json_path, {'cells': rows, **conditions})
    if good:
        echo(_table(good))
        echo(f'\nmedian of {repeats} repeats of {steps} steps after {warm_up}; {conditions["cpu"]}, '
             f'{conditions["physical_cores"]} cores')
    if plot and good:
        measuring.draw(good, plot, f'Images/s on {conditions["cpu"]}, {conditions["physical_cores"]} cores')
        echo(f'plot: {plot}')
    if len(good) < len(rows):
        raise FailedError(f'{len(rows) - len(good)} of {len(configs)} combinations were not measured: see above')


def _check_nets(names: Tuple[str, ...]) -> None:
    """Build each once, without weights, so that a wrong name is found before anything is measured."""
    from gluon_aa.models import get_model
    for name in names:
        get_model(name)


def _table(rows: List[Dict[str, Any]]) -> str:
    cells = [(row['net'], row['batch_size'], row['dtype'], 'yes' if row['hybridized'] else 'no',
              ', '.join(row['devices']), row['threads'], row['phase'], f'{row["images_per_second"]:,.1f}',
              f'{row["slowest"]:,.1f} to {row["fastest"]:,.1f}') for row in rows]
    headers = ('net', 'batch', 'dtype', 'hybridized', 'devices', 'threads', 'phase', 'images/s', 'slowest to fastest')
    table = tabulate(cells, headers, disable_numparse=True,
                     colalign=('left', 'right', 'left', 'left', 'left', 'right', 'left', 'right', 'right'))
    return str(table)
