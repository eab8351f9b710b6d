"""Decoding, against Pillow's own arrays, and what does not decode."""
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from gluon_aa.data import images
from gluon_aa.data.images import decode, decode_all, stack
from gluon_aa.errors import FailedError
from pictures import encoded, random_image


@pytest.mark.parametrize('channels', [1, 3])
def test_png_is_lossless(channels):
    image = random_image(5, 8, channels)
    assert np.array_equal(decode(encoded(image)), image)


@pytest.mark.parametrize('channels', [1, 3])
def test_jpeg_is_near(channels):
    image = np.full((8, 16, channels), 200, np.uint8)
    image[:, 8:] = 40
    result = decode(encoded(image, 'JPEG', quality=95))
    assert result.shape == image.shape and np.abs(result.astype(int) - image).max() <= 4


@pytest.mark.parametrize('mode, channels', [
    ('1', 1), ('L', 1), ('LA', 1), ('P', 3), ('RGB', 3), ('RGBA', 3)])
def test_every_kind_of_8_bits_becomes_grey_or_rgb(mode, channels):
    image = Image.fromarray(random_image(4, 7)).convert(mode)
    expected = np.asarray(image.convert('L' if channels == 1 else 'RGB')).reshape(4, 7, channels)
    assert np.array_equal(decode(encoded(image)), expected)


def test_jpegs_of_print_become_rgb():
    assert decode(encoded(Image.fromarray(random_image(4, 7)).convert('CMYK'), 'JPEG')).shape == (4, 7, 3)


def test_16_bits_a_channel_are_refused():
    image = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    with pytest.raises(ValueError, match='not of 8 bits a channel'):
        decode(encoded(image))


def test_images_are_turned_as_their_exif_says():
    image = random_image(4, 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(decode(encoded(image, exif=exif)), np.rot90(image, -1))


@pytest.mark.parametrize('height, width', [(4, 8), (8, 4), (40, 10), (3, 5)])
def test_resizing_covers_the_size_and_crops_evenly(height, width):
    # a ramp along each axis stays a ramp, centred
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 200, height)[:, None]
    ramp[..., 1] = np.linspace(0, 200, width)
    result = decode(encoded(ramp), (6, 6))
    assert result.shape == (6, 6, 3)
    rows, columns = result[:, 0, 0].astype(int), result[0, :, 1].astype(int)
    assert (np.diff(rows) >= 0).all() and (np.diff(columns) >= 0).all()
    assert rows[0] + rows[-1] == pytest.approx(200, abs=3) and columns[0] + columns[-1] == pytest.approx(200, abs=3)


def test_resizing_is_antialiased():
    image = np.zeros((64, 64, 1), np.uint8)
    image[::2] = 255
    assert np.abs(decode(encoded(image), (8, 8)).astype(int) - 127).max() < 30


def claiming(width, height):
    """A PNG of one pixel whose header claims more."""
    content = bytearray(encoded(random_image(1, 1)))
    content[16:24] = struct.pack('>II', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize('width, height', [(8001, 8000), (10_000, 10_000), (60_000, 60_000)])
def test_an_image_that_would_fill_memory_is_refused_by_its_header(width, height):
    with pytest.raises(FailedError, match="^bomb is no image that can be read .*(64,000,000|bomb)"):
        decode_all([('bomb', lambda: claiming(width, height))])


PNG = encoded(random_image(20, 20))
JPEG = encoded(random_image(20, 20), 'JPEG')


DAMAGED = {
    'empty': b'', 'text': b'no image', 'another kind': encoded(random_image(), 'BMP'), 'half a header': PNG[:40],
    'truncated PNG': PNG[:-30], 'holes': PNG[:60] + bytes(50) + PNG[110:], 'barely a JPEG': JPEG[:30],
    'truncated JPEG': JPEG[:-100]}


@pytest.mark.parametrize('content', list(DAMAGED.values()), ids=list(DAMAGED))
def test_what_does_not_decode_is_named(content):
    with pytest.raises(FailedError, match=r"^'x.png' is no image that can be read \(JPEG or PNG\): ") as caught:
        decode_all([("'good.png'", lambda: PNG), ("'x.png'", lambda: content)])
    assert '\n' not in str(caught.value)


def test_files_that_cannot_be_read_are_named():
    def fail():
        raise PermissionError(13, 'Permission denied')
    with pytest.raises(FailedError, match='^x .*Permission denied'):
        decode_all([('x', fail)])


def test_many_files_come_in_their_order():
    pictures = [np.full((2, 3, 1), number % 256, np.uint8) for number in range(images.CHUNK + 3)]
    files = [(str(number), lambda content=encoded(picture): content) for number, picture in enumerate(pictures)]
    assert np.array_equal(decode_all(files), pictures)
    assert decode_all([]) == []


def test_sizes_that_differ_are_named_with_the_way_out():
    files = [(name, lambda content=encoded(random_image(*size)): content)
             for name, size in (('a', (4, 5)), ('b', (4, 5)), ('c', (5, 4)))]
    with pytest.raises(FailedError, match='^a has 4x5 pixels, but c 5x4: .*HxW, such as --input-size 4x5'):
        decode_all(files)
    assert [image.shape for image in decode_all(files, (3, 2))] == [(3, 2, 3)] * 3


def test_truncated_images_are_refused_after_gluoncv_had_pillow_take_them(monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    for content in (PNG[:-30], JPEG[:-100]):
        with pytest.raises(FailedError, match='is no image that can be read'):
            decode_all([('x', lambda: content)])


@pytest.mark.parametrize('lenient', [False, True])
def test_settings_of_others_are_left_as_they_are(monkeypatch, lenient):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', lenient)
    before = list(warnings.filters)
    decode_all([('x', lambda: PNG)])
    assert warnings.filters == before and ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_stacking_repeats_grey_images_among_coloured_ones():
    grey, coloured = random_image(4, 5, 1), random_image(4, 5, 3)
    result = stack([grey, coloured], 3)
    assert result.shape == (2, 3, 4, 5)
    assert all(np.array_equal(channel, grey[..., 0]) for channel in result[0])
    assert np.array_equal(result[1], coloured.transpose(2, 0, 1))
    assert np.array_equal(stack([grey], 1)[0, 0], grey[..., 0])
