"""The sheet of samples: every pixel of every image is a square of its colour."""
import numpy as np
import pytest

from gluon_aa.data.sheet import COLUMNS, GAP, MARGIN, draw_sheet
from pictures import drawn, random_image


def pictures(count, *shape):
    return np.stack([random_image(*shape).transpose(2, 0, 1) for _ in range(count)])


@pytest.mark.parametrize('height, width, scale', [(32, 32, 4), (8, 8, 16), (20, 48, 3), (150, 100, 1), (300, 300, 1)])
def test_images_are_enlarged_a_whole_number_of_times(tmp_path, height, width, scale):
    images = pictures(3, height, width)
    draw_sheet(tmp_path / 'x.png', images, ['a', 'b', 'c'])
    sheet = drawn(tmp_path / 'x.png')
    for index, image in enumerate(images):
        left = MARGIN + index * (width * scale + GAP)
        found = sheet[MARGIN:MARGIN + height * scale, left:left + width * scale]
        assert np.array_equal(found, np.kron(image.transpose(1, 2, 0), np.ones((scale, scale, 1), np.uint8)))
    assert (sheet[:, -MARGIN:] == 255).all() and (sheet[:, :MARGIN] == 255).all()
    assert [path.name for path in tmp_path.iterdir()] == ['x.png']


def test_names_stand_beneath(tmp_path):
    draw_sheet(tmp_path / 'x.png', np.full((2, 3, 32, 32), 255, np.uint8), ['dog', ''])
    dark = np.argwhere(drawn(tmp_path / 'x.png').min(axis=2) < 128)
    assert len(dark) and dark[:, 0].min() > MARGIN + 128
    center = (dark[:, 1].min() + dark[:, 1].max()) / 2
    assert center == pytest.approx(MARGIN + 64, abs=2)


@pytest.mark.parametrize('name', ['x' * 300, 'cost $5', '$x^', 'ünïcode', 'a_b^c\\'], ids=['long', *'abcd'])
def test_any_name_can_be_drawn(tmp_path, name):
    draw_sheet(tmp_path / 'x.png', np.full((3, 1, 8, 8), 255, np.uint8), ['', name, ''])
    dark = np.argwhere(drawn(tmp_path / 'x.png').min(axis=2) < 128)
    assert len(dark) and MARGIN + 128 < dark[:, 1].min() and dark[:, 1].max() < MARGIN + 2 * (128 + GAP) + GAP


def test_grey_images_run_from_black_to_white(tmp_path):
    image = np.array([[[0, 16], [4, 8]]], np.uint8)
    draw_sheet(tmp_path / 'x.png', image[np.newaxis], ['0'], white=16)
    sheet = drawn(tmp_path / 'x.png')[MARGIN:MARGIN + 128, MARGIN:MARGIN + 128]
    assert sheet[::64, ::64].tolist() == [[[0] * 3, [255] * 3], [[64] * 3, [128] * 3]]


def test_variants_are_rows_beneath_and_many_images_make_blocks(tmp_path):
    images, variants = pictures(COLUMNS + 1, 32, 32), [pictures(COLUMNS + 1, 32, 32) for _ in range(2)]
    draw_sheet(tmp_path / 'x.png', images, ['name'] * (COLUMNS + 1), variants)
    sheet = drawn(tmp_path / 'x.png')
    assert sheet.shape[1] == 2 * MARGIN + COLUMNS * (128 + GAP) - GAP
    tops = []
    for version in (images, *variants):
        for index in (0, COLUMNS):
            square = version[index].transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
            found = [top for top in range(sheet.shape[0] - 127)
                     if np.array_equal(sheet[top:top + 128, MARGIN:MARGIN + 128], square)]
            assert len(found) == 1
            tops += found
    assert tops[::2] == sorted(tops[::2]) and tops[1::2] == sorted(tops[1::2]) and max(tops[::2]) < min(tops[1::2])


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / 'x.png').write_text('old')

    def full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(OSError):
        draw_sheet(tmp_path / 'x.png', pictures(1, 8, 8), ['a'])
    assert [path.read_text() for path in tmp_path.iterdir()] == ['old']
