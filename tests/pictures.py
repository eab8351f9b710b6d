"""Folders, archives and images for tests, made by hand."""
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from gluon_aa.data import cifar


@pytest.fixture
def own_directories(tmp_path_factory, monkeypatch):
    """MXNet's data directory and the cache of this test alone, both empty, and no host to download from."""
    home = tmp_path_factory.mktemp('home')
    monkeypatch.setenv('MXNET_HOME', str(home / 'mxnet'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(home / 'cache'))
    monkeypatch.setenv('MXNET_GLUON_REPO', 'http://127.0.0.1:9')
    for name, row in cifar.FORMATS.items():
        monkeypatch.setitem(cifar.FORMATS, name, row._replace(url='http://127.0.0.1:9/official'))
    return home


def random_image(height=6, width=9, channels=3):
    """(H, W, C) uint8."""
    return np.random.randint(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, kind='PNG', **options):
    """The content of a file of `image` (H, W, C), C = 1 or 3, or of a Pillow image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def drawn(path):
    """The pixels (H, W, 3) of an image file."""
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))


def folder_files(classes=('cat', 'dog'), train=6, test=2, **size):
    """Names -> contents of a folder data set of PNGs."""
    return {f'{part}/{label}/{number}.png': encoded(random_image(**size))
            for part, count in (('train', train), ('test', test)) for label in classes for number in range(count)}


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def member(name, content=b'', kind=tarfile.REGTYPE, **attributes):
    """A tar member's header and content."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def write_tar(path, members, mode='w'):
    """A tar archive of a dictionary (names -> contents) or of `member`s."""
    if isinstance(members, dict):
        members = [member(name, content) for name, content in members.items()]
    with tarfile.open(str(path), mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path
