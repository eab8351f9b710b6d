"""No test of the data sets looks at, or writes to, the user's own directories, nor calls a host."""
import pytest

from pictures import own_directories  # noqa: F401


@pytest.fixture(autouse=True)
def isolated(own_directories):  # noqa: F811
    return own_directories
