"""gluon-aa bench memory"""
import pathlib
from typing import Any, Dict, List, Optional, Tuple, Union

import click

from gluon_aa.attention import BACKENDS
from gluon_aa.cli.lists import list_of
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory.devices import DEVICES, parse_bytes
from gluon_aa.training.config import DTYPES, MEMORY_MODES, RECOMPUTE

_TIME_LIMIT = 600.0


def _list(kind: Any) -> Any:
    """As `list_of`, but None where the flag was not given."""
    read = list_of(kind)
    return lambda ctx, parameter, value: None if value is None else read(ctx, parameter, value)


def _budget(ctx: click.Context, parameter: click.Parameter, value: Optional[str]) -> Optional[int]:
    return None if value is None else parse_bytes(value)


def _depths(ctx: click.Context, parameter: click.Parameter, value: Optional[str]) -> Union[None, str, Tuple[int, ...]]:
    from gluon_aa.memory.request import parse_depths
    return None if value is None else parse_depths(value)


@click.command()
@click.option('--net', help='Network: see gluon-aa models list.  [default: aa_wrn28_10]')
@click.option('--device', 'devices', callback=_list(str),
              help=f'{",".join(DEVICES)}, or gpu for those here.  [default: gpu where MXNet sees one, or else cpu]')
@click.option('--memory-budget', metavar='SIZE', callback=_budget,
              help='Memory of each device, such as 11GiB, in place of its own; on the CPU, of what is free.')
@click.option('--batch-size', 'batch_sizes', callback=_list(int),
              help='Images a step, over all devices.  [default: 8,16,32,64,96,128,192,256]')
@click.option('--depth', 'depths', metavar='all|N,M-L', callback=_depths,
              help='How many layers are augmented, counted from the output.  [default: all]')
@click.option('--attention-backend', 'backends', callback=_list(str),
              help=f'How attention is computed.  [default: {",".join(BACKENDS)}; native on CPUs only]')
@click.option('--memory-mode', 'memory_modes', callback=_list(str),
              help=f'{",".join(MEMORY_MODES)}; auto: recompute for tiled, speed for the others.  [default: auto]')
@click.option('--recompute', type=click.Choice(RECOMPUTE), help='What is recomputed.  [default: attention]')
@click.option('--tile', type=int, help='Queries a tile of backend tiled.')
@click.option('--dtype', 'dtypes', callback=_list(str), help=f'{",".join(DTYPES)}.  [default: float32]')
@click.option('--gpus', callback=_list(int), help='GPU ids that share the batch: 0,1.  [default: 0]')
@click.option('--cpus', type=int, help='CPU contexts that share the batch.  [default: 1]')
@click.option('--input-size', metavar='HxW', help='Size of the images in pixels.  [default: 32x32]')
@click.option('--classes', type=click.IntRange(1), help='Number of classes.  [default: 10]')
@click.option('--inference', is_flag=True, default=None, help='Inference in place of training steps.')
@click.option('--source', type=click.Choice(('modelled', 'extrapolated', 'measured')),
              help='modelled: planned, no step is run; extrapolated: from steps metered at tiny batches; measured: by '
                   'running.  [default: modelled]')
@click.option('--measure', is_flag=True, help='The same as --source measured: each cell that matters is run.')
@click.option('--all-cells', is_flag=True, default=None, help='Measure every cell, not only those at the frontier.')
@click.option('--time-limit', type=click.FloatRange(0, min_open=True), default=_TIME_LIMIT, show_default=True,
              help='Seconds for each process.')
@click.option('--jobs', type=click.IntRange(1),
              help='Processes at once.  [default: one for each core; 1 where steps are run]')
@click.option('--output', type=click.Path(path_type=pathlib.Path),
              help='Directory for the results.  [default: memory-<net>-<UTC time>]')
@click.option('--resume', is_flag=True,
              help='Go on with the sweep of the directory --output; flags that are not given are its own.')
@json_option
def memory(measure: bool, time_limit: float, jobs: Optional[int], output: Optional[pathlib.Path], resume: bool,
           json_path: Optional[str], **flags: Any) -> None:
    """What fits: batch size x augmented depth x ways to compute, on devices that need not be here.

    Alone with --device p100-16g it is the chart of Wide-ResNet-28-10. Figures are modelled unless you say otherwise:
    GPUs are never measured from afar. Writes tables, charts and a report, report.html, into a directory.
    """
    from gluon_aa import machine
    from gluon_aa.memory import report, sweep
    from gluon_aa.memory.sweep_directory import SweepDirectory
    given = {key: value for key, value in flags.items() if value is not None}
    if measure and given.setdefault('source', 'measured') != 'measured':
        raise UsageError(f'--measure and --source {given["source"]} exclude each other: leave out one')
    if resume and output is None:
        raise UsageError('--resume needs --output: the directory of the sweep to go on with')
    directory = SweepDirectory.resume(output, given) if resume and output else SweepDirectory.create(output, given)
    request, echo = directory.request, printer(json_path)
    echo(f'{report.what(request)}; {report.where(directory.devices)}')
    with directory.recording() as recorder:
        lines = request.lines(directory.devices)
        total, progress = len(lines) * len(request.batch_sizes), _Progress(request, len(recorder.cells))
        if recorder.cells:
            click.echo(f'{len(recorder.cells)} of {total} cells are there already', err=True)

        def record(cell: Dict[str, Any]) -> None:
            recorder.add(cell)
            progress.tell(cell, total)

        default_jobs = machine.physical_cores() if request.source == 'modelled' else 1
        try:
            cells = sweep.run(request, directory.devices, recorder.cells[:], record,
                              sweep.Limits(time_limit, jobs or default_jobs))
        except KeyboardInterrupt:
            click.echo(f'gluon-aa bench memory --output {directory.path} --resume goes on from here.', err=True)
            raise
        found = report.write(directory.path, request, directory.devices, cells)
    echo('')
    echo(report.text(request, directory.devices, cells))
    echo(f'\nreport: {directory.path / "report.html"}')
    write_result(json_path, {**found, 'output': str(directory.path)})
    failed = [cell for cell in cells if cell['status'] in (sweep.TIMED_OUT, sweep.CRASHED)]
    if failed and len(failed) == len(cells):
        raise FailedError(f'not one of {len(cells)} cells was found: {failed[0]["message"]}')


class _Progress:
    """A line on standard error for each cell that ran, and for each line of planned ones."""

    def __init__(self, request: Any, done: int) -> None:
        self.request, self.done = request, done
        self.waiting: Dict[str, List[Dict[str, Any]]] = {}

    def tell(self, cell: Dict[str, Any], total: int) -> None:
        from gluon_aa.memory.frontier import way
        self.done += 1
        name = f'{cell["device"]}, depth {cell["depth"]}, {way(cell)}, {cell["dtype"]}'
        if self.request.source == 'measured':
            click.echo(f'{name}, batch {cell["batch_size"]}: {_found(cell)}', err=True)
            return
        members = self.waiting.setdefault(name, [])
        members.append(cell)
        if len(members) == len(self.request.batch_sizes):
            largest = max((each['batch_size'] for each in members if each['status'] == 'fits'), default=None)
            text = members[0]['message'] if members[0]['total_bytes'] is None else (
                f'fits up to batch {largest}' if largest else 'does not fit')
            click.echo(f'[{self.done}/{total}] {name}: {text}', err=True)


def _found(cell: Dict[str, Any]) -> str:
    from gluon_aa.memory.devices import in_words
    if cell['total_bytes'] is None:
        return f'{cell["status"]}: {cell["message"]}'
    limit = '' if cell['device'] == 'gpu' else (f' (process of {in_words(cell["baseline_bytes"])} + budget of '
                                                f'{in_words(cell["budget_bytes"])})')
    return f'{cell["status"]}, {in_words(cell["total_bytes"])}{limit}'
