"""Trainings that are stopped, and go on bit for bit as if they had not been."""
import contextlib
import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest

from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training import checkpoint, loop
from gluon_aa.training.checkpoint import Position
from gluon_aa.training.config import load
from gluon_aa.training.interruption import Interrupted
from gluon_aa.training.loop import Reporter, evaluate, resume, train
from gluon_aa.training.tracking import RunDirectory

pytestmark = pytest.mark.usefixtures('without_curves')

TINY = {'net': 'wrn10_1', 'dataset': 'digits', 'batch_size': 128, 'epochs': 2, 'learning_rate': 0.05,
        'weight_decay': 1e-4}
STEPS = 1257 // 128
#: On maps of 16 and 4 pixels.
ATTENTION = {'net': 'aa_wrn10_1', 'num_heads': 2, 'min_key_channels_per_head': 4, 'placement': 'stages:2,3'}


def tiny(**keys):
    return load(None, {**TINY, **keys})


def stop_after(step, number=signal.SIGTERM, at='train_step'):
    """A signal in the `step`-th call of an engine's method."""
    @contextlib.contextmanager
    def patch():
        calls, original = [], getattr(loop.Engine, at)

        def counted(self, *args):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), number)
            return original(self, *args)
        setattr(loop.Engine, at, counted)
        try:
            yield
        finally:
            setattr(loop.Engine, at, original)
    return patch()


def arrays(run, epoch=2):
    path = checkpoint.path_of(run.checkpoints, Position(epoch))
    return {**np.load(str(path / 'training.npz')), 'net': (path / 'net.params').read_bytes()}


def assert_equal_runs(run, other):
    first, second = arrays(run), arrays(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    keys = ('epoch', 'train_loss', 'train_accuracy', 'val_accuracy', 'learning_rate')
    assert [[row[key] for key in keys] for row in run.metrics()] == [
        [row[key] for key in keys] for row in other.metrics()]
    assert run.result()['test_accuracy'] == other.result()['test_accuracy']


@pytest.fixture(scope='module')
def left_alone(tmp_path_factory):
    """A training that nothing stops, of some keys; each is trained once."""
    runs = {}

    def trained(**keys):
        name = json.dumps(keys, sort_keys=True)
        if name not in runs:
            runs[name], _ = train(tiny(**keys), tmp_path_factory.mktemp('left-alone') / 'run')
        return runs[name]
    return trained


@pytest.mark.parametrize('keys', [
    {}, {'optimizer': 'adam', 'dropout': 0.3}, {'cpus': 2, 'last_batch': 'keep'},
    {**ATTENTION, 'optimizer': 'sgd', 'hybridize': False},
    {**ATTENTION, 'attention_backend': 'tiled', 'tile': 9, 'memory_mode': 'recompute', 'recompute': 'blocks',
     'dropout': 0.2, 'last_batch': 'keep'},
    {'memory_mode': 'recompute', 'cpus': 2}],
    ids=['plain', 'adam-dropout', 'two-devices', 'attention-eager', 'recompute', 'recompute-two-devices'])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, left_alone, keys):
    with stop_after(STEPS + 5), pytest.raises(Interrupted) as stopped:
        train(tiny(**keys), tmp_path / 'stopped')
    run = RunDirectory.open(tmp_path / 'stopped')
    steps = checkpoint.positions(run.checkpoints)[-1]
    assert steps.epochs == 1 and 4 <= steps.steps <= 5  # an uneven last batch is a step more
    assert str(stopped.value) == (f'stopped by SIGTERM after {steps}; gluon-aa train --resume {run.path} '
                                  'goes on from there')
    assert evaluate(run, which='last')['images'] == 360
    with stop_after(3, signal.SIGINT), pytest.raises(Interrupted):
        resume(run)
    heard = []
    resume(run, Reporter(heard.append))
    assert heard == [f'going on after step {steps.steps + 3} of epoch 2']
    assert_equal_runs(left_alone(**keys), run)


@pytest.mark.parametrize('at, keys', [
    ('count_correct', {}), ('average_statistics', {'cpus': 2, 'last_batch': 'keep'})])
def test_stopped_while_validating(tmp_path, left_alone, at, keys):
    with stop_after(2, at=at), pytest.raises(Interrupted):
        train(tiny(**keys), tmp_path / 'stopped')
    run = RunDirectory.open(tmp_path / 'stopped')
    assert checkpoint.positions(run.checkpoints)[-1] == (1, STEPS + ('last_batch' in keys))  # an uneven one more
    resume(run)
    assert_equal_runs(left_alone(**keys), run)


def test_stopped_while_testing(tmp_path, left_alone):
    with stop_after(3, at='count_correct'), pytest.raises(Interrupted, match='after epoch 2'):
        train(tiny(), tmp_path / 'stopped')
    run = RunDirectory.open(tmp_path / 'stopped')
    assert run.result() is None
    resume(run)
    assert_equal_runs(left_alone(), run)


def test_checkpoints_within_epochs_change_nothing_and_are_gone_back_to(tmp_path, left_alone):
    often, _ = train(tiny(checkpoint_every='4', keep_checkpoints=100), tmp_path / 'often')
    assert_equal_runs(left_alone(), often)
    expected = [divmod(step, STEPS) for step in range(1, 2 * STEPS + 1) if step % 4 == 0 or step % STEPS == 0]
    assert [tuple(position) for position in checkpoint.positions(often.checkpoints)] == expected
    # as if it had been killed after the second epoch's row, before its checkpoint
    for position in checkpoint.positions(often.checkpoints):
        if position > (1, 4):
            shutil.rmtree(checkpoint.path_of(often.checkpoints, position))
    (often.path / 'result.json').unlink()
    with open(often.path / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": 3, "train')
    resume(often)
    assert_equal_runs(left_alone(), often)


def test_minutes_are_counted_from_the_last_checkpoint(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, 'monotonic', lambda: now[0])
    original = loop.Engine.train_step
    monkeypatch.setattr(loop.Engine, 'train_step',
                        lambda *args: (now.__setitem__(0, now[0] + 60), original(*args))[1])
    run, _ = train(tiny(epochs=1, checkpoint_every='4m', keep_checkpoints=100), tmp_path / 'run')
    assert checkpoint.positions(run.checkpoints) == [(0, 4), (0, 8), (1, 0)]


def test_a_signal_while_a_checkpoints_time_is_asked_for_is_not_lost(tmp_path, monkeypatch):
    original = loop._Training._due

    def due(self):
        if self.progress.steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)
    monkeypatch.setattr(loop._Training, '_due', due)
    with pytest.raises(Interrupted, match='after step 6 of epoch 1'):
        train(tiny(), tmp_path / 'run')
    assert checkpoint.positions(tmp_path / 'run' / 'checkpoints') == [(0, 6)]


def test_what_killed_trainings_leave_behind_is_swept_up(tmp_path):
    run = RunDirectory.create(tmp_path / 'run', tiny(epochs=1))
    (run.checkpoints / f'.epoch-0001.{os.getpid()}.tmp').mkdir(parents=True)
    (run.path / f'.metrics.jsonl.{os.getpid()}.tmp').write_text('half')
    resume(run)
    assert not [path for path in run.path.rglob('.*')]


def test_a_best_checkpoint_that_is_gone_gives_way_to_the_best_of_the_others(tmp_path, monkeypatch):
    accuracies = [0.9, 0.5, 0.4]
    monkeypatch.setattr(loop, 'accuracy', lambda *args: accuracies.pop(0))
    with stop_after(3 * STEPS + 2), pytest.raises(Interrupted):
        train(tiny(epochs=4, keep_checkpoints=9), tmp_path / 'run')
    for number, damage in enumerate((shutil.rmtree, lambda path: (path / 'net.params').write_bytes(b''))):
        run = RunDirectory.open(shutil.copytree(tmp_path / 'run', tmp_path / str(number)))
        damage(checkpoint.choose(run.checkpoints, 'best'))
        accuracies[:] = [0.3, 0.2]
        heard = []
        _, result = resume(run, Reporter(heard.append))
        assert 'epoch-0001, is missing or damaged: epoch 2 is the best in its place' in heard[0]
        assert result['best_epoch'] == 2 and result['val_accuracy'] == 0.5


@pytest.fixture(scope='module')
def stopped_once(tmp_path_factory):
    path = tmp_path_factory.mktemp('stopped') / 'run'
    with stop_after(5), pytest.raises(Interrupted):
        train(tiny(epochs=1, checkpoint_every='2'), path)
    return path


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return RunDirectory.open(shutil.copytree(stopped_once, tmp_path / 'stopped'))


def test_what_a_resumed_training_was_given_is_remembered(stopped):
    resume(stopped, checkpoint_every='7', cpus=2)
    assert (stopped.config().checkpoint_every, stopped.config().cpus) == ('7', 2)


def test_images_of_other_classes_are_not_evaluated(tmp_path, monkeypatch):
    run, _ = train(tiny(epochs=1), tmp_path / 'run')
    data = loop.load_data(run.config())
    monkeypatch.setattr(loop, 'load_data', lambda config: dataclasses.replace(data, classes=data.classes[::-1]))
    with pytest.raises(FailedError, match='tells other classes apart than those of digits'):
        evaluate(run)
    accuracy = run.result()['test_accuracy']
    other = dataclasses.replace(data, mean=data.mean + 9, std=data.std * 3)
    monkeypatch.setattr(loop, 'load_data', lambda config: other)
    assert evaluate(run)['accuracy'] == accuracy  # normalised as in training


def test_a_training_without_a_checkpoint_begins_anew(tmp_path, left_alone):
    run = RunDirectory.create(tmp_path / 'killed', tiny())
    resume(run)
    assert_equal_runs(left_alone(), run)


def test_a_finished_training_is_left_as_it_is(tmp_path):
    run, result = train(tiny(epochs=1), tmp_path / 'run')
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob('*')}
    heard = []
    assert resume(run, Reporter(heard.append)) == (run, result)
    after = {path: path.stat().st_mtime_ns for path in run.path.rglob('*')}
    for times in (before, after):
        times.pop(run.path / 'lock')
    assert before == after
    assert 'has finished its 1 epochs: nothing is left to do' in heard[0]


def test_another_number_of_devices_is_said(stopped):
    heard = []
    _, result = resume(stopped, Reporter(heard.append), cpus=2)
    assert result['devices'] == ['cpu(0)', 'cpu(1)']
    assert 'not bit for bit what it would have been: it was on cpu(0) with' in heard[0]


def test_another_way_to_compute_is_said(tmp_path):
    with stop_after(5), pytest.raises(Interrupted):
        train(tiny(epochs=1, **ATTENTION, attention_backend='folded'), tmp_path / 'run')
    heard, facts = [], []
    _, result = resume(RunDirectory.open(tmp_path / 'run'), Reporter(heard.append, lambda run, row: facts.append(row)),
                       attention_backend='tiled', tile=20, memory_mode='recompute')
    for found in (result, facts[0]):
        assert (found['attention_backend'], found['tile'], found['memory_mode']) == ('tiled', 20, 'recompute')
    assert 'attention folded, memory mode speed, and is on' in heard[0]
    assert heard[0].endswith('attention tiled in tiles of 20, memory mode recompute')


@pytest.mark.parametrize('keys, heard_first', [
    ({}, []),
    # auto was folded then; whatever it is now, tiled is something else
    ({**ATTENTION, 'attention_backend': 'tiled'},
     ['attention folded, memory mode speed, and is']),
])
def test_checkpoints_from_before_attention_was_noted(tmp_path, keys, heard_first):
    with stop_after(5), pytest.raises(Interrupted):
        train(tiny(epochs=1, **keys), tmp_path / 'run')
    run = RunDirectory.open(tmp_path / 'run')

    def as_before(state):
        for key in ('attention_backend', 'tile', 'memory_mode'):
            del state['machine'][key]
        state['config']['attention_backend'] = 'auto'
    edit(last(run), as_before)
    heard = []
    resume(run, Reporter(heard.append))
    assert heard.pop() == 'going on after step 5 of epoch 1'
    assert len(heard) == len(heard_first) and all(text in found for text, found in zip(heard_first, heard))


def test_a_running_training_is_not_resumed(tmp_path):
    run = RunDirectory.create(tmp_path / 'run', tiny())
    with run.locked(), pytest.raises(UsageError, match=f'is being trained by process {os.getpid()} on .*: wait for it'):
        resume(run)
    with run.locked():  # it was let go of
        pass
    assert (run.path / 'lock').read_text() == ''


@pytest.mark.parametrize('key, value', [('learning_rate', 0.1), ('epochs', 5), ('net', 'wrn10_2'), ('seed', 1)])
def test_what_is_computed_cannot_change(tmp_path, key, value):
    run = RunDirectory.create(tmp_path / 'run', tiny())
    with pytest.raises(UsageError, match=f'{key} cannot change in a training that goes on .*: start a new one with'):
        resume(run, **{key: value})


def last(run):
    return checkpoint.choose(run.checkpoints, 'last')


@pytest.mark.parametrize('name', ['net.params', 'training.npz'])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_serves(stopped, name):
    path = last(stopped) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FailedError, match=f'{name} is damaged .its checksum differs.: remove .*step-000005 and choose'):
        resume(stopped)
    shutil.rmtree(last(stopped))
    heard = []
    resume(stopped, Reporter(heard.append))
    assert heard == ['going on after step 4 of epoch 1']


def edit(path, change):
    state = json.loads((path / 'state.json').read_text())
    change(state)
    (path / 'state.json').write_text(json.dumps(checkpoint.sealed(state)))


@pytest.mark.parametrize('change, message', [
    (lambda state: state['config'].update(net='wrn16_1'), 'disagree: net is wrn16_1 there and wrn10_1 here'),
    (lambda state: state.pop('config'), 'does not say what it was trained with'),
    (lambda state: state['config'].update(new_key=1), 'does not say what it was trained with .*new_key.*: upgrade'),
    (lambda state: state.update(steps=4), 'holds the checkpoint of step 4 of epoch 1: give it back its name'),
    (lambda state: state.update(data='0' * 64), 'the images of digits are not those'),
    (lambda state: state.pop('best_epoch'), "lacks 'best_epoch': remove it"),
    (lambda state: state.update(format=99), 'written by a newer version'),
    (lambda state: state.update(format=1), 'written by an older version'),
])
def test_a_checkpoint_of_something_else_is_refused(stopped, change, message):
    edit(last(stopped), change)
    with pytest.raises(FailedError, match=message):
        resume(stopped)
    assert (stopped.path / 'lock').read_text() == ''


def test_metrics_that_were_changed_are_noticed(tmp_path):
    with stop_after(STEPS + 5), pytest.raises(Interrupted):
        train(tiny(), tmp_path / 'run')
    run = RunDirectory.open(tmp_path / 'run')
    (run.path / 'metrics.jsonl').unlink()
    with pytest.raises(FailedError, match='metrics.jsonl does not have the rows of epochs 1 to 1, where'):
        resume(run)
    (run.path / 'metrics.jsonl').write_text('{"epoch": 1, "tra')
    with pytest.raises(FailedError, match='was changed or damaged'):
        resume(run)


def test_a_full_disk_keeps_what_was_there(tmp_path, left_alone, monkeypatch):
    save, calls = checkpoint.files.write_json, []

    def fail_later(path, value):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, 'No space left on device')
        save(path, value)
    monkeypatch.setattr(checkpoint.files, 'write_json', fail_later)
    with pytest.raises(FailedError, match='cannot write the checkpoint .*epoch-0002: .*No space left on device'):
        train(tiny(), tmp_path / 'run')
    monkeypatch.undo()
    run = RunDirectory.open(tmp_path / 'run')
    assert checkpoint.epochs(run.checkpoints) == [1]
    assert not [path for path in run.path.rglob('*') if path.name.endswith('.tmp')]
    resume(run)
    assert_equal_runs(left_alone(), run)
