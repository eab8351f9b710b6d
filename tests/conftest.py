"""Every test starts from the same seeds and ends with MXNet idle: an asynchronous error shows where it was made."""
import signal

import gluon_aa  # noqa: F401  before MXNet

import numpy as np
import pytest

from gluon_aa.compat import mx


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
def in_tmp_path(tmp_path, monkeypatch):
    """Run the test in an empty directory, so that the default run directory lands there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
