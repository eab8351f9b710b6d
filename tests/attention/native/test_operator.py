"""The compiled operator against the float64 oracle, where sizes meet panels, tiles and vectors unevenly."""
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gluon_aa import attention
from gluon_aa.attention import native, relative_attention, resolve_backend
from gluon_aa.attention.native import check
from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from compare import relative_error
import oracle

TOLERANCE = 1e-5


def make_inputs(height, width, num_heads, key_depth, value_depth, relative=True, batch=1, scale=1.0):
    shapes = [(batch, num_heads * (2 * key_depth + value_depth), height, width)]
    if relative:
        shapes += [(2 * height - 1, key_depth), (2 * width - 1, key_depth)]
    return [(scale * np.random.randn(*shape)).astype('float32') for shape in shapes]


def channels_of(num_heads, key_depth, value_depth):
    return {'num_heads': num_heads, 'key_channels': num_heads * key_depth, 'value_channels': num_heads * value_depth}


def run(inputs, head_gradient, **sizes):
    """[output, gradients of the inputs...]"""
    arrays = [mx.nd.array(x) for x in inputs]
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        output = relative_attention(mx.nd, *(arrays + [None, None])[:3], attention_backend='native', **sizes)
    output.backward(mx.nd.array(head_gradient))
    return [output.asnumpy()] + [array.grad.asnumpy() for array in arrays]


def assert_equals_oracle(inputs, num_heads, key_depth, value_depth, tolerance=TOLERANCE):
    batch, _, height, width = inputs[0].shape
    channels = channels_of(num_heads, key_depth, value_depth)
    head_gradient = np.random.randn(batch, num_heads * value_depth, height, width).astype('float32')
    found = run(inputs, head_gradient, height=height, width=width, **channels)
    wanted = oracle.attend_and_gradients(*(inputs + [None, None])[:3], head_gradient, **channels)
    assert len(found) == len(wanted)
    for actual, expected in zip(found, wanted):
        if np.abs(expected).max() < 1e-12:  # one row, one column or one pixel: its logits shift together
            assert np.abs(actual).max() < 1e-6
        else:
            assert relative_error(actual, expected) < tolerance


# around multiples of vectors (4, 8, 16 lanes), of panels (8, 16, 64 keys) and of tiles (24 queries)
MAPS = [(1, 1), (1, 2), (2, 1), (3, 5), (4, 4), (1, 23), (24, 1), (5, 5), (7, 9), (2, 31), (8, 8), (5, 13), (3, 32),
        (13, 10), (16, 8), (9, 16), (2, 65), (12, 17), (16, 16), (1, 130), (33, 6)]


@pytest.mark.parametrize('relative', [True, False], ids=['relative', 'plain'])
@pytest.mark.parametrize('size', MAPS, ids=str)
def test_maps_of_any_size(size, relative):
    assert_equals_oracle(make_inputs(*size, 2, 5, 3, relative), 2, 5, 3)


@pytest.mark.parametrize('num_heads, batch', itertools.product([1, 2, 4, 8], [1, 3]))
def test_heads_and_images(num_heads, batch):
    assert_equals_oracle(make_inputs(4, 6, num_heads, 20, 2, batch=batch), num_heads, 20, 2)


@pytest.mark.parametrize('key_depth, value_depth', [
    (1, 1), (2, 3), (3, 4), (4, 8), (5, 6), (7, 7), (11, 13), (13, 1), (16, 16), (17, 9), (20, 2), (20, 64), (31, 5),
    (64, 33), (80, 64)])
def test_channels_of_any_number(key_depth, value_depth):
    assert_equals_oracle(make_inputs(5, 7, 2, key_depth, value_depth), 2, key_depth, value_depth)


@pytest.mark.parametrize('size', [(6, 5), (4, 16), (5, 32)])
@pytest.mark.parametrize('largest', [20, 80])
def test_large_logits_do_not_overflow(size, largest):
    inputs = make_inputs(*size, 2, 20, 4)
    channels = channels_of(2, 20, 4)
    q, k, _ = (x.reshape(2, size[0] * size[1], -1)
               for x in oracle._heads(inputs[0].astype(np.float64), 2, channels['key_channels'], 8))
    logits = np.abs(q @ k.swapaxes(1, 2)).max() / np.sqrt(20)
    inputs[0][:, :80] *= np.sqrt(largest / logits)  # queries and keys; the largest logit is now +-largest
    assert_equals_oracle(inputs, 2, 20, 4, tolerance=3e-5 if largest > 20 else TOLERANCE)


def test_a_query_far_from_the_bound_of_its_logits_is_right():
    # one key is long and orthogonal to the queries: the bound, |q| times the longest |k|, is 2,000 above every logit
    inputs = make_inputs(4, 16, 1, 4, 4, relative=False)
    inputs[0][:, 3] = 0  # the queries' last channel
    inputs[0][0, 4:8, 2, 5] = (0, 0, 0, 2000)
    assert_equals_oracle(inputs, 1, 4, 4)


def test_equal_logits_of_any_height():
    # all logits of a query are equal and far from 0: the weights are 1/N, whatever is subtracted
    inputs = make_inputs(3, 5, 1, 2, 3, relative=False)
    inputs[0][:, 2:4] = 30.0
    output = run(inputs, np.ones((1, 3, 3, 5)), height=3, width=5, **channels_of(1, 2, 3))[0]
    mean = inputs[0][:, 4:].mean(axis=(2, 3), keepdims=True)
    assert relative_error(output, np.broadcast_to(mean, output.shape)) < 1e-6


def test_a_bound_that_rounding_lowers_does_no_harm():
    # logits of 1e9, whose bound is rounded by hundreds: weights must not overflow
    inputs = make_inputs(3, 6, 1, 8, 2, relative=False)
    inputs[0][:, :16] *= 3e4
    output = run(inputs, np.ones((1, 2, 3, 6)), height=3, width=6, **channels_of(1, 8, 2))[0]
    values = inputs[0][0, 16:].reshape(2, -1)
    assert np.isfinite(output).all()
    assert (output >= values.min(axis=1).reshape(1, 2, 1, 1)).all()
    assert (output <= values.max(axis=1).reshape(1, 2, 1, 1)).all()


def test_two_contexts_train_at_once():
    inputs, channels = make_inputs(6, 7, 2, 5, 3, batch=4), channels_of(2, 5, 3)
    head_gradient = np.random.randn(4, 6, 6, 7).astype('float32')
    wanted = run(inputs, head_gradient, height=6, width=7, **channels)
    halves, outputs = [], []
    for number in range(2):
        arrays = [mx.nd.array(inputs[0][2 * number:2 * number + 2], ctx=mx.cpu(number)),
                  *(mx.nd.array(table, ctx=mx.cpu(number)) for table in inputs[1:])]
        for array in arrays:
            array.attach_grad()
        with mx.autograd.record():
            outputs.append(relative_attention(mx.nd, *arrays, height=6, width=7, attention_backend='native',
                                              **channels))
        halves.append(arrays)
    mx.autograd.backward(outputs, [mx.nd.array(head_gradient[2 * number:2 * number + 2], ctx=mx.cpu(number))
                                   for number in range(2)])
    found = [np.concatenate([output.asnumpy() for output in outputs]),
             np.concatenate([arrays[0].grad.asnumpy() for arrays in halves]),
             *(sum(arrays[place].grad.asnumpy() for arrays in halves) for place in (1, 2))]
    for actual, expected in zip(found, wanted):
        assert relative_error(actual, expected) < 1e-6


def test_not_a_number_spreads_and_does_no_harm():
    inputs = make_inputs(5, 9, 2, 4, 3)
    inputs[0][0, 8, 1, 1] = np.nan  # a key of the first head
    output = run(inputs, np.ones((1, 6, 5, 9)), height=5, width=9, **channels_of(2, 4, 3))[0]
    assert np.isnan(output[0, :3]).all() and np.isfinite(output[0, 3:]).all()


@pytest.mark.parametrize('leaf', range(3), ids=['qkv', 'rel_h', 'rel_w'])
@pytest.mark.parametrize('hybridize', [False, True])
def test_gradients_are_added_where_that_is_asked(leaf, hybridize):
    class Operator(mx.gluon.HybridBlock):
        def hybrid_forward(self, F, qkv, rel_h, rel_w):
            return relative_attention(F, qkv, rel_h, rel_w, height=3, width=4, attention_backend='native',
                                      **channels_of(2, 3, 2))
    operator = Operator()
    if hybridize:
        operator.hybridize(static_alloc=True, static_shape=True)
    arrays = [mx.nd.array(x) for x in make_inputs(3, 4, 2, 3, 2)]
    gradients = {}
    for request in ('write', 'add'):
        for number, array in enumerate(arrays):
            array.attach_grad(request if number == leaf else 'write')
        for _ in range(3):
            with mx.autograd.record():
                output = operator(*arrays)
                loss = (output * output).sum()
            loss.backward()
        gradients[request] = [array.grad.asnumpy() for array in arrays]
    factors = [3.0 if number == leaf else 1.0 for number in range(3)]
    for added, written, factor in zip(gradients['add'], gradients['write'], factors):
        assert relative_error(added, factor * written) < 1e-6


THREADS = """
import sys
import numpy as np
import gluon_aa
from gluon_aa.attention import relative_attention
from gluon_aa.compat import mx
found = []
for heads in (1, 3):  # one head is cut into parts, three are dealt out unevenly
    arrays = [mx.nd.array(x) for x in np.load(f'{sys.argv[1]}-{heads}.npz').values()]
    [array.attach_grad() for array in arrays]
    for _ in range(2):
        with mx.autograd.record():
            output = relative_attention(mx.nd, *arrays, height=9, width=11, num_heads=heads, key_channels=5 * heads,
                                        value_channels=3 * heads, attention_backend='native')
        output.backward(output * output)
    found += [output.asnumpy(), *(array.grad.asnumpy() for array in arrays)]
np.savez(sys.argv[2], *found)
"""


def test_results_repeat_bit_for_bit_and_hardly_depend_on_threads(tmp_path):
    for num_heads in (1, 3):
        np.savez(tmp_path / f'inputs-{num_heads}.npz', *make_inputs(9, 11, num_heads, 5, 3))
    code = f'import sys; sys.path[:] = {sys.path!r}\n{THREADS}'
    processes = {name: subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path / 'inputs'), str(tmp_path / f'{name}.npz')],
        env={**os.environ, 'OMP_NUM_THREADS': name.split()[0]}) for name in ('1', '2', '2 again', '5')}
    assert not any([process.wait() for process in processes.values()])
    found = {name: list(np.load(str(tmp_path / f'{name}.npz')).values()) for name in processes}
    for once, again in zip(found['2'], found['2 again']):
        assert np.array_equal(once, again)
    for name in ('2', '5'):
        for one, several in zip(found['1'], found[name]):
            assert relative_error(several, one) < 2e-6


BFLOAT16 = """
import importlib, json
import numpy as np
import gluon_aa
from gluon_aa.attention import relative_attention
from gluon_aa.compat import mx
importlib.import_module('mxnet.contrib.amp').init('bfloat16')  # before the operator is loaded: it must stay in force

class Net(mx.gluon.HybridBlock):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        with self.name_scope():
            self.qkv = mx.gluon.nn.Conv2D(84, 1, use_bias=False, in_channels=16)
            self.projection = mx.gluon.nn.Conv2D(4, 1, use_bias=False, in_channels=4)
            self.rel_h = self.params.get('rel_h', shape=(7, 20), init=mx.init.Normal(0.2))
            self.rel_w = self.params.get('rel_w', shape=(9, 20), init=mx.init.Normal(0.2))

    def hybrid_forward(self, F, x, rel_h, rel_w):
        attended = relative_attention(F, self.qkv(x), rel_h, rel_w, num_heads=2, key_channels=40, value_channels=4,
                                      height=4, width=5, attention_backend=self.backend)
        return self.projection(attended)

found = []
for backend in ('folded', 'native'):
    mx.random.seed(0)
    net = Net(backend)
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True, static_shape=True)
    x = mx.nd.array(np.random.default_rng(0).standard_normal((2, 16, 4, 5)))
    with mx.autograd.record():
        output = net(x)
    output.backward()
    gradients = [parameter.grad().asnumpy().ravel().tolist() for parameter in net.collect_params().values()]
    found.append([str(output.dtype), [output.astype('float32').asnumpy().ravel().tolist(), *gradients]])
print(json.dumps(found))
"""


def test_between_16_bit_layers_it_computes_in_32():
    code = f'import sys; sys.path[:] = {sys.path!r}\n{BFLOAT16}'
    done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, universal_newlines=True, check=True)
    (folded_type, folded), (native_type, ours) = json.loads(done.stdout.splitlines()[-1])
    assert 'bfloat16' in folded_type and native_type == folded_type
    for actual, expected in zip(ours, folded):
        assert relative_error(actual, expected) < 1e-3  # both round to 8 bits at the same places; those differ rarely


@pytest.mark.parametrize('change, message', [
    ({'qkv': (1, 17, 3, 4)}, r'qkv is \(1, 17, 3, 4\) and must be \(1, 16, 3, 4\)'),
    ({'qkv': (1, 16, 4, 3)}, r'qkv is \(1, 16, 4, 3\) and must be \(1, 16, 3, 4\)'),
    ({'qkv': (16, 12)}, r'qkv is \(16, 12\) and must be'),
    ({'rel_h': (7, 3)}, r'rel_h is \(7, 3\) and must be \(5, 3\)'),
    ({'rel_w': (7, 2)}, r'rel_w is \(7, 2\) and must be \(7, 3\)'),
])
def test_wrong_shapes_are_errors_with_a_message(change, message):
    shapes = {'qkv': (1, 16, 3, 4), 'rel_h': (5, 3), 'rel_w': (7, 3), **change}
    with pytest.raises(mx.base.MXNetError, match=message):
        relative_attention(mx.nd, *(mx.nd.ones(shape) for shape in shapes.values()), height=3, width=4,
                           attention_backend='native', **channels_of(2, 3, 2)).wait_to_read()


@pytest.mark.parametrize('attributes, message', [
    ({'num_heads': 4}, '6 key and 4 value channels must both divide by 4 heads'),
    ({'num_heads': 0}, 'num_heads=0 must be a whole number above 0'),
    ({'height': 'three'}, 'height=three must be a whole number above 0'),
    ({'height': 3.7}, 'height=3.7 must be a whole number above 0'),
])
def test_wrong_attributes_are_errors_with_a_message(attributes, message):
    native.load()
    good = {'height': 3, 'width': 4, 'relative': 0, **channels_of(2, 3, 2)}
    with pytest.raises(mx.base.MXNetError, match=message):
        mx.nd.gluon_aa_attention(mx.nd.ones((1, 16, 3, 4)), **{**good, **attributes})


def test_other_types_are_errors_with_a_message():
    native.load()
    with pytest.raises(mx.base.MXNetError, match='inputs must be float32'):
        mx.nd.gluon_aa_attention(mx.nd.ones((1, 16, 3, 4), dtype='float64'), height=3, width=4, relative=0,
                                 **channels_of(2, 3, 2))


def test_sizes_are_inferred_from_the_map():
    native.load()
    symbol = mx.sym.gluon_aa_attention(*(mx.sym.var(name) for name in ('qkv', 'rel_h', 'rel_w')), height=3, width=4,
                                       relative=1, **channels_of(2, 3, 2))
    arguments, outputs, _ = symbol.infer_shape(qkv=(5, 16, 3, 4))
    assert arguments == [(5, 16, 3, 4), (5, 3), (7, 3)] and outputs == [(5, 4, 3, 4), (5, 2, 12)]


def test_on_gpus_it_is_refused():
    with pytest.raises(UsageError, match='native is for CPUs: on GPUs choose folded, tiled or auto'):
        resolve_backend('native', on_gpus=True)
    assert resolve_backend('auto', on_gpus=True) == 'folded'


def test_auto_takes_it_on_cpus():
    assert resolve_backend('auto', on_gpus=False) == resolve_backend('auto') == 'native'


def test_the_doctors_comparison_would_notice_a_wrong_operator(monkeypatch):
    assert check.largest_difference() < check.TOLERANCE
    monkeypatch.setitem(attention.BACKENDS, 'native', lambda F, qkv, rel_h, rel_w, **sizes: 1.0001 * native.attend(
        F, qkv, rel_h, rel_w, **sizes))
    assert check.largest_difference() > check.TOLERANCE
    nothing = float('nan')
    monkeypatch.setitem(attention.BACKENDS, 'native', lambda F, qkv, rel_h, rel_w, **sizes: nothing * native.attend(
        F, qkv, rel_h, rel_w, **sizes))
    assert not check.largest_difference() < check.TOLERANCE
