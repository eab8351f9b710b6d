"""Sweeps: which cells fit, found by few runs; what fails, and what is killed."""
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from gluon_aa import isolation
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory import sweep
from gluon_aa.memory.frontier import frontiers
from gluon_aa.memory.request import Way
from gluon_aa.memory.sweep_directory import SweepDirectory
from gluon_aa.training.config import from_values
from sweeps import GIB, Table, ask, ask_to_measure, depth_of, run


def statuses(cells):
    return {(cell['depth'], cell['batch_size']): cell['status'] for cell in cells}


@pytest.mark.parametrize('count', range(1, 20))
def test_bisection_finds_every_edge_from_every_guess(count):
    for edge, guess in itertools.product(range(-1, count), range(count)):
        asked = []

        def fits(index):
            asked.append(index)
            return index <= edge

        assert sweep.last_fitting(fits, count, guess) == edge
        assert len(asked) == len(set(asked)) and set(asked) <= set(range(count))
        assert len(asked) <= 2 * math.ceil(math.log2(count + 1)) + 1
        if abs(guess - edge) <= 1:
            assert len(asked) <= (2, 4)[abs(guess - edge)]


@pytest.mark.parametrize('seed', range(20))
def test_a_measured_sweep_finds_what_running_every_cell_finds(seed):
    rng = random.Random(seed)
    batch_sizes, needs = tuple(sorted(rng.sample(range(1, 400), 9))), {}
    for depth in range(4):
        count = rng.randrange(GIB // 2)
        for batch in batch_sizes:
            count += rng.randrange(GIB // 3)
            needs[depth, batch] = max(count, needs.get((depth - 1, batch), 0))
    few, every = (Table(lambda config, batch: needs[depth_of(config), batch]) for _ in range(2))
    found, recorded = run(ask_to_measure(batch_sizes=batch_sizes), few)
    expected, _ = run(ask_to_measure(batch_sizes=batch_sizes, all_cells=True), every)
    assert len(every.asked) == len(expected) == len(found) == 36
    assert statuses(found) == statuses(expected)
    assert frontiers(found) == frontiers(expected)
    assert len(few.asked) == len(set(few.asked)) == len(recorded) <= 24
    for cell in found:
        assert cell['derived'] == ((cell['depth'], cell['batch_size']) not in few.asked)
        assert (cell['total_bytes'] is None) == (cell['derived'] or cell['status'] != 'fits')
        assert cell['source'] == 'measured' and cell['budget_bytes'] == GIB


def test_deeper_networks_may_need_less():
    needs = {0: 3, 1: 1, 2: 2, 3: 1}  # tenths of a GiB an image
    found, _ = run(ask_to_measure(batch_sizes=(2, 4, 6, 8, 10)),
                   Table(lambda config, batch: needs[depth_of(config)] * batch * GIB // 10))
    edge, = frontiers(found)
    assert [each['batch_size'] for each in edge['largest_batch']] == [2, 10, 4, 10]


def test_what_is_modelled_fits_where_it_does_with_its_uncertainty():
    usable = ask().found_devices()[0].usable
    assert usable == int(0.95 * 16280 * 2 ** 20)
    needs = {8: usable * 10 // 11 - 10, 16: usable * 10 // 11 + 10, 32: usable + 1}
    cells, recorded = run(ask(depths=(1,), backends=('folded',)), Table(lambda _, batch: needs[batch]))
    assert recorded == cells
    assert [cell['status'] for cell in cells] == ['fits', 'out of memory', 'out of memory']
    assert [cell['total_bytes'] for cell in cells] == list(needs.values())
    assert cells[0]['message'] == '' and '15.10 GiB usable' in cells[1]['message']
    for cell in cells:
        assert cell['source'] == 'modelled' and cell['placement'] == 'last:1' and not cell['derived']
        assert sum(cell['bytes'].values()) == cell['total_bytes']


@pytest.mark.parametrize('error, status', [
    (FailedError('not done after 60 s'), 'timed out'),
    (FailedError('Failed to allocate CPU Memory'), 'out of memory'),
    (FailedError("its process ended with code -6: what():  std::bad_alloc"), 'out of memory'),
    (FailedError('its process ended with code -11: it said nothing'), 'crashed'),
    (UsageError('stage1.block1.conv1: no channel is left'), 'crashed'),
])
def test_a_line_that_fails_is_told_from_the_others(error, status):
    def needs(config, batch):
        if depth_of(config) == 2:
            raise error
        return GIB

    cells, recorded = run(ask(backends=('folded',)), Table(needs), jobs=2)
    assert len(recorded) == len(cells) == 12
    for cell in cells:
        expected = (status, str(error), None) if cell['depth'] == 2 else ('fits', '', GIB)
        assert (cell['status'], cell['message'], cell['total_bytes']) == expected


def test_a_cell_that_hangs_is_killed_at_its_limit(tmp_path, monkeypatch):
    (tmp_path / 'hanging.py').write_text('import time\n\n\ndef hang(config):\n    time.sleep(600)\n')
    monkeypatch.syspath_prepend(str(tmp_path))

    class Hanging(Table):
        def measure(self, config, classes, image_shape, time_limit, **_):
            if config['batch_size'] == 16:
                isolation.call('hanging:hang', {'config': config}, 1)
            return super().measure(config, classes, image_shape, time_limit)

    begin = time.monotonic()
    cells, _ = run(ask_to_measure(depths=(0,)), Hanging(lambda *_: 1))
    assert time.monotonic() - begin < 30
    assert [cell['status'] for cell in cells] == ['fits', 'timed out', 'not run']
    assert cells[1]['message'] == 'not done after 1 s' and not cells[2]['derived']


def test_a_silent_end_under_a_budget_is_lack_of_memory_only_if_the_step_runs_without_it():
    class Silent(Table):
        def measure(self, config, classes, image_shape, time_limit, *, inference=False, budget=None):
            if config['batch_size'] == 32 and (budget == GIB or depth_of(config) == 1):
                raise FailedError('its process ended with code -11: it said nothing')
            return super().measure(config, classes, image_shape, time_limit)

    cells, _ = run(ask_to_measure(depths=(0, 1), all_cells=True), Silent(lambda *_: GIB // 2))
    lacking, crashed = cells[2], cells[5]
    assert lacking['status'] == 'out of memory' and 'without that limit it ran, and took 512 MiB' in lacking['message']
    assert crashed['status'] == 'crashed' and 'without that limit: its process ended' in crashed['message']


def test_what_every_device_and_way_computes():
    asked = ask(devices=('cpu', 'v100-32g'), backends=None)
    ways = {device: [way for way in asked.ways if any(
        (line.device.name, line.way) == (device, way) for line in asked.lines(asked.found_devices()))]
        for device in asked.devices}
    on_gpus = [Way('reference', 'speed'), Way('folded', 'speed'), Way('tiled', 'recompute', 'attention', 256)]
    assert ways['v100-32g'] == on_gpus
    assert ways['cpu'] in ([*on_gpus, Way('native', 'speed')], on_gpus)  # where it cannot be built
    every = ask(backends=('folded', 'tiled'), memory_modes=('speed', 'recompute'), tile=64)
    assert every.ways == (Way('folded', 'speed'), Way('folded', 'recompute', 'attention'),
                          Way('tiled', 'speed', None, 64), Way('tiled', 'recompute', 'attention', 64))


def test_several_devices_share_a_batch():
    line = ask(gpus=(0, 1)).lines(ask().found_devices())[0]
    assert line.about()['devices'] == 2
    config = line.config(8)
    assert config['gpus'] == [0, 1] and config['batch_size'] == 8 and from_values(config).values() == config
    asked = ask(devices=('cpu',), cpus=2)
    config = asked.lines(asked.found_devices())[0].config(8)
    assert config['gpus'] == [] and config['cpus'] == 2


def test_the_request_can_be_written_and_read():
    asked = ask(depths=(0, 2), memory_budget=GIB, gpus=(0, 1), tile=64)
    assert type(asked).from_values(json.loads(json.dumps(asked.values()))) == asked


KILLED = """
import json, pathlib, time
from gluon_aa.memory import sweep
from gluon_aa.memory.sweep_directory import SweepDirectory
from sweeps import Table

class Slow(Table):
    def model(self, *arguments):
        time.sleep(0.1)
        return super().model(*arguments)

directory = SweepDirectory.create(pathlib.Path({path!r}), {{
    'net': 'aa_wrn28_1', 'devices': ['p100-16g'], 'batch_sizes': [8, 16, 32]}})
with directory.recording() as recorder:
    print('begun', flush=True)
    sweep.run(directory.request, directory.devices, (), recorder.add, sweep.Limits(60),
              Slow(lambda config, batch: batch * 2 ** 28).finders)
"""


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    path = tmp_path / 'sweep'
    process = subprocess.Popen([sys.executable, '-c', f'import sys; sys.path[:] = {sys.path!r}'
                                + KILLED.format(path=str(path))], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'begun\n'
    cells = path / 'cells.jsonl'
    while cells.stat().st_size < 10000:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = cells.read_bytes()
    before = [json.loads(line) for line in kept[:kept.rfind(b'\n')].splitlines()]
    assert 0 < len(before) < 13 * 3 * 3
    table = Table(lambda config, batch: batch * 2 ** 28)
    directory = SweepDirectory.resume(path, {})
    with directory.recording() as recorder:
        assert recorder.cells == before
        found = sweep.run(directory.request, directory.devices, before, recorder.add, sweep.Limits(60), table.finders)
    whole = {(cell['depth'], cell['attention_backend']) for cell in before if cell['batch_size'] == 32}
    assert len(table.asked) == 39 - len(whole) < 39
    undisturbed, _ = run(directory.request, Table(lambda config, batch: batch * 2 ** 28))
    assert found == undisturbed


def test_a_half_written_cell_is_dropped_and_found_again(tmp_path):
    path, table = tmp_path / 'sweep', Table(lambda *_: GIB)
    given = {'net': 'aa_wrn10_1', 'devices': ['p100-16g'], 'batch_sizes': [8, 16], 'backends': ['folded']}
    directory = SweepDirectory.create(path, given)
    with directory.recording() as recorder:
        expected = sweep.run(directory.request, directory.devices, (), recorder.add, sweep.Limits(60), table.finders)
    cells = path / 'cells.jsonl'
    cells.write_bytes(cells.read_bytes()[:-20])
    table.asked.clear()
    with SweepDirectory.resume(path, given).recording() as recorder:
        assert recorder.cells == expected[:-1]
        with pytest.raises(UsageError, match='another process runs the sweep'):
            with directory.recording():
                pass
        found = sweep.run(directory.request, directory.devices, recorder.cells[:], recorder.add, sweep.Limits(60),
                          table.finders)
    assert found == expected and table.asked == [(3, 'folded')]
    lines = cells.read_bytes().splitlines()
    cells.write_bytes(b'\n'.join([lines[0], lines[1][:-20], *lines[2:], b'']))
    with pytest.raises(FailedError, match='was changed or damaged'), directory.recording():
        pass


def test_a_directory_has_one_sweep(tmp_path):
    given = {'net': 'aa_wrn10_1', 'devices': ['p100-16g'], 'batch_sizes': [8, 16]}
    path = tmp_path / 'sweep'
    SweepDirectory.create(path, given)
    with pytest.raises(UsageError, match='holds this very sweep, unfinished: go on with --resume'):
        SweepDirectory.create(path, given)
    other = {**given, 'batch_sizes': [8, 32]}
    for make in (SweepDirectory.create, SweepDirectory.resume):
        with pytest.raises(UsageError, match=r'holds another sweep: batch_sizes is \[8, 16\] there and \[8, 32\] was'):
            make(path, other)
    (path / 'result.json').write_text('{}')
    with pytest.raises(UsageError, match='holds this very sweep, finished'):
        SweepDirectory.create(path, given)
    with pytest.raises(UsageError, match='there is no sweep in'):
        SweepDirectory.resume(tmp_path / 'absent', {})
    (tmp_path / 'photo.jpg').write_text('')
    with pytest.raises(UsageError, match='exists and holds no sweep'):
        SweepDirectory.create(tmp_path, given)
    with pytest.raises(UsageError, match='exists and holds no sweep'):
        SweepDirectory.create(tmp_path / 'photo.jpg', given)
    (path / 'sweep.json').write_text('[]')
    with pytest.raises(UsageError, match='is no description of a sweep'):
        SweepDirectory.resume(path, {})


@pytest.mark.parametrize('source', ['modelled', pytest.param('extrapolated', marks=pytest.mark.slow), 'measured'])
def test_real_cells_of_each_source(source):
    asked = ask(devices=('cpu',), source=source, batch_sizes=(1, 2), depths=(2,), backends=('folded',),
                input_size='16x24', memory_budget=GIB)
    recorded = []
    cells = sweep.run(asked, asked.found_devices(), (), recorded.append, sweep.Limits(120))
    assert [cell['status'] for cell in cells] == ['fits', 'fits'], cells
    assert {cell['source'] for cell in cells} == {source}
    measured = [cell['total_bytes'] for cell in cells if cell['total_bytes'] is not None]
    weights = 4 * 77850  # of wrn10_1, about
    assert all(3 * weights < count < 10 ** 8 for count in measured) and measured == sorted(measured)


@pytest.mark.slow
def test_a_real_budget_is_enforced():
    asked = ask_to_measure(batch_sizes=(1, 64), depths=(3,), backends=('reference',), memory_budget=GIB)
    cells = sweep.run(asked, asked.found_devices(), (), print, sweep.Limits(120))
    assert [cell['status'] for cell in cells] == ['fits', 'out of memory'], cells
    assert cells[0]['baseline_bytes'] > 10 ** 7 and cells[1]['message']
