"""A network at another resolution: tables against SciPy's interpolation, everything else as it was."""
import numpy as np
import pytest
from scipy.interpolate import interp1d

from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from gluon_aa.models import copy_weights, get_model
from gluon_aa.models.resize import resize_table

OPTIONS = {'num_heads': 2, 'min_key_channels_per_head': 4}


def trained(size=(8, 12), name='aa_wrn10_1', **options):
    net = get_model(name, 5, input_size=size, **{**OPTIONS, **options})
    net.initialize(mx.init.Normal(0.3))
    with mx.autograd.record():
        net(mx.nd.random.normal(shape=(4, 3, *size))).sum().backward()  # moves the running statistics
    mx.nd.waitall()
    return net


def values(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


@pytest.mark.parametrize('entries', [1, 3, 7, 9, 15, 31])
@pytest.mark.parametrize('length', [2, 4, 8])
def test_tables_are_interpolated_with_both_ends_aligned(length, entries):
    table = np.random.randn(2 * length - 1, 5).astype('float32')
    found = resize_table(table, entries)
    offsets = np.arange(-(length - 1), length)
    last = (entries - 1) / 2
    places = np.arange(-last, last + 1) * ((length - 1) / last if last else 0)
    assert found.dtype == np.float32
    assert np.allclose(found, interp1d(offsets, table, axis=0)(np.clip(places, -(length - 1), length - 1)), atol=1e-6)
    assert np.array_equal(found[entries // 2], table[length - 1])  # offset 0


def test_special_tables():
    table = np.random.randn(7, 3)
    assert np.array_equal(resize_table(table, 7), table)
    assert np.array_equal(resize_table(table[:1], 5), np.repeat(table[:1], 5, axis=0))
    even = table + table[::-1]
    assert np.allclose(resize_table(even, 13), resize_table(even, 13)[::-1])
    odd = table - table[::-1]
    assert np.allclose(resize_table(odd, 13), -resize_table(odd, 13)[::-1])


@pytest.mark.parametrize('entries', [-1, 0, 4])
def test_tables_of_no_map_are_refused(entries):
    with pytest.raises(UsageError, match=f'a relative table of {entries} entries'):
        resize_table(np.ones((3, 2)), entries)


@pytest.mark.parametrize('initialised', [True, False])
def test_the_network_runs_at_another_size_with_its_own_weights(initialised):
    net = trained()
    target = get_model('aa_wrn10_1', 5, input_size=(12, 20), **OPTIONS)
    if initialised:
        target.initialize()
    assert copy_weights(net, target) is target
    assert target(mx.nd.ones((2, 3, 12, 20))).shape == (2, 5)
    before, after = values(net), values(target)
    for name in before:
        if name.endswith(('rel_h', 'rel_w')):
            assert np.array_equal(after[name], resize_table(before[name], len(after[name]))), name
        else:
            assert np.array_equal(after[name], before[name]), name
    assert sum(before[name].shape != after[name].shape for name in before) == 6  # both tables of three layers


def test_at_the_same_size_it_is_the_same_network():
    net = trained()
    same = copy_weights(net, get_model('aa_wrn10_1', 5, input_size=(8, 12), **OPTIONS))
    x = mx.nd.random.normal(shape=(2, 3, 8, 12))
    assert np.array_equal(same(x).asnumpy(), net(x).asnumpy())


@pytest.mark.parametrize('name, classes, options, message', [
    ('aa_wrn10_1', 6, {}, r'size of their images: output.weight is \(5, 64\) in the source and \(6, 64\)'),
    ('aa_wrn10_1', 5, {'relative': False}, 'the networks differ: only the source has stage1.block1.conv1.rel_h'),
    ('wrn10_1', 5, {}, 'only the source has stage1.block1.conv1'),
    ('aa_wrn10_1', 5, {'min_key_channels_per_head': 6}, r'rel_h is \(15, 4\) in the source and \(23, 6\) in'),
])
def test_other_networks_are_refused_and_left_as_they_are(name, classes, options, message):
    target = get_model(name, classes, input_size=(12, 20), **{**OPTIONS, **options})
    target.initialize()
    target(mx.nd.ones((1, 3, 12, 20)))
    before = values(target)
    with pytest.raises(UsageError, match=message):
        copy_weights(trained(), target)
    assert all(np.array_equal(before[key], value) for key, value in values(target).items())


def test_impossible_sizes_are_refused():
    with pytest.raises(UsageError, match='must be at least 1'):
        get_model('aa_wrn10_1', 5, input_size=(0, 20))
