"""Every family: shapes, gradients, modes, files; and the parameter counts of the literature."""
import math

import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.models import get_model
from gluon_aa.models.summary import summarize
from compare import relative_error

#: One small network of each family, plain and augmented, and one of gluoncv's.
NETWORKS = {
    'wrn10_1': {},
    'aa_wrn10_1': {},
    'aa_wrn16_2': {'placement': 'all', 'num_heads': 4, 'min_key_channels_per_head': 4, 'relative': False},
    'wrn10_2': {'dropout': 0.3},
    'resnet18': {},
    'aa_resnet18': {'placement': 'all'},
    'aa_resnet34': {'placement': 'seed'},
    'aa_resnet50': {'stem': 'imagenet', 'attention_backend': 'reference'},
    'cifar_resnet20_v1': {},
}


def size_of(name):
    """H != W, and large enough that no augmented map is a single pixel, where attention has no gradient."""
    return (16, 12) if 'wrn' in name else (64, 48) if 'stem' in NETWORKS[name] else (32, 24)


def build(name, mode=None):
    mx.random.seed(0)
    net = get_model(name, 7, input_size=size_of(name), **NETWORKS[name])
    net.initialize(mx.init.MSRAPrelu('in', 0))
    if mode is not None:
        net.hybridize(**mode)
    return net


def step(net, x):
    """(logits, gradients by structural name) of one training step."""
    mx.random.seed(1)  # dropout
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    with mx.autograd.record():
        logits = net(x)
        loss = loss_of(logits, mx.nd.array([1, 3, 5])[:len(x)])
    loss.backward()
    parameters = net._collect_params_with_prefix()
    return logits.asnumpy(), {name: p.grad().asnumpy() for name, p in parameters.items() if p.grad_req != 'null'}


#: Those whose blocks differ: aa_resnet34 has those of resnet18 and aa_resnet18.
DISTINCT = [name for name in NETWORKS if name != 'aa_resnet34']


@pytest.mark.parametrize('name', DISTINCT)
def test_every_parameter_learns_and_modes_agree(name):
    x = mx.nd.random.uniform(shape=(3, 3, *size_of(name)))
    logits, gradients = step(build(name), x)
    assert logits.shape == (3, 7)
    for parameter, gradient in gradients.items():
        assert np.isfinite(gradient).all(), parameter
        assert np.abs(gradient).max() > 0, parameter
    if 'dropout' in NETWORKS[name]:
        return  # the modes draw different masks
    for mode in ({}, {'static_alloc': True, 'static_shape': True}):
        other_logits, other = step(build(name, mode), x)
        assert relative_error(other_logits, logits) < 1e-4
        for parameter, gradient in gradients.items():
            # float32 sums in another order, through some fifty layers
            assert relative_error(other[parameter], gradient) < 5e-3, parameter


@pytest.mark.parametrize('name', DISTINCT)
def test_saved_parameters_load_into_a_new_network(name, tmp_path):
    x = mx.nd.random.uniform(shape=(2, 3, *size_of(name)))
    net = build(name)
    logits = net(x).asnumpy()
    net.save_parameters(str(tmp_path / 'net.params'))
    fresh = get_model(name, 7, input_size=size_of(name), **NETWORKS[name])
    fresh.load_parameters(str(tmp_path / 'net.params'))
    assert np.array_equal(fresh(x).asnumpy(), logits)


@pytest.mark.parametrize('name', NETWORKS)
def test_summary_agrees_with_the_built_network(name):
    net = build(name)
    net(mx.nd.ones((1, 3, *size_of(name))))
    trainable = [p for p in net.collect_params().values() if p.grad_req != 'null']
    summary = summarize(get_model(name, 7, input_size=size_of(name), **NETWORKS[name]), size_of(name))
    assert summary['parameters'] == sum(p.data().size for p in trainable)
    assert sum(layer['flops'] for layer in summary['layers']) == summary['flops']


@pytest.mark.parametrize('name, classes, options, parameters', [
    ('wrn28_10', 100, {}, 36_536_884),
    ('wrn28_10', 10, {}, 36_479_194),
    ('aa_wrn28_10', 100, {}, 36_312_660),
    ('aa_wrn28_10', 10, {}, 36_254_970),
    ('aa_wrn28_10', 100, {'placement': 'stages:2,3'}, 36_206_324),
    ('resnet34', 10, {}, 21_289_802),
    ('cifar_wideresnet28_10', 10, {}, 36_479_226),
    ('resnet50', 1000, {'stem': 'imagenet'}, 25_557_032),  # He et al.'s, as every framework counts it
    ('aa_resnet50', 1000, {'stem': 'imagenet'}, 24_303_728),  # the paper's ablation: 24.3M
    ('aa_resnet50', 1000, {'stem': 'imagenet', 'key_ratio': 0.5, 'value_ratio': 0.5}, 22.3e6),
    ('aa_resnet50', 1000, {'stem': 'imagenet', 'key_ratio': 0.75, 'value_ratio': 0.75}, 20.7e6),
    ('aa_resnet34', 1000, {'stem': 'imagenet'}, 20_745_072),  # the paper: 20.7M
])
def test_parameter_counts_of_the_literature(name, classes, options, parameters):
    size = (224, 224) if 'stem' in options else (32, 32)
    found = summarize(get_model(name, classes, input_size=size, **options), size)['parameters']
    assert found == parameters if isinstance(parameters, int) else round(found / 1e6, 1) == parameters / 1e6


@pytest.mark.parametrize('name, classes, options, size, gigaflops', [
    ('wrn28_10', 100, {}, 32, 10.49),  # the paper prints 10.4
    ('resnet50', 1000, {'stem': 'imagenet'}, 224, 8.18),  # the paper prints 8.2
])
def test_flops_of_the_literature(name, classes, options, size, gigaflops):
    found = summarize(get_model(name, classes, input_size=size, **options), (size, size))['flops']
    assert found / 1e9 == pytest.approx(gigaflops, abs=0.005)


def test_attention_flops_counted_by_hand():
    # 8x8 input, stage 3 of wrn10_1: 64 channels at 2x2, N = 4; 8 heads, 160 key and 8 value channels, 32 input channels
    summary = summarize(get_model('aa_wrn10_1', input_size=(8, 8), placement='stages:3'), (8, 8))
    layer, = (layer for layer in summary['layers'] if layer['augmented'])
    convolution = 9 * 32 * (64 - 8) * 4
    qkv, projection = 32 * (160 + 160 + 8) * 4, 8 * 8 * 4
    logits, relative, values = 4 * 4 * 160, 4 * (2 + 2) * 160, 4 * 4 * 8
    assert layer['attention']['flops'] == 2 * (qkv + projection + logits + relative + values)
    assert layer['flops'] == layer['attention']['flops'] + 2 * convolution
    assert layer['attention']['parameters'] == 32 * 328 + 8 * 8 + 2 * 3 * 20
    assert (layer['height'], layer['width'], layer['channels']) == (2, 2, 64)


def test_layers_have_the_sizes_of_the_paper():
    summary = summarize(get_model('aa_wrn28_10', input_size=(32, 32)), (32, 32))
    augmented = [layer for layer in summary['layers'] if layer['augmented']]
    assert [(layer['height'], layer['attention']['value_channels']) for layer in augmented] == (
        [(32, 16)] * 4 + [(16, 32)] * 4 + [(8, 64)] * 4)
    assert all(layer['attention']['key_channels'] == 160 for layer in augmented)
    # one map at batch 128 in float32 is 4 GiB
    assert augmented[0]['attention']['map_numbers'] * 128 * 4 == 4 * 2 ** 30


def test_stem_of_the_replication_halves_once():
    summary = summarize(get_model('resnet34', input_size=(32, 32)), (32, 32))
    heights = {layer['name']: layer['height'] for layer in summary['layers']}
    assert [heights[f'stage{stage}.block1.conv1'] for stage in (1, 2, 3, 4)] == [16, 8, 4, 2]


def test_initial_logits_are_of_order_one():
    logits = build('aa_wrn10_1')(mx.nd.random.normal(shape=(8, 3, 16, 12))).asnumpy()
    assert 0.01 < logits.std() < 10 and math.isfinite(logits.std())
