"""Sweeps of memory: which cells fit, found by planning whole lines of them, or by running few and bisecting.

A cell is a row: what was asked, `source` (modelled, extrapolated or measured), `status` (one of `STATUSES`), `message`,
`bytes` (by category), `total_bytes`, `uncertainty_bytes`, `budget_bytes`, `layers`. Of a measured sweep most cells are
never run: where the status follows from another cell of the same depth it is `derived`, without bytes.
"""
import concurrent.futures
import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from gluon_aa import machine
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory import cells, failures
from gluon_aa.memory.devices import CONTEXT, Device, in_words
from gluon_aa.memory.request import Line, Request

FITS, TOO_LARGE, TIMED_OUT, CRASHED, NOT_RUN = STATUSES = (
    'fits', 'out of memory', 'timed out', 'crashed', 'not run')

#: Keys of a cell that tell it from the others of its sweep.
KEYS = ('device', 'dtype', 'attention_backend', 'memory_mode', 'recompute', 'tile', 'depth', 'batch_size')

#: How a process ends that was aborted, killed from outside or that touched memory it does not have.
_VIOLENT = re.compile(r'its process ended with code -(6|7|9|11):')

Row = Dict[str, Any]
Key = Tuple[Any, ...]


class Finders(NamedTuple):
    """What finds the bytes of cells: lines of them planned or extrapolated, one of them measured."""

    modelled: Callable[..., List[Row]] = cells.modelled
    extrapolated: Callable[..., List[Row]] = cells.extrapolated
    measured: Callable[..., Row] = cells.measured


class Limits(NamedTuple):
    """Seconds for each process, and how many of them there are at once."""

    seconds: float
    jobs: int = 1


def key(cell: Row) -> Key:
    """What tells a cell from the others of its sweep."""
    return tuple(cell[name] for name in KEYS)


def run(request: Request, devices: Sequence[Device], done: Sequence[Row], record: Callable[[Row], None],
        limits: Limits, finders: Finders = Finders()) -> List[Row]:
    """Every cell of a sweep, in the order of tables.

    Args:
        devices: as `request.found_devices()`, when the sweep began.
        done: cells of an earlier part of this sweep; they are not found again.
        record: called with each new cell as it comes.
    """
    found = {key(cell): cell for cell in done}

    def keep(cell: Row) -> None:
        found[key(cell)] = cell
        record(cell)

    lines = request.lines(devices)
    if request.source == 'measured':
        for column in _columns(lines):
            _measure_column(column, found, keep, limits, finders)
        return [cell for line in lines for cell in _derived(line, found)]
    _plan_lines([line for line in lines if not set(_keys(line)) <= set(found)], keep, limits, finders)
    return [found[each] for line in lines for each in _keys(line)]


def _keys(line: Line) -> List[Key]:
    return [key({**line.about(), 'batch_size': batch_size}) for batch_size in line.request.batch_sizes]


def _plan_lines(lines: Sequence[Line], keep: Callable[[Row], None], limits: Limits, finders: Finders) -> None:
    with concurrent.futures.ThreadPoolExecutor(limits.jobs) as pool:
        tasks = [pool.submit(_plan_line, line, limits.seconds, finders) for line in lines]
        try:
            for task in concurrent.futures.as_completed(tasks):
                for cell in task.result():
                    keep(cell)
        except BaseException:  # an interruption too: begin no other
            for task in tasks:
                task.cancel()
            raise


def _plan_line(line: Line, time_limit: float, finders: Finders) -> List[Row]:
    """The cells of a line; those of one that fails say why."""
    request = line.request
    find = finders.modelled if request.source == 'modelled' else finders.extrapolated
    try:
        rows = find(line.config(request.batch_sizes[0]), request.classes, request.image_shape, line.device,
                    request.batch_sizes, time_limit, request.inference)
    except (FailedError, UsageError) as error:
        status, message = classified(error)
        return [_cell(line, batch_size, status, message) for batch_size in request.batch_sizes]
    return [_judged(line, dict(row)) for row in rows]


def _judged(line: Line, row: Row) -> Row:
    batch_size, budget = row.pop('batch_size'), line.device.usable
    needed, obstacle = row['total_bytes'] + row['uncertainty_bytes'], row.pop('obstacle', '')
    if obstacle:
        return _cell(line, batch_size, TOO_LARGE, obstacle, **row)
    if needed <= budget:
        return _cell(line, batch_size, FITS, '', **row)
    margin = f', {in_words(row["uncertainty_bytes"])} of it uncertain' if row['uncertainty_bytes'] else ''
    return _cell(line, batch_size, TOO_LARGE, f'{in_words(needed)} needed{margin}, {in_words(budget)} usable', **row)


def _cell(line: Line, batch_size: int, status: str, message: str, **figures: Any) -> Row:
    return {**line.about(), 'batch_size': batch_size, 'status': status, 'message': message, 'derived': False,
            'bytes': {}, 'total_bytes': None, 'uncertainty_bytes': None, 'layers': [], **figures}


def classified(error: Exception) -> Tuple[str, str]:
    """The status that a failure means, and its message."""
    text = str(error)
    if failures.is_out_of_memory(error):
        return TOO_LARGE, text
    return TIMED_OUT if text.startswith('not done after') else CRASHED, text


def _columns(lines: Iterable[Line]) -> List[List[Line]]:
    """Lines that differ in depth only, the least deep first."""
    found: Dict[Tuple[Any, ...], List[Line]] = {}
    for line in lines:
        found.setdefault((line.device.name, line.dtype, line.way), []).append(line)
    return [sorted(column, key=lambda line: line.depth) for column in found.values()]


def _measure_column(column: Sequence[Line], found: Mapping[Key, Row], keep: Callable[[Row], None], limits: Limits,
                    finders: Finders) -> None:
    """Measure each depth's largest batch that fits and the next one: a neighbour's is where to look first.

    That depth follows depth is no more than a guess: an augmented convolution has smaller maps of its own, and where
    another layer decides the peak, a deeper network takes less.
    """
    guess = len(column[0].request.batch_sizes) // 2
    for line in column:
        batch_sizes, keys = line.request.batch_sizes, _keys(line)

        def fits(index: int) -> bool:
            if keys[index] not in found:
                keep(_measure(line, batch_sizes[index], limits.seconds, finders))
            return bool(found[keys[index]]['status'] == FITS)

        if line.request.all_cells:
            for index in range(len(keys)):
                fits(index)
        else:
            guess = max(0, last_fitting(fits, len(keys), guess))


def last_fitting(fits: Callable[[int], bool], count: int, guess: int) -> int:
    """The largest index below `count` that fits, -1 for none, of fits that end once and for all; few are asked.

    From `guess` on in strides that double until one fits and one does not, then by halves.
    """
    low, high, probe, stride = -1, count, guess, 1
    bounded_below = bounded_above = False
    while high - low > 1:
        if fits(probe):
            low, bounded_below, step = probe, True, stride
        else:
            high, bounded_above, step = probe, True, -stride
        stride *= 2
        probe = (low + high) // 2 if bounded_below and bounded_above else probe + step
        probe = min(max(probe, low + 1), high - 1)
    return low


def _measure(line: Line, batch_size: int, time_limit: float, finders: Finders) -> Row:
    request, budget = line.request, line.device.usable
    arguments = line.config(batch_size), request.classes, request.image_shape, time_limit
    try:
        found = finders.measured(*arguments, inference=request.inference,
                                 budget=None if line.device.gpu else budget * line.places)  # of one process
    except (FailedError, UsageError) as error:
        status, message = classified(error)
        if _VIOLENT.match(message) and status == CRASHED and request.memory_budget and not line.device.gpu:
            status, message = _without_budget(line, batch_size, message, time_limit, finders)
        return _cell(line, batch_size, status, message)
    taken = found['storage_bytes']
    figures = {**found, 'total_bytes': taken, 'uncertainty_bytes': 0}
    beside = CONTEXT if line.device.gpu else 0
    if max(taken, found['driver_bytes'] or 0) + beside > budget:  # nothing enforces it on GPUs
        return _cell(line, batch_size, TOO_LARGE, f'it ran, but took {in_words(taken)} of {in_words(budget)}',
                     **figures)
    return _cell(line, batch_size, FITS, '', **figures)


def _without_budget(line: Line, batch_size: int, message: str, time_limit: float, finders: Finders) -> Tuple[str, str]:
    """Why a process that had a budget was killed: for lack of memory if the very same step runs without."""
    request, limit = line.request, line.request.memory_budget
    try:
        found = finders.measured(line.config(batch_size), request.classes, request.image_shape, time_limit,
                                 inference=request.inference, budget=machine.available_memory())
    except (FailedError, UsageError) as error:
        return CRASHED, f'{message} (within {in_words(limit or 0)}; without that limit: {error})'
    return TOO_LARGE, (f'{message} (within {in_words(limit or 0)}; without that limit it ran, and took '
                       f'{in_words(found["storage_bytes"])})')


def _derived(line: Line, found: Mapping[Key, Row]) -> List[Row]:
    """A measured line's cells: what a batch that fits says of smaller ones, and one that does not of larger ones."""
    known = [found.get(each) for each in _keys(line)]
    fitting = [index for index, cell in enumerate(known) if cell and cell['status'] == FITS]
    too_large = [index for index, cell in enumerate(known) if cell and cell['status'] == TOO_LARGE]
    batch_sizes = line.request.batch_sizes
    row = []
    for index, cell in enumerate(known):
        if cell is not None:
            row.append(cell)
        elif fitting and index < fitting[-1]:
            row.append(_inferred(line, batch_sizes[index], FITS, f'not run: batch {batch_sizes[fitting[-1]]} fits'))
        elif too_large and index > too_large[0]:
            row.append(_inferred(line, batch_sizes[index], TOO_LARGE,
                                 f'not run: batch {batch_sizes[too_large[0]]} does not fit'))
        else:
            row.append(_inferred(line, batch_sizes[index], NOT_RUN, 'not run: a smaller batch failed otherwise'))
    return row


def _inferred(line: Line, batch_size: int, status: str, message: str) -> Row:
    return {**_cell(line, batch_size, status, message), 'derived': status != NOT_RUN}
