"""Training a model of which whole parts are frozen, such as the encoder and the language model of BLIP-2.

The state's `params`, the optimiser and the checkpoints have what is trained alone. The frozen parameters are inputs of
the step: no gradient is taken for them, so that nothing that only they would need is kept for the backward pass. They
are written once, into the work directory, from which a run is resumed and loaded.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Key, PyTree

from vidjax.fields import check_values
from vidjax.runs.adapting import Split
from vidjax.training.checkpoint import has_checkpoint, save_frozen
from vidjax.training.int8 import dequantized, quantized, times_scale

FrozenType = Literal["auto", "float32", "bfloat16", "int8"]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _constant_floats(values: Array, scale: Array, dtype: DTypeLike) -> Array:
    """`times_scale` as one operation, which `_keeps` can tell from others by its int8."""
    return times_scale(values, scale, dtype)


@_constant_floats.defjvp
def _no_derivative(dtype: DTypeLike, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    output = times_scale(*primals, dtype)
    return output, jnp.zeros_like(output)


def _keeps(primitive: Any, *inputs: Any, **settings: Any) -> bool:
    """Whether the backward pass keeps what an operation computed: not the floats of int8."""
    return all(getattr(each, "dtype", None) != jnp.int8 for each in inputs)


@dataclasses.dataclass(frozen=True)
class FrozenParts(Split):
    """The division of a model's parameters by their paths.

    Attributes:
      parts: beginnings of the paths of the frozen ones.
      kind: how frozen kernels and tables are kept; biases and norms, of one axis, are float32. `auto` is bfloat16 on
        accelerators, float32 on a CPU. See `training.int8`.
      dtype: type of the computation, which int8 become in the step.
    """

    parts: tuple[str, ...]
    kind: FrozenType = "auto"
    dtype: DTypeLike = jnp.float32
    used = True

    def __post_init__(self) -> None:
        check_values(self, "frozen ")

    def split(self, params: PyTree, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """The trained parameters at the start of a run, and the frozen ones as they are kept."""
        flat = flatten_dict(params, sep="/")
        frozen = {path: self._stored(leaf) for path, leaf in flat.items() if path.startswith(self.parts)}
        few = {path: leaf for path, leaf in flat.items() if path not in frozen}
        frozen = quantized(frozen) if self.kind == "int8" else frozen
        return unflatten_dict(few, sep="/"), unflatten_dict(frozen, sep="/")

    def merge(self, few: PyTree, frozen: PyTree) -> dict[str, PyTree]:
        """The parameters of the model."""
        flat = flatten_dict(frozen, sep="/")
        if self.kind == "int8":
            flat = dequantized(flat, self.dtype, _constant_floats)
        return unflatten_dict(flat | flatten_dict(few, sep="/"), sep="/")

    def loss(self, loss_fn: Callable) -> Callable:
        """See `Split.loss`. The backward pass makes the floats of int8 again, instead of keeping those of the loss."""
        adapted = super().loss(loss_fn)
        return jax.checkpoint(adapted, policy=_keeps) if self.kind == "int8" else adapted

    def remember(self, workdir: Path, source: str, frozen: PyTree) -> None:
        """Writes the frozen parameters, unless the run is resumed, which has read them."""
        if not has_checkpoint(workdir):
            save_frozen(workdir, frozen)

    def _stored(self, leaf: Array) -> Array:
        if self.kind == "int8":
            return leaf
        auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return leaf.astype(jnp.dtype(auto if self.kind == "auto" else self.kind)) if leaf.ndim > 1 else leaf
