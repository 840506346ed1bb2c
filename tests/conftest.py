"""For all tests: shapes and types that vidjax's signatures promise are checked, and recorders can be imported."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Eight simulated devices: sharded code is tested everywhere. Tiny programs that run once are compiled the quick way,
# which halves the time of the whole suite. Set before JAX starts.
# What the environment says counts: of a flag given twice, XLA takes the last.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# What one test, worker or script has compiled is compiled for all, down to the smallest program: a script has dozens of
# these. The first of the processes makes and removes the folder.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vidjax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest
from jaxtyping import config, install_import_hook

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "goldens"), str(TESTS.parent / "experiments")]
install_import_hook(["vidjax", "benchmark"], "checker.typechecker")  # before anything imports these


SLOW = ("benchmark", "colabs", "convert", "docs", "experiments", "models")
"""Folders whose tests `pytest -m fast` leaves out; a new folder is fast until it stands here."""
LONG = (
    "mae_pretrain", "contrastive_pretrain", "finetune", "compare_models", "invalid_clips", "site", "sharding",
    "convolution", "saliency",
)  # fmt: skip
"""Files that take longest, by what they test; `pytest -m fast` leaves these out too."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(items):
    """Marks what is fast; files that take long come first, so that no worker is left alone with one at the end."""
    for item in items:
        item.is_long = item.path.stem.removeprefix("test_") in LONG
        if item.path.parent.name not in SLOW and not item.is_long:
            item.add_marker("fast")
    items.sort(key=lambda item: (not item.is_long, item.path.parent.name not in SLOW))


@pytest.fixture
def unchecked():
    """Signatures promise what they like, as for users: what the library itself refuses is reached."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
