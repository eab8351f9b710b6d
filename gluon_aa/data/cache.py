"""Arrays kept between runs, with their checksums.

An entry is the directory $XDG_CACHE_HOME/gluon-aa/datasets/<key>/ (~/.cache by default): an .npy file an array, and
index.json with shapes and SHA-256 sums, written elsewhere and renamed, so that it is whole or absent even when two
processes make it at once. What does not agree with its index is never used.
"""
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from typing import Any, Dict, NamedTuple, Optional

import numpy as np

from gluon_aa import files
from gluon_aa.data.source import Notice

INDEX = 'index.json'


class Entry(NamedTuple):
    """Arrays by name, and a JSON value that describes them."""

    arrays: Dict[str, np.ndarray]
    about: Any


def directory() -> pathlib.Path:
    """Where entries lie."""
    return files.cache('datasets')


def make_key(*parts: object) -> str:
    """A name for an entry that follows from `parts`, JSON values, alone."""
    return _digest(parts)[:32]


def load(key: str, on_progress: Notice) -> Optional[Entry]:
    """The entry `key`; None where there is none, or a damaged one, which `on_progress` is told."""
    path = directory() / key
    if not path.is_dir():
        return None
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError,
            zipfile.BadZipFile) as error:
        on_progress(f'{path} is damaged and is made anew ({error})')
        return None


def save(key: str, entry: Entry, on_progress: Notice) -> None:
    """Keep `entry`, in place of a damaged one; where that fails, `on_progress` is told and nothing is kept."""
    path = directory() / key
    temporary = None
    try:
        files.make_private(path.parent)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'.{key}.', dir=path.parent))
        _write(temporary / 'new', entry)
        if path.exists():
            os.rename(path, temporary / 'old')
        os.rename(temporary / 'new', path)
    except OSError as error:
        if not path.is_dir():  # else another process was faster
            on_progress(f'not kept for the next time: cannot write {path} ({error.strerror})')
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(path: pathlib.Path, entry: Entry) -> None:
    path.mkdir()
    index: Dict[str, Any] = {'about': entry.about, 'about_sha256': _digest(entry.about), 'arrays': {}}
    for name, array in entry.arrays.items():
        np.save(path / f'{name}.npy', array, allow_pickle=False)
        index['arrays'][name] = _identity(array)
    (path / INDEX).write_text(json.dumps(index, indent=2), encoding='utf-8')


def _read(path: pathlib.Path) -> Entry:
    index = json.loads((path / INDEX).read_text(encoding='utf-8'))
    if _digest(index['about']) != index['about_sha256']:
        raise ValueError(f'{INDEX} is not what was written')
    arrays = {}
    for name, identity in index['arrays'].items():
        arrays[name] = np.load(path / f'{name}.npy', allow_pickle=False)
        if _identity(arrays[name]) != identity:
            raise ValueError(f'{name}.npy is not what was written')
    return Entry(arrays, index['about'])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _identity(array: np.ndarray) -> Dict[str, Any]:
    """Shape, type and SHA-256 of a contiguous array."""
    return {'shape': list(array.shape), 'dtype': array.dtype.str, 'sha256': hashlib.sha256(array.data).hexdigest()}
