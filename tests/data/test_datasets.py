"""What every data set offers; the digits."""
import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gluon_aa.data import DATASETS, Split, load_dataset
from gluon_aa.data.datasets import Dataset
from gluon_aa.errors import UsageError
from gluon_aa.training.config import FIELDS


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


@pytest.mark.parametrize('normalization', ['channels', 'mean-image'])
@pytest.mark.parametrize('name', ['digits', 'synthetic'])
def test_statistics_broadcast_against_an_image(name, normalization):
    dataset = load_dataset(name, normalization=normalization)
    shape = (dataset.channels, *dataset.input_size)
    assert np.broadcast_shapes(dataset.mean.shape, dataset.std.shape, shape) == shape
    assert dataset.mean.dtype == dataset.std.dtype == np.float64


def test_unknown_names_list_the_near_ones():
    with pytest.raises(UsageError, match="unknown data set 'cifar': did you mean cifar10"):
        load_dataset('cifar')
    with pytest.raises(UsageError, match="unknown normalization 'channel': did you mean channels"):
        load_dataset('digits', normalization='channel')


@pytest.mark.parametrize('name, options, flag', [
    ('digits', {'data_dir': '.'}, '--data-dir'),
    ('digits', {'allow_unverified': True}, '--allow-unverified'),
    ('cifar10', {'input_size': (16, 16)}, '--input-size'),
    ('synthetic', {'data_dir': '.'}, '--data-dir'),
    ('folder', {'data_dir': '.', 'allow_unverified': True}, '--allow-unverified'),
])
def test_options_that_a_data_set_cannot_use_are_refused(name, options, flag):
    with pytest.raises(UsageError, match=f'means nothing for the data set {name}: leave out {flag}$'):
        load_dataset(name, **options)


def test_finding_neither_downloads_nor_decodes():
    assert {name: recipe.find(None) for name, recipe in DATASETS.items()} == {
        'digits': 'embedded in scikit-learn', 'synthetic': 'made when asked for',
        'cifar10': None, 'cifar100': None, 'folder': None}


def test_the_keys_help_names_every_data_set_and_its_default_is_one():
    assert all(name in FIELDS['dataset'].metadata['help'] for name in DATASETS)
    assert FIELDS['dataset'].default in DATASETS


def dataset_of(images, labels, test_labels=(0, 1, 1, 1)):
    split = Split(np.asarray(images, np.uint8), np.asarray(labels, np.int32))
    test = Split(split.images, np.asarray(test_labels[:len(labels)], np.int32))
    return Dataset('any', split, split, test, ('a', 'b'), False, 0, np.zeros((1, 1, 1)), np.ones((1, 1, 1)))


def test_fingerprints_tell_data_apart():
    images = np.arange(24).reshape(2, 1, 3, 4)
    base = dataset_of(images, [0, 1]).fingerprint
    assert base == dataset_of(images, [0, 1]).fingerprint and len(base) == 64
    others = [(images[::-1], [0, 1]), (images, [1, 0]), (images.reshape(2, 1, 4, 3), [0, 1])]
    others.append((images, [0, 1], [1, 1]))  # the test images alone
    assert len({base, *(dataset_of(*other).fingerprint for other in others)}) == 5


def test_fingerprints_do_not_depend_on_the_layout_in_memory():
    images = np.random.randint(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    assert dataset_of(np.asfortranarray(images), [0] * 4).fingerprint == dataset_of(images, [0] * 4).fingerprint
