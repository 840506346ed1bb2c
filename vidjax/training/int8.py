"""Parameters as int8, for parts that are frozen: kernels with a scale for each output channel, tables for each row.

A value is its integer, -127 to 127, times the scale, the largest magnitude of its channel over 127. Scales have the
eight significant bits of bfloat16, so that integer and scale make a float32 exactly, of which the same integer and
scale are made again: a run that is resumed from them has the same parameters.

qwix quantises such kernels by intercepting the products of a model. It is not used here: every reader of a run would
need its wrapper, and with float activations it meets neither the convolutions of an encoder nor the table of words,
which OPT and GPT-2 share with their last layer.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

Leaf = Array | np.ndarray
VALUES, SCALE = "/int8", "/scale"
"""What the path of a parameter ends with for its integers and its scales."""


def quantized(params: dict[str, Leaf]) -> dict[str, Leaf]:
    """Parameters by path, those of two axes or more as int8 and scales.

    Example:
      >>> quantized({"fc1/kernel": jnp.ones((4, 2))}).keys()
      dict_keys(['fc1/kernel/int8', 'fc1/kernel/scale'])
    """
    result = {}
    for path, leaf in params.items():
        if leaf.ndim < 2:  # biases and norms
            result[path] = leaf
            continue
        axes = tuple(range(leaf.ndim - 1)) if path.endswith("kernel") else -1
        scale = (jnp.abs(leaf).max(axes, keepdims=True) / 127).astype(jnp.bfloat16)
        divisor = jnp.where(scale > 0, scale, 1).astype(jnp.float32)
        result[path + VALUES] = jnp.round(leaf / divisor).astype(jnp.int8)
        result[path + SCALE] = scale
    return result


def times_scale(values: Leaf, scale: Leaf, dtype: DTypeLike) -> Leaf:
    """The floats of integers with their scale, on the device or the host where they are."""
    return (values.astype(np.float32) * scale.astype(np.float32)).astype(dtype)


def dequantized(
    params: dict[str, Leaf], dtype: DTypeLike = np.float32, times: Callable[..., Leaf] = times_scale
) -> dict[str, Leaf]:
    """The parameters of `quantized`, those of two axes or more in `dtype`; others are returned as they are.

    Args:
      times: `times_scale`, or a function that computes the same.
    """
    result = {}
    for path, leaf in params.items():
        name = path.removesuffix(VALUES)
        if name != path:
            result[name] = times(leaf, params[name + SCALE], dtype)
        elif path.removesuffix(SCALE) + VALUES not in params:
            result[path] = leaf
    return result
