"""Batches of uint8 images: shuffled, cropped and flipped in vectorised NumPy; normalised later, inside the graph.

`prefetch` makes them ahead of their use.
"""
import atexit
import queue
import threading
from typing import Generator, Iterable, Iterator, NamedTuple, Optional, Tuple, TypeVar, Union

import numpy as np

from gluon_aa.data.split import Split
from gluon_aa.errors import unknown

#: What becomes of the images that do not fill a last batch, in the words of Gluon's DataLoader.
LAST_BATCHES = ('discard', 'keep')

Batch = Tuple[np.ndarray, np.ndarray]
T = TypeVar('T')


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
        images = windows[np.arange(count), :, top, left]  # (B, C, H, W), a copy
    if flip:
        mirrored = rng.random(count) < 0.5
        images = images if crop_padding else images.copy()
        images[mirrored] = images[mirrored][..., ::-1]
    return images


class TrainingBatches:
    """An epoch's batches: their order depends on (seed, epoch) alone, their augmentation on (seed, epoch, step).

    By default the images that do not fill a last batch are left out of the epoch: a batch of few images would give
    batch norm poor statistics. They differ from epoch to epoch. With `last_batch='keep'` they are a smaller batch.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, *, crop_padding: int, flip: bool,
                 last_batch: str = 'discard') -> None:
        if last_batch not in LAST_BATCHES:
            raise unknown('last_batch', last_batch, LAST_BATCHES)
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.crop_padding, self.flip = crop_padding, flip
        full = len(split) // batch_size * batch_size
        #: How many images an epoch yields.
        self.images = len(split) if last_batch == 'keep' else full

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """Images (batch_size, C, H, W) uint8 and labels (batch_size,) int32, from `first_step` (counted from 0) on.

        The batches from there on are those of the whole epoch; the earlier ones are not computed.
        """
        order = np.random.default_rng((self.seed, number)).permutation(len(self.split))[:self.images]
        for step in range(first_step, len(self)):
            chosen = order[step * self.batch_size:(step + 1) * self.batch_size]
            rng = np.random.default_rng((self.seed, number, step))
            images = augment(self.split.images[chosen], rng, crop_padding=self.crop_padding, flip=self.flip)
            yield images, self.split.labels[chosen]


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
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


class _End(NamedTuple):
    """The iterator is exhausted, or failed with `error`."""

    error: Optional[BaseException] = None


def prefetch(batches: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """The items of `batches`, in order, up to `depth` of them made ahead of their use by a background thread.

    An error of the iterator is raised here, after the items before it. Leaving the generator early, by `close`, an
    exception or being forgotten, stops the thread when it has finished the item under way; so does the end of the
    interpreter.

    Raises:
        ValueError: `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f'depth={depth} must be at least 1')
    room, stopped = threading.Semaphore(depth), threading.Event()
    ready: 'queue.SimpleQueue[Union[T, _End]]' = queue.SimpleQueue()
    thread = threading.Thread(target=_fill, args=(batches, ready, room, stopped), name='prefetch', daemon=True)

    def stop() -> None:
        stopped.set()
        room.release()
        # the garbage collector may close a forgotten generator from within the thread itself
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join()

    # a daemon thread that still runs when the interpreter dismantles itself can crash it
    atexit.register(stop)
    try:
        thread.start()
        while True:
            item = ready.get()
            room.release()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop()
        atexit.unregister(stop)


def _fill(batches: Iterable[T], ready: 'queue.SimpleQueue[Union[T, _End]]', room: threading.Semaphore,
          stopped: threading.Event) -> None:
    """Put items, then an `_End`, while there is room."""
    end = _End()
    try:
        iterator = iter(batches)
        while True:
            room.acquire()
            if stopped.is_set():
                return
            try:
                item = next(iterator)
            except StopIteration:
                break
            ready.put(item)
    except BaseException as error:  # noqa: B902  whatever it is, the consumer hears of it
        end = _End(error)
    ready.put(end)
