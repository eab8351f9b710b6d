"""What a sweep of memory found, for people and programs: tables in text, CSV, JSON, charts."""
import csv
import pathlib
import platform
import re
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from tabulate import tabulate

import gluon_aa
from gluon_aa import compat, files, machine
from gluon_aa.memory import frontier
from gluon_aa.memory.devices import Device, in_words
from gluon_aa.memory.plan import CATEGORIES
from gluon_aa.memory.request import Request, Way
from gluon_aa.memory.sweep import CRASHED, FITS, NOT_RUN, TIMED_OUT, TOO_LARGE

Row = Dict[str, Any]

#: What a cell is on charts and in tables where it has no bytes.
SHORT = {FITS: 'fits', TOO_LARGE: 'OOM', TIMED_OUT: 'time', CRASHED: 'crash', NOT_RUN: '-'}

#: Most rows and columns that a table in the terminal has, and most tables: the rest is in the files.
_MOST_ROWS, _MOST_COLUMNS, _MOST_TABLES = 26, 16, 6

GIB, MIB = 2 ** 30, 2 ** 20


def summary(request: Request, devices: Sequence[Device], rows: Sequence[Row]) -> Row:
    """All of it, as JSON has it; the layers of each cell are in cells.jsonl alone."""
    return {
        'answers': frontier.answers(request, devices, rows), 'asked': {**request.values(), 'ways': [
            way._asdict() for way in request.ways]},
        'devices': [{'name': device.name, 'title': device.title, 'memory_bytes': device.memory,
                     'usable_bytes': device.usable, 'number': len(request.gpus) or 1 if device.gpu else request.cpus}
                    for device in devices],
        'cells': [{name: value for name, value in cell.items() if name != 'layers'} for cell in rows],
        'frontier': frontier.frontiers(rows), 'conditions': conditions()}


def conditions() -> Row:
    """What made the figures."""
    return {'gluon_aa': gluon_aa.__version__, 'mxnet': compat.mx.__version__, 'numpy': np.__version__,
            'python': platform.python_version(), 'cpu': machine.cpu_model()}


def what(request: Request) -> str:
    """The sweep in a few words."""
    step = 'inference' if request.inference else 'a training step'
    return f'{request.net}, {request.input_size}, {request.classes} classes: {step}, {request.source}'


def where(devices: Sequence[Device]) -> str:
    """The devices, and what they have."""
    return ', '.join(f'{device.title}: {in_words(device.usable)} usable' for device in devices)


def text(request: Request, devices: Sequence[Device], rows: Sequence[Row]) -> str:
    """Tables for a terminal, and below them what follows."""
    titles = {device.name: device for device in devices}
    panels = frontier.panels(rows)
    parts = [_table(request, titles[name], dtype, way, members)
             for (name, dtype, way), members in list(panels.items())[:_MOST_TABLES]]
    if len(panels) > _MOST_TABLES:
        parts.append(f'{len(panels) - _MOST_TABLES} more tables are in report.html and cells.csv')
    edges = frontier.frontiers(rows)
    parts.append(_edge_table('Largest batch size that fits, by depth', edges, 'largest_batch', 'depth', 'batch_size'))
    if request.layers:
        parts.append(_edge_table('Deepest augmentation that fits, by batch size', edges, 'deepest', 'batch_size',
                                 'depth'))
    failed = [cell for cell in rows if cell['status'] in (TIMED_OUT, CRASHED)]
    if failed:
        parts.append(f'{len(failed)} cells failed, the first ({frontier.way(failed[0])}, depth {failed[0]["depth"]}, '
                     f'batch {failed[0]["batch_size"]}): {failed[0]["status"]}: {failed[0]["message"]}')
    return '\n\n'.join([*parts, '\n'.join(frontier.answers(request, devices, rows)), _legend(request, devices, rows)])


def _table(request: Request, device: Device, dtype: str, way: Way, rows: Sequence[Row]) -> str:
    cells = {(cell['depth'], cell['batch_size']): cell for cell in rows}
    depths = sorted({cell['depth'] for cell in rows})
    shown, batches = _thinned(depths, _MOST_ROWS), _thinned(request.batch_sizes, _MOST_COLUMNS)
    lines = [[depth, *(mark(cells[depth, batch]) for batch in batches)] for depth in shown]
    number = rows[0]['devices']
    place = f'{number} x {device.title}' if number > 1 else device.title
    form = f', {dtype}' if len(request.dtypes) > 1 else ''
    title = (f'{way} on {place}{form}: {request.source} {unit(device.usable)}{" on each" if number > 1 else ""}, '
             f'{in_words(device.usable)} usable')
    table = tabulate(lines, ['depth', f'batch {batches[0]}', *map(str, batches[1:])], disable_numparse=True,
                     stralign='right')
    left_out = (len(depths), len(request.batch_sizes)) != (len(shown), len(batches))
    return f'{title}\n{table}' + ('\nmore depths and batch sizes are in report.html' if left_out else '')


def _thinned(values: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of `values`, evenly spaced, the last of them kept."""
    step = -(-len(values) // most)
    return values[::-step][::-1]


def mark(cell: Row) -> str:
    """A cell in a few characters: bytes in the unit of its device, with * where it does not fit."""
    if cell['total_bytes'] is None or cell['status'] in (TIMED_OUT, CRASHED):
        short = SHORT[cell['status']]
        return f'({short})' if cell['derived'] else short
    return f'{figure(cell["total_bytes"], cell["budget_bytes"])}{" " if cell["status"] == FITS else "*"}'


def unit(usable: int) -> str:
    """What bytes on a device of so many are shown in."""
    return 'GiB' if usable >= 4 * GIB else 'MiB'


def figure(count: int, usable: int) -> str:
    """Bytes in that unit, in three digits or more."""
    value = count / (GIB if unit(usable) == 'GiB' else MIB)
    return f'{value:.2f}' if value < 9.995 else f'{value:.1f}' if value < 99.95 else f'{value:,.0f}'


def _edge_table(title: str, edges: Sequence[Row], name: str, column: str, value: str) -> str:
    several = len({edge['device'] for edge in edges}) > 1, len({edge['dtype'] for edge in edges}) > 1
    shown = _thinned([each[column] for each in edges[0][name]], _MOST_COLUMNS)
    lines = [[*(text for text, wanted in zip((edge['device'], edge['dtype']), several) if wanted), edge['way'],
              *('-' if each[value] is None else each[value] for each in edge[name] if each[column] in shown)]
             for edge in edges]
    heads = [*(text for text, wanted in zip(('device', 'dtype'), several) if wanted), '', *shown]
    words = len(heads) - len(shown)
    table = tabulate(lines, [str(head) for head in heads], disable_numparse=True,
                     colalign=['left'] * words + ['right'] * (len(heads) - words))
    return f'{title}\n{table}'


def _legend(request: Request, devices: Sequence[Device], rows: Sequence[Row]) -> str:
    words = [f'{request.net} has no layer to augment']
    if request.layers:
        words = [f'depth: layers that are augmented, counted from the output; {request.layers} can be']
    if any(cell['status'] == TOO_LARGE and cell['total_bytes'] for cell in rows):
        words.append('* does not fit')
    if any(cell['uncertainty_bytes'] for cell in rows):
        most = max(cell['uncertainty_bytes'] or 0 for cell in rows)
        words.append(f'a cell fits where it does with its uncertainty, here up to {in_words(most)}')
    if any(cell['derived'] for cell in rows):
        ran = sum(not cell['derived'] and cell['status'] != NOT_RUN for cell in rows)
        words.append(f'{ran} of {len(rows)} cells ran; of the others, those in brackets follow from one that did')
    if any(device.gpu for device in devices) and request.source != 'measured':
        words.append(f'all figures of GPUs are {request.source} on a CPU: none was measured on the device')
    return '\n'.join(words)


def write_csv(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """A line for each cell, a column for each category of bytes."""
    plain = [name for name in rows[0] if name not in ('bytes', 'layers')]
    plain += sorted({name for cell in rows for name in cell} - {*plain, 'bytes', 'layers'})  # of measured cells
    with files.replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([*plain, *(f'{category}_bytes' for category in CATEGORIES)])
        for cell in rows:
            writer.writerow([*(cell.get(name) for name in plain),
                             *(cell['bytes'].get(category) for category in CATEGORIES)])


def draw_heatmap(request: Request, device: Device, rows: Sequence[Row], path: pathlib.Path) -> None:
    """A PNG: a panel for each way and dtype, batch x depth, colour the share of the usable memory, and the frontier."""
    panels = [(dtype, way, members) for (name, dtype, way), members in frontier.panels(rows).items()
              if name == device.name]
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    wide, high = max(2.8, 0.9 + 0.5 * len(request.batch_sizes)), 1.0 + 0.27 * len(request.depths)
    figure = _figure(max(7.0, columns * wide + 1.5), lines * high + 1.6)
    places = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes in places.flat[len(panels):]:
        axes.set_visible(False)
    for axes, (dtype, way, members) in zip(places.flat, panels):
        image = _panel(axes, request, device, members)
        axes.set_title(f'{way}, {dtype}' if len(request.dtypes) > 1 else str(way), fontsize=11, fontweight='bold')
    for axes in places[:, 0]:
        axes.set_ylabel('augmented layers')
    for axes in places[-1]:
        axes.set_xlabel('batch size')
    bar = figure.colorbar(image, ax=places, shrink=0.8, pad=0.01, extend='max')
    bar.set_label(f'share of the {in_words(device.usable)} usable')
    bar.ax.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    number = panels[0][2][0]['devices']
    place = f'each of {number} {device.title}' if number > 1 else device.title
    figure.suptitle(f'{what(request)} {unit(device.usable)} on {place}; it fits below and left of the line',
                    fontsize=12, wrap=True)
    _save(figure, path)


def _panel(axes: Any, request: Request, device: Device, rows: Sequence[Row]) -> Any:
    shape = len(request.depths), len(request.batch_sizes)
    shares = np.full(shape, np.nan)
    for cell in rows:
        place = request.depths.index(cell['depth']), request.batch_sizes.index(cell['batch_size'])
        share = cell['total_bytes'] / device.usable if cell['total_bytes'] is not None else np.nan
        shares[place] = share
        dark = share == share and 0.45 < share
        axes.text(place[1], place[0], mark(cell).strip(' *'), ha='center', va='center', fontsize=8,
                  color='white' if dark else '#222222', alpha=1 if cell['status'] == FITS else 0.75)
    for line in range(1, shape[1]):
        axes.axvline(line - 0.5, color='white', linewidth=1)
    for line in range(1, shape[0]):
        axes.axhline(line - 0.5, color='white', linewidth=1)
    image = axes.imshow(shares, aspect='auto', origin='lower', cmap=_colours(), vmin=0, vmax=1)
    axes.set_facecolor('#eeeeee')
    axes.set(xticks=range(shape[1]), yticks=range(shape[0]), xticklabels=request.batch_sizes,
             yticklabels=request.depths)
    axes.tick_params(length=0)
    for x, y in _edges(request, rows):
        axes.plot(x, y, color='#e8590c', linewidth=2.4, solid_capstyle='round')
    return image


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    blues = LinearSegmentedColormap.from_list('memory', ['#eef6fb', '#9fcbe3', '#3f8fc0', '#08457e'])
    blues.set_over('#8a8f98')
    return blues


def _edges(request: Request, rows: Sequence[Row]) -> List[Tuple[Tuple[float, float], Tuple[float, float]]]:
    """Segments (x, y) between cells that fit and neighbours that do not."""
    fits = {(request.depths.index(cell['depth']), request.batch_sizes.index(cell['batch_size'])):
            cell['status'] == FITS for cell in rows}
    found = []
    for (y, x), good in fits.items():
        if fits.get((y, x + 1), good) != good:
            found.append(((x + 0.5, x + 0.5), (y - 0.5, y + 0.5)))
        if fits.get((y + 1, x), good) != good:
            found.append(((x - 0.5, x + 0.5), (y + 0.5, y + 0.5)))
    return found


#: What layers.png shows of a layer, in this order.
LAYER_PARTS = {'parameters': '#74b816', 'activations': '#3f8fc0', 'attention': '#e8590c'}


#: What share of the largest layer one must have to be drawn.
_SMALL_LAYER = 0.005


def layered_cells(request: Request, rows: Sequence[Row]) -> List[Row]:
    """One cell with layers for each way of the first device and dtype: the deepest, at the batch that is spoken of."""
    batch, depth = frontier.spoken_batch(request, rows), max(request.depths)
    first = rows[0]['device'], rows[0]['dtype']
    return [cell for cell in rows if cell['layers'] and (cell['device'], cell['dtype']) == first
            and (cell['batch_size'], cell['depth']) == (batch, depth)]


def layer_names(rows: Sequence[Row]) -> List[str]:
    """Layers of some cells in the order of the network: stem, stages by number, the rest."""
    names = {layer['name'] for cell in rows for layer in cell['layers']}
    return sorted(names, key=lambda name: (
        not name.startswith('stem'), not re.match('stage|features', name), name in ('output', 'loss', 'network'),
        [(int(part), '') if part.isdigit() else (0, part) for part in re.split(r'(\d+)', name)]))


def _largest_part(rows: Sequence[Row], name: str) -> int:
    return max((sum(layer[part] for part in LAYER_PARTS) for cell in rows for layer in cell['layers']
                if layer['name'] == name), default=0)


def draw_layers(request: Request, device: Device, rows: Sequence[Row], path: pathlib.Path) -> bool:
    """A PNG: what each layer costs, a panel for each way, small ones left out; False where no cell tells of layers."""
    shown = layered_cells(request, rows)
    if not shown:
        return False
    names = [name for name in layer_names(shown) if _largest_part(shown, name) > _SMALL_LAYER * max(
        _largest_part(shown, other) for other in layer_names(shown))]
    figure = _figure(1.5 + 4.2 * len(shown), 1.8 + 0.2 * len(names))
    places = figure.subplots(1, len(shown), squeeze=False, sharex=True, sharey=True)[0]
    for axes, cell in zip(places, shown):
        left = np.zeros(len(names))
        for part, colour in LAYER_PARTS.items():
            found = {layer['name']: layer[part] / GIB for layer in cell['layers']}
            values = np.array([found.get(name, 0.0) for name in names])
            axes.barh(range(len(names)), values, left=left, color=colour, label=part)
            left += values
        fits = 'fits' if cell['status'] == FITS else 'does not fit'
        axes.set_title(f'{frontier.way(cell)}: {in_words(cell["total_bytes"])} in all, {fits}', fontsize=10)
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels(names, fontsize=8)
        axes.set_xlabel('GiB')
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
    places[0].invert_yaxis()
    places[-1].legend(fontsize=9)
    cell = shown[0]
    figure.suptitle(f'{what(request)} bytes by layer at batch {cell["batch_size"]}, {cell["depth"]} augmented layers, '
                    f'{device.title}', fontsize=12, wrap=True)
    _save(figure, path)
    return True


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: pathlib.Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(str(temporary), dpi=140, format='png')


def write(directory: pathlib.Path, request: Request, devices: Sequence[Device], rows: Sequence[Row]) -> Row:
    """All files of a finished sweep, result.json last; the summary."""
    from gluon_aa.memory import page
    found = summary(request, devices, rows)
    write_csv(directory / 'cells.csv', rows)
    for device in devices:
        draw_heatmap(request, device, rows, directory / f'heatmap-{device.name}.png')
    draw_layers(request, devices[0], rows, directory / 'layers.png')
    files.write_text(directory / 'report.html', page.render(request, devices, rows, found))
    files.write_json(directory / 'result.json', found)
    return found
