"""Trainings that run out of memory: real ones, in processes whose own data are limited."""
import os
import re
import shlex
import subprocess
import sys

import pytest
from pictures import folder_files, write_folder

from gluon_aa import cli
from gluon_aa.errors import FailedError, OutOfMemory
from gluon_aa.training import shortage
from gluon_aa.training.config import load
from gluon_aa.training.shortage import Subject, explained
from gluon_aa.training.tracking import RunDirectory

KEYS = {'net': 'aa_wrn10_2', 'batch_size': 64, 'attention_backend': 'folded', 'memory_mode': 'speed'}

#: A command under a limit of so many bytes beyond what a process has that has computed nothing yet.
LIMITED = '''
import resource, sys
sys.path[:] = {path!r}
from gluon_aa import cli, compat
compat.share_cores(1)
from gluon_aa.memory import meter
meter.left()
resource.setrlimit(resource.RLIMIT_DATA, (meter.data_bytes() + int(sys.argv[1]), resource.RLIM_INFINITY))
cli.main(sys.argv[2:])
'''


def gluon_aa(count, *words):
    code = LIMITED.format(path=sys.path)
    return subprocess.run([sys.executable, '-c', code, str(count), *words], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=240, check=False)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['speed', 'recompute'])
def test_it_ends_with_one_message_and_the_command_that_fits(in_tmp_path, mode):
    """The first map, of a gigabyte, is what fails: where small arrays do, oneDNN and OpenBLAS may crash instead."""
    limit = 600_000_000
    write_folder(in_tmp_path / 'images', folder_files(train=18, height=32, width=32))
    done = gluon_aa(limit, 'train', '--net', 'aa_wrn10_2', '--dataset', 'folder', '--data-dir', 'images',
                    '--batch-size', '32', '--epochs', '1', '--attention-backend', 'reference', '--memory-mode', mode,
                    '--run', 'run')
    assert done.returncode == 1, done.stderr
    message, = (line for line in done.stderr.splitlines() if line)
    found = re.fullmatch(
        r'Error: out of memory \(.+\): aa_wrn10_2, batch of 32 on cpu\(0\), attention reference, memory mode '
        rf'{mode}, needs (.+) on each device by plan, where there were (.+) MiB; run is whole, as yet without a '
        r'checkpoint; gluon-aa (train --resume run .+) fits, in .+ MiB by plan', message)
    assert found is not None, message
    assert 0.8 * limit < float(found.group(2)) * 2 ** 20 < 1.01 * limit
    assert sorted(path.name for path in (in_tmp_path / 'run').iterdir()) == ['config.yaml', 'lock']
    again = gluon_aa(limit, *shlex.split(found.group(3)))
    assert again.returncode == 0, again.stderr
    assert RunDirectory.open(in_tmp_path / 'run').result() is not None


def subject(memory=240 * 2 ** 20, **keys):
    return Subject(load(None, {**KEYS, **keys}), 10, (3, 16, 24), memory)


def test_other_errors_pass():
    for error in (FailedError('no such file'), ValueError('nan'), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            with explained(subject()):
                raise error
        assert raised.value is error


def test_before_there_is_a_run_directory_the_change_alone_is_told():
    with pytest.raises(OutOfMemory, match=(
            r'out of memory \(MemoryError\): aa_wrn10_2, batch of 64 on cpu\(0\), .* where there were 240 MiB; '
            r'the same with --.* fits, in [0-9]+ MiB by plan')):
        with explained(subject()):
            raise MemoryError


@pytest.mark.parametrize('keys, wanted', [
    ({'accumulate': 4}, 'gluon-aa train --resume run --accumulate 4'),
    ({'batch_size': 4}, 'a new training, gluon-aa train --config run/config.yaml --batch-size 4,')])
def test_only_what_a_training_may_change_is_told_to_be_resumed(monkeypatch, in_tmp_path, keys, wanted):
    flags = [f'--{key.replace("_", "-")}' for key in keys] + [str(value) for value in keys.values()]
    monkeypatch.setattr(shortage.isolation, 'call', lambda *args: {
        'bytes': 2 ** 31, 'keys': keys, 'flags': flags, 'safe_bytes': 2 ** 29})
    (in_tmp_path / 'run' / 'checkpoints' / 'epoch-0003').mkdir(parents=True)
    with pytest.raises(OutOfMemory) as raised, explained(subject(), RunDirectory(in_tmp_path.__class__('run'))):
        raise RuntimeError('cudaMalloc retry failed: out of memory')
    assert (f'needs 2.00 GiB on each device by plan, where there were 240 MiB; run is whole, with epoch 3; {wanted} '
            'fits, in 512 MiB by plan') in str(raised.value)


def test_a_plan_that_fits_is_not_believed_when_memory_was_too_small():
    plenty = subject(memory=10 ** 12)
    found = shortage.find_out(plenty.config.values(), plenty.config.values(), 10, [3, 16, 24], plenty.memory)
    assert found['keys'] and found['safe_bytes'] <= shortage.LESS * found['bytes']


def test_what_cannot_be_planned_is_told_all_the_same(monkeypatch):
    def fail(*args):
        raise FailedError('not done after 120 s')
    monkeypatch.setattr(shortage.isolation, 'call', fail)
    with pytest.raises(OutOfMemory, match=r'what fits is not known \(not done after 120 s\): try --accumulate'):
        with explained(subject()):
            raise MemoryError


def test_the_command_line_ends_the_process_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    monkeypatch.setattr(cli.train.train, 'callback', lambda **flags: (_ for _ in ()).throw(OutOfMemory('too small')))
    with pytest.raises(SystemExit):
        cli.main(['train'])
    assert ended == [1]
