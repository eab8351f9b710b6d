"""The edge of what fits: the largest batch of each depth, the deepest augmentation of each batch, and it in words."""
from typing import Any, Dict, List, Sequence, Tuple

from gluon_aa.memory.devices import Device, in_words
from gluon_aa.memory.request import Request, Way
from gluon_aa.memory.sweep import FITS

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
    """For each device, dtype and way: `largest_batch` of each depth and `deepest` of each batch size, None for none."""
    found = []
    for (device, dtype, how), members in panels(rows).items():
        fitting = [(cell['depth'], cell['batch_size']) for cell in members if cell['status'] == FITS]
        depths = sorted({cell['depth'] for cell in members})
        batches = sorted({cell['batch_size'] for cell in members})
        found.append({
            'device': device, 'dtype': dtype, **how._asdict(), 'way': str(how),
            'largest_batch': [{'depth': depth, 'batch_size': max((b for d, b in fitting if d == depth), default=None)}
                              for depth in depths],
            'deepest': [{'batch_size': batch, 'depth': max((d for d, b in fitting if b == batch), default=None)}
                        for batch in batches]})
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
        found = [(edge['way'], max((each['batch_size'] or 0 for each in edge['largest_batch']), default=0))
                 for edge in edges]
        return f'{place}, ' + ', '.join(f'{name} {_batch_words(size, request)}' for name, size in found) + (
            f' ({request.source}).')
    found = [(edge['way'], next(each['depth'] for each in edge['deepest'] if each['batch_size'] == batch))
             for edge in edges]
    return (f'{place} at batch {batch}, of the {request.layers} layers that can be augmented, '
            + ', '.join(f'{name} fits {_depth_words(depth, request)}' for name, depth in found)
            + f' ({request.source}).')


def _batch_words(size: int, request: Request) -> str:
    return f'fits up to batch {size}' if size else f'does not even fit at batch {min(request.batch_sizes)}'


def _depth_words(depth: Any, request: Request) -> str:
    if depth is None:
        return f'not even {request.depths[0]}' if request.depths[0] else 'not even the plain network'
    if depth == request.layers:
        return f'all {depth}'
    return f'{depth} (the most asked for)' if depth == max(request.depths) else str(depth or 'none')
