"""A part of a data set, and how validation images are held out."""
from typing import NamedTuple, Tuple

import numpy as np
from sklearn.model_selection import train_test_split

#: Of every split: part of the data sets' definition, independent of a training's seed.
SPLIT_SEED = 0


class Split(NamedTuple):
    """Images (N, C, H, W) uint8, labels (N,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def hold_out(split: Split, size: int) -> Tuple[Split, Split]:
    """(the rest, `size` images held out), stratified by label, the same every time."""
    rest, held = train_test_split(np.arange(len(split.labels)), test_size=size, stratify=split.labels,
                                  random_state=SPLIT_SEED)
    return Split(split.images[rest], split.labels[rest]), Split(split.images[held], split.labels[held])
