"""Images made on the spot: the same everywhere, of any size, with something to learn."""
import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from gluon_aa.data import load_dataset


@pytest.fixture(scope='module')
def small():
    return load_dataset('synthetic', input_size=(12, 20))


def test_splits_hold_as_many_of_each_class(small):
    splits = (small.train, small.val, small.test)
    assert [np.bincount(split.labels).tolist() for split in splits] == [[450] * 10, [50] * 10, [100] * 10]
    assert all(split.images.shape[1:] == (3, 12, 20) and split.images.dtype == np.uint8 for split in splits)


def test_images_never_change(small):
    # on every Python, NumPy and machine: a benchmark on other images is another benchmark
    assert small.fingerprint == 'c64af3d66ea7a44ba6e9ea3381b2a9a380d9dfc9bc8ca030188d5c5491f66feb'
    test = small.test
    digest = hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()
    assert digest == '2248eaf62398f2ea58abc0caa5aca98129c58b6fab8c96d0b3f103974fa31a4b'


def test_the_default_size_is_that_of_cifar():
    assert load_dataset('synthetic').train.images.shape == (4500, 3, 32, 32)


def test_a_linear_model_learns_something_but_not_all(small):
    model = LogisticRegression(C=0.001, max_iter=300)
    pixels = [split.images.reshape(len(split), -1)[:1000] / 255 - 0.5 for split in (small.train, small.val)]
    model.fit(pixels[0], small.train.labels[:1000])
    assert 0.3 < model.score(pixels[1], small.val.labels) < 0.95
