"""Schedules against closed forms and the replication's tables."""
import math

import pytest

from gluon_aa.errors import UsageError
from gluon_aa.training.config import SCHEDULES, load
from gluon_aa.training.schedules import Schedule


def rates(steps_per_epoch=10, **keys):
    """The learning rate of every step."""
    config = load(None, {'learning_rate': 0.4, **keys})
    schedule = Schedule(config, steps_per_epoch)
    return [schedule(step) for step in range(config.epochs * steps_per_epoch)]


def test_constant():
    assert rates(schedule='constant', epochs=3) == [0.4] * 30


def test_cosine_is_half_a_period_from_the_peak_to_zero():
    found = rates(schedule='cosine', epochs=5)
    assert found == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 49)) for step in range(50)])


def test_step_decays_after_the_epochs_named():
    found = rates(schedule='step', epochs=6, decay_epochs='2,4', decay_factor=0.5)
    assert found == pytest.approx([0.4] * 20 + [0.2] * 20 + [0.1] * 20)


def test_one_cycle_climbs_and_falls():
    found = rates(schedule='one-cycle', epochs=10)
    peak = found.index(max(found))
    assert found[0] == pytest.approx(0.4 / 25) and found[29] == pytest.approx(0.4) and found[-1] == pytest.approx(4e-5)
    assert peak in (29, 30)
    assert all(a < b for a, b in zip(found[:29], found[1:30])) and all(a > b for a, b in zip(found[30:], found[31:]))


def test_linear_warm_up_reaches_the_peak_on_its_last_step():
    found = rates(schedule='cosine', epochs=5, warmup_epochs=2)
    assert found[:20] == pytest.approx([0.4 * (step + 1) / 20 for step in range(20)])
    assert found[20:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 29)) for step in range(30)])


def test_decay_epochs_count_from_the_start_of_training_whatever_the_warm_up():
    found = rates(schedule='step', epochs=6, decay_epochs='2,4', decay_factor=0.5, warmup_epochs=1)
    assert found[10:] == pytest.approx([0.4] * 10 + [0.2] * 20 + [0.1] * 20)


def test_the_replications_resnet34():
    found = rates(1, schedule='seed-resnet34', epochs=220, learning_rate=1e-3)
    multiples = [1] * 80 + [0.1] * 40 + [0.01] * 40 + [0.001] * 20 + [0.0005] * 40
    assert found == pytest.approx([1e-3 * multiple for multiple in multiples])


def test_the_replications_wide_resnet():
    found = rates(1, schedule='seed-wrn', epochs=120, learning_rate=0.1)
    assert found == pytest.approx([0.1] * 30 + [0.02] * 30 + [0.004] * 30 + [0.0008] * 30)


def test_what_the_replication_tried_first():
    # 0.2 B / 256 at B = 128, 5 % of 500 epochs of warm-up, then cosine
    found = rates(2, schedule='seed-warmup-cosine', epochs=500, learning_rate=0.2 * 128 / 256)
    assert found[:50] == pytest.approx([0.1 * (step + 1) / 50 for step in range(50)])
    assert found[50:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 949)) for step in range(950)])


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('steps_per_epoch, epochs', [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_the_shortest_trainings(schedule, steps_per_epoch, epochs):
    found = rates(steps_per_epoch, schedule=schedule, epochs=epochs)
    assert all(math.isfinite(rate) and 0 <= rate <= 0.4 + 1e-12 for rate in found)


def test_order_of_asking_does_not_matter():
    config = load(None, {'schedule': 'one-cycle', 'epochs': 4, 'warmup_epochs': 1})
    forward, backward = Schedule(config, 5), Schedule(config, 5)
    assert [forward(step) for step in range(20)] == [backward(step) for step in reversed(range(20))][::-1]


@pytest.mark.parametrize('keys, message', [
    ({'schedule': 'step', 'decay_epochs': '4,2'}, 'must rise'),
    ({'warmup_epochs': 60}, 'must be fewer than epochs=60'),
])
def test_contradictions_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        Schedule(load(None, keys), 10)
