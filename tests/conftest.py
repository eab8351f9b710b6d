"""Every test starts from the same seeds and ends with MXNet idle: an asynchronous error shows where it was made."""
import signal

import gluon_aa  # noqa: F401  before MXNet

import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.training import tracking


@pytest.fixture(autouse=True)
def seeded_and_idle():
    np.random.seed(0)
    mx.random.seed(0)
    yield
    mx.nd.waitall()


@pytest.fixture(autouse=True)
def heeding_signals():
    """Whatever the shell that started the tests lets its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def without_curves(monkeypatch):
    """Leave curves.png out: drawing it takes half the time of a small training."""
    monkeypatch.setattr(tracking, 'draw_curves', lambda rows, path, title: None)


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """Run the test in an empty directory, so that the default run directory lands there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
