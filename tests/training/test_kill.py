"""A training killed at random moments and resumed ends with the parameters of one that was left alone.

Killed at any step of writing a checkpoint, it keeps a whole one.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gluon_aa.training import checkpoint
from gluon_aa.training.checkpoint import Position

KILLS = 20
RECIPE = ['train', '--config', 'cpu/digits', '--checkpoint-every', '5']
EPOCHS = 20  # the recipe's


def command(*arguments):
    code = f'import sys; sys.path[:] = {sys.path!r}; from gluon_aa.cli import main; main()'
    return [sys.executable, '-c', code, *map(str, arguments)]


def run(*arguments, **kwargs):
    return subprocess.run(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, timeout=600, check=False, **kwargs)


def arrays(directory, epoch):
    path = checkpoint.path_of(directory / 'checkpoints', Position(epoch))
    return {**np.load(str(path / 'training.npz')), 'net': (path / 'net.params').read_bytes()}


def is_held_by(lock, process):
    return lock.exists() and f'process {process.pid} ' in lock.read_text()


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert run(*RECIPE, '--run', whole).returncode == 0
    # from the moment it holds its run directory; at most half the training's length in all, so that none is too late
    longest = json.loads((whole / 'result.json').read_text())['seconds'] / KILLS / 2
    moments, positions = random.Random(0), []
    arguments = [*RECIPE, '--run', killed]
    for _ in range(KILLS):
        with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not is_held_by(killed / 'lock', process):
                assert process.poll() is None, process.returncode
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, longest))
            assert process.poll() is None, 'it ended before it was killed'
            os.kill(process.pid, signal.SIGKILL)
        positions.append(checkpoint.positions(killed / 'checkpoints')[-1:])
        arguments = ['train', '--resume', killed]
    print('killed; the last checkpoint then:', ', '.join(str(*position) or 'none' for position in positions))
    done = run('train', '--resume', killed)
    assert done.returncode == 0, done.stdout
    assert positions[-1] > positions[0]  # it came on in between
    results = [json.loads((path / 'result.json').read_text()) for path in (whole, killed)]
    assert results[0]['test_accuracy'] == results[1]['test_accuracy']
    rows = [[json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
            for path in (whole, killed)]
    for key in ('epoch', 'train_loss', 'train_accuracy', 'val_accuracy', 'learning_rate'):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]]
    left_alone, resumed = arrays(whole, EPOCHS), arrays(killed, EPOCHS)
    assert left_alone.keys() == resumed.keys()
    assert all(np.array_equal(left_alone[name], resumed[name]) for name in left_alone)


SAVING = """
import os, pathlib, shutil, signal, sys
import numpy as np
from gluon_aa.compat import mx
from gluon_aa.training import checkpoint
from gluon_aa.training.checkpoint import Position

directory, left = pathlib.Path(sys.argv[1]), [int(sys.argv[2])]
net = mx.gluon.nn.Dense(2, in_units=2)
net.initialize()

def count(function):
    def counted(*args, **kwargs):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*args, **kwargs)
    return counted

def save(epoch):
    checkpoint.sweep(directory)
    checkpoint.save(directory, Position(epoch), net, {'updates': np.array(epoch)}, {'best_epoch': epoch})
    checkpoint.prune(directory, 1, {Position(epoch)})

save(1)
for name in ('mkdir', 'open', 'fsync', 'rename', 'replace', 'unlink', 'rmdir'):
    setattr(os, name, count(getattr(os, name)))
save(2)
save(3)
"""


@pytest.mark.slow
def test_a_kill_at_any_step_of_saving_leaves_a_whole_checkpoint(tmp_path):
    script = tmp_path / 'saving.py'
    script.write_text(f'import sys; sys.path[:] = {sys.path!r}\n{SAVING}')
    for calls in range(100):
        directory = tmp_path / str(calls)
        code = subprocess.run([sys.executable, str(script), str(directory), str(calls)], check=False).returncode
        kept = checkpoint.positions(directory)
        assert kept and all(checkpoint.is_whole(checkpoint.path_of(directory, position)) for position in kept)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0 and calls > 15 and kept == [(3, 0)]
