"""CIFAR-10 in the official binary format (Krizhevsky 2009): a label byte, then 3x32x32 pixel bytes, an image."""
import os
import pathlib
from typing import List, Optional, Tuple

import numpy as np

from gluon_aa.data.split import Split, hold_out
from gluon_aa.errors import FailedError

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
TRAIN_FILES = tuple(f'data_batch_{number}.bin' for number in range(1, 6))
TEST_FILE = 'test_batch.bin'
IMAGES_PER_FILE = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32
VALIDATION_IMAGES = 5_000


def default_directory() -> pathlib.Path:
    """Where MXNet's own data sets keep CIFAR-10."""
    return pathlib.Path(os.environ.get('MXNET_HOME', '~/.mxnet')).expanduser() / 'datasets' / 'cifar10'


def load(data_dir: Optional[pathlib.Path] = None) -> Tuple[Split, Split, Split]:
    """Training (45,000), validation (5,000) and test (10,000) images, (N, 3, 32, 32), stratified.

    Raises:
        FailedError: a file that is missing, or is not CIFAR-10's by its size or labels.
    """
    directory = _locate(data_dir)
    if directory is None:
        raise FailedError(f'no CIFAR-10 in {data_dir or default_directory()}: unpack cifar-10-binary.tar.gz '
                          f'({", ".join((TRAIN_FILES[0], "...", TEST_FILE))}) there, or name its place with --data-dir')
    train, val = hold_out(_read([directory / name for name in TRAIN_FILES]), VALIDATION_IMAGES)
    return train, val, _read([directory / TEST_FILE])


def find(data_dir: Optional[pathlib.Path] = None) -> Optional[str]:
    """The directory that holds the data, or None."""
    directory = _locate(data_dir)
    return None if directory is None else str(directory)


def _locate(data_dir: Optional[pathlib.Path]) -> Optional[pathlib.Path]:
    top = data_dir if data_dir is not None else default_directory()
    for directory in (top, top / 'cifar-10-batches-bin'):
        if all((directory / name).is_file() for name in (*TRAIN_FILES, TEST_FILE)):
            return directory
    return None


def _read(paths: List[pathlib.Path]) -> Split:
    parts = []
    for path in paths:
        try:
            data = np.fromfile(str(path), dtype=np.uint8)
        except OSError as error:
            raise FailedError(f'cannot read {path}: {error}') from error
        if data.size != IMAGES_PER_FILE * RECORD_BYTES:
            raise FailedError(f'{path} has {data.size:,} bytes instead of {IMAGES_PER_FILE * RECORD_BYTES:,}: '
                              'it is damaged or no file of CIFAR-10 (binary version); unpack it anew')
        parts.append(data.reshape(IMAGES_PER_FILE, RECORD_BYTES))
    records = np.concatenate(parts)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= len(CLASSES):
        raise FailedError(f'{paths[0].parent} holds the label {labels.max()}: CIFAR-10 has labels 0 to 9')
    return Split(records[:, 1:].reshape(-1, 3, 32, 32), labels)
