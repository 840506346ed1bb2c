"""Mask units: square pieces of a map whose cells are ordered by the poolings that merge them (Hiera)."""

from math import prod

import einops
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Grid = tuple[int, int, int]


def unroll(x: Float[Array, "b t h w d"], poolings: int) -> Float[Array, "b t y x s d"]:
    """Cuts a map into units of `2**poolings` cells a side, whose cells are in the order in which they are pooled.

    The four cells that the first pooling merges are in the four quarters of the cells `s`, and so on.
    """
    x = x[..., None, :]
    for _ in range(poolings):
        x = einops.rearrange(x, "b t (h y) (w x) s d -> b t h w (s y x) d", y=2, x=2)
    return x


def roll(x: Float[Array, "b t y x s d"]) -> Float[Array, "b t h w d"]:
    """The inverse of `unroll`, also after some of the poolings."""
    while x.shape[-2] > 1:
        x = einops.rearrange(x, "b t h w (s y x) d -> b t (h y) (w x) s d", y=2, x=2)
    return x[..., 0, :]


def pool_cells(x: Float[Array, "b u s *d"], parts: int) -> Float[Array, "b u _ *d"]:
    """The maximum over equal parts of each unit's cells."""
    return x if parts == 1 else einops.reduce(x, "b u (p s) ... -> b u s ...", "max", p=parts)


def visible(kept: Int[Array, "b m"], units: Grid, size: tuple[int, int, int]) -> Float[Array, "b t h w"]:
    """1 for the pixels of the units at the indices `kept`, 0 for all others.

    Args:
      units: the grid of units.
      size: of a unit.
    """
    rows = jnp.arange(len(kept))[:, None]
    mask = jnp.zeros((len(kept), prod(units))).at[rows, kept].set(1.0).reshape(-1, *units)
    for axis, side in enumerate(size, start=1):
        mask = mask.repeat(side, axis)
    return mask
