"""Statistics of the training images, against NumPy's own."""
import numpy as np
import pytest

from gluon_aa.data.normalization import channel_statistics, mean_image, statistics


@pytest.fixture
def images():
    return np.random.randint(0, 256, (7, 3, 4, 5), dtype=np.uint8)


def test_channel_statistics(images):
    mean, std = channel_statistics(images)
    pixels = images.astype(np.float64)
    assert mean.shape == std.shape == (3, 1, 1)
    assert mean.ravel() == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert std.ravel() == pytest.approx(pixels.std(axis=(0, 2, 3)))


def test_a_constant_channel_has_deviation_one():
    mean, std = channel_statistics(np.full((2, 3, 4, 4), 7, np.uint8))
    assert mean.ravel().tolist() == [7, 7, 7] and std.ravel().tolist() == [1, 1, 1]


def test_the_replications_mean_image(images):
    mean, std = statistics(images, 'mean-image')
    assert mean.shape == (3, 4, 5) and std.shape == (1, 1, 1)
    # section 3: the training mean extracted, divided by 255
    expected = (images[0].astype(np.float64) - images.astype(np.float64).mean(axis=0)) / 255
    assert (images[0] - mean) / std == pytest.approx(expected)


def test_mean_images_of_many_images_do_not_overflow():
    mean, _ = mean_image(np.full((70_000, 1, 1, 2), 255, np.uint8))
    assert mean.tolist() == [[[255, 255]]]
