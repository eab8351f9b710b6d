"""What a data set is, and the table of those we know."""
import dataclasses
import pathlib
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import numpy as np

from gluon_aa.data import cifar, digits
from gluon_aa.data.split import Split
from gluon_aa.errors import unknown


class Recipe(NamedTuple):
    """How a data set is read, and which augmentation keeps its labels."""

    load: Callable[[Optional[pathlib.Path]], Tuple[Split, Split, Split]]  # data directory -> train, val, test
    find: Callable[[Optional[pathlib.Path]], Optional[str]]  # data directory -> where it lies, None if it is absent
    classes: Tuple[str, ...]
    flip: bool
    crop_padding: int  # pixels


#: Data set name -> its recipe.
DATASETS: Dict[str, Recipe] = {
    'digits': Recipe(digits.load, digits.find, tuple('0123456789'), flip=False, crop_padding=1),
    'cifar10': Recipe(cifar.load, cifar.find, cifar.CLASSES, flip=True, crop_padding=4),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images (N, C, H, W) uint8 and labels (N,) int32 of each split; mean and deviation a channel, of training."""

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


def load_dataset(name: str, data_dir: Optional[str] = None) -> Dataset:
    """The data set `name`, read from `data_dir` or where MXNet keeps data sets.

    Raises:
        UsageError: an unknown name (lists the near ones).
        FailedError: files that are missing or damaged.
    """
    if name not in DATASETS:
        raise unknown('data set', name, DATASETS)
    recipe = DATASETS[name]
    train, val, test = recipe.load(pathlib.Path(data_dir).expanduser() if data_dir else None)
    mean, std = channel_statistics(train.images)
    return Dataset(name, train, val, test, recipe.classes, recipe.flip, recipe.crop_padding, mean, std)


def channel_statistics(images: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8, as (C,) float64; a deviation of 0 becomes 1.

    From histograms, so that no float copy of the images is made.
    """
    levels = np.arange(256, dtype=np.float64)
    counts = np.stack([np.bincount(images[:, channel].ravel(), minlength=256)
                       for channel in range(images.shape[1])])  # (C, 256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels  # (C,)
    std = np.sqrt((weights * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1))
    return mean, np.where(std > 0, std, 1.0)
