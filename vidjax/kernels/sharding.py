"""How clips lie on the mesh of devices."""

from collections.abc import Sequence
from math import prod

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float


def split_clips(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Keeps the leading axis split over `data` and `fsdp` of the mesh in context, if there is one; the gradient's too.

    Equals `x`.

    For what blocks hand on: where they run in a loop XLA would split it as the parameters are split, and gather clips
    in place of weights (VideoMAE-B's pre-training step over eight devices sent 17 times as many bytes). Frames folded
    into that axis are not split over `sequence`. Outside of `jax.jit`, and for axes that are not Auto, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = clip_axes(mesh, mesh.auto_axes, x.shape[0])
    if axes is None or not isinstance(x, jax.core.Tracer):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def clip_axes(mesh: AbstractMesh, among: Sequence[str], rows: int) -> tuple[str, ...] | None:
    """Mesh axes that so many clips (or frames, one clip's after another's) are split over, if they divide them."""
    axes = tuple(axis for axis in ("data", "fsdp") if axis in among)
    groups = prod(mesh.shape[axis] for axis in axes)
    return axes if groups > 1 and rows % groups == 0 else None
