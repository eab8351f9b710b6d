"""What is subtracted from the pixels of an image, and what they are divided by: statistics of the training images."""
from typing import Callable, Dict, Tuple

import numpy as np

from gluon_aa.errors import unknown

#: The highest level of a pixel.
WHITE = 255.0


def channel_statistics(images: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (N, C, H, W) uint8, as (C, 1, 1); a deviation of 0 becomes 1.

    From histograms, so that no float copy of the images is made.
    """
    levels = np.arange(256, dtype=np.float64)
    counts = np.stack([np.bincount(images[:, channel].ravel(), minlength=256)
                       for channel in range(images.shape[1])])  # (C, 256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels  # (C,)
    std = np.sqrt((weights * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1))
    return mean.reshape(-1, 1, 1), np.where(std > 0, std, 1.0).reshape(-1, 1, 1)


def mean_image(images: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The mean of (N, C, H, W) uint8 over N, (C, H, W), and 255 as (1, 1, 1).

    As Demartis et al. (2020, section 3) normalised CIFAR-10: the training mean subtracted, then divided by 255.
    """
    total = images.sum(axis=0, dtype=np.uint64)  # exact
    return total / np.float64(len(images)), np.full((1, 1, 1), WHITE)


#: Name -> images (N, C, H, W) uint8 -> mean and deviation, float64, that broadcast against (C, H, W).
NORMALIZATIONS: Dict[str, Callable[[np.ndarray], Tuple[np.ndarray, np.ndarray]]] = {
    'channels': channel_statistics,
    'mean-image': mean_image,
}


def statistics(images: np.ndarray, normalization: str) -> Tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of `images` by the name of the normalisation. Raises UsageError for an unknown one."""
    if normalization not in NORMALIZATIONS:
        raise unknown('normalization', normalization, NORMALIZATIONS)
    return NORMALIZATIONS[normalization](images)
