"""The recompute engine against the hybridized one: the same losses, weights, statistics, checkpoints."""
import os
import re

import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.models import get_model
from gluon_aa.training.config import load
from gluon_aa.training.engine import HybridizedEngine
from gluon_aa.training.recompute import RecomputeEngine
from compare import relative_error

MEAN, STD = np.full((3, 1, 1), 120.0), np.full((3, 1, 1), 60.0)
SIZE = (8, 12)


def make(kind, net, devices=1, options=None, **keys):
    config = load(None, {'cpus': devices, 'seed': 3, **keys})
    options = {'num_heads': 2, 'min_key_channels_per_head': 4, **(options or {})} if net.startswith('aa') else options
    network = get_model(net, 5, input_size=SIZE, **(options or {}))
    return kind(network, MEAN, STD, (3, *SIZE), config, [mx.cpu(index) for index in range(devices)])


def batches(*counts):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (count, 3, *SIZE), dtype=np.uint8), rng.integers(0, 5, count).astype(np.int32))
            for count in counts]


def train(engine, counts=(8, 8, 5, 8, 1, 8)):
    """Losses, correct predictions, parameters by name and device after some steps, and those found right afterwards."""
    losses, corrects = [], []
    for step, batch in enumerate(batches(*counts)):
        engine.seed_step(1, step)
        loss, correct = engine.train_step(*batch, 0.02).read()
        losses.append(loss)
        corrects.append(correct)
    right = engine.count_correct(batches(8, 8, 3))
    engine.average_statistics()
    mx.nd.waitall()
    found = {(name, str(device)): parameter.data(device).asnumpy() for device in engine.devices
             for name, parameter in engine.net._collect_params_with_prefix().items()}
    return losses, corrects, found, right


@pytest.mark.parametrize('net, options, keys', [
    ('wrn10_2', {}, {}),
    ('wrn10_2', {}, {'recompute': 'blocks'}),
    ('resnet18', {}, {'recompute': 'blocks', 'optimizer': 'adam'}),
    ('wrn10_2', {'dropout': 0.3}, {'dropout': 0.3}),
    ('wrn10_1', {'dropout': 0.3}, {'dropout': 0.3, 'recompute': 'blocks'}),
    ('aa_wrn10_2', {'attention_backend': 'reference'}, {}),
    ('aa_wrn10_2', {'attention_backend': 'native'}, {}),
    ('aa_wrn10_2', {'attention_backend': 'native'}, {'recompute': 'blocks'}),
    ('aa_wrn10_2', {'attention_backend': 'tiled', 'tile': 7}, {'label_smoothing': 0.1}),
    ('aa_wrn10_2', {'attention_backend': 'tiled', 'tile': 7, 'dropout': 0.2}, {'dropout': 0.2, 'recompute': 'blocks'}),
], ids=str)
def test_losses_weights_and_statistics_are_those_of_the_hybridized_engine(net, options, keys):
    usual = {**options, 'attention_backend': 'folded'} if net.startswith('aa') else options
    wanted = train(make(HybridizedEngine, net, options=usual, **keys))
    actual = train(make(RecomputeEngine, net, options=options, **keys))
    assert relative_error(actual[0], wanted[0]) < 1e-5
    assert (actual[1], actual[3]) == (wanted[1], wanted[3])
    for name, value in wanted[2].items():
        assert np.abs(actual[2][name] - value).max() < 1e-5 * max(1.0, np.abs(value).max()), name


@pytest.mark.parametrize('kvstore', ['device', 'local'])
def test_several_devices(kvstore):
    # 1: fewer images than devices
    wanted, actual = (train(make(kind, 'wrn10_1', 2, kvstore=kvstore)) for kind in (HybridizedEngine, RecomputeEngine))
    assert relative_error(actual[0], wanted[0]) < 1e-5
    assert actual[1] == wanted[1]
    for name, value in wanted[2].items():
        assert np.abs(actual[2][name] - value).max() < 1e-5 * max(1.0, np.abs(value).max()), name
    assert all(np.array_equal(actual[2][name, 'cpu(0)'], value) for (name, _), value in actual[2].items())


def test_repeated_runs_are_equal_bit_for_bit():
    first, second = (train(make(RecomputeEngine, 'aa_wrn10_1', options={'attention_backend': 'tiled', 'tile': 16},
                                recompute='blocks')) for _ in range(2))
    assert first[0] == second[0]
    assert all(np.array_equal(first[2][name], second[2][name]) for name in first[2])


def test_new_values_of_parameters_are_seen():
    engine, batch = make(RecomputeEngine, 'wrn10_1'), batches(8)[0]
    before = engine.train_step(*batch, 0.0).read()
    saved = {name: parameter.data().copy() for name, parameter in engine.net._collect_params_with_prefix().items()}
    changed = engine.train_step(*batch, 0.5).read(), engine.train_step(*batch, 0.0).read()
    assert changed[1] != before
    for name, parameter in engine.net._collect_params_with_prefix().items():
        parameter.set_data(saved[name])
    assert engine.train_step(*batch, 0.0).read() == before


def test_a_large_batch_after_a_small_one():
    wanted, actual = (train(make(kind, 'wrn10_1'), (2, 8, 3, 8)) for kind in (HybridizedEngine, RecomputeEngine))
    assert relative_error(actual[0], wanted[0]) < 1e-5


def planned(engine):
    images, labels = batches(128)[0]
    executor = engine._executor(next(engine._divide(images, labels))[0])
    return int(re.search(r'Total (\d+) MB allocated', executor.debug_str()).group(1))


def test_blocks_computed_again_take_less_memory():
    attention, blocks = (planned(make(RecomputeEngine, 'wrn10_4', recompute=what))
                         for what in ('attention', 'blocks'))
    assert blocks < 0.75 * attention


def test_binding_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv('NNVM_EXEC_MATCH_RANGE', '4')
    before = dict(os.environ)
    make(RecomputeEngine, 'wrn10_1').train_step(*batches(2)[0], 0.1).read()
    assert dict(os.environ) == before
