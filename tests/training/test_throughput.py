"""How images/s are counted, and what becomes of a combination that ends badly."""
import pytest

from gluon_aa import isolation
from gluon_aa.errors import UsageError
from gluon_aa.training import throughput
from gluon_aa.training.throughput import Protocol, combinations, measure_all

TINY = {'nets': ['wrn10_1'], 'batch_sizes': [4], 'dtypes': ['float32'], 'hybridize': [True], 'devices': [{'cpus': 1}],
        'input_size': '8x8'}


def test_rates_are_images_over_seconds_without_the_warm_up(monkeypatch):
    clock, steps = [0.0], []
    monkeypatch.setattr(throughput.time, 'perf_counter', lambda: clock[0])

    def run(count):
        steps.append(count)
        clock[0] += 0.5 * count

    assert throughput._rates(run, Protocol(warm_up=7, steps=4, repeats=3), batch_size=10) == [20.0] * 3
    assert steps == [7, 4, 4, 4]


def test_combinations_are_all_and_checked():
    configs = combinations(['resnet34', 'wrn10_1'], [1, 2], ['float32', 'bfloat16'], [True, False], [{'cpus': 2}])
    assert len(configs) == len(set(configs)) == 16 and {config.cpus for config in configs} == {2}
    with pytest.raises(UsageError, match='batch_size: 0 must be at least 1'):
        combinations(['resnet34'], [0], ['float32'], [True], [{'cpus': 1}])


@pytest.mark.parametrize('code, limit, message', [
    ('import os; os.abort()', 60, 'its process ended with code -6: it said nothing'),
    ('raise SystemExit("no memory")', 60, 'its process ended with code 1: no memory'),
    ('import time; time.sleep(60)', 0.5, 'not done after 0.5 s'),
])
def test_a_process_that_crashes_or_hangs_is_a_row_with_an_error(monkeypatch, code, limit, message):
    monkeypatch.setattr(isolation, '_CHILD', code)
    row, = measure_all(combinations(**TINY), Protocol(time_limit=limit))
    assert row['error'] == message and row['devices'] == ['cpu(0)'] and 'images_per_second' not in row
