"""The edge of what fits: the largest batch of each depth, the deepest augmentation of each batch, and it in words."""
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from gluon_aa.memory.devices import Device
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
    place = f'On {_article(device.title)} {device.title}{form}'
    if not any(request.depths):  # a network without augmented layers: what is asked is the batch
        found = [(edge['way'], max((each['batch_size'] or 0 for each in edge['largest_batch']), default=0))
                 for edge in edges]
        return f'{place}, ' + _joined(f'{name} {_batch_words(size, request)}' for name, size in found) + '.'
    found = [(edge['way'], next(each['depth'] for each in edge['deepest'] if each['batch_size'] == batch))
             for edge in edges]
    return f'{place} at batch {batch}, ' + _joined(f'{name} {_depth_words(depth, request)}'
                                                   for name, depth in found) + '.'


def _article(title: str) -> str:
    return 'an' if title[:1] in 'A' else 'a'


def _batch_words(size: int, request: Request) -> str:
    return f'takes batches up to {size}' if size else f'does not even take a batch of {min(request.batch_sizes)}'


def _depth_words(depth: Any, request: Request) -> str:
    if depth is None:
        return 'does not fit' if request.depths[0] else 'does not fit even without augmented layers'
    if depth == request.layers:
        return f'allows all {depth} layers to be augmented'
    return f'allows {depth} of {request.layers}'


def _joined(parts: Iterator[str]) -> str:
    return '; '.join(parts)
