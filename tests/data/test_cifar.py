"""CIFAR-10 and CIFAR-100: the table against MXNet's, the format against its description, and what is refused."""
import hashlib

import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.data import cifar, load_dataset
from gluon_aa.errors import FailedError
from pictures import member, write_tar

IMAGES = 400  # a file
VALIDATION = 200


@pytest.fixture(params=['cifar10', 'cifar100'])
def small(request, monkeypatch, tmp_path):
    """A data set with 400 images a file: its row, its files' contents, and its images and labels."""
    monkeypatch.setattr(cifar, 'VALIDATION_IMAGES', VALIDATION)
    row = cifar.FORMATS[request.param]
    images = np.random.randint(0, 256, (len(row.files), IMAGES, 3, 32, 32), dtype=np.uint8)
    labels = np.tile(np.arange(len(row.classes), dtype=np.uint8), (len(row.files), IMAGES // len(row.classes)))
    # by the format's own description: <label> or <coarse label><fine label>, then red, green and blue planes by rows
    contents = {file.name: b''.join(bytes([99] * (row.label_bytes - 1) + [label]) + image.tobytes()
                                    for image, label in zip(images[index], labels[index]))
                for index, file in enumerate(row.files)}
    files = [file._replace(images=IMAGES, sha1=hashlib.sha1(contents[file.name]).hexdigest()) for file in row.files]
    row = row._replace(train=tuple(files[:-1]), test=files[-1])
    monkeypatch.setitem(cifar.FORMATS, row.name, row)
    return row, contents, images, labels


def write(directory, contents):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return directory


def archive(path, row, contents, directory=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    top = f'{row.directory}/' if directory is None else directory
    files = {'readme.html': b'<html>', **contents}
    return write_tar(path, [member(top + name, content) for name, content in files.items()], 'w:gz')


@pytest.mark.parametrize('name', ['CIFAR10', 'CIFAR100'])
def test_checksums_and_mirror_are_mxnets_own(name, monkeypatch, tmp_path):
    theirs = getattr(mx.gluon.data.vision, name)
    monkeypatch.setattr(theirs, '_get_data', lambda self: None)
    monkeypatch.delenv('MXNET_GLUON_REPO')
    theirs, ours = theirs(root=str(tmp_path)), cifar.FORMATS[name.lower()]
    assert [(file.name, file.sha1) for file in ours.files] == theirs._train_data + theirs._test_data
    assert (ours.archive, ours.mirror_sha1) == theirs._archive_file
    url = mx.gluon.utils._get_repo_file_url(f'gluon/dataset/{theirs._namespace}', ours.archive)
    assert ours.sources()[0] == (url, 'sha1', ours.mirror_sha1)


def test_there_are_ten_and_a_hundred_classes_in_alphabetical_order():
    for name, count in (('cifar10', 10), ('cifar100', 100)):
        classes = cifar.FORMATS[name].classes
        assert len(set(classes)) == count and list(classes) == sorted(classes)


def test_default_directories_are_mxnets(monkeypatch):
    monkeypatch.setenv('MXNET_HOME', '/there')
    assert str(cifar.FORMATS['cifar10'].default_directory()) == '/there/datasets/cifar10'
    monkeypatch.delenv('MXNET_HOME')
    assert str(cifar.FORMATS['cifar100'].default_directory()).endswith('/.mxnet/datasets/cifar100')


@pytest.mark.parametrize('place', [
    'directory', 'directory above', 'archive', 'archive in a directory', "mirror's flat archive", "MXNet's directory"])
def test_the_binary_format_is_read_wherever_it_lies(small, tmp_path, place):
    row, contents, images, labels = small
    data_dir = tmp_path
    if place == 'directory':
        write(tmp_path, contents)
    elif place == 'directory above':
        write(tmp_path / row.directory, contents)
    elif place == 'archive':
        data_dir = archive(tmp_path / 'any.tgz', row, contents)
    elif place == 'archive in a directory':
        archive(tmp_path / row.archive, row, contents)
    elif place == "mirror's flat archive":
        archive(tmp_path / row.archive, row, contents, './')
    else:
        write(row.default_directory(), contents)
        data_dir = None
    dataset = load_dataset(row.name, data_dir and str(data_dir))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [
        IMAGES * len(row.train) - VALIDATION, VALIDATION, IMAGES]
    assert np.array_equal(dataset.test.images, images[-1]) and np.array_equal(dataset.test.labels, labels[-1])
    held = sorted((image.tobytes(), int(label)) for split in (dataset.train, dataset.val)
                  for image, label in zip(*split))
    assert held == sorted((image.tobytes(), int(label)) for image, label in zip(
        images[:-1].reshape(-1, 3, 32, 32), labels[:-1].ravel()))
    assert len(set(np.bincount(dataset.val.labels))) == 1  # stratified
    assert dataset.flip and dataset.crop_padding == 4


def refusal(row, data_dir, **options):
    with pytest.raises(FailedError) as caught:
        load_dataset(row.name, str(data_dir), **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_absent_files_say_where_they_were_sought(small, tmp_path):
    row = small[0]
    assert refusal(row, tmp_path).startswith(f'no {row.title} in {tmp_path}: there is neither {row.archive}')
    assert not list(tmp_path.iterdir())  # nothing is downloaded into a user's directory


def test_a_missing_file_is_named(small, tmp_path):
    row, contents, _, _ = small
    write(tmp_path / row.directory, contents)
    (tmp_path / row.directory / row.test.name).unlink()
    assert f'{row.directory}: {row.test.name} is missing' in refusal(row, tmp_path)
    del contents[row.train[-1].name]
    assert f'lacks {row.train[-1].name}' in refusal(row, archive(tmp_path / 'x.tar.gz', row, contents))


@pytest.mark.parametrize('change', [lambda content: content[:-1], lambda content: content + b'x', lambda content: b''])
def test_wrong_sizes_are_refused_even_if_unverified_files_are_allowed(small, tmp_path, change):
    row, contents, _, _ = small
    contents[row.test.name] = change(contents[row.test.name])
    write(tmp_path, contents)
    message = refusal(row, tmp_path, allow_unverified=True)
    sizes = f'{len(contents[row.test.name]):,} bytes instead of {row.file_bytes(row.test):,}'
    assert f'{row.test.name} has {sizes}' in message
    assert row.test.name in refusal(row, archive(tmp_path / 'x.tar.gz', row, contents), allow_unverified=True)


def test_foreign_labels_are_refused_even_if_unverified_files_are_allowed(small, tmp_path):
    row, contents, _, _ = small
    label = len(row.classes)
    contents[row.test.name] = bytes([label] * row.label_bytes) + contents[row.test.name][row.label_bytes:]
    message = refusal(row, write(tmp_path, contents), allow_unverified=True)
    assert f'{row.test.name} in {tmp_path} holds the label {label}: {row.title} has labels 0 to {label - 1}' in message


def test_a_class_with_too_few_images_is_named(small, tmp_path):
    row, contents, _, _ = small
    record = row.label_bytes + 3072
    for file in row.train:
        data = bytearray(contents[file.name])
        for begin in range(0, len(data), record):
            if data[begin + row.label_bytes - 1] == 3:
                data[begin + row.label_bytes - 1] = 4
        contents[file.name] = bytes(data)
    message = refusal(row, write(tmp_path, contents), allow_unverified=True)
    assert f'has 0 training images of the class {row.classes[3]}: it is not {row.title}' in message


def test_other_files_of_the_right_form_must_be_allowed(small, tmp_path):
    row, contents, images, _ = small
    name = row.train[0].name
    contents[name] = contents[name][:-1] + bytes([contents[name][-1] ^ 1])
    write(tmp_path, contents)
    message = refusal(row, tmp_path)
    assert f'{name} in {tmp_path} is not the official file (SHA-1 {hashlib.sha1(contents[name]).hexdigest()}' in message
    assert 'pass --allow-unverified if you trust it' in message
    assert len(load_dataset(row.name, str(tmp_path), allow_unverified=True).test) == IMAGES


def test_a_file_twice_in_an_archive_is_refused(small, tmp_path):
    row, contents, _, _ = small
    name = row.test.name
    path = archive(tmp_path / 'x.tar.gz', row, {**contents, f'../{row.directory}/{name}': b''})
    assert 'leads out of it' in refusal(row, path)
    twice = write_tar(path, [member(top + name, contents[name]) for top in ('', 'a/')], 'w:gz')
    assert f'holds {name} more than once' in refusal(row, twice)


def test_a_file_that_claims_too_much_is_not_read(small, tmp_path):
    row, contents, _, _ = small
    size = row.file_bytes(row.test)
    path = write_tar(tmp_path / 'x.tar.gz', [member(row.test.name, bytes(size + 1))], 'w:gz')
    assert f'of {size + 1:,} bytes, where at most {size:,} are expected' in refusal(row, path)


def test_without_a_network_the_error_says_what_to_do(small):
    row = small[0]
    with pytest.raises(FailedError) as caught:
        load_dataset(row.name)
    message = str(caught.value)
    assert message.startswith(f'no {row.title} in {row.default_directory()}, and it cannot be downloaded: ')
    assert message.count('127.0.0.1:9/') == 2 and message.count('refused') == 2
    assert message.endswith(f'get {row.archive} elsewhere and name it with --data-dir')
