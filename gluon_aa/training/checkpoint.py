"""Checkpoints: one directory an epoch, complete from the moment it has its name.

    checkpoints/epoch-0007/net.params   the network, for Gluon's load_parameters
    checkpoints/epoch-0007/state.json   epoch, accuracy, checksum and what the network is made for

MXNet's reader can abort the process on a damaged or foreign file, so none is handed to it before its
checksum was found right. Nothing is pickled.
"""
import json
import os
import pathlib
import shutil
from typing import Any, Dict, List

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError, reason
from gluon_aa.training import files

FORMAT = 1
PARAMETERS, STATE = 'net.params', 'state.json'


def path_of(directory: pathlib.Path, epoch: int) -> pathlib.Path:
    """The checkpoint of `epoch` in the directory of checkpoints."""
    return directory / f'epoch-{epoch:04d}'


def save(directory: pathlib.Path, net: Any, epoch: int, state: Dict[str, Any]) -> pathlib.Path:
    """Write the checkpoint of `epoch`, with `state` (JSON values) in its state.json; returns its path.

    Raises:
        FailedError: parameters that are not finite, or a disk that refuses them; what was there before stays.
    """
    arrays = _snapshot(net)
    for name, array in arrays.items():
        if not np.isfinite(array.asnumpy()).all():
            raise FailedError(f'parameter {name} is no longer finite after epoch {epoch}: '
                              'no checkpoint was written for it')
    final = path_of(directory, epoch)
    temporary = directory / f'.{final.name}.{os.getpid()}.tmp'
    try:
        temporary.mkdir(parents=True)
        mx.nd.save(str(temporary / PARAMETERS), arrays)
        files.sync(temporary / PARAMETERS)
        written, expected = (temporary / PARAMETERS).stat().st_size, _expected_bytes(arrays)
        if written != expected:  # MXNet does not notice when the disk refuses the last of it
            raise FailedError(f'cannot write the checkpoint {final}: {written:,} of {expected:,} bytes were written: '
                              'is the disk full?')
        files.write_json(temporary / STATE, {
            'format': FORMAT, 'epoch': epoch, **state, 'sha256': {PARAMETERS: files.sha256(temporary / PARAMETERS)}})
        files.sync(temporary)
        os.rename(temporary, final)
        files.sync(directory)
    except (OSError, mx.base.MXNetError) as error:
        raise FailedError(f'cannot write the checkpoint {final}: {reason(error)}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _snapshot(net: Any) -> Dict[str, Any]:
    """Copies of the parameters under the names that Gluon's `save_parameters` gives them; means over the devices.

    Copied by the engine on purpose: reading a weight that oneDNN keeps in its own layout converts it on the calling
    thread, whose own OpenMP team then competes with the engine's for the cores; training was 2x slower from there on.
    """
    # without waiting, batch norm's running statistics may be those of the step before
    mx.nd.waitall()
    return {name: parameter._reduce() for name, parameter in net._collect_params_with_prefix().items()}


def _expected_bytes(arrays: Dict[str, Any]) -> int:
    """The size of MXNet's file of dense arrays (NDARRAY_V2): it has no checksum, but its length is known beforehand."""
    header, counts = 16, 2 * 8
    # magic, storage type, number of axes, axes, device, dtype, data; then the name with its length
    return header + counts + sum(
        4 + 4 + 4 + 8 * len(array.shape) + 8 + 4 + int(array.size) * np.dtype(array.dtype).itemsize
        + 8 + len(name.encode()) for name, array in arrays.items())


def epochs(directory: pathlib.Path) -> List[int]:
    """The epochs that have a checkpoint, rising."""
    names = (path.name for path in directory.glob('epoch-*') if path.is_dir())
    return sorted(int(name[len('epoch-'):]) for name in names if name[len('epoch-'):].isdecimal())


def prune(directory: pathlib.Path, keep: int, best_epoch: int) -> None:
    """Delete all but the `keep` latest checkpoints and the best."""
    for epoch in epochs(directory)[:-keep]:
        if epoch != best_epoch:
            doomed = directory / f'.{path_of(directory, epoch).name}.{os.getpid()}.tmp'
            os.rename(path_of(directory, epoch), doomed)  # a checkpoint that has its name is whole
            shutil.rmtree(doomed)


def choose(directory: pathlib.Path, which: str) -> pathlib.Path:
    """The checkpoint called `best`, `last` or by its epoch's number.

    Raises:
        UsageError: no such checkpoint.
    """
    present = epochs(directory)
    if not present:
        raise UsageError(f'{directory} holds no checkpoint')
    if which == 'last':
        return path_of(directory, present[-1])
    if which == 'best':
        return path_of(directory, int(read_state(path_of(directory, present[-1]))['best_epoch']))
    if not which.isdecimal() or int(which) not in present:
        raise UsageError(f'no checkpoint {which!r}: choose best, last, or an epoch of {", ".join(map(str, present))}')
    return path_of(directory, int(which))


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
    if version > FORMAT:
        raise FailedError(f'{path} was written by a newer version of gluon-aa (format {version}; '
                          f'this one reads {FORMAT}): upgrade gluon-aa')
    return dict(state)


def load_parameters(path: pathlib.Path, net: Any, devices: Any) -> None:
    """Load a checkpoint into `net`.

    Raises:
        FailedError: a file that is missing or damaged, or parameters of another network.
    """
    expected = read_state(path).get('sha256', {}).get(PARAMETERS)
    try:
        actual = files.sha256(path / PARAMETERS)
    except OSError as error:
        raise FailedError(f'cannot read {path / PARAMETERS}: {error}') from error
    if actual != expected:
        raise FailedError(f'{path / PARAMETERS} is damaged (its checksum differs): choose another checkpoint')
    try:
        net.load_parameters(str(path / PARAMETERS), ctx=devices)
    except (AssertionError, ValueError, mx.base.MXNetError) as error:
        raise FailedError(f'{path / PARAMETERS} does not fit the network: {reason(error)}') from error
