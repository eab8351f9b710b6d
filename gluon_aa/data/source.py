"""What a data set is asked for, and what it gives."""
import pathlib
from typing import Callable, NamedTuple, Optional, Tuple

from gluon_aa.data.split import Split

Notice = Callable[[str], None]


def silent(notice: str) -> None:
    """Hears a notice, such as "downloading ... (170 MB)", and says nothing."""


class Request(NamedTuple):
    """How a data set is to be read; the fields are options of `load_dataset`."""

    data_dir: Optional[pathlib.Path] = None
    allow_unverified: bool = False
    input_size: Optional[Tuple[int, int]] = None  # (H, W) in pixels
    on_progress: Notice = silent


class Splits(NamedTuple):
    """A data set's three parts, of images of one shape, and the names of its classes."""

    train: Split
    val: Split
    test: Split
    classes: Tuple[str, ...]
