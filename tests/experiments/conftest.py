"""For the tests of scripts: two devices."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def two_devices() -> Iterator[None]:
    """Scripts see two of the eight simulated devices in these files: on all, they would take half as much time again.

    `jax.local_devices()` and `jax.devices("cpu")` are all eight.
    """
    find, two = jax.devices, jax.devices()[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: find(*backend) if backend else two)
        patch.setattr(jax, "device_count", lambda *backend: len(jax.devices(*backend)))
        yield
