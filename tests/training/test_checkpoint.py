"""Checkpoints are whole or absent, and nothing damaged or foreign reaches MXNet's reader."""
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from gluon_aa import files
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training import checkpoint
from gluon_aa.training.checkpoint import Position

nn = mx.gluon.nn


def make_net(units=3):
    net = nn.HybridSequential()
    net.add(nn.Dense(units, in_units=2), nn.BatchNorm(in_channels=units))
    net.initialize(mx.init.Normal(1.0))
    return net


def save(tmp_path, net, epoch=1, best_epoch=1, steps=0, **training):
    return checkpoint.save(tmp_path, Position(epoch, steps), net, training or {'momentum': np.arange(3.0)},
                           {'best_epoch': best_epoch})


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


def test_running_statistics_of_several_devices_are_averaged_and_weights_are_not(tmp_path):
    devices = [mx.cpu(index) for index in range(3)]
    net = nn.BatchNorm(in_channels=1)
    net.initialize(ctx=devices)
    for index, device in enumerate(devices):
        net.running_mean.data(device)[:] = (1, 3, 8)[index]
        net.gamma.data(device)[:] = np.float32(0.1)  # (0.1 + 0.1 + 0.1) / 3 is not 0.1 in float32
    saved = mx.nd.load(str(save(tmp_path, net) / 'net.params'))
    assert saved['running_mean'].asscalar() == 4
    assert saved['gamma'].asscalar() == np.float32(0.1)


def test_numbers_that_are_not_finite_are_never_saved(tmp_path):
    net = make_net()
    save(tmp_path, net)
    with pytest.raises(FailedError, match='velocity is no longer finite after step 3 of epoch 2'):
        save(tmp_path, net, steps=3, velocity=np.array([1.0, np.inf]))
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
    with pytest.raises(FailedError, match='bytes of parameters were written: is the disk full') as caught:
        save(tmp_path, make_net())
    assert '\n' not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_disk_that_mxnet_finds_full_is_said(tmp_path, monkeypatch):
    def refuse(path, arrays):
        with open(path, 'wb') as file:
            file.write(b'some')
        raise mx.base.MXNetError('Check failed: std::fwrite(ptr, 1, size, fp_) == size')
    monkeypatch.setattr(checkpoint.mx.nd, 'save', refuse)
    with pytest.raises(FailedError, match='4 of .* bytes of parameters were written: is the disk full'):
        save(tmp_path, make_net())
    assert list(tmp_path.iterdir()) == []


DAMAGES = {
    'truncated': lambda data: data[:-1],
    'one bit': lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    'empty': lambda data: b'',
    'foreign': lambda data: b'not a parameter file',
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage, monkeypatch):
    path, net = save(tmp_path, make_net()), make_net()
    for name in ('net.params', 'training.npz'):
        (path / name).write_bytes(damage((path / name).read_bytes()))
    monkeypatch.setattr(type(net), 'load_parameters', None)  # it must not come to that
    with pytest.raises(FailedError, match='net.params is damaged'):
        checkpoint.load_parameters(path, net, [mx.cpu()])
    monkeypatch.setattr(np, 'load', None)
    with pytest.raises(FailedError, match='training.npz is damaged .*choose an earlier checkpoint'):
        checkpoint.load_training(path)


def swap(path, name, data):
    """Put `data` in the place of a checkpoint's file, with the right checksum."""
    (path / name).write_bytes(data)
    state = json.loads((path / 'state.json').read_text())
    state['sha256'][name] = files.sha256(path / name)
    (path / 'state.json').write_text(json.dumps(checkpoint.sealed(state)))


@pytest.mark.parametrize('damage', [
    DAMAGES['truncated'], DAMAGES['empty'], DAMAGES['foreign'],
    lambda data: data + b'x',
    lambda data: data[:16] + b'\xff' * 8 + data[24:],  # the number of arrays
    lambda data: data[:32] + b'\xff' * 4 + data[36:],  # the number of axes
    lambda data: data[:36] + b'\xff' * 7 + b'\x7f' + data[44:],  # an axis
    lambda data: data.replace(b'0.weight', b'0.\xff\xff\xffght'),
    lambda data: data.replace(b'0.weight', b'1.gamma '),
], ids=['truncated', 'empty', 'foreign', 'longer', 'many arrays', 'many axes', 'long axis', 'no text', 'another name'])
def test_foreign_files_with_a_right_checksum_do_not_reach_mxnets_reader(tmp_path, damage, monkeypatch):
    path, net = save(tmp_path, make_net()), make_net()
    swap(path, 'net.params', damage((path / 'net.params').read_bytes()))
    monkeypatch.setattr(type(net), 'load_parameters', None)
    with pytest.raises(FailedError, match="net.params (is no file of MXNet's parameters: |does not fit the network)"):
        checkpoint.load_parameters(path, net, [mx.cpu()])


def archive(compression=zipfile.ZIP_STORED, **members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w', compression) as file:
        for name, content in members.items():
            file.writestr(f'{name}.npy', content)
    return data.getvalue()


def npy(array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ('it-ran',)


@pytest.mark.parametrize('data', [
    b'no archive', pickle.dumps(Malicious()), archive(a=npy(np.array([Malicious()], dtype=object))), archive(a=b'x'),
    archive(zipfile.ZIP_DEFLATED, a=npy(np.zeros(1000)))],
    ids=['foreign', 'pickle', 'pickled member', 'damaged member', 'compressed'])
def test_a_training_state_cannot_run_code_or_grow(tmp_path, monkeypatch, data):
    path = save(tmp_path, make_net())
    swap(path, 'training.npz', data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FailedError, match='training.npz is no archive of NumPy arrays'):
        checkpoint.load_training(path)
    assert not (tmp_path / 'it-ran').exists()


def test_the_training_state_comes_back(tmp_path):
    path = save(tmp_path, make_net(), momentum=np.arange(4.0, dtype=np.float32), updates=np.array(7))
    found = checkpoint.load_training(path)
    assert found['momentum'].tolist() == [0, 1, 2, 3] and found['momentum'].dtype == np.float32
    assert int(found['updates']) == 7


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


def test_an_older_format_is_refused(tmp_path):
    path = save(tmp_path, make_net())
    (path / 'state.json').write_text('{"format": 1}')
    with pytest.raises(FailedError, match='written by an older version of gluon-aa .format 1; this one reads 2.'):
        checkpoint.read_state(path)


def test_a_state_that_was_changed_is_refused(tmp_path):
    path = save(tmp_path, make_net())
    state = json.loads((path / 'state.json').read_text())
    (path / 'state.json').write_text(json.dumps({**state, 'best_epoch': 2}))
    with pytest.raises(FailedError, match='state.json is damaged .its checksum differs.'):
        checkpoint.read_state(path)


def test_parameters_of_another_network_are_refused(tmp_path):
    with pytest.raises(FailedError, match=r'does not fit the network: 0.bias is \(3,\) there and \(4,\) in the net'):
        checkpoint.load_parameters(save(tmp_path, make_net(3)), make_net(4), [mx.cpu()])
    with pytest.raises(FailedError, match=r'1.beta is \(3,\) there and absent in the network'):
        net = nn.HybridSequential()
        net.add(nn.Dense(3, in_units=2))
        checkpoint.load_parameters(checkpoint.path_of(tmp_path, Position(1)), net, [mx.cpu()])


def test_a_checkpoint_of_the_same_position_is_left_as_it_is(tmp_path):
    path = save(tmp_path, make_net())
    assert save(tmp_path, make_net(), momentum=np.ones(2)) == path
    assert checkpoint.load_training(path)['momentum'].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ['epoch-0001']


def test_names_that_are_no_checkpoints_are_passed_over(tmp_path):
    save(tmp_path, make_net())
    for name in ('epoch-7', 'epoch-0002-step-1', 'epoch-0003.old', 'epoch-'):
        (tmp_path / name).mkdir()
    assert checkpoint.positions(tmp_path) == [(1, 0)]


def test_what_is_whole(tmp_path):
    path = save(tmp_path, make_net())
    assert checkpoint.is_whole(path) and not checkpoint.is_whole(tmp_path / 'epoch-0002')
    (path / 'training.npz').unlink()
    assert not checkpoint.is_whole(path)


def test_pruning_keeps_the_latest_and_the_best(tmp_path):
    net = make_net()
    for epoch in range(1, 7):
        save(tmp_path, net, epoch, best_epoch=2)
    checkpoint.prune(tmp_path, 2, {Position(2)})
    assert checkpoint.epochs(tmp_path) == [2, 5, 6] and len(list(tmp_path.iterdir())) == 3
    assert checkpoint.choose(tmp_path, 'best').name == 'epoch-0002'
    assert checkpoint.choose(tmp_path, 'last').name == 'epoch-0006'
    assert checkpoint.choose(tmp_path, '5').name == 'epoch-0005'
    with pytest.raises(UsageError, match="no checkpoint '3': choose best or last, or an epoch of 2, 5, 6"):
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


def test_checkpoints_within_an_epoch_lie_between_its_ends(tmp_path):
    net = make_net()
    for epoch, steps in ((0, 5), (1, 0), (1, 5), (1, 10), (2, 0)):
        save(tmp_path, net, epoch, steps=steps)
    assert checkpoint.positions(tmp_path) == [(0, 5), (1, 0), (1, 5), (1, 10), (2, 0)]
    assert checkpoint.path_of(tmp_path, Position(1, 10)).name == 'epoch-0002-step-000010'
    assert checkpoint.choose(tmp_path, 'last').name == 'epoch-0002'
    checkpoint.prune(tmp_path, 2, {Position(1)})
    assert checkpoint.positions(tmp_path) == [(1, 0), (1, 10), (2, 0)]
    assert checkpoint.epochs(tmp_path) == [1, 2]


def test_there_is_no_best_before_the_first_epoch_ends(tmp_path):
    save(tmp_path, make_net(), epoch=0, steps=5, best_epoch=0)
    with pytest.raises(UsageError, match='no best checkpoint yet, as no epoch was finished: choose last'):
        checkpoint.choose(tmp_path, 'best')
    with pytest.raises(UsageError, match="no checkpoint '1': choose best or last; no epoch was finished yet"):
        checkpoint.choose(tmp_path, '1')
