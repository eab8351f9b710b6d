"""JPEG and PNG files as arrays: decoded by several threads, made to have one size and one number of channels."""
import concurrent.futures
import contextlib
import functools
import io
import itertools
import warnings
from typing import Callable, Iterable, Iterator, List, Optional, Tuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from gluon_aa import machine
from gluon_aa.errors import FailedError, reason

SUFFIXES = ('.jpg', '.jpeg', '.png')
MAX_FILE_BYTES = 1 << 28
#: Compared with an image's header before anything is decoded: a small file can claim to be an image that fills memory.
MAX_PIXELS = 64_000_000
MAX_THREADS = 8
#: Images that a thread decodes at a time: with one each, handing over small ones costs more than decoding them.
BATCH = 32
#: Images whose files are held in memory at a time.
CHUNK = MAX_THREADS * BATCH
#: How Pillow stores what can be read as 8 bits a channel -> what it becomes: grey or RGB, without transparency.
_MODES = {'1': 'L', 'L': 'L', 'LA': 'L', 'P': 'RGB', 'RGB': 'RGB', 'RGBA': 'RGB', 'CMYK': 'RGB', 'YCbCr': 'RGB'}

#: (the file's name for messages, what reads its content)
Named = Tuple[str, Callable[[], bytes]]


def decode(content: bytes, input_size: Optional[Tuple[int, int]] = None) -> np.ndarray:
    """The image of a JPEG or PNG file, upright as its EXIF says: (H, W, C) uint8, C = 1 if it is grey, else 3 (RGB).

    Args:
        input_size: (H, W) in pixels: the image is scaled, antialiased, until it just covers them, and cropped evenly.

    Raises:
        ValueError: more pixels than `MAX_PIXELS`, or more than 8 bits a channel. Pillow's own: it does not decode.
    """
    with Image.open(io.BytesIO(content), formats=('JPEG', 'PNG')) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f'{height}x{width} pixels are more than {MAX_PIXELS:,}')
        if image.mode not in _MODES:
            raise ValueError(f'its pixels are of the kind {image.mode}, not of 8 bits a channel')
        upright = ImageOps.exif_transpose(image).convert(_MODES[image.mode])
    if input_size is not None:
        upright = ImageOps.fit(upright, input_size[::-1], Image.Resampling.BILINEAR)
    pixels: np.ndarray = np.asarray(upright)
    return pixels.reshape(*pixels.shape[:2], -1)  # grey ones have no channel axis


def decode_all(files: Iterable[Named], input_size: Optional[Tuple[int, int]] = None) -> List[np.ndarray]:
    """`decode` of every file, in order, by several threads.

    Raises:
        FailedError: a file that does not decode, or has another size than the first; more than half of the free memory.
    """
    images: List[np.ndarray] = []
    first, total, room = '', 0, machine.available_memory()
    iterator = iter(files)
    threads = min(MAX_THREADS, len(machine.usable_cpus()))
    with _strict_and_silent(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for chunk in iter(lambda: list(itertools.islice(iterator, CHUNK)), []):
            first = first or chunk[0][0]
            batches = [chunk[begin:begin + BATCH] for begin in range(0, len(chunk), BATCH)]
            decoded = itertools.chain.from_iterable(pool.map(functools.partial(_decode_batch, input_size), batches))
            for (name, _), image in zip(chunk, decoded):
                images.append(image)
                total += image.nbytes
                if room is not None and 2 * total > room:  # they are held twice when they become one array
                    raise FailedError(_too_many(name, len(images), total, room))
                if image.shape[:2] != images[0].shape[:2]:
                    raise FailedError(_sizes_differ(first, images[0], name, image))
    return images


@contextlib.contextmanager
def _strict_and_silent() -> Iterator[None]:
    """Pillow refuses truncated images, as it does until gluoncv is imported, and does not warn of odd metadata.

    For the whole process, so not to be entered by the threads.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _decode_batch(input_size: Optional[Tuple[int, int]], files: List[Named]) -> List[np.ndarray]:
    return [_decode_named(input_size, *file) for file in files]


def _decode_named(input_size: Optional[Tuple[int, int]], name: str, read: Callable[[], bytes]) -> np.ndarray:
    try:
        return decode(read(), input_size)
    except Exception as error:  # noqa: B902  Pillow raises nearly anything for damaged files
        raise FailedError(f'{name} is no image that can be read (JPEG or PNG): {reason(error)}') from error


def _sizes_differ(name: str, image: np.ndarray, other_name: str, other: np.ndarray) -> str:
    (height, width), (other_height, other_width) = image.shape[:2], other.shape[:2]
    return (f'{name} has {height}x{width} pixels, but {other_name} {other_height}x{other_width}: make them one size '
            f'with --input-size HxW, such as --input-size {height}x{width}')


def _too_many(name: str, count: int, total: int, room: int) -> str:
    return (f'{count:,} images, up to {name}, take {total / 1e9:.1f} GB, and of the {room / 1e9:.1f} GB of memory that '
            'are free they need twice that: make them smaller with --input-size HxW')


def stack(images: List[np.ndarray], channels: int) -> np.ndarray:
    """Images (H, W, 1 or 3) of one size as (N, C, H, W); grey ones are repeated where `channels` is 3."""
    height, width = images[0].shape[:2]
    result = np.empty((len(images), channels, height, width), np.uint8)
    for place, image in zip(result, images):
        place[:] = image.transpose(2, 0, 1)  # (H, W, C) -> (C, H, W)
    return result
