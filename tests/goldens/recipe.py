"""Goldens: recorded outputs of published implementations, for parameters that are a function of name and shape.

A golden consists of `NAME.json` (configuration, inputs, published names and shapes of the state dict) and `NAME.npz`
(outputs, integer inputs). As the parameters are not stored, a golden of any size takes a few kilobytes. Each bias,
scale, table and running statistic differs from its initial value and so affects the outputs.
"""

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ELSEWHERE = HERE.parents[2] / "shared" / "goldens"  # larger goldens, which not every machine has


class Golden(NamedTuple):
    """A recording: its configuration, float and stored inputs, weights by published name, and outputs."""

    config: dict
    inputs: list[np.ndarray]
    weights: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def load(name: str) -> Golden:
    """The golden with this name; the test is skipped if it is not available."""
    folder = next((folder for folder in (HERE, ELSEWHERE) if (folder / f"{name}.json").is_file()), None)
    if folder is None:
        pytest.skip(f"the golden {name} is not on this machine")
    description = json.loads((folder / f"{name}.json").read_text())
    stored = dict(np.load(folder / f"{name}.npz"))
    inputs = [
        floats(entry["name"], tuple(entry["shape"])) if entry["kind"] == "floats" else stored[entry["name"]]
        for entry in description["inputs"]
    ]
    weights = {name: parameter(name, tuple(shape)) for name, shape in description["state_dict"].items()}
    if "squeeze" in description:  # norms over the channels of a sequence, whose shape is (1, c, 1)
        for name, shape in description["state_dict"].items():
            if len(shape) == 3 and shape[0] == shape[2] == 1 and name.endswith(("weight", "bias")):
                weights[name] = parameter(name, (shape[1],)).reshape(shape)
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
