"""Checkpoints: one directory each, complete from the moment it has its name.

    checkpoints/epoch-0007/               after seven epochs
    checkpoints/epoch-0008-step-000120/   within the eighth, after 120 of its steps
        net.params      the network, for Gluon's load_parameters
        training.npz    the optimizer's state, each device's running statistics, the images' mean and deviation
        state.json      position, sums of the epoch so far, accuracy, checksums, and what the network is made for

MXNet's reader can abort the process on a damaged or foreign file, so none is handed to it before its checksum and its
structure were found right. Nothing is pickled: no file here can run code.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import zipfile
from typing import Any, Collection, Dict, List, NamedTuple, Optional

import numpy as np

from gluon_aa import files
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError, reason
from gluon_aa.training import parameter_file

#: 1 had no training.npz, and is not read.
FORMAT = 2
PARAMETERS, TRAINING, STATE = 'net.params', 'training.npz', 'state.json'


class Position(NamedTuple):
    """A place in a training: whole epochs done, and steps of the next."""

    epochs: int
    steps: int = 0

    @property
    def name(self) -> str:
        """The directory's name."""
        return f'epoch-{self.epochs + 1:04d}-step-{self.steps:06d}' if self.steps else f'epoch-{self.epochs:04d}'

    def __str__(self) -> str:
        return f'step {self.steps} of epoch {self.epochs + 1}' if self.steps else f'epoch {self.epochs}'


def _position(name: str) -> Optional[Position]:
    """The position that a directory's name says, if it is one that `save` gives."""
    match = re.fullmatch(r'epoch-([0-9]+)(?:-step-([0-9]+))?', name)
    if match is None:
        return None
    epoch, step = match.groups()
    position = Position(int(epoch)) if step is None else Position(int(epoch) - 1, int(step))
    return position if position.name == name else None


def positions(directory: pathlib.Path) -> List[Position]:
    """Where the checkpoints in the directory of checkpoints stand, earliest first."""
    found = (_position(path.name) for path in directory.glob('epoch-*') if path.is_dir())
    return sorted(position for position in found if position is not None)


def epochs(directory: pathlib.Path) -> List[int]:
    """The epochs that have a checkpoint of their end, rising."""
    return [position.epochs for position in positions(directory) if not position.steps]


def path_of(directory: pathlib.Path, position: Position) -> pathlib.Path:
    """The checkpoint of `position` in the directory of checkpoints."""
    return directory / position.name


def save(directory: pathlib.Path, position: Position, net: Any, training: Dict[str, np.ndarray],
         state: Dict[str, Any]) -> pathlib.Path:
    """Write the checkpoint of `position`; returns its path. One that is there already is left as it is.

    Args:
        training: what else the training needs to go on, as arrays.
        state: JSON values for state.json.

    Raises:
        FailedError: numbers that are not finite, or a disk that refuses them; what was there before stays.
    """
    parameters = _snapshot(net)
    for name, array in {**{name: array.asnumpy() for name, array in parameters.items()}, **training}.items():
        if not np.isfinite(array).all():
            raise FailedError(f'{name} is no longer finite after {position}: no checkpoint was written for it')
    final = path_of(directory, position)
    if final.exists():  # what went on from it and was stopped at once
        return final
    temporary = directory / f'.{final.name}.{os.getpid()}.tmp'
    try:
        temporary.mkdir(parents=True)
        _write_parameters(temporary / PARAMETERS, parameters)
        with open(temporary / TRAINING, 'wb') as file:
            np.savez(file, **training)
            file.flush()
            os.fsync(file.fileno())
        files.write_json(temporary / STATE, sealed({
            'format': FORMAT, **position._asdict(), **state,
            'sha256': {name: files.sha256(temporary / name) for name in (PARAMETERS, TRAINING)}}))
        files.sync(temporary)
        os.rename(temporary, final)
        files.sync(directory)
    except (OSError, mx.base.MXNetError) as error:
        raise FailedError(f'cannot write the checkpoint {final}: {reason(error)}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _snapshot(net: Any) -> Dict[str, Any]:
    """Copies of the parameters under the names that Gluon's `save_parameters` gives them.

    Of several devices: the first one's weights, which all share, and the mean of the running statistics. Copied by the
    engine on purpose: reading a weight that oneDNN keeps in its own layout converts it on the calling thread, whose own
    OpenMP team then competes with the engine's for the cores; training was 2x slower from there on.
    """
    # without waiting, batch norm's running statistics may be those of the step before
    mx.nd.waitall()
    return {name: mx.nd.array(mean_over_devices(parameter)) if parameter.grad_req == 'null'
            else parameter.list_data()[0].copyto(mx.cpu()) * 1  # the product is in the plain layout
            for name, parameter in net._collect_params_with_prefix().items()}


def mean_over_devices(parameter: Any) -> np.ndarray:
    """The mean of a parameter's copies, rounded once, so that the mean of equal copies is what they are."""
    copies = [copy.asnumpy() for copy in parameter.list_data()]
    mean: np.ndarray = np.mean(copies, axis=0, dtype=np.float64).astype(copies[0].dtype)
    return mean


def sealed(state: Dict[str, Any]) -> Dict[str, Any]:
    """`state` with its own checksum in `seal`."""
    unsealed = {key: value for key, value in state.items() if key != 'seal'}
    text = json.dumps(unsealed, sort_keys=True, allow_nan=False)
    return {**unsealed, 'seal': hashlib.sha256(text.encode()).hexdigest()}


def _write_parameters(path: pathlib.Path, parameters: Dict[str, Any]) -> None:
    expected = parameter_file.size(parameters)
    with contextlib.suppress(mx.base.MXNetError):  # it may notice that the disk refuses something, and may not
        mx.nd.save(str(path), parameters)
        files.sync(path)
    written = path.stat().st_size if path.exists() else 0
    if written != expected:
        raise OSError(f'{written:,} of {expected:,} bytes of parameters were written: is the disk full?')


def prune(directory: pathlib.Path, keep: int, keep_too: Collection[Position]) -> None:
    """Delete all but the `keep` latest checkpoints and those of `keep_too`."""
    for position in positions(directory)[:-keep]:
        if position not in keep_too:
            path = path_of(directory, position)
            doomed = path.with_name(f'.{path.name}.{os.getpid()}.old.tmp')
            os.rename(path, doomed)  # what has a checkpoint's name is whole at any moment
            shutil.rmtree(doomed)


def sweep(directory: pathlib.Path) -> None:
    """Delete what killed trainings left half-written or half-deleted; not while another one runs."""
    for leftover in directory.glob('.epoch-*.tmp'):
        shutil.rmtree(leftover, ignore_errors=True)


def choose(directory: pathlib.Path, which: str) -> pathlib.Path:
    """The checkpoint called `best`, `last` or by its epoch's number.

    Raises:
        UsageError: no such checkpoint.
    """
    present = positions(directory)
    if not present:
        raise UsageError(f'{directory} holds no checkpoint')
    if which == 'last':
        return path_of(directory, present[-1])
    if which == 'best':
        best = int(read_state(path_of(directory, present[-1]))['best_epoch'])
        if not best:
            raise UsageError(f'{directory} holds no best checkpoint yet, as no epoch was finished: choose last')
        return path_of(directory, Position(best))
    whole = [position.epochs for position in present if not position.steps]
    if not which.isdecimal() or int(which) not in whole:
        listed = f', or an epoch of {", ".join(map(str, whole))}' if whole else '; no epoch was finished yet'
        raise UsageError(f'no checkpoint {which!r}: choose best or last{listed}')
    return path_of(directory, Position(int(which)))


def read_state(path: pathlib.Path) -> Dict[str, Any]:
    """The state.json of a checkpoint.

    Raises:
        FailedError: it is missing, damaged, or of a newer version.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding='utf-8'))
        version = int(state['format'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedError(f'{path / STATE} cannot be read ({error}): choose another checkpoint') from error
    if version != FORMAT:
        age, advice = ('a newer', 'upgrade gluon-aa') if version > FORMAT else ('an older', 'train anew')
        raise FailedError(f'{path} was written by {age} version of gluon-aa (format {version}; this one reads '
                          f'{FORMAT}): {advice}')
    if state != sealed(state):
        raise FailedError(f'{path / STATE} is damaged (its checksum differs): remove {path} and choose an earlier '
                          'checkpoint')
    return dict(state)


def is_whole(path: pathlib.Path) -> bool:
    """Whether all of a checkpoint is there and agrees with its checksums."""
    try:
        for name in (PARAMETERS, TRAINING):
            _verify(path, name)
    except FailedError:
        return False
    return True


def _verify(path: pathlib.Path, name: str) -> pathlib.Path:
    """The file `name` of a checkpoint, its checksum found right."""
    checksums = read_state(path).get('sha256')
    try:
        actual = files.sha256(path / name)
    except OSError as error:
        raise FailedError(f'cannot read {path / name}: {error.strerror}') from error
    if not isinstance(checksums, dict) or actual != checksums.get(name):
        raise FailedError(f'{path / name} is damaged (its checksum differs): remove {path} and choose an earlier '
                          'checkpoint')
    return path / name


def load_parameters(path: pathlib.Path, net: Any, devices: Any) -> None:
    """Load a checkpoint into `net`.

    Raises:
        FailedError: a file that is missing, damaged or foreign, or parameters of another network.
    """
    file = _verify(path, PARAMETERS)
    try:
        found = parameter_file.shapes(file)
    except parameter_file.NotAParameterFile as error:
        raise FailedError(f"{file} is no file of MXNet's parameters: {error}") from error
    expected = {name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise FailedError(f'{file} does not fit the network: {name} is {found.get(name, "absent")} there and '
                              f'{expected.get(name, "absent")} in the network')
    net.load_parameters(str(file), ctx=devices)


def load_training(path: pathlib.Path) -> Dict[str, np.ndarray]:
    """The arrays that `save` was given as `training`.

    Raises:
        FailedError: a file that is missing, damaged or foreign.
    """
    file = _verify(path, TRAINING)
    try:
        with zipfile.ZipFile(file) as archive:  # small files that unpack to large ones are not ours
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError('it is compressed')
        with np.load(str(file), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):  # NumPy hands out other members as bytes
            raise ValueError('not all it holds are arrays')
        return found
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise FailedError(f'{file} is no archive of NumPy arrays: {error}') from error
