"""Images made on the spot: smoke tests and benchmarks without a data set, with something to learn in them.

A class is a smooth random pattern on a torus. An image is its class's pattern, moved at random, at a random contrast,
under noise. In integers throughout, so that every machine makes the same images.
"""
import pathlib
from typing import Optional, Tuple

import numpy as np

from gluon_aa.data.source import Request, Splits
from gluon_aa.data.split import Split, hold_out

CLASSES = tuple(f'pattern {number}' for number in range(10))
IMAGES = 6_000
TEST_IMAGES = 1_000
VALIDATION_IMAGES = 500
DEFAULT_SIZE = (32, 32)
CHANNELS = 3
#: Knots of a pattern along each axis.
KNOTS = 4
#: Of patterns and images: part of the data set's definition, independent of a training's seed.
SEED = 0
#: Images made at a time, to bound the memory beyond the result.
CHUNK = 500


def load(request: Request) -> Splits:
    """Training (4,500), validation (500) and test (1,000) images, (N, 3, H, W), as many of each class."""
    size = request.input_size or DEFAULT_SIZE
    labels = np.arange(IMAGES, dtype=np.int32) % len(CLASSES)
    patterns = np.stack([_pattern(number, size) for number in range(len(CLASSES))])  # (classes, C, H, W)
    images = np.empty((IMAGES, CHANNELS, *size), np.uint8)
    for begin in range(0, IMAGES, CHUNK):
        rng = np.random.default_rng((SEED, len(CLASSES), begin))
        images[begin:begin + CHUNK] = _draw(patterns, labels[begin:begin + CHUNK], rng)
    test = Split(images[-TEST_IMAGES:], labels[-TEST_IMAGES:])
    train, val = hold_out(Split(images[:-TEST_IMAGES], labels[:-TEST_IMAGES]), VALIDATION_IMAGES)
    return Splits(train, val, test, CLASSES)


def find(data_dir: Optional[pathlib.Path] = None) -> Optional[str]:
    """Where the data lies."""
    return 'made when asked for'


def _pattern(number: int, size: Tuple[int, int]) -> np.ndarray:
    """(C, H, W) int64 in -128 to 127: random knots, interpolated linearly and periodically along both axes."""
    knots = np.random.default_rng((SEED, number)).integers(-128, 128, size=(CHANNELS, KNOTS, KNOTS))
    for axis, length in ((1, size[0]), (2, size[1])):
        position = np.arange(length) * KNOTS
        left, weight = position // length, position % length  # weight: of the right knot, in parts of `length`
        weight = weight.reshape((-1, 1) if axis == 1 else (1, -1))
        right = (left + 1) % KNOTS
        knots = (knots.take(left, axis) * (length - weight) + knots.take(right, axis) * weight) // length
    return knots


def _draw(patterns: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image (C, H, W) uint8 of each label's pattern: moved anywhere, at 1/4 to 3/4 of its contrast, with noise."""
    count = len(labels)
    height, width = patterns.shape[2:]
    top, left = rng.integers(0, height, count), rng.integers(0, width, count)
    rows = (np.arange(height) + top[:, np.newaxis]) % height  # (N, H)
    columns = (np.arange(width) + left[:, np.newaxis]) % width  # (N, W)
    moved = patterns[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    moved = moved.transpose(0, 3, 1, 2)  # (N, C, H, W)
    contrast = rng.integers(32, 97, size=(count, 1, 1, 1))  # of 128
    noise = rng.integers(-64, 65, size=moved.shape)
    pixels: np.ndarray = np.clip(128 + moved * contrast // 128 + noise, 0, 255).astype(np.uint8)
    return pixels
