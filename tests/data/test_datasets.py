"""What data sets hold, and how bad files are refused."""
import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gluon_aa.data import cifar, load_dataset
from gluon_aa.data.datasets import channel_statistics
from gluon_aa.errors import FailedError, UsageError


def splits(dataset):
    return dataset.train, dataset.val, dataset.test


def test_digits_are_all_of_scikit_learns_once():
    dataset = load_dataset('digits')
    assert [len(split) for split in splits(dataset)] == [1257, 180, 360]
    ours = sorted((image.tobytes(), int(label)) for split in splits(dataset) for image, label in zip(*split))
    data = load_digits()
    assert ours == sorted((image.astype(np.uint8).tobytes(), int(label))
                          for image, label in zip(data.images, data.target))
    assert dataset.input_size == (8, 8) and dataset.channels == 1


def test_digits_splits_are_stratified():
    dataset = load_dataset('digits')
    shares = [np.bincount(split.labels) / len(split) for split in splits(dataset)]
    assert all(np.abs(share - shares[0]).max() < 0.01 for share in shares[1:])


def test_digits_test_images_never_change():
    # on every Python, NumPy and scikit-learn: an accuracy on other images is another figure
    test = load_dataset('digits').test
    digest = hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()
    assert digest == 'b73ad886c973a728a3983062b04e72cc2f7effc9643c50702683ffd0c5faf323'


def test_statistics_are_those_of_training_images():
    dataset = load_dataset('digits')
    pixels = dataset.train.images.astype(np.float64)
    assert dataset.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert dataset.std == pytest.approx(pixels.std(axis=(0, 2, 3)))


def test_a_constant_channel_has_deviation_one():
    mean, std = channel_statistics(np.full((2, 3, 4, 4), 7, np.uint8))
    assert mean.tolist() == [7, 7, 7] and std.tolist() == [1, 1, 1]


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10's six files with 40 images each instead of 10,000, and what is in them."""
    monkeypatch.setattr(cifar, 'IMAGES_PER_FILE', 40)
    monkeypatch.setattr(cifar, 'VALIDATION_IMAGES', 20)
    images = np.random.randint(0, 256, (6, 40, 3, 32, 32), dtype=np.uint8)
    labels = np.tile(np.arange(10, dtype=np.uint8), (6, 4))
    for name, batch_images, batch_labels in zip((*cifar.TRAIN_FILES, cifar.TEST_FILE), images, labels):
        # by the format's own description: <1 x label><3072 x pixel>, red, green and blue planes in row order
        records = [bytes([label]) + image.tobytes() for image, label in zip(batch_images, batch_labels)]
        (tmp_path / name).write_bytes(b''.join(records))
    return tmp_path, images, labels


def test_cifar_reads_the_binary_format(small_cifar):
    directory, images, labels = small_cifar
    dataset = load_dataset('cifar10', str(directory))
    assert [len(split) for split in splits(dataset)] == [180, 20, 40]
    assert np.array_equal(dataset.test.images, images[5]) and np.array_equal(dataset.test.labels, labels[5])
    held = sorted(image.tobytes() for split in (dataset.train, dataset.val) for image in split.images)
    assert held == sorted(image.tobytes() for image in images[:5].reshape(-1, 3, 32, 32))
    assert np.bincount(dataset.val.labels).tolist() == [2] * 10


def test_cifar_is_found_in_the_unpacked_archives_directory(small_cifar, tmp_path):
    directory, _, _ = small_cifar
    inner = tmp_path / 'top' / 'cifar-10-batches-bin'
    inner.mkdir(parents=True)
    for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE):
        (directory / name).rename(inner / name)
    assert cifar.find(tmp_path / 'top') == str(inner)


def test_truncated_cifar_is_refused(small_cifar):
    directory, _, _ = small_cifar
    path = directory / 'data_batch_3.bin'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FailedError, match=r'data_batch_3.bin has 122,919 bytes instead of 122,920'):
        load_dataset('cifar10', str(directory))


def test_foreign_labels_are_refused(small_cifar):
    directory, _, _ = small_cifar
    path = directory / 'test_batch.bin'
    path.write_bytes(b'\x0b' + path.read_bytes()[1:])
    with pytest.raises(FailedError, match='holds the label 11'):
        load_dataset('cifar10', str(directory))


def test_missing_cifar_says_where_it_was_sought(tmp_path):
    with pytest.raises(FailedError, match=f'no CIFAR-10 in {tmp_path}'):
        load_dataset('cifar10', str(tmp_path))


def test_unknown_data_sets_list_the_near_ones():
    with pytest.raises(UsageError, match="unknown data set 'cifar': did you mean cifar10"):
        load_dataset('cifar')
