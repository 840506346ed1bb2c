"""Helpers for the tests of training scripts."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.data import pipeline
from vidjax.models import variable_shapes


def changed(config: Any, **fields: Any) -> Any:
    """The config with some fields changed; nested fields are written as `data__size`."""
    for name, value in fields.items():
        head, _, rest = name.partition("__")
        part = changed(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: part})
    return config


@contextlib.contextmanager
def two_devices() -> Iterator[None]:
    """Scripts see two of the eight simulated devices: on all, a tiny run takes half as much CPU time again.

    `jax.local_devices()` and `jax.devices("cpu")` are all eight.
    """
    find, two = jax.devices, jax.local_devices()[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: find(*backend) if backend else two)
        patch.setattr(jax, "device_count", lambda *backend: len(jax.devices(*backend)))
        yield


def interrupt_after(batches: int, train: Callable[..., Any], *args: Any) -> None:
    """Trains until `batches` batches have been read, then raises KeyboardInterrupt as Ctrl-C does."""
    read = pipeline.train_batches

    def train_batches(*args, **kwargs):
        yield from itertools.islice(read(*args, **kwargs), batches)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train_batches", train_batches)
        with pytest.raises(KeyboardInterrupt):
            train(*args)


def truncate_largest(directory: Path) -> None:
    """Damages a checkpoint: cuts its largest file in half."""
    largest = max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)


def draw_variables(model: Any) -> dict:
    """Random variables for a model, without zeros: a head or branch that starts at zero hides the layers before it.

    Scales and variances are around 1, and kernels preserve the variance of their inputs.
    """
    draw = np.random.default_rng(1)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(draw.uniform(0.9, 1.1, shape.shape), jnp.float32)
        fan_in = np.prod(shape.shape[:-1]) if path[-1].key == "kernel" else 2500.0
        return jnp.asarray(draw.standard_normal(shape.shape) * fan_in**-0.5, jnp.float32)

    shapes = variable_shapes(model)
    return jax.tree.map_with_path(leaf, shapes)
