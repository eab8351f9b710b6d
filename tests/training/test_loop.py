"""Whole trainings on the digits: what is learned, what is written, what stops them."""
import json
import subprocess
import sys

import numpy as np
import pytest

from gluon_aa import compat
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training import checkpoint, devices, loop
from gluon_aa.training.checkpoint import Position
from gluon_aa.training.config import load
from gluon_aa.training.loop import NonFiniteLoss, Reporter, evaluate, train
from gluon_aa.training.tracking import RunDirectory

#: Seconds on any machine.
TINY = {'net': 'aa_wrn10_1', 'dataset': 'digits', 'num_heads': 2, 'min_key_channels_per_head': 4, 'batch_size': 64,
        'epochs': 2, 'schedule': 'constant', 'learning_rate': 0.05}


def tiny(**keys):
    return load(None, {**TINY, **keys})


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in ('seconds', 'images_per_second')} for row in rows]


def parameters(run, epoch):
    saved = mx.nd.load(str(checkpoint.path_of(run.checkpoints, Position(epoch)) / 'net.params'))
    return {name: array.asnumpy() for name, array in saved.items()}


def test_it_learns_and_leaves_a_complete_run_directory(tmp_path):
    heard = []
    config = tiny(epochs=4, batch_size=32, schedule='one-cycle', learning_rate=0.1)
    run, result = train(config, tmp_path / 'run', Reporter(on_epoch=heard.append))
    assert result['test_accuracy'] > 0.85  # 0.96 to 0.98 seen; chance is 0.1
    assert json.loads((run.path / 'result.json').read_text()) == result
    assert {'test_accuracy', 'val_accuracy', 'best_epoch', 'parameters', 'seconds', 'dataset', 'seed'} <= set(result)
    assert run.config() == config
    rows = run.metrics()
    assert rows == heard and [row['epoch'] for row in rows] == [1, 2, 3, 4]
    assert all(set(row) == {'epoch', 'train_loss', 'train_accuracy', 'val_accuracy', 'images_per_second', 'seconds',
                            'learning_rate'} for row in rows)
    assert result['val_accuracy'] == max(row['val_accuracy'] for row in rows) == (
        rows[result['best_epoch'] - 1]['val_accuracy'])
    assert (run.path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert checkpoint.epochs(run.checkpoints) == sorted({result['best_epoch'], 3, 4})
    assert not [path for path in run.path.rglob('*') if path.name.endswith('.tmp')]
    evaluated = evaluate(RunDirectory.open(run.path))
    assert evaluated['accuracy'] == result['test_accuracy'] and evaluated['epoch'] == result['best_epoch']
    # the last batch of evaluation is filled up: it must not count
    assert evaluate(run, 'val', 'last', batch_size=7)['accuracy'] == pytest.approx(rows[-1]['val_accuracy'])


@pytest.mark.usefixtures('without_curves')
def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path):
    keys = {'dropout': 0.3, 'label_smoothing': 0.1, 'optimizer': 'adam'}
    first, _ = train(tiny(**keys), tmp_path / 'first')
    second, _ = train(tiny(**keys), tmp_path / 'second')
    other, _ = train(tiny(seed=1, epochs=1, **keys), tmp_path / 'other')
    assert without_times(first.metrics()) == without_times(second.metrics())
    assert without_times(first.metrics())[0] != without_times(other.metrics())[0]
    saved = parameters(first, 2), parameters(second, 2)
    assert all(np.array_equal(saved[0][name], saved[1][name]) for name in saved[0])


@pytest.mark.usefixtures('without_curves')
def test_options_off_still_train(tmp_path):
    run, _ = train(tiny(epochs=1, hybridize=False, data_augmentation=False, relative=False), tmp_path / 'run')
    assert np.isfinite(run.metrics()[0]['train_loss'])
    assert not [name for name in parameters(run, 1) if 'rel_' in name]


@pytest.mark.usefixtures('without_curves')
def test_hybridized_and_eager_trainings_agree(tmp_path):
    losses = [train(tiny(epochs=1, hybridize=hybridize), tmp_path / str(hybridize))[0].metrics()[0]['train_loss']
              for hybridize in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.usefixtures('without_curves')
def test_a_network_of_gluoncv_trains_on_two_devices(tmp_path):
    run, result = train(load(None, {'net': 'cifar_resnet20_v1', 'dataset': 'digits', 'epochs': 1, 'batch_size': 128,
                                    'cpus': 2}), tmp_path / 'run')
    assert result['devices'] == ['cpu(0)', 'cpu(1)']
    assert evaluate(run)['accuracy'] == result['test_accuracy']
    # validated with the statistics that the checkpoint holds, not with each device's own
    assert evaluate(run, 'val', 'last', cpus=1)['accuracy'] == run.metrics()[-1]['val_accuracy']


def test_attention_on_several_cpu_devices_is_refused_where_it_would_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, 'THREADS', compat.Threads(2, 'made up'))
    with pytest.raises(FailedError, match=r'set OMP_NUM_THREADS=1 \(it is 2\), or use one device'):
        train(tiny(cpus=2, attention_backend='folded'), tmp_path / 'run')  # native does not call OpenBLAS


def test_an_infinite_loss_stops_the_training_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    steps = 1257 // 64
    healthy = loop.Schedule

    class Diverging(healthy):
        def __call__(self, step):
            return 1e30 if step >= steps + 4 else super().__call__(step)

    monkeypatch.setattr(loop, 'Schedule', Diverging)
    with pytest.raises(NonFiniteLoss) as caught:
        train(tiny(epochs=3), tmp_path / 'run')
    message = str(caught.value)
    assert 'epoch 2, its step' in message and 'epoch-0001' in message and '--learning-rate' in message
    step = int(message.split('at step ')[1].split(' ')[0])
    assert steps + 5 < step <= steps + 8  # the update of step steps + 5 was the bad one
    run = RunDirectory.open(tmp_path / 'run')
    assert [row['epoch'] for row in run.metrics()] == [1]
    assert evaluate(run)['epoch'] == 1


def test_an_infinite_loss_in_the_first_epoch_says_that_there_is_no_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match='no checkpoint was written before'):
        train(tiny(learning_rate=1e30), tmp_path / 'run')


def test_an_infinite_loss_on_the_last_step_is_not_saved(tmp_path, monkeypatch):
    steps = 1257 // 64
    monkeypatch.setattr(loop, 'Schedule', lambda config, count: lambda step: 1e38 if step == 2 * steps - 1 else 1e-4)
    with pytest.raises(FailedError, match='no longer finite after epoch 2'):
        train(tiny(weight_decay=100.0, optimizer='sgd'), tmp_path / 'run')
    assert checkpoint.epochs(tmp_path / 'run' / 'checkpoints') == [1]


@pytest.mark.parametrize('keys, message', [
    ({'net': 'aa_wrn10'}, 'unknown network'),
    ({'dataset': 'digit'}, 'unknown data set'),
    ({'placement': 'papr'}, 'unknown placement'),
    ({'batch_size': 1258}, 'batch_size=1258 is larger than the 1257 training images of digits'),
    ({'cpus': 3, 'batch_size': 2}, 'batch_size=2 must be at least the number of devices, 3'),
    ({'warmup_epochs': 5}, 'must be fewer than epochs=2'),
    ({'net': 'resnet18', 'dropout': 0.5}, "unknown option of resnet18 'dropout'"),
    ({'gpus': '0,1'}, r'--gpus 0,1: MXNet sees 0 GPUs here.*--cpus 2'),
])
def test_what_cannot_be_trained_leaves_no_run_directory(tmp_path, keys, message):
    with pytest.raises((UsageError, FailedError), match=message):
        train(tiny(**keys), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_gpus_that_are_there_are_named(monkeypatch):
    monkeypatch.setattr(devices.mx.context, 'num_gpus', lambda: 2)
    assert devices.resolve_devices([1, 0]) == [mx.gpu(1), mx.gpu(0)]
    with pytest.raises(FailedError, match=r'--gpus 1,2: MXNet sees 2 GPUs here \(ids 0 to 1\): name those, or'):
        devices.resolve_devices([1, 2])


def test_an_existing_directory_is_not_touched(tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(UsageError, match='exists already: name another with --run'):
        train(tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_default_run_directories_do_not_collide(in_tmp_path):
    runs = [RunDirectory.create(None, tiny()) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all(run.path.parent.name == 'runs' and run.path.name.startswith('aa_wrn10_1-digits-2') for run in runs)


def test_a_run_directory_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(FailedError, match='cannot make the run directory'):
        RunDirectory.create(tmp_path / 'file' / 'run', tiny())


def test_parents_made_for_a_run_directory_that_cannot_be_made_are_removed(tmp_path):
    with pytest.raises(FailedError, match='cannot make the run directory'):
        RunDirectory.create(tmp_path / 'new' / 'sub' / ('x' * 300), tiny())
    assert list(tmp_path.iterdir()) == []


def test_only_run_directories_are_opened(tmp_path):
    with pytest.raises(UsageError, match='is not a run directory: it has no config.yaml'):
        RunDirectory.open(tmp_path)


@pytest.mark.usefixtures('without_curves')
def test_evaluation_takes_overrides(tmp_path):
    run, _ = train(tiny(epochs=1), tmp_path / 'run')
    folded, reference = (evaluate(run, attention_backend=name)['accuracy'] for name in ('folded', 'reference'))
    assert folded == pytest.approx(reference, abs=2 / 360)  # rounding may flip an image


@pytest.mark.slow
def test_another_process_repeats_the_run_bit_for_bit(tmp_path):
    script = tmp_path / 'train.py'
    script.write_text('import pathlib, sys\nfrom gluon_aa.configs import find_recipe\n'
                      'from gluon_aa.training.config import load\nfrom gluon_aa.training.loop import train\n'
                      "train(load(find_recipe('cpu/digits'), {'epochs': 2}), pathlib.Path(sys.argv[1]))\n")
    for name in ('first', 'second', 'third', 'fourth'):
        subprocess.run([sys.executable, str(script), str(tmp_path / name)], check=True)
    digests = {checkpoint.read_state(tmp_path / name / 'checkpoints' / 'epoch-0002')['sha256']['net.params']
               for name in ('first', 'second', 'third', 'fourth')}
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_the_recipe_of_make_train_reaches_its_accuracy(tmp_path, seed):
    from gluon_aa.configs import find_recipe
    _, result = train(load(find_recipe('cpu/digits'), {'seed': seed}), tmp_path / 'run')
    assert result['test_accuracy'] >= 0.97
