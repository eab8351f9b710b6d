"""A training killed at random moments and resumed ends with the parameters of one that was left alone."""
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
