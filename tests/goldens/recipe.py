"""Goldens: what published implementations answer, on parameters that a name and a shape make again.

A golden is `NAME.json` (configuration, inputs, the state dict's names and shapes as published) and `NAME.npz` (outputs,
integer inputs). Every entry of the state dict is a function of its name and shape alone, so that a golden is a few
kilobytes at any size, and each bias, scale, table and running statistic has a say in the outputs.
"""

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ELSEWHERE = HERE.parents[2] / "shared" / "goldens"  # larger goldens, beside the checkout where there are any


class Golden(NamedTuple):
    """A recorded answer: its configuration, float and stored inputs, weights by published name, and outputs."""

    config: dict
    inputs: list[np.ndarray]
    weights: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def load(name: str) -> Golden:
    """The golden of this name; the test is skipped where it is not at hand."""
    folder = next((folder for folder in (HERE, ELSEWHERE) if (folder / f"{name}.json").is_file()), None)
    if folder is None:
        pytest.skip(f"golden {name} is not at hand")
    description = json.loads((folder / f"{name}.json").read_text())
    stored = dict(np.load(folder / f"{name}.npz"))
    inputs = [
        floats(entry["name"], tuple(entry["shape"])) if entry["kind"] == "floats" else stored[entry["name"]]
        for entry in description["inputs"]
    ]
    weights = {name: parameter(name, tuple(shape)) for name, shape in description["state_dict"].items()}
    return Golden(description["config"], inputs, weights, stored)


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)


def floats(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A standard normal float32 input."""
    return _normal(name, shape)


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the state dict's entry `name`: norms near one, biases near zero, kernels of unit gain."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    z = _normal(name, shape)
    if name.endswith("running_var"):
        return (1.0 + 0.5 * np.tanh(z)).astype(np.float32)
    if not shape:  # scalars, such as CLIP's logit scale
        return np.asarray(1.0 + 0.1 * z, np.float32)
    if len(shape) == 1:
        return (float(name.endswith("weight")) + 0.1 * z).astype(np.float32)
    if "embed" in name and "proj" not in name:  # position, time, token and class tables
        return (0.2 * z).astype(np.float32)
    return (z / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
