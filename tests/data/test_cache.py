"""The cache: whole or absent, checked, and never in the way."""
import json
import os

import numpy as np
import pytest

from gluon_aa.data import cache


@pytest.fixture
def entry():
    return cache.Entry({'images': np.random.randint(0, 256, (5, 3, 4, 6), dtype=np.uint8),
                        'labels': np.arange(5, dtype=np.int32)}, {'classes': ['a', 'ü']})


def saved(entry, key='key'):
    notices = []
    cache.save(key, entry, notices.append)
    return notices


def loaded(key='key'):
    """(what is loaded, the notices)"""
    notices = []
    return cache.load(key, notices.append), notices


def same(one, other):
    return one.about == other.about and one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(one.arrays[name], array) and one.arrays[name].dtype == array.dtype
        for name, array in other.arrays.items())


def test_what_is_saved_is_loaded(entry, isolated):
    assert loaded() == (None, [])
    assert saved(entry) == []
    found, notices = loaded()
    assert same(found, entry) and notices == []
    path = isolated / 'cache' / 'gluon-aa' / 'datasets'
    assert os.listdir(path) == ['key']
    assert sorted(os.listdir(path / 'key')) == ['images.npy', 'index.json', 'labels.npy']


def test_it_lies_in_the_home_directory_by_default(monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', '/home/someone')
    assert str(cache.directory()) == '/home/someone/.cache/gluon-aa/datasets'


def damages(path):
    """Ways to damage the entry at `path`, by name."""
    def flip(name, place):
        data = bytearray((path / name).read_bytes())
        data[place] ^= 1
        (path / name).write_bytes(data)

    def reclass():
        index = json.loads((path / 'index.json').read_text())
        index['about']['classes'] = ['b', 'a']
        (path / 'index.json').write_text(json.dumps(index))
    return {
        'a flipped bit': lambda: flip('images.npy', -7),
        'a flipped bit in a header': lambda: flip('images.npy', 2),
        'a truncated array': lambda: (path / 'images.npy').write_bytes((path / 'images.npy').read_bytes()[:-1]),
        'an empty array': lambda: (path / 'labels.npy').write_bytes(b''),
        'a missing array': lambda: (path / 'labels.npy').unlink(),
        'a pickle': lambda: np.save(path / 'labels.npy', np.array([{}], object), allow_pickle=True),
        'another array': lambda: np.save(path / 'labels.npy', np.arange(5, dtype=np.int64)),
        'other classes': reclass,
        'no JSON': lambda: (path / 'index.json').write_text('{'),
        'another JSON': lambda: (path / 'index.json').write_text('[]'),
        'no index': lambda: (path / 'index.json').unlink(),
    }


@pytest.mark.parametrize('damage', sorted(damages(None)))
def test_a_damaged_entry_is_refused_with_a_notice_and_replaced(entry, damage):
    saved(entry)
    damages(cache.directory() / 'key')[damage]()
    found, notices = loaded()
    assert found is None and len(notices) == 1
    assert notices[0].startswith(f'{cache.directory() / "key"} is damaged and is made anew (')
    assert saved(entry) == [] and same(loaded()[0], entry)
    assert os.listdir(cache.directory()) == ['key']


def test_a_directory_that_cannot_be_written_is_a_notice(entry, isolated):
    (isolated / 'cache').write_text('no directory')
    notices = saved(entry)
    assert len(notices) == 1 and notices[0].startswith('not kept for the next time: cannot write ')
    assert loaded() == (None, [])


def test_a_disk_that_fills_up_leaves_nothing(entry, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'save', full)
    assert 'No space left on device' in saved(entry)[0]
    assert os.listdir(cache.directory()) == []


def test_of_two_processes_at_once_one_entry_remains(entry, monkeypatch):
    rename = os.rename

    def overtaken(source, target):
        monkeypatch.setattr(os, 'rename', rename)
        assert saved(entry) == []  # the other process
        rename(source, target)
    monkeypatch.setattr(os, 'rename', overtaken)
    assert saved(entry) == []
    assert same(loaded()[0], entry) and os.listdir(cache.directory()) == ['key']


def test_keys_follow_from_their_parts_alone():
    keys = {cache.make_key(*parts) for parts in ([1, 'a'], ['1', 'a'], [1, ['a']], [1, 'b'])}
    assert len(keys) == 4 and cache.make_key(1, 'a') in keys and all(key.isalnum() for key in keys)
