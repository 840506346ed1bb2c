"""Sharding of clips over the device mesh."""

from collections.abc import Sequence
from math import prod

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float


def split_clips(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Constrains the leading axis, also of the gradient, to be sharded over `data` and `fsdp` of the current mesh.

    Equals `x`.

    Applied between transformer blocks: in a loop over blocks, XLA would otherwise shard activations like the parameters
    and gather clips instead of weights (VideoMAE-B's pre-training step over eight devices sent 17 times as many bytes).
    Frames folded into this axis are not split over `sequence`. Does nothing without a mesh, outside of `jax.jit`, and
    for axes that are not Auto.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = clip_axes(mesh, mesh.auto_axes, x.shape[0])
    if axes is None or not isinstance(x, jax.core.Tracer):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def clip_axes(mesh: AbstractMesh, among: Sequence[str], rows: int) -> tuple[str, ...] | None:
    """The mesh axes over which `rows` clips (or frames, clip by clip) are split; None if they are not divisible."""
    axes = tuple(axis for axis in ("data", "fsdp") if axis in among)
    groups = prod(mesh.shape[axis] for axis in axes)
    return axes if groups > 1 and rows % groups == 0 else None
