"""The run directory: what a training was asked, how it went, what came out."""
import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from typing import Any, Dict, Iterator, List, Optional, TextIO

from gluon_aa import files
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training.config import TrainConfig, load

CONFIG, METRICS, RESULT, CURVES, LOCK = 'config.yaml', 'metrics.jsonl', 'result.json', 'curves.png', 'lock'


class RunDirectory:
    """A directory with config.yaml, metrics.jsonl, result.json, curves.png and checkpoints/."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.checkpoints = path / 'checkpoints'

    @classmethod
    def create(cls, path: Optional[pathlib.Path], config: TrainConfig) -> 'RunDirectory':
        """Make a new one: `path`, or runs/<net>-<dataset>-<UTC time>.

        Raises:
            UsageError: `path` exists. FailedError: it cannot be written.
        """
        candidates = [path] if path is not None else _default_paths(config)
        for candidate in candidates:
            missing = [parent for parent in candidate.parents if not parent.exists()]
            try:
                candidate.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                for parent in missing:  # innermost first
                    if parent.exists():
                        parent.rmdir()
                raise FailedError(f'cannot make the run directory {candidate}: {error.strerror}; '
                                  'name another with --run') from error
            run = cls(candidate)
            try:
                run.write_config(config)
            except FailedError:
                candidate.rmdir()
                raise
            return run
        raise _exists(candidates[-1])

    @classmethod
    def open(cls, path: pathlib.Path) -> 'RunDirectory':
        """An existing one. Raises UsageError where `path` is no run directory."""
        if not (path / CONFIG).is_file():
            raise UsageError(f'{path} is not a run directory: it has no {CONFIG}')
        return cls(path)

    def config(self) -> TrainConfig:
        """The configuration the run was trained with."""
        return load(self.path / CONFIG)

    def write_config(self, config: TrainConfig) -> None:
        """Write config.yaml. Raises FailedError where that fails; an old one stays."""
        try:
            files.write_text(self.path / CONFIG, config.to_yaml())
        except OSError as error:
            raise FailedError(f'cannot write {self.path / CONFIG}: {error.strerror}; free some space, or name another '
                              'place with --run') from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go when the process ends, however it ends.

        Raises:
            UsageError: another process trains it.
        """
        path = self.path / LOCK
        with self._open_lock(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise FailedError(f'cannot lock the run directory {self.path}: {error.strerror}') from error
                file.seek(0)
                raise UsageError(f'{self.path} is being trained by {file.read().strip() or "another process"}: '
                                 'wait for it, or stop it first') from None
            # the file stays when the lock is let go: were it deleted, two processes could lock two files of this name
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}')
            file.flush()
            for leftover in self.path.glob('.*.tmp'):  # of a killed process
                leftover.unlink()
            try:
                yield
            finally:
                file.truncate(0)

    def _open_lock(self, path: pathlib.Path) -> TextIO:
        try:
            return open(path, 'a+', encoding='utf-8')
        except OSError as error:
            raise FailedError(f'cannot write into the run directory {self.path}: {error.strerror}') from error

    def append_metrics(self, row: Dict[str, Any]) -> None:
        """Add one epoch's line to metrics.jsonl.

        Raises:
            FailedError: it cannot be written.
        """
        try:
            with open(self.path / METRICS, 'a', encoding='utf-8') as file:
                file.write(json.dumps(row, allow_nan=False) + '\n')
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FailedError(f'cannot write {self.path / METRICS}: {error.strerror}') from error

    def metrics(self) -> List[Dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return [json.loads(line) for line in (self.path / METRICS).read_text(encoding='utf-8').splitlines()]

    def keep_metrics(self, epochs: int) -> None:
        """Drop the rows of later epochs, and what a killed process left of a last line."""
        path = self.path / METRICS
        lines = path.read_text(encoding='utf-8').splitlines()[:epochs] if path.exists() else []
        try:
            found = [json.loads(line)['epoch'] for line in lines]
        except (ValueError, KeyError, TypeError):
            found = []
        if found != list(range(1, epochs + 1)):
            raise FailedError(f'{path} does not have the rows of epochs 1 to {epochs}, where the checkpoint stands: it '
                              'was changed or damaged')
        files.write_text(path, ''.join(f'{line}\n' for line in lines))

    def result(self) -> Optional[Dict[str, Any]]:
        """The content of result.json; None where the training has not finished."""
        path = self.path / RESULT
        try:
            return dict(json.loads(path.read_text(encoding='utf-8'))) if path.exists() else None
        except (OSError, ValueError) as error:
            raise FailedError(f'{path} cannot be read ({error}): remove it, and resume makes it anew') from error

    def write_result(self, result: Dict[str, Any]) -> None:
        """Write result.json and draw curves.png."""
        draw_curves(self.metrics(), self.path / CURVES, title=f'{result["net"]} on {result["dataset"]}')
        files.write_json(self.path / RESULT, result)  # last: it says that all is done


def refuse_existing(path: Optional[pathlib.Path]) -> None:
    """Raise UsageError where `path` is there already: nothing of a user's is written over."""
    if path is not None and path.exists():
        raise _exists(path)


def _exists(path: pathlib.Path) -> UsageError:
    return UsageError(f'the run directory {path} exists already: name another with --run, or remove it')


def _default_paths(config: TrainConfig) -> List[pathlib.Path]:
    time = datetime.datetime.now(datetime.timezone.utc).strftime('%Y%m%dT%H%M%SZ')
    name = f'{config.net}-{config.dataset}-{time}'
    return [pathlib.Path('runs', name)] + [pathlib.Path('runs', f'{name}-{number}') for number in range(2, 100)]


def draw_curves(rows: List[Dict[str, Any]], path: pathlib.Path, title: str) -> None:
    """A PNG of loss, accuracy and learning rate over the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    epochs = [row['epoch'] for row in rows]
    marker = 'o' if len(rows) == 1 else None  # a line through one point shows nothing
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    loss.plot(epochs, [row['train_loss'] for row in rows], label='training', marker=marker)
    loss.set(xlabel='epoch', ylabel='loss', title='Loss')
    for key, label in (('train_accuracy', 'training'), ('val_accuracy', 'validation')):
        accuracy.plot(epochs, [row[key] for row in rows], label=label, marker=marker)
    accuracy.set(xlabel='epoch', ylabel='accuracy (fraction)', title='Accuracy')
    accuracy.legend()
    rate.plot(epochs, [row['learning_rate'] for row in rows], marker=marker)
    rate.set(xlabel='epoch', ylabel='learning rate', title="Learning rate at the epoch's end")
    for axes in (loss, accuracy, rate):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with files.replacing(path) as temporary:
        figure.savefig(str(temporary), dpi=120, format='png')
