"""Searches against brute force, and the ways to compute a network."""
import dataclasses
import math

import pytest

from gluon_aa.attention import native
from gluon_aa.errors import UsageError
from gluon_aa.memory import plan, ways as ways_module
from gluon_aa.memory.devices import find_device
from gluon_aa.memory.ways import Variants, choices, largest, last_true, title, ways
from gluon_aa.training.config import load

NET = {'net': 'aa_wrn10_1', 'num_heads': 2, 'min_key_channels_per_head': 4}


def config(**keys):
    return load(None, {**NET, **keys})


@pytest.mark.parametrize('size', [
    lambda count: 1000 + 37 * count, lambda count: 2 ** 21 * math.ceil((5 + 1.7 * count) / 4),
    lambda count: 10 * count ** 2, lambda count: 1000 * math.ceil(math.sqrt(count)), lambda count: 5])
def test_the_largest_is_that_of_brute_force(size):
    for limit in (1, 2, 300):
        for start in (2, 17, 1000):
            for budget in {size(count) + change for count in (1, 2, 3, 50, 299, 300) for change in (-1, 0, 1)}:
                expected = max((count for count in range(1, limit + 1) if size(count) <= budget), default=0)
                assert largest(size, budget, start, limit) == expected


def test_the_largest_is_found_in_few_looks_where_sizes_are_nearly_linear():
    looks = []

    def size(count):
        looks.append(count)
        return 10 ** 8 + 2 ** 21 * math.ceil(count * 81e6 / 2 ** 21)
    for budget in (2 * 10 ** 9, 16 * 10 ** 9, 40 * 10 ** 9):
        looks.clear()
        found = largest(size, budget, 128, 2 ** 16)
        assert size(found) <= budget < size(found + 1)
        assert len(set(looks)) <= 7


def test_the_last_that_holds():
    for length in range(9):
        for holding in range(length + 1):
            for guess in (None, *range(length)):
                looks = []
                found = last_true(lambda value: looks.append(value) or value < holding, range(length), guess)
                assert found == (holding - 1 if holding else None)
                assert len(looks) == len(set(looks)) and (guess != holding - 1 or len(looks) <= 2)


def test_ways_of_each_kind_of_network_on_each_kind_of_device(monkeypatch):
    monkeypatch.setattr(native, 'unavailable', lambda: None)
    tiles = [f'tiled {tile}, recompute' for tile in (1024, 256, 64)]

    def titles(augmented, **keys):
        return [title(one, augmented) for one in ways(config(**keys), augmented)]
    assert titles(True, gpus=[0]) == ['folded', 'reference', *tiles]
    assert titles(True) == ['native', 'folded', 'reference', *tiles, 'native, recompute blocks']
    assert titles(False) == ['speed', 'recompute', 'recompute blocks']
    assert titles(False, net='cifar_resnet20_v1', gpus=[0]) == ['speed', 'recompute']
    monkeypatch.setattr(native, 'unavailable', lambda: 'no compiler')
    assert titles(True) == ['folded', 'reference', *tiles, 'folded, recompute blocks']


def test_several_cpu_devices_share_what_the_machine_has(monkeypatch):
    monkeypatch.setattr('gluon_aa.machine.available_memory', lambda: 10 ** 9)
    assert Variants(10, (3, 8, 12), find_device('cpu'), 4).budget == 10 ** 9 // 4
    assert Variants(10, (3, 8, 12), find_device('cpu', 10 ** 8), 4).budget == 10 ** 8
    assert Variants(10, (3, 8, 12), find_device('p100-12g'), 4).budget == find_device('p100-12g').usable


def test_the_largest_batch_is_a_multiple_of_the_devices_and_fits():
    asked = config(attention_backend='folded', memory_mode='speed', cpus=3, batch_size=12)
    every = Variants(10, (3, 16, 24), find_device('cpu'))
    sizes = [every.plan(dataclasses.replace(asked, batch_size=size)).safe for size in range(3, 91, 3)]
    for budget in (sizes[20], sizes[20] - 1, sizes[4], sizes[0] - 1):
        expected = 3 * sum(size <= budget for size in sizes)
        assert Variants(10, (3, 16, 24), find_device('cpu', budget)).largest_batch(asked) == expected


def test_the_deepest_is_that_of_brute_force():
    shape, asked = (3, 16, 24), config(attention_backend='folded', memory_mode='speed', batch_size=64)
    every = Variants(10, shape, find_device('cpu'))
    sizes = [every.plan(config(placement=f'last:{count}', attention_backend='folded', memory_mode='speed',
                               batch_size=64)).safe for count in range(4)]
    assert sizes[1] < sizes[2] < sizes[3]  # the first layer has fewer weights than the convolution it replaces
    for budget, expected in ((sizes[3], 3), (sizes[3] - 1, 2), (sizes[2] - 1, 1), (min(sizes) - 1, None)):
        assert Variants(10, shape, find_device('cpu', budget)).deepest(asked, 3) == expected
    # 16 heads leave nothing of the 16 channels of the first stage to the convolution
    wide = config(attention_backend='folded', memory_mode='speed', num_heads=16, placement='last:2', batch_size=1)
    assert Variants(10, shape, find_device('cpu')).deepest(wide, 3) == 2


@pytest.mark.parametrize('fitting, expected', [(0, 'folded'), (1, 'tiled 1024, recompute'), (3, 'tiled 64, recompute')])
def test_auto_is_the_first_that_fits(monkeypatch, fitting, expected):
    sizes = {'folded': 9, 'tiled 1024, recompute': 8, 'tiled 256, recompute': 7, 'tiled 64, recompute': 6}
    variants = Variants(10, (3, 8, 12), find_device('t4-16g'))
    monkeypatch.setattr(variants, 'plan', lambda one: Size(sizes[title(one, True)]))
    monkeypatch.setattr(Variants, 'budget', 9 - fitting)
    assert title(variants.resolve(choices(config(gpus=[0]), True)), True) == expected
    monkeypatch.setattr(Variants, 'budget', 1)  # none fits: the smallest
    assert title(variants.resolve(choices(config(gpus=[0]), True)), True) == 'tiled 64, recompute'


class Size:
    """A plan of which one wants to know the size."""

    def __init__(self, safe):
        self.safe = safe


def test_each_plan_is_made_once_and_each_graph_too(monkeypatch):
    graphs, made = [], []

    class Planner:
        def __init__(self, config, classes, image_shape, device):
            self.config = config
            graphs.append(config.attention_backend)

        def plan(self, batch_size):
            made.append((self.config, batch_size))
            return Size(8 * batch_size)
    monkeypatch.setattr(ways_module, 'Planner', Planner)
    variants = Variants(10, (3, 8, 12), find_device('cpu', 99))
    for backend in ('folded', 'reference'):
        asked = config(batch_size=4, attention_backend=backend)
        assert variants.largest_batch(asked) == 12
        variants.largest_batch(asked)
        assert not variants.fits(dataclasses.replace(asked, batch_size=13))
        assert variants.fits(dataclasses.replace(asked, batch_size=12))
    assert graphs == ['folded', 'reference'] and len(made) == len(set(made)) <= 10


@pytest.mark.parametrize('images, batch_size, expected', [
    (40, 128, 4), (32, 128, 4), (31, 128, 8), (1, 128, 128), (0, 128, None), (50, 127, 3), (60, 127, 3), (64, 127, 2)])
def test_micro_batches_are_as_few_as_fit_and_equal_where_that_is_near(monkeypatch, images, batch_size, expected):
    """`images` fit at a time: of 127 there are no equal parts, and 3 parts of 128 would not be equal."""
    variants = Variants(10, (3, 8, 12), find_device('cpu', 10))
    monkeypatch.setattr(variants, 'plan', lambda one: Size(
        10 if math.ceil(one.batch_size / one.accumulate) <= images else 11))
    assert variants.fewest_micro_batches(config(batch_size=batch_size)) == expected


def test_micro_batches_are_planned_as_by_themselves():
    asked = config(attention_backend='folded', memory_mode='speed', batch_size=24, accumulate=3)
    variants = Variants(10, (3, 8, 12), find_device('cpu'))
    whole = variants.plan(dataclasses.replace(asked, accumulate=1))
    alone, = plan.plans(asked, 10, (3, 8, 12), find_device('cpu'), [24])
    assert variants.plan(asked).bytes == alone.bytes and alone.total < whole.total


def test_a_batch_smaller_than_the_devices_is_refused():
    with pytest.raises(UsageError, match='batch_size=2 must be at least the number of devices, 3'):
        ways_module.check_batch(config(cpus=3, batch_size=2))
    ways_module.check_batch(config(cpus=3, batch_size=3))
