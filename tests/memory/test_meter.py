"""Peaks of arrays of known sizes. The profiler must come before any allocation, so each case has its own process."""
import time

import pytest

from gluon_aa import isolation
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError
from gluon_aa.memory import meter

MEGABYTE = 1_000_000

TABLE = """
Profile Statistics:
    Note the difference in units for different entries.
Device Storage
=================
Name                          Total Count    Min Use  (kB)    Max Use  (kB)    Avg Use  (kB)
----                          -----------    -------------    -------------    -------------
Memory: cpu/0                           2        1000.0000        1001.3320           0.6660
Memory: gpu/11                          7           0.0000     1000101.3125          50.0000

"""


def allocations(device_ids, kept, passing):
    """[growth, bytes before] on each device of an array that is kept and one that passes, beside one made before."""
    meter.start()
    found = []
    for device in map(mx.cpu, device_ids):
        before = mx.nd.ones((kept,), ctx=device)  # in float32
        with meter.storage(device) as usage:
            after = mx.nd.ones((kept,), ctx=device)
            mx.nd.ones((passing,), ctx=device).wait_to_read()
            mx.nd.waitall()
        found.append([usage.growth, usage.before])
        del before, after
    return found


def nothing():
    """[growth, bytes in use] of no allocation, then of one that is only freed."""
    meter.start()
    array = mx.nd.ones((1000,))
    found = []
    with meter.storage(mx.cpu()) as usage:
        pass
    found += [usage.growth, usage.before]
    with meter.storage(mx.cpu()) as usage:
        del array
    return found + [usage.growth, usage.before]


def resident(count, sampled):
    """Growth of the process by an array of `count` float32 that passes, and again by a smaller one."""
    if sampled:
        meter._reset_peak = lambda: False
    mx.nd.ones((4, 4)).wait_to_read()
    meter.return_freed_memory()
    found = []
    for size in (count, count // 2):
        with meter.resident() as usage:
            array = mx.nd.ones((size,))
            array.wait_to_read()
            time.sleep(0.5 if sampled else 0)  # a busy machine may not let the sampling thread look sooner
            del array
        found.append(usage.growth)
    return found


def in_another_process(name, **arguments):
    return isolation.call(f'{__name__}:{name}', arguments, time_limit=120)


def test_the_profiler_counts_every_byte():
    for growth, before in in_another_process('allocations', device_ids=[0, 1], kept=1000, passing=12345):
        assert before == 4 * 1000
        assert growth == 4 * (1000 + 12345)


def test_larger_sizes_are_known_to_a_part_in_ten_million():
    (growth, before), = in_another_process('allocations', device_ids=[0], kept=25 * MEGABYTE, passing=1001)
    assert before == pytest.approx(100 * MEGABYTE, rel=1e-7)
    assert growth == pytest.approx(100 * MEGABYTE + 4 * 1001, rel=1e-7)


def test_nothing_allocated_is_no_growth():
    assert in_another_process('nothing') == [0, 4000, 0, 4000]


@pytest.mark.parametrize('sampled', [False, True], ids=['peak kept by the kernel', 'sampled'])
def test_the_resident_set_grows_by_what_is_allocated(sampled):
    large, small = in_another_process('resident', count=50 * MEGABYTE, sampled=sampled)
    assert large == pytest.approx(200 * MEGABYTE, rel=0.02)
    assert small == pytest.approx(100 * MEGABYTE, rel=0.02)  # though the process was larger before


def test_rows_of_all_devices_are_read():
    assert meter.parse(TABLE) == {'cpu/0': 1_001_332, 'gpu/11': 1_000_101_312}


def test_a_table_without_the_column_is_an_error():
    with pytest.raises(FailedError, match="cannot read MXNet's memory profile"):
        meter.parse(TABLE.replace('Max Use', 'Most Use'))


def test_watching_before_the_start_is_an_error(monkeypatch):
    monkeypatch.setattr(meter, '_started', False)
    with pytest.raises(FailedError, match='the storage profiler does not run'):
        with meter.storage(mx.cpu()):
            pass
