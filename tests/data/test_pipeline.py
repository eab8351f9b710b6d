"""Batches: augmentation against plain loops, what an epoch holds, and making them ahead."""
import gc
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gluon_aa.data import Split
from gluon_aa.data.pipeline import TrainingBatches, augment, evaluation_batches, prefetch
from gluon_aa.errors import UsageError


def all_crops(image, padding, flip):
    """Every result augmentation may give for an image (C, H, W), as bytes."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    crops = [padded[:, top:top + height, left:left + width]
             for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    return {crop.tobytes() for crop in crops} | ({crop[:, :, ::-1].tobytes() for crop in crops} if flip else set())


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('padding', [0, 2])
def test_every_result_is_a_crop_and_every_crop_occurs(padding, flip):
    image = np.random.randint(1, 256, (3, 4, 5), dtype=np.uint8)
    images = np.tile(image, (2000, 1, 1, 1))
    results = augment(images, np.random.default_rng(0), crop_padding=padding, flip=flip)
    assert {result.tobytes() for result in results} == all_crops(image, padding, flip)


def test_images_are_augmented_apart_and_not_in_place():
    images = np.random.randint(0, 256, (64, 1, 4, 4), dtype=np.uint8)
    before = images.copy()
    results = augment(images, np.random.default_rng(0), crop_padding=2, flip=True)
    assert results.dtype == np.uint8 and np.array_equal(images, before)
    for image, result in zip(images, results):
        assert result.tobytes() in all_crops(image, 2, True)


def numbered(count):
    """Images whose pixels are their index."""
    return Split(np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8),
                 np.arange(count, dtype=np.int32))


def test_an_epoch_holds_each_image_at_most_once_and_only_full_batches():
    batches = TrainingBatches(numbered(23), 5, seed=3, crop_padding=0, flip=False)
    epoch = list(batches.epoch(1))
    labels = np.concatenate([labels for _, labels in epoch])
    assert len(epoch) == len(batches) == 4 and all(len(labels) == 5 for _, labels in epoch)
    assert len(set(labels.tolist())) == 20
    assert all((images == labels[:, None, None, None]).all() for images, labels in epoch)


def test_epochs_and_seeds_differ_and_repeat():
    def labels(seed, epoch):
        batches = TrainingBatches(numbered(20), 5, seed, crop_padding=1, flip=True)
        return [(images.tobytes(), labels.tolist()) for images, labels in batches.epoch(epoch)]
    assert labels(0, 1) == labels(0, 1)
    assert labels(0, 1) != labels(0, 2) and labels(0, 1) != labels(1, 1)


def test_evaluation_keeps_the_order_and_fills_the_last_batch():
    batches = list(evaluation_batches(numbered(7), 3))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
    assert all(images.shape == (3, 1, 2, 2) for images, _ in batches)


def taken(batches, *epoch):
    return [(images.tobytes(), labels.tolist()) for images, labels in batches.epoch(*epoch)]


@pytest.mark.parametrize('last_batch', ['discard', 'keep'])
def test_an_epoch_can_start_at_any_step(last_batch):
    batches = TrainingBatches(numbered(23), 5, seed=1, crop_padding=1, flip=True, last_batch=last_batch)
    whole = taken(batches, 2)
    assert all(taken(batches, 2, step) == whole[step:] for step in range(len(batches) + 1))


@pytest.mark.parametrize('last_batch, sizes', [('discard', [5, 5, 5, 5]), ('keep', [5, 5, 5, 5, 3])])
def test_the_last_batch(last_batch, sizes):
    batches = TrainingBatches(numbered(23), 5, seed=1, crop_padding=0, flip=False, last_batch=last_batch)
    assert [len(labels) for _, labels in batches.epoch(1)] == sizes
    assert len(batches) == len(sizes) and batches.images == sum(sizes)


def test_keeping_the_last_batch_leaves_the_others_as_they_are():
    discard, keep = (TrainingBatches(numbered(23), 5, seed=1, crop_padding=1, flip=True, last_batch=last_batch)
                     for last_batch in ('discard', 'keep'))
    assert taken(keep, 1)[:4] == taken(discard, 1)


def test_unknown_last_batches_are_refused():
    with pytest.raises(UsageError, match="unknown last_batch 'keeps': did you mean keep"):
        TrainingBatches(numbered(23), 5, seed=1, crop_padding=0, flip=False, last_batch='keeps')


def prefetching():
    """The threads of `prefetch` that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == 'prefetch']


def test_prefetching_gives_the_same_items_in_order():
    batches = TrainingBatches(numbered(23), 5, seed=1, crop_padding=1, flip=True)
    ahead = [(images.tobytes(), labels.tolist()) for images, labels in prefetch(batches.epoch(1), depth=2)]
    assert ahead == taken(batches, 1)
    assert list(prefetch([])) == []
    assert not prefetching()


def counting(made):
    for number in itertools.count():
        made.append(number)
        yield number


def test_prefetching_stays_as_far_ahead_as_it_may():
    made = []
    items = prefetch(counting(made), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)  # would it go further, it would now
    assert made == [0, 1, 2, 3]  # one taken, three ahead
    items.close()


def test_errors_of_the_iterator_surface_after_the_items_before_them():
    def failing():
        yield 1
        yield 2
        raise KeyError('broken')
    seen = []
    with pytest.raises(KeyError, match='broken'):
        for item in prefetch(failing()):
            seen.append(item)
    assert seen == [1, 2] and not prefetching()


def test_what_is_no_iterator_is_an_error_of_the_consumer():
    with pytest.raises(TypeError, match='not iterable'):
        next(prefetch(3))
    with pytest.raises(ValueError, match='depth=0 must be at least 1'):
        next(prefetch([1], depth=0))
    assert not prefetching()


@pytest.mark.parametrize('leave', ['break', 'close', 'error', 'interrupt', 'forget'])
def test_leaving_early_stops_the_thread_and_the_iterator(leave):
    closed = []

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    def consume():
        items = prefetch(endless())
        for item in items:
            assert prefetching()
            if leave == 'close':
                items.close()
            if leave in ('error', 'interrupt'):
                raise ValueError if leave == 'error' else KeyboardInterrupt
            if leave == 'break' or item == 2:
                break
    try:
        consume()
    except (ValueError, KeyboardInterrupt):
        pass
    gc.collect()
    assert not prefetching() and closed == [True]


def test_a_generator_that_was_never_started_has_no_thread():
    items = prefetch([1, 2])
    assert not prefetching()
    items.close()


@pytest.mark.parametrize('ending', [
    '', 'raise SystemExit(0)',
    'import os, signal; signal.signal(2, signal.default_int_handler); os.kill(os.getpid(), 2); input()'])
def test_the_interpreter_ends_in_the_midst_of_prefetching(ending):
    code = ('import itertools, sys, numpy as np\n'
            f'sys.path[:] = {sys.path!r}\n'
            'from gluon_aa.data.pipeline import prefetch\n'
            'items = prefetch(np.random.random((200, 200)) @ np.ones((200, 200)) for _ in itertools.count())\n'
            'next(items)\n'
            f'print("under way", flush=True)\n{ending}\n')
    done = subprocess.run([sys.executable, '-c', code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60, check=False)
    assert done.stdout == 'under way\n'
    assert done.returncode == 0 or 'KeyboardInterrupt' in done.stderr
    assert 'Fatal' not in done.stderr and 'terminate' not in done.stderr
