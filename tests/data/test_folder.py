"""Image folders and archives of them: what is read, what is cached, and what is refused."""
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from gluon_aa.data import cache, images, load_dataset
from gluon_aa.data.folder import _arrays
from gluon_aa.errors import FailedError, UsageError
from pictures import encoded, folder_files, member, random_image, write_folder, write_tar


def load(path, **options):
    return load_dataset('folder', str(path), **options)


def contents(dataset):
    """Class name and pixels of every training and validation image, and of every test image, in any order."""
    def of(*splits):
        return sorted((dataset.classes[label], image.tobytes()) for split in splits for image, label in zip(*split))
    return of(dataset.train, dataset.val), of(dataset.test)


def expected(files):
    """The same from the files themselves, as Pillow decodes them."""
    decoded = [(name.split('/'), np.asarray(Image.open(io.BytesIO(content)))) for name, content in files.items()]
    return tuple(sorted((parts[-2], image.transpose(2, 0, 1).tobytes()) for parts, image in decoded if part in parts)
                 for part in ('train', 'test'))


@pytest.fixture
def files():
    return folder_files()


@pytest.mark.parametrize('top', ['', 'top/'])
@pytest.mark.parametrize('kind', ['directory', 'w', 'w:gz', 'w:xz', 'w:bz2'])
def test_directories_and_archives_give_the_same(tmp_path, files, kind, top):
    named = {top + name: content for name, content in files.items()}
    path = write_folder(tmp_path / 'x', named) if kind == 'directory' else write_tar(tmp_path / 'x', named, kind)
    dataset = load(path)
    assert dataset.classes == ('cat', 'dog') and dataset.input_size == (6, 9) and dataset.channels == 3
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [10, 2, 4]
    assert contents(dataset) == expected(files)
    reference = load(write_folder(tmp_path / 'reference', files))
    assert dataset.fingerprint == reference.fingerprint
    assert np.array_equal(dataset.val.images, reference.val.images)


def test_the_order_in_an_archive_does_not_matter(tmp_path, files):
    forwards = load(write_tar(tmp_path / 'a.tar', files))
    backwards = load(write_tar(tmp_path / 'b.tar', dict(reversed(list(files.items())))))
    assert forwards.fingerprint == backwards.fingerprint


def test_a_tenth_of_the_training_images_is_held_out_stratified(tmp_path):
    dataset = load(write_folder(tmp_path, folder_files('abcde', train=40, test=1, height=2, width=2)))
    assert np.bincount(dataset.train.labels).tolist() == [36] * 5
    assert np.bincount(dataset.val.labels).tolist() == [4] * 5
    assert np.bincount(dataset.test.labels).tolist() == [1] * 5


@pytest.mark.parametrize('height, padding', [(32, 4), (6, 0), (224, 28)])
def test_augmentation_grows_with_the_images(tmp_path, height, padding):
    dataset = load(write_folder(tmp_path, folder_files(train=2, test=1, height=height, width=5)))
    assert dataset.flip and dataset.crop_padding == padding


def test_grey_images_have_one_channel_unless_some_are_coloured(tmp_path):
    files = folder_files(channels=1)
    assert load(write_folder(tmp_path, files)).channels == 1
    files['test/cat/0.png'] = encoded(random_image())
    dataset = load(write_folder(tmp_path, files))
    assert dataset.channels == 3
    assert (dataset.train.images == dataset.train.images[:, :1]).all()


@pytest.mark.parametrize('pack', [False, True])
def test_suffixes_of_any_case_count_and_other_files_are_ignored(tmp_path, files, pack):
    files['train/cat/x.JPEG'] = encoded(random_image(), 'JPEG')
    files['train/cat/x.Jpg'] = encoded(random_image(), 'JPEG')
    junk = {'train/cat/._0.png': b'junk', 'train/.DS_Store': b'junk', 'test/dog/Thumbs.db': b'junk',
            'train/.hidden/0.png': b'junk', '__MACOSX/train/cat/._0.png': b'junk'}
    others = {'train/cat/notes.txt': b'notes', 'train/labels.csv': b'labels'}
    everything = {**files, **junk, **others}
    notices = []
    path = write_tar(tmp_path / 'x', everything) if pack else write_folder(tmp_path / 'x', everything)
    dataset = load(path, on_progress=notices.append)
    assert [len(part) for part in contents(dataset)] == [14, 4]
    assert len(notices) == 2 and notices[0].startswith(f'decoding the images of {path}, to be kept in ')
    assert notices[1].startswith('ignored 2 files that are no JPEG or PNG images of train/ or test/, such as ')


def test_sizes_that_differ_need_an_input_size(tmp_path, files):
    files['train/dog/5.png'] = encoded(random_image(9, 6))
    path = write_folder(tmp_path, files)
    with pytest.raises(FailedError, match=r"^'[a-z0-9/.]+' in .* has .* pixels, but .*: make them one size with "
                                          '--input-size HxW'):
        load(path)
    dataset = load(path, input_size=(4, 8))
    assert dataset.input_size == (4, 8) and dataset.train.images.shape[1:] == (3, 4, 8)


def refusal(path, error=FailedError):
    with pytest.raises(error) as caught:
        load(path)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def without(files, *starts):
    return {name: content for name, content in files.items() if not name.startswith(starts)}


STRUCTURE = {
    'only train': (lambda files: without(files, 'test/'), 'has no images in test/<class>/'),
    'a class less': (lambda files: without(files, 'test/dog'), "the class 'dog' is in train/ but not in test/"),
    'a class more': (lambda files: {**files, 'test/cow/0.png': files['test/cat/0.png']},
                     "the class 'cow' is in test/ but not in train/"),
    'one image': (lambda files: without(files, *(f'train/cat/{number}' for number in range(1, 6))),
                  "the class 'cat' has 1 of at least 2 images (JPEG or PNG) in train/"),
    'no image': (lambda files: {**without(files, 'test/cat'), 'test/cat/x.gif': b'GIF89a'}, "the class 'cat' "),
    'one class': (lambda files: without(files, 'train/cat', 'test/cat'), "has only the class 'dog'"),
    'no class': (lambda files: {'train/0.png': files['test/cat/0.png'], **files},
                 "'train/0.png' in {path} does not lie at train/<class>/<image>"),
    'a subdirectory': (lambda files: {**files, 'train/cat/more/0.png': files['test/cat/0.png']},
                       "'train/cat/more/0.png' in {path} does not lie at train/<class>/<image>"),
    'two data sets': (lambda files: {f'{top}/{name}': content for name, content in files.items() for top in 'ab'},
                      "has train/ or test/ in more than one place, 'a' and 'b'"),
    'an unprintable name': (lambda files: {**files, 'train/c\nat/0.png': files['test/cat/0.png']},
                            "the class 'c\\nat' has a name that cannot be printed"),
    'a damaged image': (lambda files: {**files, 'train/cat/5.png': files['train/cat/5.png'][:-60]},
                        "'train/cat/5.png' in {path} is no image that can be read (JPEG or PNG): "),
}


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('name', list(STRUCTURE))
def test_a_folder_that_is_not_as_it_should_be_is_refused(tmp_path, files, name, pack):
    change, message = STRUCTURE[name]
    files = change(files)
    path = write_tar(tmp_path / 'x', files) if pack else write_folder(tmp_path / 'x', files)
    assert message.format(path=path) in refusal(path)
    assert not cache.directory().exists()


def test_an_empty_class_is_named(tmp_path, files):
    path = write_folder(tmp_path / 'x', files)
    for part in ('train', 'test'):
        (path / part / 'cow').mkdir()
    assert "the class 'cow' has 0 of at least 2 images (JPEG or PNG) in train/" in refusal(path)
    packed = shutil.make_archive(str(tmp_path / 'y'), 'tar', str(path))
    assert "the class 'cow' has 0 of at least 2 images (JPEG or PNG) in train/" in refusal(packed)


def test_what_is_no_folder_is_refused(tmp_path):
    assert refusal(tmp_path / 'none') == (f'there is no directory or archive {tmp_path / "none"}: name its place with '
                                          '--data-dir')
    assert 'has neither train/ nor test/' in refusal(tmp_path)
    (tmp_path / 'x.txt').write_text('text')
    assert 'is damaged, truncated or no tar archive' in refusal(tmp_path / 'x.txt')
    assert 'has no images in train/<class>/' in refusal(write_tar(tmp_path / 'x.tar', {'a.txt': b'a'}))
    with pytest.raises(UsageError, match='the data set folder needs --data-dir'):
        load_dataset('folder')


def test_links_and_ways_out_of_an_archive_are_refused(tmp_path, files):
    good = [member(name, content) for name, content in files.items()]
    for bad, message in ((member('train/cat/x.png', kind=b'2', linkname='/etc/passwd'), 'a link to'),
                         (member('../train/cat/x.png'), 'leads out of it')):
        assert message in refusal(write_tar(tmp_path / 'x.tar', good + [bad]))


def test_links_within_a_directory_are_followed_and_others_refused(tmp_path, files):
    path = write_folder(tmp_path / 'x', files)
    (path / 'train' / 'cat' / 'link.png').symlink_to(path / 'train' / 'cat' / '0.png')
    assert len(contents(load(path))[0]) == 13
    outside = tmp_path / 'outside.png'
    outside.write_bytes(files['test/cat/0.png'])
    for target in (outside, tmp_path / 'nowhere', path / 'train' / 'dog'):
        link = path / 'train' / 'cat' / 'bad.png'
        link.symlink_to(target)
        assert "'train/cat/bad.png' in " in refusal(path) and 'put the file itself there' in refusal(path)
        link.unlink()
    (path / 'train' / 'cow').symlink_to(path / 'train' / 'cat')
    assert "'train/cow' in " in refusal(path)


@pytest.mark.parametrize('link, target', [('train', 'real/train'), ('inner', 'real')])
def test_parts_that_are_links_are_refused(tmp_path, files, link, target):
    write_folder(tmp_path / 'real', files)
    path = write_folder(tmp_path / 'x', without(files, 'train/') if link == 'train' else {})
    path.mkdir(exist_ok=True)
    (path / link).symlink_to(tmp_path / target)
    assert refusal(path) == f'{path / link} is a link to a directory: put the directory itself there'


def test_images_that_would_fill_the_memory_are_refused_before_they_do(tmp_path, files, monkeypatch):
    path = write_folder(tmp_path / 'x', files)
    monkeypatch.setattr(images.machine, 'available_memory', lambda: 4000)
    assert 'of the 0.0 GB of memory that are free they need twice that: make them smaller' in refusal(path)


def test_pipes_are_not_waited_for(tmp_path, files):
    path = write_folder(tmp_path / 'x', files)
    os.mkfifo(tmp_path / 'pipe')
    assert 'there is no directory or archive' in refusal(tmp_path / 'pipe')
    os.mkfifo(path / 'train' / 'cat' / 'pipe.png')
    assert len(contents(load(path))[0]) == 12


def test_files_larger_than_any_image_are_not_read(tmp_path, files, monkeypatch):
    monkeypatch.setattr(images, 'MAX_FILE_BYTES', 100)
    assert 'it has more than 100 bytes' in refusal(write_folder(tmp_path / 'x', files))
    assert 'where at most 100 are expected' in refusal(write_tar(tmp_path / 'x.tar', files))


@pytest.mark.parametrize('pack', [False, True])
def test_the_second_time_nothing_is_decoded(tmp_path, files, monkeypatch, pack):
    path = write_tar(tmp_path / 'x', files) if pack else write_folder(tmp_path / 'x', files)
    first = load(path)

    def fail(*args):
        raise AssertionError('decoded')
    with monkeypatch.context() as patch:
        patch.setattr(images, 'decode', fail)
        notices = []
        second = load(path, on_progress=notices.append)
    assert notices == [] and second.classes == first.classes
    assert second.fingerprint == first.fingerprint and contents(second) == contents(first)


@pytest.mark.parametrize('pack', [False, True])
def test_a_change_of_any_file_or_of_the_size_is_decoded_anew(tmp_path, files, pack):
    def written(files):
        return write_tar(tmp_path / 'x', files) if pack else write_folder(tmp_path / 'x', files)
    path = written(files)
    first = load(path)
    assert load(path, input_size=(4, 4)).input_size == (4, 4)
    if not pack:
        os.utime(path / 'train' / 'cat' / '0.png', (1, 1))  # times too coarse to tell two writes apart do not matter
    changed = {**files, 'train/cat/0.png': encoded(random_image())}
    second = load(written(changed))
    assert contents(second) == expected(changed) != contents(first)
    assert len(os.listdir(cache.directory())) == 3


def test_an_archive_may_move(tmp_path, files):
    load(write_tar(tmp_path / 'x', files))
    notices = []
    load(shutil.move(str(tmp_path / 'x'), str(tmp_path / 'y')), on_progress=notices.append)
    assert notices == []


def test_a_damaged_cache_is_made_anew(tmp_path, files):
    first = load(write_tar(tmp_path / 'x', files))
    array, = cache.directory().glob('*/train_images.npy')
    array.write_bytes(array.read_bytes()[:-1] + b'x')
    notices = []
    second = load(tmp_path / 'x', on_progress=notices.append)
    assert 'is damaged and is made anew' in notices[0] and second.fingerprint == first.fingerprint


def test_without_a_cache_the_data_set_is_there_all_the_same(tmp_path, files, isolated):
    (isolated / 'cache').write_text('in the way')
    notices = []
    assert contents(load(write_folder(tmp_path, files), on_progress=notices.append)) == expected(files)
    assert notices[-1].startswith('not kept for the next time: ')


def test_labels_follow_the_sorted_names_of_the_classes():
    from gluon_aa.data.layout import Place
    places = [Place('train', 'b', '0'), Place('train', 'a', '1'), Place('test', 'b', '0'), Place('train', 'a', '0')]
    pictures = [np.full((1, 1, 1), number, np.uint8) for number in range(4)]
    arrays = _arrays(places, pictures, ('a', 'b'))
    assert arrays['train_labels'].tolist() == [0, 0, 1] and arrays['test_labels'].tolist() == [1]
    assert arrays['train_images'].ravel().tolist() == [3, 1, 0] and arrays['test_images'].ravel().tolist() == [2]
