"""Batches of uint8 images: shuffled, cropped and flipped in vectorised NumPy; normalised later, inside the graph."""
from typing import Iterator, Tuple

import numpy as np

from gluon_aa.data.split import Split


def augment(images: np.ndarray, rng: np.random.Generator, *, crop_padding: int, flip: bool) -> np.ndarray:
    """A random crop of each image padded with zeros, mirrored with probability 1/2 if `flip`.

    images (B, C, H, W) -> (B, C, H, W), the same dtype; `crop_padding` in pixels on each side.
    """
    count, _, height, width = images.shape
    if crop_padding:
        pad = ((0, 0), (0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding))
        windows = np.lib.stride_tricks.sliding_window_view(  # type: ignore[call-overload]  # it takes several axes
            np.pad(images, pad), (height, width), axis=(2, 3))  # (B, C, 2p+1, 2p+1, H, W)
        top, left = rng.integers(0, 2 * crop_padding + 1, size=(2, count))
        images = windows[np.arange(count), :, top, left]  # (B, C, H, W)
    if flip:
        mirrored = rng.random(count) < 0.5
        images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
    return images


class TrainingBatches:
    """An epoch's batches: their order depends on (seed, epoch) alone, their augmentation on (seed, epoch, step).

    The images that do not fill a last batch are left out of the epoch: a batch of few images would give batch
    norm poor statistics. They differ from epoch to epoch.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, *, crop_padding: int, flip: bool) -> None:
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.crop_padding, self.flip = crop_padding, flip

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, number: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Images (batch_size, C, H, W) uint8 and labels (batch_size,) int32."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.split))
        for step in range(len(self)):
            chosen = order[step * self.batch_size:(step + 1) * self.batch_size]
            rng = np.random.default_rng((self.seed, number, step))
            images = augment(self.split.images[chosen], rng, crop_padding=self.crop_padding, flip=self.flip)
            yield images, self.split.labels[chosen]


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """All images in order; the last batch is filled up with label -1, which no prediction equals.

    Every batch has the same shape, so that a graph with static shapes is planned once.
    """
    for begin in range(0, len(split), batch_size):
        images, labels = split.images[begin:begin + batch_size], split.labels[begin:begin + batch_size]
        missing = batch_size - len(labels)
        if missing:
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
            labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
        yield images, labels
