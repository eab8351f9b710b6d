"""The attention-augmented convolution against NumPy, and its rounding rules against the paper's figures."""
import numpy as np
import pytest
from scipy.signal import correlate

from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from gluon_aa.layers import AttentionAugmentedConv2D, resolve_channels
from compare import relative_error
from modes import MODES
import oracle

nn = mx.gluon.nn


def convolve(x, weight, strides):
    """Zero-padded correlation, (B, C, H, W) and (O, C, k, k) -> (B, O, H/strides, W/strides), float64."""
    pad = weight.shape[2] // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    full = np.stack([[correlate(image, kernel, mode='valid')[0] for kernel in weight.astype(np.float64)]
                     for image in padded])
    return full[:, :, ::strides, ::strides]


def average_pool(x, p):
    """Kernel 2p-1, stride p, borders averaged over the pixels inside."""
    height, width = x.shape[2:]
    rows = [(max(0, y * p - p + 1), y * p + p) for y in range(-(-height // p))]
    columns = [(max(0, c * p - p + 1), c * p + p) for c in range(-(-width // p))]
    return np.stack([np.stack([x[:, :, top:bottom, left:right].mean(axis=(2, 3)) for left, right in columns], -1)
                     for top, bottom in rows], -2)


def upsample(x, height, width):
    """Bilinear, pixel centres aligned (as TensorFlow's half_pixel_centers and PyTorch's align_corners=False)."""
    def positions(size, target):
        place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, None)
        low = np.minimum(place.astype(int), size - 1)
        return low, np.minimum(low + 1, size - 1), place - low
    top, bottom, down = positions(x.shape[2], height)
    left, right, across = positions(x.shape[3], width)
    x = x[:, :, top] * (1 - down)[:, None] + x[:, :, bottom] * down[:, None]
    return x[:, :, :, left] * (1 - across) + x[:, :, :, right] * across


def expected_output(layer, x):
    """The layer's output from its weights, in float64."""
    strides = layer.conv._kwargs['stride'][0]
    pooled = x if layer.attention_pool == 1 else average_pool(x, layer.attention_pool)
    qkv = convolve(pooled, layer.qkv.weight.data().asnumpy(), strides)
    tables = [table.data().asnumpy() for table in (layer.rel_h, layer.rel_w)] if layer.relative else [None, None]
    attended = oracle.attend(qkv, *tables, num_heads=layer.num_heads, key_channels=layer.key_channels,
                             value_channels=layer.value_channels)
    attended = convolve(attended, layer.projection.weight.data().asnumpy(), 1)
    if layer.attention_pool > 1:
        attended = upsample(attended, *layer.map_size)
    return np.concatenate([convolve(x, layer.conv.weight.data().asnumpy(), strides), attended], axis=1)


@pytest.mark.parametrize('options', [
    {},
    {'relative': False},
    {'strides': 2},
    {'kernel_size': 1},
    {'kernel_size': 5, 'attention_backend': 'reference'},
    {'attention_pool': 2},
    {'attention_pool': 2, 'strides': 2},
    {'attention_pool': 3},
], ids=str)
def test_output_equals_numpy(options):
    strides = options.get('strides', 1)
    layer = AttentionAugmentedConv2D(10, **{'kernel_size': 3, **options}, map_size=(4, 5), num_heads=2,
                                     min_key_channels_per_head=3, value_ratio=0.4)
    layer.initialize(mx.init.Normal(0.3))
    x = np.random.randn(2, 3, 4 * strides, 5 * strides).astype('float32')
    assert relative_error(layer(mx.nd.array(x)).asnumpy(), expected_output(layer, x)) < 1e-5


@pytest.mark.parametrize('options', [{}, {'attention_pool': 2}, {'strides': 2}, {'relative': False}], ids=str)
@pytest.mark.parametrize('channels, value_channels', [(16, 8), (32, 8), (64, 8), (64, 24), (14, 4), (160, 16)])
def test_gradients_do_not_depend_on_the_mode(channels, value_channels, options):
    # the channels around it matter: oneDNN lays them out in blocks of 16
    strides = options.get('strides', 1)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(16, 3, padding=1), AttentionAugmentedConv2D(
        channels, map_size=(3, 4), num_heads=4, min_key_channels_per_head=2, value_channels=value_channels, **options),
        nn.BatchNorm(), nn.Activation('relu'), nn.Conv2D(32, 3, padding=1))
    net.initialize(mx.init.Xavier())
    x = mx.nd.random.normal(shape=(2, 3, 3 * strides, 4 * strides))
    head_gradient = mx.nd.random.normal(shape=(2, 32, 3, 4))
    found = []
    for mode in MODES.values():
        if mode is not None:
            net.hybridize(**mode)
        for _ in range(2):
            with mx.autograd.record():
                output = net(x)
            output.backward(head_gradient)
        parameters = [p for p in net.collect_params().values() if p.grad_req != 'null']
        found.append([output.asnumpy()] + [p.grad().asnumpy() for p in parameters])
    for other in found[1:]:
        for actual, eager in zip(other, found[0]):
            assert relative_error(actual, eager) < 1e-4 or np.abs(eager).max() < 1e-5


def test_pooled_attention_has_the_gradient_of_finite_differences():
    layer = AttentionAugmentedConv2D(4, map_size=(3, 4), num_heads=1, min_key_channels_per_head=2, value_channels=2,
                                     attention_pool=2)
    layer.initialize(mx.init.Normal(0.5))
    x = np.random.randn(1, 2, 3, 4)
    head_gradient = np.random.randn(1, 4, 3, 4)
    array = mx.nd.array(x)
    array.attach_grad()
    with mx.autograd.record():
        output = layer(array)
    output.backward(mx.nd.array(head_gradient))
    wanted = oracle.finite_differences(lambda x: (head_gradient * expected_output(layer, x)).sum(), x)
    assert relative_error(array.grad.asnumpy(), wanted) < 1e-5


@pytest.mark.parametrize('channels, ratios, heads, keys_and_values', [
    (160, (0.2, 0.1), 8, (160, 16)),  # AA-WRN-28-10's three groups: facts of the paper
    (320, (0.2, 0.1), 8, (160, 32)),
    (640, (0.2, 0.1), 8, (160, 64)),
    (128, (0.25, 0.25), 8, (160, 32)),  # AA-ResNet-34
    (512, (0.25, 0.25), 8, (160, 128)),
    (1024, (0.25, 0.25), 8, (256, 256)),
    (100, (0.29, 0.29), 1, (29, 29)),  # 0.29 * 100 is 28.999999999999996
    (32, (0.2, 0.1), 8, (160, 8)),  # at least one value channel a head
    (100, (0.5, 0.3), 8, (160, 24)),  # rounded down to a multiple of the heads
])
def test_ratios_become_channels(channels, ratios, heads, keys_and_values):
    assert resolve_channels(channels, num_heads=heads, key_ratio=ratios[0], value_ratio=ratios[1],
                            min_key_channels_per_head=20) == keys_and_values


def test_integers_win_over_ratios():
    layer = AttentionAugmentedConv2D(64, map_size=(4, 4), num_heads=4, key_channels=8, value_channels=12)
    assert (layer.key_channels, layer.value_channels) == (8, 12)


@pytest.mark.parametrize('options, message', [
    ({'key_channels': 10}, 'key_channels=10 does not divide by num_heads=4: try 8 or 12'),
    ({'value_channels': 3}, 'value_channels=3 does not divide by num_heads=4: try 4 or 8'),
    ({'value_channels': 64}, 'leaves none for the convolution'),
    ({'value_ratio': 1.0}, 'leaves none for the convolution'),
    ({'key_ratio': 0}, 'key_ratio=0 must be greater than 0'),
    ({'num_heads': 0}, 'num_heads=0 must be at least 1'),
    ({'kernel_size': 2}, 'kernel_size=2 must be odd'),
    ({'map_size': (0, 4)}, 'must be at least 1'),
    ({'attention_backend': 'fast'}, 'unknown attention backend'),
])
def test_bad_sizes_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        AttentionAugmentedConv2D(64, **{'map_size': (4, 4), 'num_heads': 4, **options})


def test_a_map_of_another_size_is_an_error():
    layer = AttentionAugmentedConv2D(16, map_size=(4, 5), num_heads=2)
    layer.initialize()
    with pytest.raises(mx.base.MXNetError):
        layer(mx.nd.ones((2, 3, 8, 10))).wait_to_read()


def test_attention_begins_with_the_reference_codes_weights():
    layer = AttentionAugmentedConv2D(64, map_size=(4, 6), in_channels=32, num_heads=2, key_ratio=0.5, value_ratio=0.25)
    layer.initialize(mx.init.MSRAPrelu('in', 0))  # what the trainer gives to all other convolutions
    for block in (layer.qkv, layer.projection):
        weight = block.weight.data().asnumpy()
        bound = np.sqrt(6 / sum(weight.shape[:2]))  # Glorot and Bengio 2010, equation 16
        assert 0.9 * bound < np.abs(weight).max() <= bound
        assert abs(weight.std() / (bound / np.sqrt(3)) - 1) < 0.1
    assert abs(layer.conv.weight.data().asnumpy().std() / np.sqrt(2 / (32 * 9)) - 1) < 0.1
