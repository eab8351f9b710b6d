"""Compiles the operator with the system's C++ compiler, once, into a cache.

An entry is the directory $XDG_CACHE_HOME/gluon-aa/native/<key>/ (~/.cache by default): attention.so, and build.json
with what it was made from and its SHA-256. It is built elsewhere and renamed, so that it is whole or absent; processes
that start together wait for the first. The key follows from sources, flags, compiler, CPU and MXNet. As the library
is code that will run, the cache must not be writable by anyone else.
"""
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from typing import Any, Dict, Iterator, List, TextIO, Tuple

from gluon_aa import compat, files, machine
from gluon_aa.errors import FailedError, Notice, reason

LIBRARY, ABOUT = 'attention.so', 'build.json'
SOURCES = ('kernel.cc', 'operator.cc')
HEADERS = ('kernel.h', 'products.h', 'simd.h')
FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fopenmp', '-fPIC', '-shared')
#: Seconds that a compiler may take; it takes about ten.
TIME_LIMIT = 600.0

HERE = pathlib.Path(__file__).parent


def compiler() -> List[str]:
    """The command that compiles C++: $CXX, or the system's c++."""
    return shlex.split(os.environ.get('CXX') or '') or ['c++']


def directory() -> pathlib.Path:
    """Where entries lie."""
    return files.cache('native').resolve()  # links are followed now, so that what is checked is what is used


def library() -> pathlib.Path:
    """The compiled library for this machine and MXNet, built where there is none.

    Raises:
        FailedError: no compiler, a build that fails or hangs, a cache that cannot be written or is not safe.
    """
    try:
        place, about = directory(), ingredients()
    except FailedError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # no home, an open quote in CXX, a source unreadable
        raise FailedError(f'attention cannot be compiled: {reason(error)}') from error
    entry = place / _digest(about)[:32]
    try:
        files.make_private(place)
        _refuse_strangers(place)
        if not _is_whole(entry, about):
            _build_alone(place, entry, about)
    except OSError as error:
        raise FailedError(f'cannot keep the compiled operator in {place}: {error.strerror or error}; '
                          'name another place with XDG_CACHE_HOME') from error
    return entry / LIBRARY


def ingredients() -> Dict[str, Any]:
    """All that the library depends on, as JSON values.

    Raises:
        FailedError: no compiler that answers; an MXNet without the files of its library interface.
    """
    package = _package()
    interface = (package / 'src' / 'lib_api.cc', package / 'include' / 'mxnet' / 'lib_api.h')
    missing = [path for path in interface if not path.is_file()]
    if missing:
        raise FailedError(f'this MXNet comes without {missing[0]}, which compiled operators need')
    command = compiler()
    path = shutil.which(command[0])
    if path is None:
        raise FailedError(f'there is no C++ compiler ({command[0]}): install one, such as g++, '
                          'or name it in CXX')
    return {
        'sources': {name: files.sha256(HERE / name) for name in (*SOURCES, *HEADERS)},
        'interface': [files.sha256(path) for path in interface], 'mxnet': compat.mx.__version__,
        'compiler': [os.path.realpath(path), *command[1:]],
        'compiler_version': _output([path, *command[1:], '--version'], time_limit=60.0),
        'flags': [*FLAGS, *cpu_flags()], 'cpu': machine.cpu_model(), 'instructions': machine.all_cpu_instructions()}


def _package() -> pathlib.Path:
    return pathlib.Path(compat.mx.__file__).parent


def cpu_flags() -> Tuple[str, ...]:
    """What makes the compiler use all of this CPU's instructions."""
    return ('-march=native',) if platform.machine() in ('x86_64', 'AMD64') else ('-mcpu=native',)


def _is_whole(entry: pathlib.Path, about: Dict[str, Any]) -> bool:
    """Whether an entry is there and what its build.json says; nothing else is ever loaded."""
    try:
        found = json.loads((entry / ABOUT).read_text(encoding='utf-8'))
        for path in (entry, entry / LIBRARY):
            _refuse_strangers(path)
        return bool(found == {**about, 'sha256': files.sha256(entry / LIBRARY)})
    except (OSError, ValueError):
        return False


def _build_alone(place: pathlib.Path, entry: pathlib.Path, about: Dict[str, Any]) -> None:
    """Build an entry, unless another process does while this one waits for it."""
    with _locked(place / 'lock') as alone:
        if alone:
            for leftover in place.glob('.build-*'):  # of killed builds
                shutil.rmtree(leftover, ignore_errors=True)
        if not _is_whole(entry, about):
            warnings.warn('compiling attention for this CPU, once: it takes about 20 seconds', Notice, stacklevel=2)
            _build(entry, about)


def _build(entry: pathlib.Path, about: Dict[str, Any]) -> None:
    package = _package()
    temporary = pathlib.Path(tempfile.mkdtemp(prefix='.build-', dir=entry.parent))
    try:
        new = temporary / 'new'
        new.mkdir(mode=0o700)
        include = package / 'include'
        _output([*compiler(), *about['flags'], f'-I{HERE}', f'-I{include}', f'-I{include / "mxnet"}',
                 *(str(HERE / name) for name in SOURCES), str(package / 'src' / 'lib_api.cc'),
                 '-o', str(new / LIBRARY)], time_limit=TIME_LIMIT)
        (new / LIBRARY).chmod(0o700)
        files.sync(new / LIBRARY)
        files.write_json(new / ABOUT, {**about, 'sha256': files.sha256(new / LIBRARY)})
        if entry.exists():  # damaged
            os.rename(entry, temporary / 'old')
        os.rename(new, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _output(command: List[str], time_limit: float) -> str:
    """What a command prints; it and all that it started are killed at the limit.

    Raises:
        FailedError: it cannot be started, fails, or hangs.
    """
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   universal_newlines=True, errors='replace', start_new_session=True,
                                   env={**os.environ, 'LC_ALL': 'C'})  # so that an error is called one
    except OSError as error:
        raise FailedError(f'cannot start the compiler {command[0]}: {error.strerror}') from error
    with process:
        try:
            output, _ = process.communicate(timeout=time_limit)
        except BaseException as error:  # an interruption, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise FailedError(
                f'the compiler {command[0]} was not done after {time_limit:g} s and was killed') from None
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        said = next((line for line in lines if 'error' in line), (lines or ['it said nothing'])[-1])
        raise FailedError(f'the compiler {command[0]} failed (code {process.returncode}): {said}')
    return output


def _refuse_strangers(path: pathlib.Path) -> None:
    """Raise where someone else could put a file in the place of `path`, or change it."""
    for place in (path, *path.parents):
        status = place.stat()
        writable = stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.getuid()) or (writable and not sticky):
            whose = 'can be written to by' if writable and not sticky else 'belongs to'
            raise FailedError(f'{place} {whose} other users, so that code from {path} is not safe to run: name another '
                              'place with XDG_CACHE_HOME, or make it yours alone')


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[bool]:
    """Hold `path` for this process, once others let go; the kernel lets go when a process ends, however it ends.

    Yields whether it is held: some file systems have no locks, and then several build, and the last one stays.

    Raises:
        FailedError: another process held it for longer than a build can take.
    """
    with open(path, 'a', encoding='utf-8') as file:
        yield _wait_for(file)


def _wait_for(file: TextIO) -> bool:
    deadline = time.monotonic() + TIME_LIMIT + 60
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return False
    raise FailedError(f'another process has held {file.name} for too long: stop it, or name another place with '
                      'XDG_CACHE_HOME')


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
