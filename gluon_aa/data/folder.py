"""A folder of images, train/<class>/* and test/<class>/*, or a tar archive of one; decoded once, then cached.

Hidden files and what macOS and Windows leave behind are passed over. A symbolic link to a file within the folder is
followed; any other is refused, so that a folder of unknown origin reads nothing beyond itself.
"""
import functools
import os
import pathlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import PIL

from gluon_aa import files
from gluon_aa.data import cache, images
from gluon_aa.data.archive import read_members
from gluon_aa.data.layout import PARTS, Layout, Place, is_image, is_junk
from gluon_aa.data.source import Request, Splits
from gluon_aa.data.split import Split, hold_out
from gluon_aa.errors import FailedError, UsageError

#: Of the training images; of CIFAR-10's 50,000 it leaves 45,000.
VALIDATION_SHARE = 0.1
#: Counted up when the same files come to give other arrays.
CACHE_FORMAT = 1

Selected = Iterable[Tuple[Place, Callable[[], bytes]]]
Stamp = Tuple[int, ...]  # size in bytes and time of change in nanoseconds; empty for a directory


class Item(NamedTuple):
    """A file with what reads it, or a directory with None; names are relative, with /."""

    name: str
    read: Optional[Callable[[], bytes]]


class Found(NamedTuple):
    """What a folder or archive holds, and a JSON value that changes when its content does."""

    items: Iterable[Item]
    identity: Any


def load(request: Request) -> Splits:
    """Training, validation (a tenth of train/, stratified, always the same) and test images (N, C, H, W).

    C is 1 where every image is grey, else 3. Classes are sorted by name, images by class and name.

    Raises:
        UsageError: no data directory.
        FailedError: no such folder; files or classes that are not as they should be (see `layout`, `images`,
            `archive`).
    """
    path = request.data_dir
    if path is None:
        raise UsageError('the data set folder needs --data-dir: a directory, or a tar archive, of train/<class>/ and '
                         'test/<class>/')
    if not (path.is_dir() or path.is_file()):  # a pipe would be waited for
        raise FailedError(f'there is no directory or archive {path}: name its place with --data-dir')
    found = _open_directory(path) if path.is_dir() else _open_archive(path)
    key = cache.make_key('folder', CACHE_FORMAT, PIL.__version__, found.identity, request.input_size)
    entry = cache.load(key, request.on_progress)
    if entry is None:
        request.on_progress(f'decoding the images of {path}, to be kept in {cache.directory() / key}')
        entry = _decode(path, found.items, request)
        cache.save(key, entry, request.on_progress)
    train, test = (Split(entry.arrays[f'{part}_images'], entry.arrays[f'{part}_labels']) for part in PARTS)
    classes = tuple(entry.about['classes'])
    held_out = max(round(VALIDATION_SHARE * len(train)), len(classes))  # at least one a class
    return Splits(*hold_out(train, held_out), test, classes)


def find(data_dir: Optional[pathlib.Path] = None) -> Optional[str]:
    """The folder or archive, or None."""
    return None if data_dir is None or not data_dir.exists() else str(data_dir)


def _decode(path: pathlib.Path, items: Iterable[Item], request: Request) -> cache.Entry:
    layout = Layout(path)
    selected: Selected = _select(items, layout)
    if path.is_dir():  # its names are known, so that wrong ones are found before anything is decoded
        selected = list(selected)
        layout.classes()
    places: List[Place] = []
    pictures = images.decode_all(_named(selected, places, path), request.input_size)
    classes = layout.classes()
    if layout.ignored:
        request.on_progress(f'ignored {len(layout.ignored):,} files that are no JPEG or PNG images of train/ or test/, '
                            f'such as {layout.ignored[0]!r}')
    return cache.Entry(_arrays(places, pictures, classes), {'classes': classes})


def _select(items: Iterable[Item], layout: Layout) -> Selected:
    for item in items:
        place = layout.place(item.name, is_directory=item.read is None)
        if place is not None and item.read is not None:
            yield place, item.read


def _named(selected: Selected, places: List[Place], path: pathlib.Path) -> Iterator[images.Named]:
    """The images with names for messages; `places` gets theirs."""
    for place, read in selected:
        places.append(place)
        yield f'{str(place)!r} in {path}', read


def _arrays(places: List[Place], pictures: List[np.ndarray], classes: Tuple[str, ...]) -> Dict[str, np.ndarray]:
    """The images (N, C, H, W) and labels (N,) of each part, sorted by class and name."""
    channels = max(picture.shape[2] for picture in pictures)
    numbers = {label: number for number, label in enumerate(classes)}
    arrays: Dict[str, np.ndarray] = {}
    for part in PARTS:
        order = sorted((index for index, place in enumerate(places) if place.part == part), key=places.__getitem__)
        arrays[f'{part}_images'] = images.stack([pictures[index] for index in order], channels)
        arrays[f'{part}_labels'] = np.array([numbers[places[index].label] for index in order], np.int32)
    return arrays


def _open_archive(path: pathlib.Path) -> Found:
    try:
        digest = files.sha256(path)
    except OSError as error:
        raise FailedError(f'cannot read {path}: {error.strerror}') from error
    return Found(_archive_items(path), digest)


def _archive_items(path: pathlib.Path) -> Iterator[Item]:
    others: List[str] = []

    def wanted(name: str) -> int:
        if is_image(name):
            return images.MAX_FILE_BYTES
        others.append(name)
        return 0

    for name, content in read_members(path, wanted):
        yield Item(name, None if content is None else functools.partial(bytes, content))
    yield from (Item(name, bytes) for name in others)


def _open_directory(path: pathlib.Path) -> Found:
    try:
        found = sorted(item for top in _tops(path) for item in _walk(path.resolve(), top))
    except OSError as error:
        raise FailedError(f'cannot read {error.filename or path}: {error.strerror}') from error
    items = [Item(name, functools.partial(_read, path / name) if stamp else None) for name, stamp in found]
    return Found(items, [str(path.resolve()), found])


def _tops(path: pathlib.Path) -> List[str]:
    """train/ and test/ as they lie in `path` or in a directory of it, relative to it."""
    for place in (path, *(child for child in path.iterdir() if not is_junk(child.name))):
        for directory in (place, *(place / part for part in PARTS)):
            if directory != path and directory.is_symlink() and directory.is_dir():
                raise FailedError(f'{directory} is a link to a directory: put the directory itself there')
    names = [''] if _has_part(path) else [
        child.name + '/' for child in path.iterdir() if not is_junk(child.name) and _has_part(child)]
    if not names:
        raise FailedError(f'{path} has neither train/ nor test/: a folder data set has train/<class>/<image> and '
                          'test/<class>/<image>')
    return [name + part for name in names for part in PARTS if (path / (name + part)).is_dir()]


def _has_part(path: pathlib.Path) -> bool:
    return any((path / part).is_dir() for part in PARTS)


def _walk(root: pathlib.Path, name: str) -> Iterator[Tuple[str, Stamp]]:
    """Everything in the directory `root`/`name`, itself included: (name relative to `root`, stamp)."""
    yield name, ()
    with os.scandir(root / name) as entries:
        for entry in entries:
            inner = f'{name}/{entry.name}'
            if is_junk(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, inner)
                continue
            if entry.is_symlink():
                _check_link(root, inner)
            if entry.is_file():
                status = entry.stat()
                yield inner, (status.st_size, status.st_mtime_ns)


def _check_link(root: pathlib.Path, name: str) -> None:
    target = pathlib.Path(os.path.realpath(root / name))
    if root not in target.parents or not target.is_file():
        raise FailedError(f'{name!r} in {root} is a link to {str(target)!r}, which is no file of this folder: put the '
                          'file itself there')


def _read(path: pathlib.Path) -> bytes:
    with open(path, 'rb') as file:
        content = file.read(images.MAX_FILE_BYTES + 1)
    if len(content) > images.MAX_FILE_BYTES:
        raise ValueError(f'it has more than {images.MAX_FILE_BYTES:,} bytes')
    return content
