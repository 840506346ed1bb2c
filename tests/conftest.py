"""For all tests: XLA compiles fast, and the tests' modules can be imported.

With VIDJAX_CHECK_SIGNATURES=1, shapes and types in vidjax's signatures are checked, which takes a fifth of the time.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

# Eight simulated devices, so that sharded code is tested everywhere. Without optimisation tiny programs compile fast,
# which halves the time of the whole suite; so they do without emitters of fusions, which JAX has since 0.12 only with,
# and a tenth more where XLA does not cut them into 32 modules to compile these side by side.
# Set before JAX starts; flags in the environment come last and win.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1 "
    + ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs without the stack of each operation, which has a hundred frames in Flax: lowering takes a twentieth less.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Tests, workers and scripts share one compilation cache, with even the smallest programs, of which a script has dozens.
# The first process creates and removes the folder.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vidjax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from flax.core import scope
from jaxtyping import config, install_import_hook

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "goldens"), str(TESTS.parent / "experiments")]
if os.environ.get("VIDJAX_CHECK_SIGNATURES"):
    install_import_hook(["vidjax", "benchmark"], "checker.typechecker")  # before anything imports these

# Tracing makes many objects that live on: collecting garbage less often saves an eighth of its time.
gc.set_threshold(200_000, 20, 100)


class RememberedShapes:
    """JAX as Flax's scopes see it: the shapes that an initialiser returns are traced once in a process.

    When a parameter is read, Flax traces its initialiser again to compare the shapes: an eighth of the tests' time.
    """

    shapes: ClassVar[dict] = {}

    def __getattr__(self, name):
        return getattr(jax, name)

    def eval_shape(self, initialise):
        variables = [cell.cell_contents for cell in initialise.__closure__]
        key = tuple(tuple(value.items()) if isinstance(value, dict) else value for value in variables)
        try:
            known = key in self.shapes
        except TypeError:  # a field of the initialiser that cannot be hashed
            return jax.eval_shape(initialise)
        if not known:
            self.shapes[key] = jax.eval_shape(initialise)
        return self.shapes[key]


scope.jax = RememberedShapes()

SLOW = ("benchmark", "colabs", "convert", "docs", "experiments", "models")
"""Folders whose tests `pytest -m fast` leaves out; other folders are fast."""
LONG = (
    "mae_pretrain", "contrastive_pretrain", "finetune", "compare_models", "invalid_clips", "site", "sharding",
    "convolution", "saliency", "ring_attention", "memory", "probe_grid", "contrastive", "pipeline", "house", "decode",
    "timeline", "multi_block", "published", "notebooks", "shell_blocks", "device",
)  # fmt: skip
"""The files that take longest, named without `test_`; `pytest -m fast` leaves these out too."""


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by -m
def pytest_collection_modifyitems(items):
    """Marks fast tests, and runs long files first, so that no worker is left with one at the end."""
    for item in items:
        item.is_long = item.path.stem.removeprefix("test_") in LONG
        if item.path.parent.name not in SLOW and not item.is_long and not item.get_closest_marker("long"):
            item.add_marker("fast")
    items.sort(key=lambda item: (not item.is_long, item.path.parent.name not in SLOW))


@pytest.fixture
def unchecked():
    """Signatures are not checked, as for users, so that a test reaches the library's own checks."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
