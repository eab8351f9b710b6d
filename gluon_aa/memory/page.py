"""A sweep of memory as one HTML file that needs nothing else: the answer, heat maps, the frontier, a cell's bytes."""
import html
import json
import pathlib
from typing import Any, Dict, List, Sequence, Tuple

from gluon_aa.memory import frontier
from gluon_aa.memory.devices import Device, in_words
from gluon_aa.memory.plan import CATEGORIES
from gluon_aa.memory.request import Request
from gluon_aa.memory.report import LAYER_PARTS, layer_names, layered_cells, mark, unit
from gluon_aa.memory.sweep import FITS, NOT_RUN, TOO_LARGE

Row = Dict[str, Any]

#: A colour for each of `CATEGORIES`.
_COLOURS = ('#74b816', '#a9d46a', '#2b8a3e', '#8ce99a', '#ced4da', '#f2c94c', '#3f8fc0', '#e8590c', '#9c6ade',
            '#8a6d5b', '#b8bec8', '#6b7280')

_SOURCES = {
    'modelled': "planned from the network's graph as MXNet plans it; no step was run",
    'extrapolated': 'from training steps that were metered at tiny batches, carried on to the batch sizes asked for',
    'measured': 'peaks of real steps, counted by MXNet, each in a process of its own'}


def render(request: Request, devices: Sequence[Device], rows: Sequence[Row], summary: Row) -> str:
    """The whole page."""
    place = pathlib.Path(__file__)
    panels = list(frontier.panels(rows))
    sections = [_device(request, device, rows, panels) for device in devices]
    return '\n'.join([
        '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>What fits: {_text(request.net)}</title>', f'<style>\n{place.with_suffix(".css").read_text()}</style>',
        '</head>', '<body>', '<main>', _header(request, devices), _answer(summary), *sections,
        _edges(summary['frontier']), _cell_section(request, devices, panels),
        _conditions(request, devices, rows, summary),
        '</main>', f'<script type="application/json" id="data">{_data(request, devices, rows, panels)}</script>',
        f'<script>\n{place.with_suffix(".js").read_text()}</script>', '</body>', '</html>', ''])


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _header(request: Request, devices: Sequence[Device]) -> str:
    names = ', '.join(device.title for device in devices)
    return (f'<h1>What fits: {_text(request.net)} on {_text(names)}<span class="badge">{request.source}</span></h1>\n'
            f'<p class="asked">Bytes of {"inference" if request.inference else "a training step"} on '
            f'{request.input_size} images, {request.classes} classes, {_text(", ".join(request.dtypes))}</p>')


def _answer(summary: Row) -> str:
    return '<div class="answer">' + ''.join(f'<p>{_text(sentence)}</p>' for sentence in summary['answers']) + '</div>'


def _device(request: Request, device: Device, rows: Sequence[Row], panels: Sequence[Any]) -> str:
    """The heat maps of a device."""
    figures = [_heat(request, device, members, panels.index(panel), panel)
               for panel, members in frontier.panels(rows).items() if panel[0] == device.name]
    number = len(request.gpus) or 1 if device.gpu else request.cpus
    each = f', on each of {number} that share the batch' if number > 1 else ''
    apart = ': none was measured on this device' if device.gpu and request.source != 'measured' else ''
    key = ['none <i class="ramp"></i> all of the ' + f'{in_words(device.usable)} usable',
           '<i class="swatch no"></i> does not fit', '<i class="swatch edge"></i> the frontier',
           *['<em>italics</em> follow from a cell that ran'] * any(cell['derived'] for cell in rows),
           'click a cell for its bytes']
    return (f'<section><h2>{_text(device.title)}</h2><p class="soft">{unit(device.usable)} by batch size (across) and '
            f'augmented layers, counted from the output (up){each}. All figures are {request.source}{apart}.</p>'
            f'<div class="panels">{"".join(figures)}</div><div class="key">'
            + ''.join(f'<span>{text}</span>' for text in key) + '</div></section>')


def _heat(request: Request, device: Device, rows: Sequence[Row], number: int, panel: Any) -> str:
    cells = {(cell['depth'], cell['batch_size']): cell for cell in rows}
    depths, batches = request.depths, request.batch_sizes
    lines = []
    for row in range(len(depths) - 1, -1, -1):
        found = []
        for column, batch in enumerate(batches):
            cell = cells[depths[row], batch]
            right = cells.get((depths[row], batches[column + 1])) if column + 1 < len(batches) else None
            above = cells.get((depths[row + 1], batch)) if row + 1 < len(depths) else None
            found.append(_place(cell, number, device.usable, right, above))
        lines.append(f'<tr><th scope="row">{depths[row]}</th>{"".join(found)}</tr>')
    form = f', {panel[1]}' if len(request.dtypes) > 1 else ''
    heads = ''.join(f'<th scope="col">{batch}</th>' for batch in batches)
    return (f'<figure><h3>{_text(panel[2])}{form}</h3><table class="heat">{"".join(lines)}'
            f'<tr><th></th>{heads}</tr></table></figure>')


def _place(cell: Row, panel: int, usable: int, right: Any, above: Any) -> str:
    fits = cell['status'] == FITS
    classes = [name for name, on in (
        ('no', not fits), ('derived', cell['derived']),
        ('right', right is not None and (right['status'] == FITS) != fits),
        ('above', above is not None and (above['status'] == FITS) != fits)) if on]
    style = ''
    if fits and cell['total_bytes'] is not None:
        share = min(1.0, cell['total_bytes'] / usable)
        classes += ['yes', 'much'][:1 + (share > 0.5)]
        style = f' style="--share:{share:.1%}"'
    return (f'<td class="{" ".join(classes)}"{style} title="{_text(verdict(cell))}" data-panel="{panel}" '
            f'data-depth="{cell["depth"]}" data-batch="{cell["batch_size"]}" data-status="{cell["status"]}" '
            f'data-bytes="{"" if cell["total_bytes"] is None else cell["total_bytes"]}">{mark(cell).strip(" *")}</td>')


def verdict(cell: Row) -> str:
    """A cell in one sentence."""
    name = f'{frontier.way(cell)}, {cell["depth"]} augmented layers, batch {cell["batch_size"]}'
    if cell['total_bytes'] is None:
        return f'{name}: {cell["status"]}{" (" + cell["message"] + ")" if cell["message"] else ""}'
    margin = f' ± {in_words(cell["uncertainty_bytes"])}' if cell['uncertainty_bytes'] else ''
    status = 'does not fit' if cell['status'] == TOO_LARGE else cell['status']
    return (f'{name}: {in_words(cell["total_bytes"])}{margin} of {in_words(cell["budget_bytes"])} usable '
            f'({cell["total_bytes"] / cell["budget_bytes"]:.0%}), {cell["source"]}: {status}')


def _edges(edges: Sequence[Row]) -> str:
    several = len({edge['device'] for edge in edges}) > 1, len({edge['dtype'] for edge in edges}) > 1
    parts = ['<section><h2>The frontier</h2>']
    for title, name, column, value in (
            ('Largest batch size that fits, by augmented layers', 'largest_batch', 'depth', 'batch_size'),
            ('Most augmented layers that fit, by batch size', 'deepest', 'batch_size', 'depth')):
        heads = ''.join(f'<th>{each[column]}</th>' for each in edges[0][name])
        lines = ''.join(
            f'<tr><td>{_text(", ".join(_edge_words(edge, several)))}</td>'
            + ''.join(f'<td>{"–" if each[value] is None else each[value]}</td>' for each in edge[name]) + '</tr>'
            for edge in edges)
        parts.append(f'<h3>{title}</h3><div class="scroll"><table class="edges" id="{name}"><tr><th></th>{heads}</tr>'
                     f'{lines}</table></div>')
    return ''.join([*parts, '</section>'])


def _edge_words(edge: Row, several: Tuple[bool, bool]) -> List[str]:
    return [edge['way'], *(edge[name] for name, wanted in zip(('device', 'dtype'), several) if wanted)]


def _cell_section(request: Request, devices: Sequence[Device], panels: Sequence[Any]) -> str:
    titles = {device.name: device.title for device in devices}
    names = [', '.join([str(way)] + [titles[device]] * (len(devices) > 1) + [dtype] * (len(request.dtypes) > 1))
             for device, dtype, way in panels]
    selects = (('panel', 'way', list(enumerate(names))), ('depth', 'augmented layers', _same(request.depths)),
               ('batch', 'batch size', _same(request.batch_sizes)))
    boxes = ''.join(
        f'<label>{title}<select id="{name}">'
        + ''.join(f'<option value="{value}">{_text(text)}</option>' for value, text in options) + '</select></label>'
        for name, title, options in selects)
    key = ''.join(f'<span><i class="swatch" style="background:{colour}"></i> {name}</span>'
                  for name, colour in LAYER_PARTS.items())
    return (f'<section id="cell"><h2>Where the bytes go</h2><div class="choose">{boxes}</div>'
            '<p id="verdict"></p><div class="gauge" id="gauge"></div><div class="split">'
            '<div><h3>By category</h3><table class="categories" id="categories"></table></div>'
            '<div id="by-layer"><h3>By layer</h3><table class="layers" id="layers"></table>'
            f'<div class="key">{key}</div></div></div></section>')


def _same(values: Sequence[int]) -> List[Tuple[int, int]]:
    return [(value, value) for value in values]


def _conditions(request: Request, devices: Sequence[Device], rows: Sequence[Row], summary: Row) -> str:
    found = [('figures', f'{request.source}: {_SOURCES[request.source]}')]
    uncertain = [cell['uncertainty_bytes'] for cell in rows if cell['uncertainty_bytes']]
    if uncertain:
        found.append(('uncertainty', f'{in_words(min(uncertain))} to {in_words(max(uncertain))}; a cell fits where it '
                      'does with its uncertainty'))
    for device in devices:
        found.append((device.title, f'{in_words(device.usable)} usable{_usable(request, device, rows)}'))
    if request.source == 'measured':
        ran = sum(not cell['derived'] and cell['status'] != NOT_RUN for cell in rows)
        found.append(('cells', f'{ran} of {len(rows)} ran; those in italics follow from one that did'))
    made = summary['conditions']
    found.append(('made by', f'gluon-aa {made["gluon_aa"]}, MXNet {made["mxnet"]}, NumPy {made["numpy"]}, '
                  f'Python {made["python"]} on {made["cpu"]}'))
    failed = {cell['message'] for cell in rows if cell['status'] in ('timed out', 'crashed')}
    errors = ''.join(f'<p class="error">{_text(message)}</p>' for message in sorted(failed))
    return (f'<section><h2>Conditions</h2><p>Asked with</p><code>{_text(request.command())}</code><dl>'
            + ''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in found)
            + f'</dl>{errors}</section>')


def _usable(request: Request, device: Device, rows: Sequence[Row]) -> str:
    """What makes it so much."""
    if device.gpu:
        return f" of {in_words(device.memory or 0)}: MXNet's pool leaves the rest to others"
    baselines = [cell['baseline_bytes'] for cell in rows if cell.get('baseline_bytes')]
    if not baselines:
        return '' if request.memory_budget else ': what was free'
    return f', enforced on each process beyond what it had before ({in_words(max(baselines))} or less)'


def _data(request: Request, devices: Sequence[Device], rows: Sequence[Row], panels: Sequence[Any]) -> str:
    """What the page's script shows, as compact JSON."""
    usable = {device.name: device.usable for device in devices}
    names = layer_names(rows)
    numbers = {name: index for index, name in enumerate(names)}
    found = {
        'panels': [{'usable': usable[device]} for device, _, _ in panels],
        'categories': CATEGORIES, 'colours': _COLOURS, 'layer_parts': tuple(LAYER_PARTS),
        'layer_colours': tuple(LAYER_PARTS.values()), 'names': names, 'first': _first(request, rows, panels),
        'cells': [{
            'panel': panels.index((cell['device'], cell['dtype'], frontier.way(cell))), 'depth': cell['depth'],
            'batch': cell['batch_size'], 'total': cell['total_bytes'], 'verdict': verdict(cell),
            'bytes': [cell['bytes'].get(category, 0) for category in CATEGORIES] if cell['bytes'] else [],
            'layers': sorted([numbers[layer['name']], *(layer[part] for part in LAYER_PARTS)]
                             for layer in cell['layers'])} for cell in rows]}
    # within a script "</" would end it
    return json.dumps(found, separators=(',', ':'), allow_nan=False).replace('</', '<\\/')


def _first(request: Request, rows: Sequence[Row], panels: Sequence[Any]) -> List[int]:
    """The cell that is shown at first: the deepest, of the last way that has layers to show."""
    cell = (layered_cells(request, rows) or [rows[-1]])[-1]
    return [panels.index((cell['device'], cell['dtype'], frontier.way(cell))), cell['depth'], cell['batch_size']]
