"""Forms against the data sets themselves."""
import pytest

from gluon_aa.data import load_dataset
from gluon_aa.data.cifar import FORMATS, PIXEL_BYTES
from gluon_aa.data.datasets import DATASETS
from gluon_aa.data.form import FORMS, form_of
from gluon_aa.errors import UsageError


@pytest.mark.parametrize('name, size', [('digits', None), ('synthetic', None), ('synthetic', (8, 12))])
def test_is_that_of_the_images(name, size):
    data = load_dataset(name, input_size=size)
    assert form_of(name, size) == (len(data.classes), data.train.images.shape[1:])


def test_cifar_is_as_its_format_says():
    for name, row in FORMATS.items():
        classes, (channels, height, width) = form_of(name)
        assert (classes, channels * height * width) == (len(row.classes), PIXEL_BYTES)


def test_every_data_set_has_one_but_folders():
    assert {*FORMS, 'folder'} == set(DATASETS)
    assert form_of('folder', (48, 64), 7) == (7, (3, 48, 64))
    assert form_of('folder', (48, 64)).classes == 10


@pytest.mark.parametrize('arguments, message', [
    (('cifra10',), 'did you mean cifar10'), (('folder',), 'say the size'),
    (('cifar10', (64, 64)), 'input_size means nothing for the data set cifar10'),
    (('cifar10', None, 100), 'cifar10 has 10 classes'), (('synthetic', (8, 8), 11), 'synthetic has 10 classes')])
def test_what_it_cannot_be(arguments, message):
    with pytest.raises(UsageError, match=message):
        form_of(*arguments)
    assert form_of('cifar10', None, 10) == form_of('cifar10')
