"""Every backend against the float64 oracle, in every mode. Tolerance: 1e-5 of the oracle's largest magnitude."""
import re

import numpy as np
import pytest

from gluon_aa.attention import BACKENDS, relative_attention, resolve_backend
from gluon_aa.attention.heads import relative_logits
from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from compare import relative_error
from modes import MODES, executor_of
import oracle

TOLERANCE = 1e-5
RUNS = (*MODES, 'executor')
#: Tiles of 12 queries: dividing them or not, single queries, one tile, more than there are.
TILES = (1, 4, 5, 12, 99)


class Operator(mx.gluon.HybridBlock):
    """The function as a block, so that it can be hybridized."""

    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

    def hybrid_forward(self, F, qkv, rel_h=None, rel_w=None):
        return relative_attention(F, qkv, rel_h, rel_w, **self.sizes)


def make_inputs(height, width, num_heads, key_channels, value_channels, relative, batch=2, scale=1.0):
    depth = key_channels // num_heads
    shapes = [(batch, 2 * key_channels + value_channels, height, width)]
    if relative:
        shapes += [(2 * height - 1, depth), (2 * width - 1, depth)]
    return [(scale * np.random.randn(*shape)).astype('float32') for shape in shapes]


def run(inputs, head_gradient, mode, backend, **sizes):
    """[output, gradients of the inputs...] after two passes, the second on the planned memory; mode of RUNS."""
    operator = Operator(attention_backend=backend, **sizes)
    arrays = [mx.nd.array(x) for x in inputs]
    if mode == 'executor':
        executor = executor_of(operator, arrays)
        for _ in range(2):
            output, = executor.forward(is_train=True)
            executor.backward([mx.nd.array(head_gradient)])
        return [output.asnumpy()] + [executor.grad_dict[f'input{i}'].asnumpy() for i in range(len(arrays))]
    if MODES[mode] is not None:
        operator.hybridize(**MODES[mode])
    for array in arrays:
        array.attach_grad()
    for _ in range(2):
        with mx.autograd.record():
            output = operator(*arrays)
        output.backward(mx.nd.array(head_gradient))
    return [output.asnumpy()] + [array.grad.asnumpy() for array in arrays]


def expected(inputs, head_gradient, **channels):
    qkv, rel_h, rel_w = (inputs + [None, None])[:3]
    found = oracle.gradients(qkv, rel_h, rel_w, head_gradient, **channels)
    return [oracle.attend(qkv, rel_h, rel_w, **channels)] + [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize('mode', RUNS)
@pytest.mark.parametrize('num_heads', [1, 2, 8])
@pytest.mark.parametrize('relative', [True, False], ids=['relative', 'plain'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_outputs_and_gradients_equal_the_oracle(backend, relative, num_heads, mode):
    channels = {'num_heads': num_heads, 'key_channels': 3 * num_heads, 'value_channels': 2 * num_heads}
    inputs = make_inputs(3, 4, relative=relative, **channels)
    head_gradient = np.random.randn(2, 2 * num_heads, 3, 4)
    actual = run(inputs, head_gradient, mode, backend, height=3, width=4, **channels)
    for found, wanted in zip(actual, expected(inputs, head_gradient, **channels)):
        assert relative_error(found, wanted) < TOLERANCE


@pytest.mark.parametrize('mode', RUNS)
@pytest.mark.parametrize('tile', TILES)
@pytest.mark.parametrize('relative', [True, False], ids=['relative', 'plain'])
def test_tiles_of_any_size_equal_the_oracle(relative, tile, mode):
    channels = {'num_heads': 2, 'key_channels': 6, 'value_channels': 4}
    inputs = make_inputs(3, 4, relative=relative, **channels)
    head_gradient = np.random.randn(2, 4, 3, 4)
    actual = run(inputs, head_gradient, mode, 'tiled', height=3, width=4, tile=tile, **channels)
    for found, wanted in zip(actual, expected(inputs, head_gradient, **channels)):
        assert relative_error(found, wanted) < TOLERANCE


def planned(backend, size, relative, **options):
    """Megabytes that the executor plans for the forward and the backward pass on a map of size x size."""
    inputs = make_inputs(size, size, 2, 8, 4, relative, batch=8)
    operator = Operator(height=size, width=size, num_heads=2, key_channels=8, value_channels=4,
                        attention_backend=backend, **options)
    text = executor_of(operator, [mx.nd.array(x) for x in inputs]).debug_str()
    return int(re.search(r'Total (\d+) MB allocated', text).group(1))


def test_planned_memory_grows_with_the_tile_times_the_pixels(monkeypatch):
    monkeypatch.setenv('NNVM_EXEC_MATCH_RANGE', '2')  # as the recompute engine has it
    # N = 1024 and 4096 queries, 16 maps of N x N: 64 MB and 1 GB each
    assert planned('reference', 64, False) > 14 * planned('reference', 32, False) > 14 * 128
    small, large = (planned('tiled', size, False, tile=128) for size in (32, 64))
    assert large < 4.5 * small < 4.5 * 40
    wide = planned('tiled', 64, False, tile=512)
    assert 1.5 * 96 < wide - large < 3 * 96  # 16 maps of 384 x 4096 more, of which two are there at once
    # with relative logits depth grows from 4 + 32 + 32 to 4 + 64 + 64
    assert planned('tiled', 64, True, tile=128) < 4 * 2 * planned('tiled', 32, True, tile=128)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (6, 1), (5, 2), (4, 4)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_any_height_and_width(backend, size):
    channels = {'num_heads': 2, 'key_channels': 6, 'value_channels': 4}
    inputs = make_inputs(*size, relative=True, **channels)
    head_gradient = np.random.randn(2, 4, *size)
    actual = run(inputs, head_gradient, 'eager', backend, height=size[0], width=size[1], **channels)
    for found, wanted in zip(actual, expected(inputs, head_gradient, **channels)):
        if np.abs(wanted).max() < 1e-12:  # a single row, column or pixel: all its logits shift together
            assert np.abs(found).max() < 1e-6
        else:
            assert relative_error(found, wanted) < TOLERANCE


@pytest.mark.parametrize('backend', BACKENDS)
def test_large_logits_do_not_overflow(backend):
    channels = {'num_heads': 1, 'key_channels': 4, 'value_channels': 2}
    inputs = make_inputs(3, 2, relative=True, scale=8.0, **channels)
    head_gradient = np.random.randn(2, 2, 3, 2)
    actual = run(inputs, head_gradient, 'eager', backend, height=3, width=2, **channels)
    for found, wanted in zip(actual, expected(inputs, head_gradient, **channels)):
        assert relative_error(found, wanted) < 3e-5


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_agree_with_finite_differences(backend):
    channels = {'num_heads': 2, 'key_channels': 4, 'value_channels': 2}
    inputs = make_inputs(2, 3, relative=True, batch=1, **channels)
    head_gradient = np.random.randn(1, 2, 2, 3)
    actual = run(inputs, head_gradient, 'eager', backend, height=2, width=3, **channels)[1:]
    exact = [x.astype(np.float64) for x in inputs]
    for position, found in enumerate(actual):
        def loss(x):
            return (head_gradient * oracle.attend(*exact[:position], x, *exact[position + 1:], **channels)).sum()
        assert relative_error(found, oracle.finite_differences(loss, exact[position])) < TOLERANCE


def test_relative_logits_depend_on_the_offset_alone():
    height, width, depth = 4, 3, 5
    query = np.random.randn(depth)
    rel_h, rel_w = np.random.randn(2 * height - 1, depth), np.random.randn(2 * width - 1, depth)
    queries = mx.nd.array(np.tile(query, (1, height * width, 1)))  # the same query at every pixel
    a_h, a_w = relative_logits(mx.nd, queries, mx.nd.array(rel_h), mx.nd.array(rel_w), height=height, width=width,
                               key_depth=depth)
    a_h = a_h.asnumpy().reshape(height, width, height)  # (iy, ix, jy)
    a_w = a_w.asnumpy().reshape(height, width, width)  # (iy, ix, jx)
    for iy, ix, jy in np.ndindex(a_h.shape):
        assert a_h[iy, ix, jy] == pytest.approx(query @ rel_h[jy - iy + height - 1], rel=1e-5)
    for iy, ix, jx in np.ndindex(a_w.shape):
        assert a_w[iy, ix, jx] == pytest.approx(query @ rel_w[jx - ix + width - 1], rel=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
def test_second_cpu_context(backend):
    channels = {'num_heads': 2, 'key_channels': 6, 'value_channels': 4}
    inputs = make_inputs(3, 4, relative=True, **channels)
    output = relative_attention(mx.nd, *(mx.nd.array(x, ctx=mx.cpu(1)) for x in inputs), height=3, width=4,
                                attention_backend=backend, **channels)
    assert output.context == mx.cpu(1)
    assert relative_error(output.asnumpy(), oracle.attend(*inputs, **channels)) < TOLERANCE


def test_auto_is_a_backend():
    assert resolve_backend('auto') in BACKENDS


@pytest.mark.parametrize('change, message', [
    ({'key_channels': 5}, '5 key and 4 value channels must both divide by 2 heads'),
    ({'value_channels': 3}, 'must both divide by 2 heads'),
    ({'attention_backend': 'foldde'}, "unknown attention backend 'foldde': did you mean folded"),
    ({'rel_w': None}, 'rel_h and rel_w come together'),
    ({'tile': 0}, 'tile=0 must be at least 1'),
])
def test_wrong_arguments_are_named(change, message):
    arguments = {'qkv': mx.nd.ones((1, 12, 3, 4)),
                 'num_heads': 2, 'key_channels': 4, 'value_channels': 4, 'rel_h': mx.nd.ones((5, 2)),
                 'rel_w': mx.nd.ones((7, 2)), 'height': 3, 'width': 4, **change}
    with pytest.raises(UsageError, match=message):
        relative_attention(mx.nd, **arguments)
