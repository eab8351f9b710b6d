"""Which files of a folder are images, and of which class: train/<class>/<image> and test/<class>/<image>."""
import collections
import pathlib
from typing import Counter, Dict, List, NamedTuple, Optional, Set, Tuple

from gluon_aa.data.images import SUFFIXES
from gluon_aa.errors import FailedError

PARTS = ('train', 'test')
#: Left behind by macOS and Windows.
_JUNK = ('__MACOSX', 'Thumbs.db', 'desktop.ini')


class Place(NamedTuple):
    """Where an image belongs; places sort as the images of a data set are ordered."""

    part: str
    label: str  # the name of its class
    file: str

    def __str__(self) -> str:
        return '/'.join(self)


def is_junk(name: str) -> bool:
    """Whether a file or directory is hidden, or none of the user's."""
    return name.startswith('.') or name in _JUNK


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


class Layout:
    """Hears of every name in the folder `where`, says which are images, and judges in the end."""

    def __init__(self, where: pathlib.Path) -> None:
        self._where = where
        self._images: Dict[str, Counter[str]] = {part: collections.Counter() for part in PARTS}
        self._tops: Set[str] = set()
        self.ignored: List[str] = []

    def place(self, name: str, is_directory: bool = False) -> Optional[Place]:
        """The place of an image; None for a directory and for what is no image of a class.

        train/ and test/ may lie under one directory.

        Raises:
            FailedError: an image at another depth, or under another directory than those before.
        """
        parts = name.split('/')
        if any(map(is_junk, parts)):
            return None
        start = next((index for index in (0, 1) if parts[index:] and parts[index] in PARTS), None)
        if start is None or not (is_directory or is_image(name)):
            if not is_directory:
                self.ignored.append(name)
            return None
        self._check_top('/'.join(parts[:start]))
        inner = parts[start:]
        if is_directory:
            if len(inner) == 2:
                self._images[inner[0]][_printable(inner[1])] += 0
            return None
        if len(inner) != 3:
            raise FailedError(f'{name!r} in {self._where} does not lie at {inner[0]}/<class>/<image>: move it there')
        self._images[inner[0]][_printable(inner[1])] += 1
        return Place(*inner)

    def _check_top(self, top: str) -> None:
        self._tops.add(top)
        if len(self._tops) > 1:
            first, second = sorted(self._tops)
            raise FailedError(f'{self._where} has train/ or test/ in more than one place, {first or "its top"!r} and '
                              f'{second!r}: keep one data set in it')

    def classes(self) -> Tuple[str, ...]:
        """The classes' names, sorted: the same in train/ and test/, each with enough images.

        Raises:
            FailedError: they are not.
        """
        for part in PARTS:
            if not self._images[part]:
                raise FailedError(f'{self._where} has no images in {part}/<class>/ (JPEG or PNG): a folder data set '
                                  'has train/<class>/<image> and test/<class>/<image>')
        for part, other in (PARTS, PARTS[::-1]):
            missing = sorted(set(self._images[part]) - set(self._images[other]))
            if missing:
                raise FailedError(f'{self._where}: the class {missing[0]!r} is in {part}/ but not in {other}/: both '
                                  'need the same classes')
        for part, fewest in zip(PARTS, (2, 1)):  # one to train with, one for validation
            for label, count in sorted(self._images[part].items()):
                if count < fewest:
                    raise FailedError(f'{self._where}: the class {label!r} has {count} of at least {fewest} images '
                                      f'(JPEG or PNG) in {part}/')
        if len(self._images['train']) == 1:
            raise FailedError(f'{self._where} has only the class {next(iter(self._images["train"]))!r}: there is '
                              'nothing to tell apart')
        return tuple(sorted(self._images['train']))


def _printable(label: str) -> str:
    if not label.isprintable():
        raise FailedError(f'the class {label!r} has a name that cannot be printed: rename its directory')
    return label
