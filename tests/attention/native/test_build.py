"""The operator is built once, by whichever compiler there is, into a cache that nobody else can write to."""
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest

from gluon_aa import attention, files
from gluon_aa.attention import native, resolve_backend
from gluon_aa.attention.native import build
from gluon_aa.errors import FailedError, Notice

# stands in for a compiler, so that tests of the cache take no ten seconds each: writes its arguments as the library
FAKE = """#!/bin/sh
[ "$1" = --version ] && { echo "fake 1.0"; exit 0; }
echo $$ >> "$LOG"
while [ $# -gt 1 ]; do shift; [ "$prev" = -o ] && out="$1"; prev="$1"; done
sleep "${DELAY:-0}"
echo "made by fake" > "$out"
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'gluon-aa' / 'native'


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A compiler; counts its calls, and those that still run are ended after the test."""
    log = tmp_path / 'log'
    use_compiler(tmp_path, monkeypatch, FAKE)
    monkeypatch.setenv('LOG', str(log))
    yield lambda: len(log.read_text().split()) if log.exists() else 0
    for process in log.read_text().split() if log.exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(process), signal.SIGKILL)


def use_compiler(tmp_path, monkeypatch, script):
    path = tmp_path / 'compiler'
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv('CXX', str(path))
    return path


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


def test_it_is_built_once(cache, fake):
    path = build.library()
    assert path.parent.parent == cache and path.read_text() == 'made by fake\n'
    assert build.library() == path and fake() == 1
    assert json.loads((path.parent / 'build.json').read_text())['compiler_version'] == 'fake 1.0\n'
    assert [entry.name for entry in cache.iterdir() if entry.name != 'lock'] == [path.parent.name]  # nothing left over


@pytest.mark.parametrize('change', ['cpu', 'instructions', 'mxnet', 'compiler', 'sources', 'flags'])
def test_what_was_built_for_something_else_is_not_used(cache, fake, monkeypatch, tmp_path, change):
    first = build.library()
    if change == 'cpu':
        monkeypatch.setattr(build.machine, 'cpu_model', lambda: 'another CPU')
    elif change == 'instructions':
        monkeypatch.setattr(build.machine, 'all_cpu_instructions', lambda: ['fpu'])
    elif change == 'mxnet':
        monkeypatch.setattr(build.compat.mx, '__version__', '1.9.0')
    elif change == 'compiler':
        use_compiler(tmp_path, monkeypatch, FAKE.replace('fake 1.0', 'fake 2.0'))
    elif change == 'sources':
        shutil.copytree(build.HERE, tmp_path / 'sources')
        with open(tmp_path / 'sources' / 'simd.h', 'a') as file:
            file.write('// changed\n')
        monkeypatch.setattr(build, 'HERE', tmp_path / 'sources')
    else:
        monkeypatch.setattr(build, 'FLAGS', (*build.FLAGS, '-g'))
    assert build.library() != first and fake() == 2 and len(entries(cache)) == 2


@pytest.mark.parametrize('damage', [
    lambda entry: (entry / 'attention.so').write_text('made by someone else'),
    lambda entry: (entry / 'attention.so').unlink(),
    lambda entry: (entry / 'build.json').write_text('{"sources"'),
    lambda entry: (entry / 'build.json').unlink(),
], ids=['another library', 'no library', 'half a description', 'no description'])
def test_a_damaged_entry_is_built_anew(cache, fake, damage):
    path = build.library()
    damage(path.parent)
    assert build.library() == path and path.read_text() == 'made by fake\n' and fake() == 2


def test_processes_that_start_together_build_once(cache, fake, monkeypatch):
    monkeypatch.setenv('DELAY', '2')
    code = (f"import sys; sys.path[:] = {sys.path!r}\n"
            "from gluon_aa.attention.native import build; print(build.library())")
    processes = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, universal_newlines=True)
                 for _ in range(2)]
    paths = {process.communicate()[0].splitlines()[-1] for process in processes}
    assert len(paths) == 1 and fake() == 1 and pathlib.Path(paths.pop()).read_text() == 'made by fake\n'


def test_a_builder_that_is_killed_leaves_nothing_that_is_used(cache, fake, monkeypatch):
    monkeypatch.setenv('DELAY', '60')
    code = f'import sys; sys.path[:] = {sys.path!r}; from gluon_aa.attention.native import build; build.library()'
    process = subprocess.Popen([sys.executable, '-c', code])
    while not fake():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    monkeypatch.setenv('DELAY', '0')
    assert build.library().read_text() == 'made by fake\n' and fake() == 2
    assert not list(cache.glob('.build-*'))  # which it had left


@pytest.mark.parametrize('script, message', [
    ('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "kernel.cc:1: error: no such thing"; exit 1\n',
     r'failed \(code 1\): kernel.cc:1: error: no such thing'),
    ('#!/bin/sh\nexit 7\n', r'failed \(code 7\): it said nothing'),
    ('#!/bin/sh\n[ "$1" = --version ] && exit 0\nsleep 60\n', 'was not done after 0.5 s and was killed'),
    ('not a program', 'cannot start the compiler'),
    ('#!/bin/sh\n[ "$1" = --version ] && exit 0\nkill -9 $$\n', r'failed \(code -9\)'),
], ids=['error', 'silent', 'hangs', 'no program', 'killed'])
def test_a_compiler_that_does_not_compile_is_reported(cache, monkeypatch, tmp_path, script, message):
    use_compiler(tmp_path, monkeypatch, script)
    monkeypatch.setattr(build, 'TIME_LIMIT', 0.5)
    with pytest.raises(FailedError, match=message):
        build.library()
    assert not cache.exists() or not entries(cache)


def test_no_compiler_is_reported(cache, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(FailedError, match=r'there is no C\+\+ compiler \(no-such-compiler\): install one'):
        build.library()


def test_a_cache_that_others_can_write_to_is_refused(cache, fake):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(FailedError, match=f'{cache} can be written to by other users'):
        build.library()
    cache.chmod(0o700)
    path = build.library()
    path.chmod(0o766)  # the library itself
    with pytest.raises(FailedError, match='attention.so can be written to by other users'):
        build.library()
    path.chmod(0o700)
    cache.parent.parent.chmod(0o775)  # a directory above
    with pytest.raises(FailedError, match=f'{cache.parent.parent} can be written to by other users'):
        build.library()


def test_directories_are_made_for_this_user_alone_whatever_the_umask(cache, fake):
    before = os.umask(0o002)
    try:
        assert build.library() == build.library() and fake() == 1
    finally:
        os.umask(before)


def test_a_link_is_checked_where_it_leads(cache, fake, tmp_path):
    shared = tmp_path / 'shared'
    shared.mkdir()
    shared.chmod(0o777)
    cache.parent.mkdir(parents=True)
    cache.symlink_to(shared / 'mine')
    with pytest.raises(FailedError, match=f'{shared} can be written to by other users'):
        build.library()


def test_what_is_there_is_used_where_nothing_can_be_written(cache, fake, monkeypatch):
    path = build.library()
    monkeypatch.setattr(build, '_locked', lambda path: pytest.fail('locked'))  # root may write anywhere
    assert build.library() == path


def test_a_lock_that_is_never_let_go_is_reported(cache, fake, monkeypatch):
    files.make_private(cache)
    monkeypatch.setattr(build, 'TIME_LIMIT', -59.5)
    with open(cache / 'lock', 'w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FailedError, match='another process has held .*lock for too long'):
            build.library()
    assert fake() == 0


@pytest.mark.parametrize('variable, value', [('CXX', 'g++ "'), ('XDG_CACHE_HOME', '~no-such-user/cache')])
def test_settings_that_cannot_be_read_are_reported(cache, fake, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(FailedError, match='attention cannot be compiled: '):
        build.library()


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give files away')
def test_a_cache_of_someone_else_is_refused(cache, fake):
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, 12345, -1)
    with pytest.raises(FailedError, match=f'{cache} belongs to other users'):
        build.library()


def test_a_cache_that_cannot_be_made_is_reported(tmp_path, fake, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with pytest.raises(FailedError, match='cannot keep the compiled operator in .*Not a directory; name another place'):
        build.library()


def test_a_full_disk_is_reported(cache, fake, monkeypatch):
    def full(path, value):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(build.files, 'write_json', full)
    with pytest.raises(FailedError, match='No space left on device; name another place with XDG_CACHE_HOME'):
        build.library()
    assert not entries(cache)


@pytest.fixture
def fresh():
    """As if no backend had been asked for yet in this process, before and after."""
    caches = (native.unavailable, native.load, attention._native_is_missing)
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


def test_without_it_folded_serves_and_one_notice_says_why(cache, fresh, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.warns(Notice, match=r'by the slower backend folded: there is no C\+\+ compiler') as notices:
        assert resolve_backend('auto') == 'folded'
        assert resolve_backend('auto') == 'folded'
    assert len(notices) == 1
    with pytest.raises(FailedError, match=r'native cannot be used: there is no C\+\+ compiler'):
        resolve_backend('native')


def test_a_library_that_mxnet_cannot_load_is_reported(cache, fresh, fake):
    with pytest.raises(FailedError, match=r'MXNet cannot load .*attention.so: .*; remove it, and it is built anew'):
        native.load()


def test_other_backends_build_nothing(cache, fresh, fake):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert resolve_backend('folded') == 'folded' and resolve_backend('reference') == 'reference'
        assert resolve_backend('auto', on_gpus=True) == 'folded'
    assert not cache.exists() and fake() == 0
