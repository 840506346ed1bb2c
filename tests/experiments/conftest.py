"""For the tests of scripts: two devices."""

import pytest
import small_runs


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """In each of these files, but not in those that run between them in the same process."""
    with small_runs.two_devices():
        yield
