"""The directory of a sweep: what was asked, each cell as it came, and at the end the reports."""
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
from typing import Any, Dict, Iterator, List, Optional, Sequence

from gluon_aa import files
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory.devices import Device
from gluon_aa.memory.request import Request, make
from gluon_aa.memory.sweep import CRASHED, TIMED_OUT

ASKED, CELLS, RESULT = 'sweep.json', 'cells.jsonl', 'result.json'

Row = Dict[str, Any]


class SweepDirectory:
    """A directory with sweep.json and cells.jsonl; result.json, written last, says that the sweep is finished."""

    def __init__(self, path: pathlib.Path, request: Request, devices: Sequence[Device], given: Row) -> None:
        self.path, self.request, self.devices, self.given = path, request, tuple(devices), given

    @classmethod
    def create(cls, path: Optional[pathlib.Path], given: Row) -> 'SweepDirectory':
        """Begin a sweep in `path`, which is new or empty; by default in memory-<net>-<UTC time>.

        Args:
            given: arguments of `gluon_aa.memory.request.make`.

        Raises:
            UsageError: no request, or something is there. FailedError: it cannot be written.
        """
        request = make(**given)
        candidates = [path] if path is not None else _default_paths(request)
        for candidate in candidates:
            if candidate.exists() and path is None:
                continue
            _refuse_used(candidate, request)
            devices = request.found_devices()
            try:
                candidate.mkdir(parents=True, exist_ok=True)
                files.write_json(candidate / ASKED, {'asked': request.values(), 'given': given,
                                                     'devices': [list(device) for device in devices]})
            except OSError as error:
                raise FailedError(f'cannot write into {candidate}: {error.strerror}; name another place with --output'
                                  ) from error
            return cls(candidate, request, devices, given)
        raise UsageError(f'{candidates[-1]} exists already: name another directory with --output')

    @classmethod
    def open(cls, path: pathlib.Path) -> 'SweepDirectory':
        """A sweep that was begun; its devices have the memory that they had then.

        Raises:
            UsageError: there is none in `path`.
        """
        try:
            found = json.loads((path / ASKED).read_text(encoding='utf-8'))
            return cls(path, Request.from_values(found['asked']), [Device(*device) for device in found['devices']],
                       found['given'])
        except FileNotFoundError:
            raise UsageError(f'there is no sweep in {path} to resume: leave out --resume') from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f'{path / ASKED} is no description of a sweep ({error}): name another directory with '
                             '--output') from None

    @property
    def finished(self) -> bool:
        return (self.path / RESULT).exists()

    @classmethod
    def resume(cls, path: pathlib.Path, given: Row) -> 'SweepDirectory':
        """`open`, for arguments that must not differ from those of this sweep, where given at all."""
        directory = cls.open(path)
        if given:
            directory.check_same(make(**{**directory.given, **given}))
        return directory

    def check_same(self, request: Request) -> None:
        """Raise UsageError, with the first difference, where this is not the sweep that is asked for."""
        there, asked = self.request.values(), request.values()
        for name, value in there.items():
            if value != asked[name]:
                raise UsageError(f'{self.path} holds another sweep: {name} is {json.dumps(value)} there and '
                                 f'{json.dumps(asked[name])} was asked: name another directory with --output')

    @contextlib.contextmanager
    def recording(self) -> Iterator['Recorder']:
        """Hold the sweep for this process, and add cells to it.

        Raises:
            UsageError: another process has it. FailedError: it cannot be written, or was damaged.
        """
        try:
            file = open(self.path / CELLS, 'a+b')
        except OSError as error:
            raise FailedError(f'cannot write {self.path / CELLS}: {error.strerror}') from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f'another process runs the sweep in {self.path}: wait for it, or stop it first'
                                 ) from None
            for leftover in self.path.glob('.*.tmp'):  # of a killed process
                leftover.unlink()
            yield Recorder(self.path / CELLS, file)


class Recorder:
    """cells.jsonl, open: one cell a line, flushed to disk as it comes."""

    def __init__(self, path: pathlib.Path, file: Any) -> None:
        self.path, self._file = path, file
        self.cells = self._read()

    def _read(self) -> List[Row]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[:content.rfind(b'\n') + 1]
        if len(whole) < len(content):  # a process was killed while it wrote its last line
            self._file.truncate(len(whole))
        try:
            cells = [dict(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise FailedError(f'{self.path} was changed or damaged ({error}): sweep anew, with another --output'
                              ) from error
        # what failed for other reasons than memory is tried again
        return [cell for cell in cells if cell['status'] not in (TIMED_OUT, CRASHED)]

    def add(self, cell: Row) -> None:
        """Append a cell. Raises FailedError where that fails."""
        try:
            self._file.write(json.dumps(cell, allow_nan=False).encode() + b'\n')
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FailedError(f'cannot write {self.path}: {error.strerror}; free some space, then --resume') from error
        self.cells.append(cell)


def _refuse_used(path: pathlib.Path, request: Request) -> None:
    """Raise UsageError where `path` has anything in it."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / ASKED).is_file():
        raise UsageError(f'{path} exists and holds no sweep: name a new directory with --output')
    present = SweepDirectory.open(path)
    present.check_same(request)
    if present.finished:
        raise UsageError(f'{path} holds this very sweep, finished: look at it, name another directory with --output, '
                         'or make its reports anew with --resume')
    raise UsageError(f'{path} holds this very sweep, unfinished: go on with --resume, or name another directory with '
                     '--output')


def _default_paths(request: Request) -> List[pathlib.Path]:
    time = datetime.datetime.now(datetime.timezone.utc).strftime('%Y%m%dT%H%M%SZ')
    name = f'memory-{request.net}-{time}'
    return [pathlib.Path(name)] + [pathlib.Path(f'{name}-{number}') for number in range(2, 100)]
