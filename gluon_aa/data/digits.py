"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, embedded in the library.

Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test set); grey levels 0 to 16.
"""
import pathlib
from typing import Optional

import numpy as np
from sklearn.datasets import load_digits

from gluon_aa.data.source import Request, Splits
from gluon_aa.data.split import Split, hold_out

CLASSES = tuple('0123456789')
VALIDATION_IMAGES = 180
TEST_IMAGES = 360


def load(request: Request) -> Splits:
    """Training (1,257), validation (180) and test (360) images, (N, 1, 8, 8), stratified."""
    data = load_digits()
    images = data.images[:, np.newaxis].astype(np.uint8)  # (N, 8, 8) -> (N, 1, 8, 8)
    rest, test = hold_out(Split(images, data.target.astype(np.int32)), TEST_IMAGES)
    train, val = hold_out(rest, VALIDATION_IMAGES)
    return Splits(train, val, test, CLASSES)


def find(data_dir: Optional[pathlib.Path] = None) -> Optional[str]:
    """Where the data lies."""
    return 'embedded in scikit-learn'
