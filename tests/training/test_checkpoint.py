"""Checkpoints are whole or absent, and nothing damaged or foreign reaches MXNet's reader."""
import json

import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training import checkpoint, files

nn = mx.gluon.nn


def make_net(units=3):
    net = nn.HybridSequential()
    net.add(nn.Dense(units, in_units=2), nn.BatchNorm(in_channels=units))
    net.initialize(mx.init.Normal(1.0))
    return net


def save(tmp_path, net, epoch=1, best_epoch=1):
    return checkpoint.save(tmp_path, net, epoch, {'best_epoch': best_epoch})


def values(net):
    return [p.data().asnumpy() for p in net.collect_params().values()]


def test_what_is_saved_loads(tmp_path):
    net, other = make_net(), make_net()
    path = save(tmp_path, net)
    checkpoint.load_parameters(path, other, [mx.cpu()])
    assert all(np.array_equal(a, b) for a, b in zip(values(net), values(other)))


def test_gluon_reads_the_parameters_by_itself(tmp_path):
    net, other = make_net(), make_net()
    other.load_parameters(str(save(tmp_path, net) / 'net.params'))
    assert all(np.array_equal(a, b) for a, b in zip(values(net), values(other)))


def test_running_statistics_are_those_after_the_last_step(tmp_path):
    net = make_net()
    for _ in range(20):
        with mx.autograd.record():
            net(mx.nd.random.normal(shape=(64, 2))).sum().backward()
    # no wait here: saving must do so
    path = save(tmp_path, net)
    saved = mx.nd.load(str(path / 'net.params'))
    assert np.array_equal(saved['1.running_mean'].asnumpy(), net[1].running_mean.data().asnumpy())


def test_parameters_of_several_devices_are_averaged(tmp_path):
    net = nn.Dense(1, in_units=1, use_bias=False)
    net.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    net.weight.data(mx.cpu(0))[:] = 1
    net.weight.data(mx.cpu(1))[:] = 3
    assert mx.nd.load(str(save(tmp_path, net) / 'net.params'))['weight'].asscalar() == 2


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    net = make_net()
    save(tmp_path, net)
    net[0].weight.data()[0, 0] = float('nan')
    with pytest.raises(FailedError, match='0.weight is no longer finite after epoch 2'):
        save(tmp_path, net, epoch=2)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch-0001']


def test_a_failure_while_writing_leaves_nothing_half_written(tmp_path, monkeypatch):
    net = make_net()
    save(tmp_path, net)

    def fail(path, value):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files, 'write_json', fail)
    with pytest.raises(FailedError, match='cannot write the checkpoint .*epoch-0002: .*No space left'):
        save(tmp_path, net, epoch=2)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch-0001']


def test_a_disk_that_refuses_the_last_bytes_is_noticed(tmp_path, monkeypatch):
    save_whole = mx.nd.save

    def save_short(path, arrays):
        save_whole(path, arrays)
        with open(path, 'r+b') as file:
            file.truncate(file.seek(0, 2) - 10)
    monkeypatch.setattr(checkpoint.mx.nd, 'save', save_short)
    with pytest.raises(FailedError, match='bytes were written: is the disk full') as caught:
        save(tmp_path, make_net())
    assert '\n' not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('damage', [
    lambda data: data[:-1],
    lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    lambda data: b'',
    lambda data: b'not a parameter file',
], ids=['truncated', 'one bit', 'empty', 'foreign'])
def test_damaged_parameters_are_refused(tmp_path, damage, monkeypatch):
    path = save(tmp_path, make_net())
    (path / 'net.params').write_bytes(damage((path / 'net.params').read_bytes()))
    net = make_net()
    monkeypatch.setattr(type(net), 'load_parameters', None)  # it must not come to that
    with pytest.raises(FailedError, match='net.params is damaged'):
        checkpoint.load_parameters(path, net, [mx.cpu()])


@pytest.mark.parametrize('text', ['', '{', '[]', '{"epoch": 1}', '{"format": "x"}'])
def test_damaged_states_are_refused(tmp_path, text):
    path = save(tmp_path, make_net())
    (path / 'state.json').write_text(text)
    with pytest.raises(FailedError, match='state.json cannot be read'):
        checkpoint.read_state(path)


def test_a_newer_format_is_refused(tmp_path):
    path = save(tmp_path, make_net())
    state = json.loads((path / 'state.json').read_text())
    (path / 'state.json').write_text(json.dumps({**state, 'format': checkpoint.FORMAT + 1}))
    with pytest.raises(FailedError, match='written by a newer version of gluon-aa'):
        checkpoint.read_state(path)


def test_parameters_of_another_network_are_refused(tmp_path):
    with pytest.raises(FailedError, match='does not fit the network'):
        checkpoint.load_parameters(save(tmp_path, make_net(3)), make_net(4), [mx.cpu()])


def test_pruning_keeps_the_latest_and_the_best(tmp_path):
    net = make_net()
    for epoch in range(1, 7):
        save(tmp_path, net, epoch, best_epoch=2)
    checkpoint.prune(tmp_path, keep=2, best_epoch=2)
    assert checkpoint.epochs(tmp_path) == [2, 5, 6]
    assert checkpoint.choose(tmp_path, 'best').name == 'epoch-0002'
    assert checkpoint.choose(tmp_path, 'last').name == 'epoch-0006'
    assert checkpoint.choose(tmp_path, '5').name == 'epoch-0005'
    with pytest.raises(UsageError, match="no checkpoint '3': choose best, last, or an epoch of 2, 5, 6"):
        checkpoint.choose(tmp_path, '3')


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UsageError, match='holds no checkpoint'):
        checkpoint.choose(tmp_path, 'best')


def test_text_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / 'file.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(ValueError):
        files.write_json(path, {'a': float('nan')})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, 'half \ud800')
    assert json.loads(path.read_text()) == {'a': 1} and list(tmp_path.iterdir()) == [path]
