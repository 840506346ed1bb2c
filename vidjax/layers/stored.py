"""Frozen parameters stored in fewer bits, as functions of the parameters: bfloat16, or int8 with a scale per output.

Kernels and tables are stored so, parameters of one axis and small ones as they are. qwix is not used: by its code
(0.1.8), it wraps kernels in array types of its own, to which LoRA's products cannot be added.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, PyTree

Kind = Literal["float32", "bfloat16", "int8"]
LEAST = 4096
"""Values of the smallest array that is stored in fewer bits."""
VALUES, SCALE = "int8", "scale_of_int8"
RESTORED = "restored"


def store(params: PyTree, kind: Kind) -> dict[str, PyTree]:
    """The parameters, large arrays of two and more axes in fewer bits; int8 ones are two arrays below their name.

    The largest magnitude among the weights of an output becomes 127, so that the error is at most 1/254 of it.
    """
    if kind == "float32":
        return params
    stored: dict[str, Array] = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        leaf = jnp.asarray(leaf)
        if leaf.ndim < 2 or leaf.size < LEAST or not jnp.issubdtype(leaf.dtype, jnp.floating):
            stored[path] = leaf
        elif kind == "bfloat16":
            stored[path] = leaf.astype(jnp.bfloat16)
        else:
            largest = jnp.abs(leaf).max(axis=tuple(range(leaf.ndim - 1)), keepdims=True)
            scale = jnp.where(largest > 0, largest, 1.0) / 127
            stored[f"{path}/{VALUES}"] = jnp.round(leaf / scale).astype(jnp.int8)
            stored[f"{path}/{SCALE}"] = scale
    return unflatten_dict(stored, sep="/")


def restore(stored: PyTree) -> dict[str, PyTree]:
    """The parameters as models take them: int8 ones in float32, those in bfloat16 as they are."""
    flat = flatten_dict(stored, sep="/")
    params = {path: leaf for path, leaf in flat.items() if path.rpartition("/")[2] not in (VALUES, SCALE)}
    for path, values in flat.items():
        name, _, last = path.rpartition("/")
        if last == VALUES:
            params[name] = checkpoint_name(values.astype(jnp.float32) * flat[f"{name}/{SCALE}"], RESTORED)
    return unflatten_dict(params, sep="/")


def without_residuals(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose gradient restores int8 parameters again instead of keeping them in float32."""
    return jax.checkpoint(function, policy=jax.checkpoint_policies.save_anything_except_these_names(RESTORED))
