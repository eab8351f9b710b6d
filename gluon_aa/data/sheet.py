"""Images side by side on one sheet, as the replication's first figure: every pixel a square, class names beneath."""
import pathlib
from typing import List, Sequence, Tuple

import numpy as np

from gluon_aa.files import replacing

DPI = 100
#: Images a row; more make more rows.
COLUMNS = 10
#: In dots of the sheet: images are enlarged a whole number of times, to about IMAGE.
IMAGE, GAP, NAME, BLOCK_GAP, MARGIN = 128, 8, 20, 16, 12
FONT_POINTS = 10
#: Dots of a letter, on average.
LETTER = 8.5


def draw_sheet(path: pathlib.Path, images: np.ndarray, names: Sequence[str], variants: Sequence[np.ndarray] = (),
               white: int = 255) -> None:
    """Write a PNG of `images`, whole or not at all.

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3.
        names: of the N images' classes.
        variants: other versions of the images, each (N, C, H, W): a row of each beneath the images' own.
        white: the level that is drawn white in grey images.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    canvas, below = _compose(images, variants, white)
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.figimage(canvas)
    for name, (center, top, cell) in zip(names, below):
        figure.text(center / width, 1 - top / height, _shortened(name, cell), ha='center', va='top',
                    fontsize=FONT_POINTS)
    with replacing(path) as temporary:
        figure.savefig(str(temporary), format='png', dpi=DPI)


def _compose(images: np.ndarray, variants: Sequence[np.ndarray],
             white: int) -> Tuple[np.ndarray, List[Tuple[float, int, int]]]:
    """The sheet (H, W, 3) uint8 without names; where each name goes: (its middle, its top, dots it may be wide)."""
    count, _, height, width = images.shape
    scale = max(1, round(IMAGE / max(height, width)))
    height, width = height * scale, width * scale
    columns, blocks = min(count, COLUMNS), -(-count // COLUMNS)
    block = (height + GAP) * (1 + len(variants)) + NAME + BLOCK_GAP
    canvas = np.full((blocks * block - BLOCK_GAP - (GAP if variants else 0) + 2 * MARGIN,
                      columns * (width + GAP) - GAP + 2 * MARGIN, 3), 255, np.uint8)
    names = []
    for index in range(count):
        left = MARGIN + index % COLUMNS * (width + GAP)
        top = MARGIN + index // COLUMNS * block
        for row, version in enumerate((images, *variants)):
            begin = top + row * (height + GAP) + (NAME if row else 0)
            canvas[begin:begin + height, left:left + width] = _enlarged(version[index], scale, white)
        names.append((left + width / 2, top + height + GAP // 2, width + GAP))
    return canvas, names


def _enlarged(image: np.ndarray, scale: int, white: int) -> np.ndarray:
    """(C, H, W) -> (H * scale, W * scale, 3 or 1), grey ones from black to white."""
    if len(image) == 1:
        image = (image * (255 / max(white, 1))).round().astype(np.uint8)
    return image.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)


def _shortened(name: str, width: int) -> str:
    """`name`, cut so that it fits `width` dots; matplotlib would take dollars for mathematics."""
    letters = max(4, int(width / LETTER))
    return (name if len(name) <= letters else f'{name[:letters - 1]}…').replace('$', r'\$')
