"""FLOPs of a training step against sums by hand."""
import dataclasses

import pytest

from gluon_aa.memory.devices import find_device
from gluon_aa.memory.work import work
from gluon_aa.models import get_model
from gluon_aa.models.summary import summarize
from gluon_aa.training.config import load

SHAPE = (3, 16, 24)
KEYS = {'net': 'aa_wrn10_1', 'placement': 'last:1', 'num_heads': 2, 'min_key_channels_per_head': 4,
        'attention_backend': 'tiled', 'gpus': (0, 1), 'batch_size': 6}

#: The last augmented map is 4 x 6, with 64 channels: 12 key channels and 6 value channels.
PIXELS = 4 * 6
MAPS = 2 * PIXELS * PIXELS * (12 + 6) + 2 * PIXELS * (4 + 6) * 12


def config(**keys):
    return load(None, {**KEYS, **keys})


def test_forward_is_what_models_show_says_and_maps_what_the_equations_need():
    found = work(config(), 10, SHAPE)
    net = get_model('aa_wrn10_1', 10, input_size=SHAPE[1:], placement='last:1', num_heads=2,
                    min_key_channels_per_head=4, attention_backend='folded')
    assert found == (summarize(net, SHAPE[1:])['flops'], MAPS, 1)
    assert work(config(relative=False), 10, SHAPE).maps == 2 * PIXELS * PIXELS * (12 + 6)


def test_a_step_is_three_times_forward_and_what_is_computed_again():
    found = work(config(), 10, SHAPE)
    forward = found.forward
    assert found.step(config(memory_mode='speed')) == 3 * forward
    assert found.step(config(memory_mode='recompute')) == 3 * forward + MAPS
    assert found.step(config(memory_mode='recompute', attention_backend='folded')) == 3 * forward
    assert found.step(dataclasses.replace(config(memory_mode='recompute'), recompute='blocks')) == 4 * forward


def test_seconds_at_the_peak():
    device, found = find_device('v100-16g'), work(config(), 10, SHAPE)
    asked = config(memory_mode='recompute')  # three images a device
    assert found.seconds_at_peak(asked, device) == pytest.approx(3 * (3 * found.forward + MAPS) / 14e12)
    halves = dataclasses.replace(asked, dtype='float16')
    assert found.seconds_at_peak(halves, device) == pytest.approx(
        3 * (3 * (found.forward - MAPS) / 112e12 + 4 * MAPS / 14e12))  # maps stay in float32
    assert found.seconds_at_peak(asked, find_device('cpu')) is None


def test_plain_networks_have_no_maps():
    for net in ('wrn10_1', 'cifar_resnet20_v1'):
        found = work(load(None, {'net': net}), 10, (3, 32, 32))
        assert found.maps == found.augmented == 0 < found.forward
