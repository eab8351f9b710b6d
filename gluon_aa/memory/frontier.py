"""The edge of what fits: the largest batch of each depth, the deepest augmentation of each batch, and it in words."""
from typing import Any, Dict, List, Sequence, Tuple

from gluon_aa.memory.devices import Device, in_words
from gluon_aa.memory.request import Request, Way
from gluon_aa.memory.sweep import FITS, TOO_LARGE

Row = Dict[str, Any]
Panel = Tuple[str, str, Way]  # device, dtype, way

#: The batch that is spoken of where it was asked for: the replication's.
USUAL_BATCH = 128


def way(cell: Row) -> Way:
    """How a cell is computed."""
    return Way(*(cell[name] for name in Way._fields))


def panels(rows: Sequence[Row]) -> Dict[Panel, List[Row]]:
    """Cells by device, dtype and way, in their order."""
    found: Dict[Panel, List[Row]] = {}
    for cell in rows:
        found.setdefault((cell['device'], cell['dtype'], way(cell)), []).append(cell)
    return found


def frontiers(rows: Sequence[Row]) -> List[Row]:
    """For each device, dtype and way: `largest_batch` of each depth and `deepest` of each batch size, None for none.

    `known` is False where cells failed for other reasons than memory, so that more may fit than was found.
    """
    found = []
    for (device, dtype, how), members in panels(rows).items():
        fitting = [(cell['depth'], cell['batch_size']) for cell in members if cell['status'] == FITS]
        depths = sorted({cell['depth'] for cell in members})
        batches = sorted({cell['batch_size'] for cell in members})
        failed = [cell for cell in members if cell['status'] not in (FITS, TOO_LARGE)]
        unknown_depths, unknown_batches = ({cell[name] for cell in failed} for name in ('depth', 'batch_size'))
        found.append({
            'device': device, 'dtype': dtype, **how._asdict(), 'way': str(how),
            'largest_batch': [{'depth': depth, 'batch_size': max((b for d, b in fitting if d == depth), default=None),
                               'known': depth not in unknown_depths} for depth in depths],
            'deepest': [{'batch_size': batch, 'depth': max((d for d, b in fitting if b == batch), default=None),
                         'known': batch not in unknown_batches} for batch in batches]})
    return found


def spoken_batch(request: Request, rows: Sequence[Row]) -> int:
    """The batch size that tells the ways apart: 128 where it was asked for, or else the largest that fits any way."""
    if USUAL_BATCH in request.batch_sizes:
        return USUAL_BATCH
    fitting = [cell['batch_size'] for cell in rows if cell['status'] == FITS]
    return max(fitting, default=min(request.batch_sizes))


def answers(request: Request, devices: Sequence[Device], rows: Sequence[Row]) -> List[str]:
    """A sentence for each device and dtype."""
    batch, edges = spoken_batch(request, rows), frontiers(rows)
    return [_sentence(request, device, dtype, batch,
                      [edge for edge in edges if (edge['device'], edge['dtype']) == (device.name, dtype)])
            for device in devices for dtype in request.dtypes]


def _sentence(request: Request, device: Device, dtype: str, batch: int, edges: Sequence[Row]) -> str:
    form = '' if len(request.dtypes) == 1 else f' in {dtype}'
    place = f'On {"an" if device.title[0] in "A" else "a"} {device.title}{form} ({in_words(device.usable)} usable)'
    if not any(request.depths):  # a network without augmented layers: what is asked is the batch
        sizes = [(edge['way'], max((each['batch_size'] or 0 for each in edge['largest_batch']), default=0),
                  all(each['known'] for each in edge['largest_batch'])) for edge in edges]
        words = ', '.join(f'{name} {_batch_words(size, known, request)}' for name, size, known in sizes)
        return f'{place}, {words} ({request.source}).'
    found = [(edge['way'], next(each for each in edge['deepest'] if each['batch_size'] == batch)) for edge in edges]
    return (f'{place} at batch {batch}, of the {request.layers} layers that can be augmented, '
            + ', '.join(f'{name} {_depth_words(each["depth"], each["known"], request)}' for name, each in found)
            + f' ({request.source}).')


def _batch_words(size: int, known: bool, request: Request) -> str:
    if not known:
        return f'fits batch {size} at least, the rest failed' if size else 'is not known, as its cells failed'
    return f'fits up to batch {size}' if size else f'does not even fit at batch {min(request.batch_sizes)}'


def _depth_words(depth: Any, known: bool, request: Request) -> str:
    if not known and depth != max(request.depths):
        return 'is not known, as its cells failed' if depth is None else f'fits {depth} at least, as other cells failed'
    if depth is None:
        return f'fits not even {request.depths[0]}' if request.depths[0] else 'fits not even the plain network'
    if depth == request.layers:
        return f'fits all {depth}'
    return f'fits {depth} (the most asked for)' if depth == max(request.depths) else f'fits {depth or "none"}'
