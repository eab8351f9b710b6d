"""Batches: augmentation against plain loops, and what an epoch holds."""
import numpy as np
import pytest

from gluon_aa.data import Split
from gluon_aa.data.pipeline import TrainingBatches, augment, evaluation_batches


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
