"""gluon-aa bench attention"""
import pathlib
from typing import Any, Dict, List, Optional, Tuple

import click
from tabulate import tabulate

from gluon_aa.attention import BACKENDS
from gluon_aa.cli.lists import list_of
from gluon_aa.cli.output import json_option, printer, writable, write_result
from gluon_aa.errors import FailedError, UsageError, unknown
from gluon_aa.training.config import parse_size


@click.command()
@click.option('--map-size', 'map_sizes', metavar='HxW,...', callback=list_of(parse_size),
              help='Maps in pixels.  [default: those of aa_wrn28_10, 32x32,16x16,8x8]')
@click.option('--batch-size', 'batch_sizes', callback=list_of(int, repeats=True),
              help='Images: one number for all maps, or one for each.  [default: 8192 pixels, 8,32,128]')
@click.option('--num-heads', type=click.IntRange(1), default=8, show_default=True, help='Attention heads.')
@click.option('--key-channels', type=click.IntRange(1), default=160, show_default=True,
              help='Channels of the keys, and of the queries, over all heads.')
@click.option('--value-channels', callback=list_of(int, repeats=True),
              help='Channels of the values over all heads: for all maps, or for each.  '
                   '[default: those of aa_wrn28_10, 16,32,64; 32 elsewhere]')
@click.option('--attention-backend', 'backends', default=','.join(BACKENDS), show_default=True, callback=list_of(str),
              help='How attention is computed.')
@click.option('--relative/--no-relative', default=True, help='Relative position embeddings. [default: on]')
@click.option('--tile', type=click.IntRange(1), help='Queries a tile, of backends that have tiles.')
@click.option('--pass', 'passes', default='forward,backward,forward+backward', show_default=True, callback=list_of(str),
              help='What to measure.')
@click.option('--warm-up', type=click.IntRange(1), default=3, show_default=True, help='Passes before the clock starts.')
@click.option('--repeats', type=click.IntRange(1), default=10, show_default=True,
              help='Passes that are timed; their median, fastest and slowest are shown.')
@click.option('--plot', metavar='PNG', callback=writable, help='File to draw the figures into.')
@json_option
def attention(map_sizes: Tuple[Tuple[int, int], ...], batch_sizes: Tuple[int, ...], num_heads: int, key_channels: int,
              value_channels: Tuple[int, ...], backends: Tuple[str, ...], relative: bool, tile: Optional[int],
              passes: Tuple[str, ...], warm_up: int, repeats: int, plot: Optional[pathlib.Path],
              json_path: Optional[str]) -> None:
    """Time and memory of the attention operator for every size and backend, in float32 on one CPU device.

    Each runs in processes of its own, one after the other, hybridized with static memory. The forward pass is
    inference; the backward pass gives the gradients of queries, keys, values and both tables. GFLOP/s counts the
    products that the equations need, once. Extra memory is the peak beyond inputs, output and their gradients: what
    MXNet allocates, and what the process grows by.
    """
    from gluon_aa.attention import measuring
    for name in passes:
        if name not in measuring.PASSES:
            raise unknown('pass', name, measuring.PASSES)
    if not backends or not passes:
        raise UsageError('there is nothing to measure: name at least one of each')
    cases = measuring.cases(map_sizes, batch_sizes, value_channels, backends, num_heads=num_heads,
                            key_channels=key_channels, relative=relative, tile=tile)
    protocol = measuring.Protocol(warm_up, repeats, passes)
    rows, echo = [], printer(json_path)
    for row in measuring.measure_all(cases, protocol):
        rows.append(row)
        figure = row.get('error') or f'{row["pass"]} {1e3 * row["seconds"]:,.2f} ms'
        click.echo(f'{measuring.label(row)}: {figure}', err=True)
    good = [row for row in rows if 'error' not in row]
    conditions = measuring.conditions(protocol)
    write_result(json_path, {'cells': rows, **conditions})
    machine = f'{conditions["cpu"]}, {conditions["physical_cores"]} cores'
    if good:
        echo(_table(good))
        echo(f'\nmedian of {repeats} after {warm_up}; extra memory beyond inputs, output and their gradients: '
             f'allocated by MXNet, and what the process grew by; {machine}, {good[0]["threads"]} threads')
    if plot and good:
        measuring.draw(good, plot, f'Attention, {num_heads} heads, {key_channels} key channels; {machine}')
        echo(f'plot: {plot}')
    if len(good) < len(rows):
        raise FailedError(f'{len(rows) - len(good)} of {len(cases)} cases were not measured: see above')


def _table(rows: List[Dict[str, Any]]) -> str:
    cells = [(f'{row["height"]}x{row["width"]}', row['batch_size'], row['value_channels'], row['attention_backend'],
              row['pass'], *(f'{1e3 * row[key]:,.2f}' for key in ('seconds', 'fastest', 'slowest')),
              f'{row["flops_per_second"] / 1e9:,.1f}', _megabytes(row['storage_bytes']),
              _megabytes(row['resident_bytes'])) for row in rows]
    headers = ('map', 'batch', 'values', 'backend', 'pass', 'ms', 'fastest', 'slowest', 'GFLOP/s', 'extra MB', 'RSS MB')
    table = tabulate(cells, headers, disable_numparse=True,
                     colalign=('left', 'right', 'right', 'left', 'left', *['right'] * 6))
    return str(table)


def _megabytes(count: Optional[int]) -> str:
    return '' if count is None else f'{count / 1e6:,.2f}'
