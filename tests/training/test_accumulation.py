"""Micro-batches: the update of the whole batch, by several oracles, and what they save."""
import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.memory import cells
from gluon_aa.models import get_model
from gluon_aa.training.config import load
from gluon_aa.training.engine import HybridizedEngine
from gluon_aa.training.recompute import RecomputeEngine
from compare import relative_error

nn = mx.gluon.nn
MEAN, STD = np.full((3, 1, 1), 120.0), np.full((3, 1, 1), 60.0)
SIZE = (8, 12)
ENGINES = [HybridizedEngine, RecomputeEngine]


def make(kind, net, devices=1, **keys):
    config = load(None, {'cpus': devices, 'seed': 3, **keys})
    return kind(net, MEAN, STD, (3, *SIZE), config, [mx.cpu(index) for index in range(devices)])


def network(name, dropout=None, backend='tiled'):
    options = {'num_heads': 2, 'min_key_channels_per_head': 4, 'attention_backend': backend, 'tile': 30}
    return get_model(name, 5, input_size=SIZE, **({} if dropout is None else {'dropout': dropout}),
                     **(options if name.startswith('aa') else {}))


def batches(*counts):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (count, 3, *SIZE), dtype=np.uint8), rng.integers(0, 5, count).astype(np.int32))
            for count in counts]


def trained(engine, counts, rate=0.02):
    """Losses and correct predictions of some steps, and the weights after them by name."""
    found = [engine.train_step(*batch, rate).read() for batch in batches(*counts)]
    losses, corrects = zip(*found)
    return losses, corrects, {name: parameter.data(mx.cpu(0)).asnumpy()
                              for name, parameter in engine._trainable().items()}


def assert_same_training(actual, wanted, tolerance=1e-5):
    assert relative_error(actual[0], wanted[0]) < tolerance
    assert actual[1] == wanted[1]
    for name, value in wanted[2].items():
        assert np.abs(actual[2][name] - value).max() < tolerance * max(1.0, np.abs(value).max()), name


@pytest.mark.parametrize('name, backend, keys', [
    ('wrn10_2', None, {}), ('wrn10_2', None, {'optimizer': 'adam', 'weight_decay': 0.1}),
    ('resnet18', None, {}), ('aa_wrn10_2', 'folded', {}), ('aa_wrn10_2', 'native', {}),
    ('aa_wrn10_2', 'tiled', {'label_smoothing': 0.1})], ids=str)
@pytest.mark.parametrize('kind', ENGINES)
def test_micro_batches_of_one_device_train_as_so_many_devices_do(kind, name, backend, keys):
    # 11: parts of unequal sizes; 2: fewer images than parts
    counts = (12, 12, 11, 2, 12)
    wanted = trained(make(kind, network(name, backend=backend), devices=3, **keys), counts)
    actual = trained(make(kind, network(name, backend=backend), accumulate=3, **keys), counts)
    assert_same_training(actual, wanted)


@pytest.mark.parametrize('kvstore', ['device', 'local'])
@pytest.mark.parametrize('kind', ENGINES)
def test_micro_batches_on_several_devices_train_as_so_many_more_devices_do(kind, kvstore):
    # 5: the devices have 3 and 2 images for 2 parts each; 3: 2 and 1, so that one has one part more; 1: one has none
    counts = (8, 5, 3, 1, 8)
    wanted = trained(make(kind, network('wrn10_1'), devices=4), counts)
    engine = make(kind, network('wrn10_1'), devices=2, accumulate=2, kvstore=kvstore)
    assert_same_training(trained(engine, counts), wanted)
    for parameter in engine._trainable().values():
        assert np.array_equal(*(parameter.data(device).asnumpy() for device in engine.devices))


@pytest.mark.parametrize('kind', ENGINES)
@pytest.mark.parametrize('accumulate', [2, 5, 12])
def test_without_batch_norm_the_update_is_that_of_the_whole_batch(kind, accumulate):
    def net():
        made = nn.HybridSequential()
        made.add(nn.Conv2D(16, 3, padding=1, activation='relu'), nn.Conv2D(32, 3, 2, activation='relu'), nn.Dense(5))
        return made
    wanted, actual = (trained(make(kind, net(), accumulate=number), (12, 12, 7, 12)) for number in (1, accumulate))
    assert_same_training(actual, wanted)


@pytest.mark.parametrize('kind', ENGINES)
def test_the_gradient_of_a_linear_classifier_equals_numpy(kind):
    engine = make(kind, nn.Dense(5), accumulate=3, optimizer='sgd', momentum=0.0)
    before = engine.net.weight.data().asnumpy().astype(np.float64)
    (images, labels), = batches(7)
    engine.train_step(images, labels, 0.5).read()
    x = ((images - MEAN) / STD).reshape(7, -1)
    logits = x @ before.T
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient = (shares / shares.sum(axis=1, keepdims=True) - np.eye(5)[labels]).T @ x / 7
    assert relative_error(engine.net.weight.data().asnumpy(), before - 0.5 * gradient) < 1e-5


@pytest.mark.parametrize('kind', ENGINES)
def test_running_statistics_are_of_one_part_after_the_other(kind):
    net = nn.HybridSequential()
    net.add(nn.BatchNorm(momentum=0.9), nn.Dense(5))
    engine = make(kind, net, accumulate=2)
    (images, labels), = batches(6)
    engine.train_step(images, labels, 0.1).read()
    mx.nd.waitall()
    first, second = (((part - MEAN) / STD).mean(axis=(0, 2, 3)) for part in np.split(images, 2))
    wanted = 0.9 * (0.1 * first) + 0.1 * second
    assert np.abs(net[0].running_mean.data().asnumpy() - wanted).max() < 1e-5


class DroppedOnes(nn.HybridBlock):
    """A dense layer on dropout of ones: its gradient shows the masks."""

    def __init__(self):
        super().__init__()
        self.out = nn.Dense(5, use_bias=False)

    def hybrid_forward(self, F, x):
        return self.out(F.Dropout(F.ones_like(x), p=0.5))


@pytest.mark.parametrize('kind', ENGINES)
def test_dropout_differs_among_the_parts_and_is_the_same_in_a_repeated_step(monkeypatch, kind):
    engine, seen = make(kind, DroppedOnes(), accumulate=2, dropout=0.5), []
    original = engine._gradients

    def gradients(parts):
        found = original(parts)
        seen.append(engine.net.out.weight.grad(mx.cpu(0)).asnumpy())
        return found
    monkeypatch.setattr(engine, '_gradients', gradients)
    images, labels = batches(1)[0]
    for _ in range(2):
        engine.seed_step(1, 1)
        engine.train_step(np.repeat(images, 2, axis=0), np.repeat(labels, 2), 0.0).read()
    dropped = [found == 0 for found in seen]
    assert not np.array_equal(dropped[0], dropped[1])
    assert np.array_equal(dropped[0], dropped[2]) and np.array_equal(dropped[1], dropped[3])
    assert 0.4 < dropped[0].mean() < 0.6


def test_a_gradient_of_one_part_that_is_not_finite_is_seen(monkeypatch):
    engine, parts_seen = make(HybridizedEngine, nn.Dense(5), accumulate=3), []
    original = engine._gradients

    def gradients(parts):
        found = original(parts)
        parts_seen.append(parts)
        if len(parts_seen) == 1:
            engine.net.bias.grad(mx.cpu(0))[0] = np.nan
        return found
    monkeypatch.setattr(engine, '_gradients', gradients)
    assert np.isnan(engine.train_step(*batches(6)[0], 0.1).read()[0])
    assert len(parts_seen) == 3


@pytest.mark.parametrize('kind', ENGINES)
def test_predictions_are_counted_in_parts(kind):
    whole, parts = (make(kind, network('wrn10_1'), accumulate=number) for number in (1, 4))
    assert parts.count_correct(batches(8, 3)) == whole.count_correct(batches(8, 3))
    assert [[len(labels) for _, labels in each] for each in parts._divide(*batches(7)[0])] == [[2], [2], [2], [1]]


def peak(**keys):
    config = load(None, {'net': 'wrn10_2', 'input_size': '32x32', **keys})
    return cells.measured(config.values(), 10, (3, 32, 32), 300)['storage_bytes']


@pytest.mark.parametrize('mode', ['speed', 'recompute'])
def test_a_step_in_four_parts_peaks_as_one_of_a_quarter_does(mode):
    whole, quarter, parts = (peak(batch_size=batch, accumulate=number, memory_mode=mode)
                             for batch, number in ((128, 1), (32, 1), (128, 4)))
    gradients = 4 * 306_378  # parameters of wrn10_2 are fewer
    assert parts < 0.35 * whole
    assert quarter < parts < quarter + 1.1 * gradients + 96 * 3 * 32 * 32 + 0.02 * quarter
