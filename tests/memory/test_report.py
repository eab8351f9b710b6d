"""What is written of a sweep, read back: tables, CSV, JSON, charts, and the page as a browser shows it."""
import csv
import html.parser
import json
import random
import re
import shutil
import subprocess

import pytest

from gluon_aa.memory import frontier, report
from gluon_aa.memory.plan import CATEGORIES
from sweeps import GIB, Table, ask, ask_to_measure, depth_of, run

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')


def needs(config, batch):
    """So that on 15.1 GiB some fit, and reference needs most."""
    factor = {'reference': 3, 'folded': 2, 'tiled': 1}[config['attention_backend']]
    return GIB // 20 * batch + GIB // 10 * batch * depth_of(config) * factor


@pytest.fixture(scope='module')
def swept():
    asked = ask()
    cells, _ = run(asked, Table(needs))
    return asked, asked.found_devices(), cells


@pytest.fixture(scope='module')
def written(swept, tmp_path_factory):
    path = tmp_path_factory.mktemp('report')
    return path, report.write(path, *swept)


def by_place(cells):
    return {(str(frontier.way(cell)), cell['depth'], cell['batch_size']): cell for cell in cells}


def test_the_frontier_is_the_edge_of_what_fits():
    rng = random.Random(0)
    for _ in range(20):
        limits = [rng.randrange(0, 40) for _ in range(4)]
        cells, _ = run(ask(backends=('folded',), batch_sizes=(8, 16, 24, 32)),
                       Table(lambda config, batch: GIB if batch <= limits[depth_of(config)] else 99 * GIB))
        edge, = frontier.frontiers(cells)
        assert [each['batch_size'] for each in edge['largest_batch']] == [limit // 8 * 8 if limit >= 8 else None
                                                                          for limit in limits]
        for each in edge['deepest']:
            fitting = [depth for depth, limit in enumerate(limits) if limit >= each['batch_size']]
            assert each['depth'] == (fitting[-1] if fitting else None)


def test_a_sentence_says_what_fits(swept):
    sentence, = frontier.answers(*swept)
    # at batch 32: 1.6 + 3.2 x depth x factor GiB and a tenth of it more, of 15.10 GiB
    assert sentence == ('On a P100 PCIe 16 GB (15.10 GiB usable) at batch 32, of the 3 layers that can be augmented, '
                        'reference fits 1, folded fits 1, tiled + recompute fits all 3 (modelled).')


@pytest.mark.parametrize('changes, count, words', [
    ({'depths': (0, 1), 'backends': ('tiled',)}, 1, 'tiled + recompute fits 1 (the most asked for) (modelled).'),
    ({'depths': (0, 1), 'backends': ('tiled',)}, 99 * GIB, 'tiled + recompute fits not even the plain network'),
    ({'net': 'wrn10_1'}, 1, 'On a P100 PCIe 16 GB (15.10 GiB usable), plain fits up to batch 32 (modelled).'),
    ({'net': 'wrn10_1'}, 99 * GIB, 'plain does not even fit at batch 8 (modelled).'),
    ({'batch_sizes': (64, 128, 256)}, 1, 'at batch 128,'),
    ({'devices': ('a100-40g',)}, 1, 'On an A100 40 GB'),
])
def test_sentences_of_other_sweeps(changes, count, words):
    asked = ask(**changes)
    plain = Table(lambda *_: count)
    plain.row, row = lambda config, batch: row({**config, 'placement': 'last:0'}, batch), plain.row
    plain.model = lambda config, classes, shape, device, batch_sizes, *_: [plain.row(config, b) for b in batch_sizes]
    assert words in frontier.answers(asked, asked.found_devices(), run(asked, plain)[0])[0]


def test_the_terminal_shows_every_cell_and_marks_those_that_do_not_fit(swept):
    asked, devices, cells = swept
    text = report.text(asked, devices, cells)
    assert 'modelled GiB, 15.10 GiB usable' in text and 'none was measured on the device' in text
    blocks = [block.splitlines() for block in text.split('\n\n')]
    found = {}
    for way, block in zip(asked.ways, blocks):
        assert block[0].startswith(f'{way} on P100 PCIe 16 GB: modelled')
        for line in block[3:]:
            depth, *marks = line.split()
            found.update({(str(way), int(depth), batch): mark for batch, mark in zip((8, 16, 32), marks)})
    assert found.keys() == by_place(cells).keys()
    for place, cell in by_place(cells).items():
        assert found[place].endswith('*') == (cell['status'] != 'fits')
        assert abs(float(found[place].strip('*')) - cell['total_bytes'] / GIB) <= 0.0501
    assert len(text.splitlines()) < 60


def test_many_depths_and_devices_stay_readable():
    asked = ask(net='aa_wrn100_1', devices=('p100-16g', 'v100-16g', 't4-16g'))
    cells, _ = run(asked, Table(lambda config, batch: batch * GIB // 10))
    text = report.text(asked, asked.found_devices(), cells)
    assert len(text.splitlines()) < 250 and '3 more tables are in report.html' in text
    assert max(len(line) for line in text.splitlines() if not line.startswith('On a')) <= 120
    assert text.count('more depths and batch sizes are in report.html') == 6
    assert '\n     48 ' in text and '\n     47 ' not in text


def test_measured_cells_say_which_ran():
    asked = ask_to_measure(batch_sizes=(2, 4, 6, 8, 10))
    cells, recorded = run(asked, Table(lambda config, batch: (2 + depth_of(config)) * batch * GIB // 20))
    text = report.text(asked, asked.found_devices(), cells)
    assert f'{len(recorded)} of 20 cells ran; of the others, those in brackets follow from one that did' in text
    assert '(fits)' in text and '(OOM)' in text and 'OOM ' in text
    assert 'on CPU: measured MiB, 1.00 GiB usable' in text


def test_csv(swept, written):
    with open(str(written[0] / 'cells.csv'), encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    cells = swept[2]
    assert len(rows) == len(cells) == 36
    for row, cell in zip(rows, cells):
        for name in ('net', 'depth', 'batch_size', 'status', 'total_bytes', 'uncertainty_bytes', 'source', 'device'):
            assert row[name] == str(cell[name])
        assert sum(int(row[f'{name}_bytes'] or 0) for name in CATEGORIES) == cell['total_bytes']


def test_json(swept, written):
    found = json.loads((written[0] / 'result.json').read_text())
    assert found == json.loads(json.dumps(written[1]))
    cells = swept[2]
    assert [{**cell, 'layers': None} for cell in cells] == [{**cell, 'layers': None} for cell in found['cells']]
    assert found['devices'] == [{'name': 'p100-16g', 'title': 'P100 PCIe 16 GB', 'memory_bytes': 16280 * 2 ** 20,
                                 'usable_bytes': swept[1][0].usable, 'number': 1}]
    assert found['frontier'] == frontier.frontiers(cells) and found['conditions']['mxnet'].startswith('1.9')


def test_charts(written):
    for name in ('heatmap-p100-16g.png', 'layers.png'):
        assert (written[0] / name).read_bytes().startswith(b'\x89PNG')


def test_every_cell_may_fail(tmp_path):
    asked = ask_to_measure(batch_sizes=(2, 4))
    cells, _ = run(asked, Table(lambda *_: 2 * GIB))
    report.write(tmp_path, asked, asked.found_devices(), cells)
    assert (tmp_path / 'heatmap-cpu.png').exists() and not (tmp_path / 'layers.png').exists()
    assert 'not even the plain network' in (tmp_path / 'report.html').read_text()
    assert 'allocate CPU Memory' in (tmp_path / 'report.html').read_text()


def test_layers_are_in_the_order_of_the_network():
    names = ['network', 'stage10.block1', 'output', 'stage2.block10.conv1', 'norm', 'stage2.block9.conv2', 'stem',
             'loss']
    cells = [{'layers': [{'name': name} for name in names]}]
    assert report.layer_names(cells) == ['stem', 'stage2.block9.conv2', 'stage2.block10.conv1', 'stage10.block1',
                                         'norm', 'loss', 'network', 'output']


class _Elements(html.parser.HTMLParser):
    """(name, attributes, text before anything within) of each element of a page."""

    def __init__(self):
        super().__init__()
        self.found, self.resources, self.inside = [], [], False

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), ''))
        self.inside = True
        self.resources += [value for name, value in attributes if name in ('src', 'href')]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data


def elements(text):
    parser = _Elements()
    parser.feed(text)
    return parser


def browse(page, tmp_path):
    """The page's elements after its script has run, as headless Chromium has them."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f'no browser to open the report in: none of {", ".join(BROWSERS)} is on PATH')
    done = subprocess.run([browser, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=5000',
                           f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', page.as_uri()],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, check=True)
    return elements(done.stdout.decode())


def test_a_browser_shows_the_figures(swept, written, tmp_path):
    asked, (device,), cells = swept
    page = browse(written[0] / 'report.html', tmp_path)
    places = [(attributes, text) for tag, attributes, text in page.found if 'data-batch' in attributes]
    assert len(places) == len(cells)
    ways = [str(way) for way in asked.ways]
    for attributes, text in places:
        cell = by_place(cells)[ways[int(attributes['data-panel'])], int(attributes['data-depth']),
                               int(attributes['data-batch'])]
        assert int(attributes['data-bytes']) == cell['total_bytes']
        assert text == report.figure(cell['total_bytes'], device.usable)
        assert attributes['data-status'] == cell['status']
        assert ('no' in attributes['class'].split()) == (cell['status'] != 'fits')
        assert 'modelled' in attributes['title']
    # what the script makes: the bytes of the cell that is chosen at first, the deepest of the last way
    chosen, = (attributes for attributes, _ in places if 'chosen' in attributes['class'].split())
    cell = by_place(cells)['tiled + recompute', 3, 32]
    assert int(chosen['data-bytes']) == cell['total_bytes']
    texts = [text for _, _, text in page.found]
    assert f'usable {device.usable / GIB:.2f} GiB' in texts
    start = texts.index('By category')
    assert texts[start + 1:].count('attention') and f'{cell["bytes"]["attention"] / GIB:.2f} GiB' in texts[start:]
    assert 'stage1.block1.conv1' in texts[start:] and 'stem' in texts[start:]
    bars = [attributes for tag, attributes, _ in page.found if tag == 'i' and 'title' in attributes]
    sizes = [float(re.search(r'width: ([0-9.e-]+)%', attributes['style']).group(1)) for attributes in bars
             if attributes['title'].startswith(('parameters', 'activations', 'attention'))]
    whole = 1.02 * max(device.usable, cell['total_bytes'])
    for size, name in zip(sizes, ('parameters', 'activations', 'attention')):
        assert abs(size / 100 - cell['bytes'][name] / whole) < 1e-4
    sentence, = frontier.answers(*swept)
    assert sentence in texts


def test_the_page_needs_nothing_else(written):
    text = (written[0] / 'report.html').read_text()
    page = elements(text)
    assert not page.resources and 'url(' not in text and '@import' not in text
    assert ['modelled'] == [content for _, attributes, content in page.found if attributes.get('class') == 'badge']
    assert len(text) < 300000


def test_the_page_is_safe_from_what_it_shows(tmp_path):
    asked = ask(backends=('folded',), depths=(1,))
    cells, _ = run(asked, Table(lambda *_: 1))
    cells = [{**cell, 'status': 'crashed', 'message': '</script><b id="x">&', 'total_bytes': None, 'layers': []}
             for cell in cells]
    report.write(tmp_path, asked, asked.found_devices(), cells)
    page = elements((tmp_path / 'report.html').read_text())
    assert not [attributes for tag, attributes, _ in page.found if tag == 'b']
    data, = (text for tag, attributes, text in page.found if attributes.get('id') == 'data')
    assert '</script><b id="x">&' in json.loads(data)['cells'][0]['verdict']
