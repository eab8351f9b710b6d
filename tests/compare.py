"""Comparing arrays by the largest magnitude of the reference, as the operator's tolerances are stated."""
import numpy as np


def relative_error(actual, expected):
    """max |actual - expected| / max |expected|; inf where the shapes differ or a value is not finite."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float('inf')
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
