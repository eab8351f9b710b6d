"""One step of the engine against NumPy, and one device against two."""
import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.errors import FailedError
from gluon_aa.models import get_model
from gluon_aa.training.config import load
from gluon_aa.training.engine import Classifier, HybridizedEngine
from compare import relative_error

nn = mx.gluon.nn
MEAN, STD = np.array([100.0, 90.0]).reshape(2, 1, 1), np.array([50.0, 40.0]).reshape(2, 1, 1)


def make_batch(count=6):
    return (np.random.randint(0, 256, (count, 2, 3, 4), dtype=np.uint8),
            np.random.randint(0, 5, count).astype(np.int32))


def softmax_loss(logits, labels, smoothing):
    """Cross entropy with the labels' distribution (1 - e) onehot + e / K, summed; and its gradient."""
    logits = logits.astype(np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(logits.shape[1])[labels] + smoothing / logits.shape[1]
    return -(target * log_p).sum(), np.exp(log_p) - target


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_and_accuracy_equal_numpy(smoothing):
    net = nn.Dense(5, in_units=24)
    classifier = Classifier(net, MEAN, STD, smoothing)
    classifier.initialize(mx.init.Normal(0.3))
    images, labels = make_batch()
    loss, correct = classifier(mx.nd.array(images, dtype='uint8'), mx.nd.array(labels, dtype='int32'))
    x = (images - MEAN) / STD
    logits = x.reshape(6, -1) @ net.weight.data().asnumpy().T.astype(np.float64)
    assert relative_error(loss.asscalar(), softmax_loss(logits, labels, smoothing)[0]) < 1e-5
    assert correct.asscalar() == (logits.argmax(axis=1) == labels).sum()


def dense_engine(devices=1, **keys):
    config = load(None, {'cpus': devices, **keys})
    return HybridizedEngine(nn.Dense(5), MEAN, STD, (2, 3, 4), config, [mx.cpu(i) for i in range(devices)])


@pytest.mark.parametrize('keys, updated', [
    # MXNet's documented rules; g is the mean gradient plus weight decay times the weight
    ({'optimizer': 'sgd', 'momentum': 0.9}, lambda w, g: w - 0.5 * g),
    ({'optimizer': 'nag', 'momentum': 0.9}, lambda w, g: w - 0.5 * (g + 0.9 * g)),
    # bias-corrected by the step size alone: lr sqrt(1 - b2) / (1 - b1) times (1 - b1) g / (sqrt((1 - b2) g^2) + 1e-8)
    ({'optimizer': 'adam'}, lambda w, g: w - 0.5 * np.sqrt(1e-3) * g / (np.sqrt(1e-3) * np.abs(g) + 1e-8)),
    ({'optimizer': 'sgd', 'weight_decay': 0.1}, lambda w, g: w - 0.5 * (g + 0.1 * w)),
])
@pytest.mark.parametrize('hybridize', [True, False])
def test_the_first_update_equals_numpy(keys, updated, hybridize):
    engine = dense_engine(hybridize=hybridize, **keys)
    before = engine.net.weight.data().asnumpy().astype(np.float64)
    images, labels = make_batch()
    engine.train_step(images, labels, 0.5).read()
    x = ((images - MEAN) / STD).reshape(6, -1)
    _, d_logits = softmax_loss(x @ before.T, labels, 0.0)
    gradient = d_logits.T @ x / 6
    assert relative_error(engine.net.weight.data().asnumpy(), updated(before, gradient)) < 1e-4


@pytest.mark.parametrize('optimizer', ['sgd', 'nag'])
def test_momentum_and_weight_decay_over_several_steps_equal_numpy(optimizer):
    engine = dense_engine(optimizer=optimizer, momentum=0.9, weight_decay=0.3)
    weight = engine.net.weight.data().asnumpy().astype(np.float64)
    bias, velocity, bias_velocity = np.zeros(5), 0.0, 0.0
    for _ in range(4):
        images, labels = make_batch()
        engine.train_step(images, labels, 0.1)
        x = ((images - MEAN) / STD).reshape(6, -1)
        d_logits = softmax_loss(x @ weight.T + bias, labels, 0.0)[1] / 6
        gradient, bias_gradient = d_logits.T @ x + 0.3 * weight, d_logits.sum(axis=0) + 0.3 * bias
        velocity, bias_velocity = 0.9 * velocity + gradient, 0.9 * bias_velocity + bias_gradient
        ahead = (0.9, 1.0) if optimizer == 'nag' else (1.0, 0.0)  # Nesterov: the gradient once more, as if a step ahead
        weight = weight - 0.1 * (ahead[0] * velocity + ahead[1] * gradient)
        bias = bias - 0.1 * (ahead[0] * bias_velocity + ahead[1] * bias_gradient)
    assert relative_error(engine.net.weight.data().asnumpy(), weight) < 1e-5
    assert relative_error(engine.net.bias.data().asnumpy(), bias) < 1e-5


def test_weight_decay_can_spare_norms_and_biases():
    changed = {}
    for spared in (False, True):
        config = load(None, {'optimizer': 'sgd', 'weight_decay': 0.5, 'decay_norm_and_bias': not spared})
        net = nn.HybridSequential()
        net.add(nn.BatchNorm(), nn.Dense(5))
        engine = HybridizedEngine(net, MEAN, STD, (2, 3, 4), config, [mx.cpu()])
        for parameter in net.collect_params().values():
            if parameter.grad_req != 'null':
                parameter.set_data(mx.nd.ones(parameter.shape))
        np.random.seed(0)
        engine.train_step(*make_batch(), 0.1)
        changed[spared] = [p.data().asnumpy() for p in (net[0].gamma, net[0].beta, net[1].bias, net[1].weight)]
    for name, plain, spared in zip(('gamma', 'beta', 'bias'), changed[False], changed[True]):
        assert np.allclose(spared - plain, 0.1 * 0.5, atol=1e-6), name  # the decay of a parameter that is 1
    assert np.allclose(changed[True][3], changed[False][3], atol=1e-6)


@pytest.mark.parametrize('kvstore', ['device', 'local'])
@pytest.mark.parametrize('devices', [2, 3])
def test_several_devices_make_the_updates_of_one(kvstore, devices):
    weights, losses = [], []
    for number in (1, devices):
        np.random.seed(0)
        engine = dense_engine(number, kvstore=kvstore, optimizer='nag')
        # 5: an uneven share; 2 and 1: fewer images than devices
        losses.append([engine.train_step(*make_batch(count), 0.1).read() for count in (6, 5, 2, 6, 1, 6)])
        weights.append([engine.net.weight.data(device).asnumpy() for device in engine.devices])
    assert engine._trainer._kvstore.type == kvstore  # what was asked is what runs
    assert all(np.array_equal(weights[1][0], other) for other in weights[1][1:])
    assert relative_error(weights[1][0], weights[0][0]) < 1e-6
    assert relative_error(losses[1], losses[0]) < 1e-6


def freeze_batch_norm(engine, batches):
    """Let batch norm use running statistics, settled on some batches and the same on every device."""
    norms = []
    engine.net.apply(lambda block: isinstance(block, nn.BatchNorm) and norms.append(block))
    _set(engine, norms, momentum=0.5)
    for images, labels in 3 * batches:  # of the initial 0 and 1, 12 batches leave 0.02 %
        for device in engine.devices:
            with mx.autograd.record():
                loss, _ = engine.classifier(mx.nd.array(images, ctx=device, dtype='uint8'),
                                            mx.nd.array(labels, ctx=device, dtype='int32'))
            loss.backward()  # which is what updates running statistics
    mx.nd.waitall()
    _set(engine, norms, use_global_stats=True)


def _set(engine, norms, **kwargs):
    for norm in norms:
        norm._kwargs.update(kwargs)
    engine.classifier.hybridize(static_alloc=True, static_shape=True)  # anew, with them


@pytest.mark.parametrize('net', ['resnet18', 'wrn10_2'])
def test_two_devices_train_a_network_with_frozen_batch_norm_as_one_does(net):
    weights, losses = [], []
    for devices in (1, 2):
        np.random.seed(0)
        engine = HybridizedEngine(get_model(net, 5, input_size=(8, 12)), MEAN, STD, (2, 8, 12), load(
            None, {'cpus': devices, 'seed': 3}), [mx.cpu(i) for i in range(devices)])
        batches = [(np.random.randint(0, 256, (count, 2, 8, 12), dtype=np.uint8), np.random.randint(0, 5, count))
                   for count in (8, 8, 7, 8)]
        freeze_batch_norm(engine, batches)
        losses.append([engine.train_step(images, labels, 1e-4).read()[0] for images, labels in batches])
        weights.append({name: parameter.data(mx.cpu(0)).asnumpy()
                        for name, parameter in engine.net._collect_params_with_prefix().items()})
    assert relative_error(losses[1], losses[0]) < 1e-5
    assert max(np.abs(weights[1][name] - weights[0][name]).max() for name in weights[0]) < 1e-6  # moved by 1e-3


@pytest.mark.parametrize('keys', [{'optimizer': 'sgd'}, {'optimizer': 'sgd', 'momentum': 0.0},
                                  {'optimizer': 'nag', 'weight_decay': 0.1}, {'optimizer': 'adam'}])
@pytest.mark.parametrize('devices', [1, 2])
def test_an_engine_goes_on_from_anothers_state_bit_for_bit(keys, devices):
    def make(seed):
        net = nn.HybridSequential()
        net.add(nn.BatchNorm(), nn.Dense(5))
        return HybridizedEngine(net, MEAN, STD, (2, 3, 4), load(None, {'cpus': devices, 'seed': seed, **keys}),
                                [mx.cpu(i) for i in range(devices)])

    batches = [make_batch() for _ in range(6)]
    whole, stopped, resumed = make(0), make(0), make(1)
    for batch in batches:
        whole.train_step(*batch, 0.1)
    for batch in batches[:3]:
        stopped.train_step(*batch, 0.1)
    state = stopped.state()
    for name, parameter in resumed.net._collect_params_with_prefix().items():
        parameter.set_data(stopped.net._collect_params_with_prefix()[name].data(mx.cpu(0)))
    resumed.restore(state)
    for batch in batches[3:]:
        resumed.train_step(*batch, 0.1)
    mx.nd.waitall()
    for name, parameter in whole.net._collect_params_with_prefix().items():
        for device in whole.devices:
            assert np.array_equal(parameter.data(device).asnumpy(),
                                  resumed.net._collect_params_with_prefix()[name].data(device).asnumpy()), name


def test_the_state_of_another_optimizer_is_refused():
    sgd, adam = dense_engine(optimizer='sgd'), dense_engine(optimizer='adam')
    sgd.train_step(*make_batch(), 0.1)
    with pytest.raises(FailedError, match="the checkpoint's optimizer/weight/1 is absent .* of another optimizer"):
        adam.restore(sgd.state())


def test_correct_predictions_are_counted_over_devices_without_the_filling():
    for devices in (1, 2):
        engine = dense_engine(devices)
        images, labels = make_batch(24)
        x = ((images - MEAN) / STD).reshape(24, -1)
        wanted = ((x @ engine.net.weight.data(mx.cpu(0)).asnumpy().T).argmax(axis=1) == labels)[:22].sum()
        labels[22:] = -1
        batches = [(images[begin:begin + 6], labels[begin:begin + 6]) for begin in range(0, 24, 6)]
        assert engine.count_correct(batches) == wanted


def test_weights_depend_on_the_seed_alone():
    first, again, other = (dense_engine(seed=seed).net.weight.data().asnumpy() for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
