"""Cells in processes of their own: metered, extrapolated, and under a budget that is enforced."""
import pytest

from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory import cells
from gluon_aa.memory.devices import DEVICES
from gluon_aa.memory.failures import is_out_of_memory
from gluon_aa.training.config import load

SHAPE = (3, 16, 24)
CPU = DEVICES['cpu']


def values(**keys):
    return load(None, {'net': 'aa_wrn10_2', 'num_heads': 4, 'min_key_channels_per_head': 8, 'memory_mode': 'speed',
                       'attention_backend': 'reference', **keys}).values()


def test_extrapolations_are_right_and_not_below_the_model():
    config = values(batch_size=16)
    found = cells.extrapolated(config, 10, SHAPE, CPU, [16, 64], 120)
    modelled = cells.modelled(config, 10, SHAPE, CPU, [16, 64], 120)
    measured = cells.measured(config, 10, SHAPE, 120)
    assert found[0]['total_bytes'] == pytest.approx(measured['storage_bytes'], rel=0.01)
    assert measured['resident_bytes'] == pytest.approx(measured['storage_bytes'], rel=0.5)
    assert measured['driver_bytes'] is None
    for row, below in zip(found, modelled):
        assert row['total_bytes'] == sum(row['bytes'].values()) >= below['total_bytes']


def test_more_than_the_model_is_carried_on_and_less_is_not(monkeypatch):
    rows = {4: 120, 32: 400}
    monkeypatch.setattr(cells, 'modelled', lambda config, classes, shape, device, batches, *rest: [
        {'batch_size': batch, 'bytes': {'temporaries': rows[batch]}, 'total_bytes': rows[batch]} for batch in batches])
    peaks = {4: 126}
    monkeypatch.setattr(cells, 'measured', lambda config, *rest, **more: {'storage_bytes': peaks[config['batch_size']]})
    row, = cells.extrapolated(values(cpus=2), 10, SHAPE, CPU, [32], 1)  # two images a device were a twentieth more
    assert row['total_bytes'] == row['bytes']['temporaries'] == 420
    peaks[4] = 100
    assert cells.extrapolated(values(cpus=2), 10, SHAPE, CPU, [32], 1)[0]['total_bytes'] == 400


def test_float16_cannot_be_extrapolated():
    with pytest.raises(UsageError, match='float16 cannot be metered on a CPU'):
        cells.extrapolated(values(dtype='float16', gpus=[0]), 10, SHAPE, DEVICES['p100-16g'], [8], 60)


def test_a_budget_is_enforced():
    """A budget that the plan says is enough is enough, and half of it is not."""
    config = values(batch_size=24)
    plan = cells.modelled(config, 10, SHAPE, CPU, [24], 60)[0]
    enough = plan['total_bytes'] + plan['uncertainty_bytes']
    found = cells.measured(config, 10, SHAPE, 120, budget=enough)
    assert found['storage_bytes'] == pytest.approx(plan['total_bytes'], rel=0.02)
    assert found['baseline_bytes'] > 10 ** 8
    with pytest.raises(FailedError) as error:
        cells.measured(config, 10, SHAPE, 120, budget=plan['total_bytes'] // 2)
    assert is_out_of_memory(error.value) or 'its process ended' in str(error.value)


@pytest.mark.parametrize('text, lack', [
    ('MXNetError: Failed to allocate CPU Memory', True), ('cudaMalloc retry failed: out of memory', True),
    ('could not create a memory object', True),
    ('could not create a primitive', True),
    ('could not create a primitive descriptor for a reorder primitive', False), ('std::bad_alloc', True),
    ('Unable to allocate 3.2 GiB for an array', True), ('OpenBLAS: malloc failed in gemm_driver', True),
    ('its process ended with code -9: it said nothing', False), ('unknown network', False),
    ('not done after 3 s', False)])
def test_lack_of_memory_is_told_from_other_failures(text, lack):
    assert is_out_of_memory(FailedError(text)) is lack
    assert is_out_of_memory(MemoryError())
