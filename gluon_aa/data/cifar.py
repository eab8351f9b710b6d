"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in the official binary format.

A record is an image: a label byte (CIFAR-100: the coarse label, then the fine one, which is taken), then 3x32x32 pixel
bytes, channel by channel. The files may lie unpacked or in their archive, which is read in memory.
"""
import functools
import hashlib
import os
import pathlib
from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from gluon_aa.data.archive import read_members
from gluon_aa.data.download import Source, fetch
from gluon_aa.data.source import Notice, Request, Splits
from gluon_aa.data.split import Split, hold_out
from gluon_aa.errors import FailedError

PIXEL_BYTES = 3 * 32 * 32
VALIDATION_IMAGES = 5_000
#: Of a download; the official archives have 170 and 169 million.
MAX_ARCHIVE_BYTES = 200_000_000
MIRROR = 'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/'


class File(NamedTuple):
    """A binary file of records."""

    name: str
    images: int
    sha1: str


class Format(NamedTuple):
    """One of the two data sets, as its authors publish it."""

    name: str  # as --dataset and MXNet's data directory have it
    title: str
    classes: Tuple[str, ...]
    label_bytes: int  # a record's; the last one counts
    train: Tuple[File, ...]
    test: File
    directory: str  # in the official archive
    archive: str
    mirror_sha1: str  # MXNet's mirror packed the files anew, without a directory
    url: str  # of the official archive
    sha256: str  # of the official archive

    @property
    def files(self) -> Tuple[File, ...]:
        return (*self.train, self.test)

    def file_bytes(self, file: File) -> int:
        return file.images * (self.label_bytes + PIXEL_BYTES)

    def default_directory(self) -> pathlib.Path:
        """Where MXNet's own data sets keep it."""
        return pathlib.Path(os.environ.get('MXNET_HOME') or '~/.mxnet').expanduser() / 'datasets' / self.name

    def sources(self) -> Tuple[Source, Source]:
        """MXNet's mirror, which MXNET_GLUON_REPO replaces as it does for MXNet itself, then the official host."""
        mirror = (os.environ.get('MXNET_GLUON_REPO') or MIRROR).rstrip('/')
        return (Source(f'{mirror}/gluon/dataset/{self.name}/{self.archive}', 'sha1', self.mirror_sha1),
                Source(self.url, 'sha256', self.sha256))


CLASSES_10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
CLASSES_100 = tuple('''
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm'''.split())

#: The SHA-1 sums are those that MXNet 1.9.1 pins in gluon/data/vision/datasets.py. The official archives are other
#: archives of the same files; their SHA-256 sums are those that TensorFlow Datasets pins.
FORMATS: Dict[str, Format] = {row.name: row for row in (
    Format('cifar10', 'CIFAR-10', CLASSES_10, 1,
           (File('data_batch_1.bin', 10_000, 'aadd24acce27caa71bf4b10992e9e7b2d74c2540'),
            File('data_batch_2.bin', 10_000, 'c0ba65cce70568cd57b4e03e9ac8d2a5367c1795'),
            File('data_batch_3.bin', 10_000, '1dd00a74ab1d17a6e7d73e185b69dbf31242f295'),
            File('data_batch_4.bin', 10_000, 'aab85764eb3584312d3c7f65fd2fd016e36a258e'),
            File('data_batch_5.bin', 10_000, '26e2849e66a845b7f1e4614ae70f4889ae604628')),
           File('test_batch.bin', 10_000, '67eb016db431130d61cd03c7ad570b013799c88c'),
           'cifar-10-batches-bin', 'cifar-10-binary.tar.gz', 'fab780a1e191a7eda0f345501ccd62d20f7ed891',
           'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
           'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'),
    Format('cifar100', 'CIFAR-100', CLASSES_100, 2,
           (File('train.bin', 50_000, 'e207cd2e05b73b1393c74c7f5e7bea451d63e08e'),),
           File('test.bin', 10_000, '8fb6623e830365ff53cf14adec797474f5478006'),
           'cifar-100-binary', 'cifar-100-binary.tar.gz', 'a0bb982c76b83111308126cc779a992fa506b90b',
           'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
           '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec'),
)}


def load(name: str, request: Request) -> Splits:
    """Training (45,000), validation (5,000) and test (10,000) images, (N, 3, 32, 32), stratified, of `FORMATS[name]`.

    Without a data directory, and with nothing in MXNet's own, the archive is downloaded there.

    Raises:
        FailedError: files that are missing, or are not the data set's by size, label or (unless allowed) checksum.
    """
    row = FORMATS[name]
    place = _locate(row, request.data_dir)
    if place is None:
        if request.data_dir is not None:
            raise FailedError(_missing(row, request.data_dir))
        place = _download(row, request.on_progress)
    contents = _read_directory(row, place) if place.is_dir() else _read_archive(row, place)
    parts = [_split(row, file, contents.pop(file.name), place, request.allow_unverified) for file in row.files]
    train = Split(*(np.concatenate(arrays) for arrays in zip(*parts[:-1])))
    counts = np.bincount(train.labels, minlength=len(row.classes))
    if counts.min() < 2:  # one to train with, one for validation
        raise FailedError(f'{place} has {counts.min()} training images of the class {row.classes[counts.argmin()]}: it '
                          f'is not {row.title}; get {row.archive} anew')
    return Splits(*hold_out(train, VALIDATION_IMAGES), parts[-1], row.classes)


def find(name: str, data_dir: Optional[pathlib.Path] = None) -> Optional[str]:
    """The directory or archive that holds the data, or None."""
    place = _locate(FORMATS[name], data_dir)
    return None if place is None else str(place)


def _locate(row: Format, data_dir: Optional[pathlib.Path]) -> Optional[pathlib.Path]:
    top = data_dir if data_dir is not None else row.default_directory()
    if top.is_file():
        return top
    for directory in (top, top / row.directory):
        if all((directory / file.name).is_file() for file in row.files):
            return directory
    archive = top / row.archive
    return archive if archive.is_file() else None


def _missing(row: Format, data_dir: pathlib.Path) -> str:
    for directory in (data_dir, data_dir / row.directory):
        absent = [file.name for file in row.files if not (directory / file.name).is_file()]
        if len(absent) < len(row.files):
            return f'no whole {row.title} in {directory}: {absent[0]} is missing; unpack {row.archive} anew'
    return (f'no {row.title} in {data_dir}: there is neither {row.archive} nor what it holds ({row.files[0].name} to '
            f'{row.test.name}); leave out --data-dir to have it downloaded')


def _download(row: Format, on_progress: Notice) -> pathlib.Path:
    path = row.default_directory() / row.archive
    try:
        fetch(row.sources(), path, MAX_ARCHIVE_BYTES, on_progress)
    except FailedError as error:
        raise FailedError(f'no {row.title} in {path.parent}, and it cannot be downloaded: {error}; get {row.archive} '
                          'elsewhere and name it with --data-dir') from error
    return path


def _read_directory(row: Format, directory: pathlib.Path) -> Dict[str, bytes]:
    contents = {}
    for file in row.files:
        path, wanted = directory / file.name, row.file_bytes(file)
        try:
            size = path.stat().st_size
            if size == wanted:
                contents[file.name] = path.read_bytes()
                size = len(contents[file.name])
        except OSError as error:
            raise FailedError(f'cannot read {path}: {error.strerror}') from error
        if size != wanted:
            raise FailedError(_wrong_size(row, str(path), size, wanted))
    return contents


def _read_archive(row: Format, path: pathlib.Path) -> Dict[str, bytes]:
    sizes = {file.name: row.file_bytes(file) for file in row.files}
    contents: Dict[str, bytes] = {}
    for name, content in read_members(path, functools.partial(_wanted, sizes)):
        if content is None:
            continue
        base = name.rpartition('/')[2]
        if base in contents:
            raise FailedError(f'{path} holds {base} more than once: it is not {row.archive}')
        if len(content) != sizes[base]:
            raise FailedError(_wrong_size(row, f'{name} in {path}', len(content), sizes[base]))
        contents[base] = content
    absent = [name for name in sizes if name not in contents]
    if absent:
        raise FailedError(f'{path} lacks {absent[0]}: it is not {row.archive}')
    return contents


def _wanted(sizes: Dict[str, int], name: str) -> int:
    """The bytes of the data set's files, at the top of the archive or one directory down; 0 for others."""
    *directories, base = name.split('/')
    return sizes.get(base, 0) if len(directories) <= 1 else 0


def _wrong_size(row: Format, where: str, size: int, wanted: int) -> str:
    return (f'{where} has {size:,} bytes instead of {wanted:,}: it is damaged or no file of {row.title} (binary '
            f'version); get {row.archive} anew')


def _split(row: Format, file: File, content: bytes, place: pathlib.Path, allow_unverified: bool) -> Split:
    records: np.ndarray = np.frombuffer(content, np.uint8).reshape(file.images, row.label_bytes + PIXEL_BYTES)
    labels: np.ndarray = records[:, row.label_bytes - 1].astype(np.int32)
    if labels.max() >= len(row.classes):
        raise FailedError(f'{file.name} in {place} holds the label {labels.max()}: {row.title} has labels 0 to '
                          f'{len(row.classes) - 1}')
    sha1 = hashlib.sha1(content).hexdigest()
    if sha1 != file.sha1 and not allow_unverified:
        raise FailedError(f'{file.name} in {place} is not the official file (SHA-1 {sha1} instead of {file.sha1}): '
                          'get it anew, or pass --allow-unverified if you trust it')
    images = np.ascontiguousarray(records[:, row.label_bytes:]).reshape(-1, 3, 32, 32)
    return Split(images, labels)
