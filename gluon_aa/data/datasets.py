"""What a data set is, and the table of those we know."""
import dataclasses
import functools
import hashlib
import pathlib
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import numpy as np

from gluon_aa.data import cifar, digits, folder, synthetic
from gluon_aa.data.normalization import statistics
from gluon_aa.data.source import Notice, Request, Splits, silent
from gluon_aa.data.split import Split
from gluon_aa.errors import UsageError, unknown


class Recipe(NamedTuple):
    """How a data set is read, which options it can use, and which augmentation keeps its labels."""

    load: Callable[[Request], Splits]
    find: Callable[[Optional[pathlib.Path]], Optional[str]]  # data directory -> where it lies, None if it is absent
    options: Tuple[str, ...]  # of `load_dataset`, those that mean something here
    flip: bool
    crop_padding: Callable[[int], int]  # height of the images -> pixels on each side


#: Data set name -> its recipe.
DATASETS: Dict[str, Recipe] = {
    'digits': Recipe(digits.load, digits.find, (), flip=False, crop_padding=lambda height: 1),
    'folder': Recipe(folder.load, folder.find, ('data_dir', 'input_size'), flip=True,
                     crop_padding=lambda height: height // 8),
    'synthetic': Recipe(synthetic.load, synthetic.find, ('input_size',), flip=False,
                        crop_padding=lambda height: height // 8),
    **{name: Recipe(functools.partial(cifar.load, name), functools.partial(cifar.find, name),
                    ('data_dir', 'allow_unverified'), flip=True, crop_padding=lambda height: 4)
       for name in cifar.FORMATS},
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images (N, C, H, W) uint8 and labels (N,) int32 of each split.

    `mean` and `std` are float64 in pixel units (0 to 255) and broadcast against (C, H, W): an image is normalised as
    (image - mean) / std. They are taken from the training images.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: Tuple[str, ...]
    flip: bool
    crop_padding: int
    mean: np.ndarray
    std: np.ndarray

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def input_size(self) -> Tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.train.images.shape[2]), int(self.train.images.shape[3])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of all images and labels: the same data, in the same order."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.val, *self.test):
            digest.update(f'{array.dtype.str} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_dataset(name: str, data_dir: Optional[str] = None, *, allow_unverified: bool = False,
                 input_size: Optional[Tuple[int, int]] = None, normalization: str = 'channels',
                 on_progress: Optional[Notice] = None) -> Dataset:
    """The data set `name`, read from `data_dir` or from where it lies by default.

    Args:
        allow_unverified: take files whose checksums are not the official ones.
        input_size: (H, W) in pixels that images are made to have.
        normalization: `channels` or `mean-image`: see `gluon_aa.data.normalization`.
        on_progress: called with one line before anything that takes long, and where something was ignored.

    Raises:
        UsageError: an unknown name (lists the near ones), an option that the data set cannot use.
        FailedError: files that are missing, damaged or not what they should be.
    """
    if name not in DATASETS:
        raise unknown('data set', name, DATASETS)
    recipe = DATASETS[name]
    request = Request(pathlib.Path(data_dir).expanduser() if data_dir else None, allow_unverified, input_size,
                      on_progress or silent)
    for option, default in Request._field_defaults.items():
        if option not in (*recipe.options, 'on_progress') and getattr(request, option) != default:
            raise UsageError(f'{option} means nothing for the data set {name}: leave out '
                             f'--{option.replace("_", "-")}')
    train, val, test, classes = recipe.load(request)
    mean, std = statistics(train.images, normalization)
    return Dataset(name, train, val, test, classes, recipe.flip, recipe.crop_padding(train.images.shape[2]), mean, std)
