"""Masks of masked autoencoders: the tokens that the encoder sees and the tokens that the decoder predicts.

Each function draws the mask of one clip from a key and returns sorted token indices in `(t h w)` order. The counts
depend only on the grid and the ratio, so shapes are static under jit; `jax.vmap` over keys makes a batch:

    keys = jax.random.split(key, batch)
    kept, masked = jax.vmap(lambda key: tube(key, (8, 14, 14), 0.9))(keys)   # (batch, 160), (batch, 1408)
"""

from collections.abc import Callable
from math import prod
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from vidjax.errors import UserError

Grid = tuple[int, int, int]


def _split(key: Key[Array, ""], count: int, ratio: float, what: str) -> tuple[Array, Array]:
    """Splits `range(count)` at random into kept indices and `int(ratio * count)` masked ones, each sorted."""
    masked = int(ratio * count)
    if not 0 < masked < count:
        kind = "masked" if masked <= 0 else "visible"
        raise UserError(
            f"mask ratio {ratio} leaves no {kind} {what} (of {count}): choose another ratio or larger clips"
        )
    order = jax.random.permutation(key, count)
    return jnp.sort(order[masked:]), jnp.sort(order[:masked])


def tube(key: Key[Array, ""], grid: Grid, ratio: float) -> tuple[Int[Array, "m"], Int[Array, "r"]]:
    """Tube masking (VideoMAE, section 3.2): the same spatial mask at all times.

    Returns:
      Indices of the kept and of the masked tokens; `int(ratio * h * w)` tokens are masked at each time.
    """
    t, h, w = grid
    offsets = jnp.arange(t)[:, None] * (h * w)
    kept, masked = _split(key, h * w, ratio, "positions")
    return (offsets + kept).reshape(-1), (offsets + masked).reshape(-1)


def random(key: Key[Array, ""], grid: Grid, ratio: float) -> tuple[Int[Array, "m"], Int[Array, "r"]]:
    """Space-time-agnostic masking (Feichtenhofer et al. 2022): `int(ratio * t * h * w)` tokens are masked anywhere."""
    t, h, w = grid
    return _split(key, t * h * w, ratio, "tokens")


def frame(key: Key[Array, ""], grid: Grid, ratio: float) -> tuple[Int[Array, "m"], Int[Array, "r"]]:
    """Frame masking: all tokens of `int(ratio * t)` times are masked."""
    t, h, w = grid
    within = jnp.arange(h * w)
    kept, masked = _split(key, t, ratio, "times")
    return tuple((times[:, None] * (h * w) + within).reshape(-1) for times in (kept, masked))


def units(key: Key[Array, ""], grid: Grid, ratio: float) -> Int[Array, "m"]:
    """Masking of Hiera's mask units (facebookresearch/hiera): sorted indices of those that the encoder sees.

    `int(t * h * w * (1 - ratio))` of them are seen, where `random` rounds the number of the others down.
    """
    count = prod(grid)
    kept = int(count * (1 - ratio))
    if not 0 < kept < count:
        kind = "visible" if kept <= 0 else "masked"
        raise UserError(f"mask ratio {ratio} leaves no {kind} units (of {count}): choose another ratio or larger clips")
    return jnp.sort(jax.random.permutation(key, count)[:kept])


MASKS: dict[str, Callable] = {"tube": tube, "random": random, "frame": frame}


def running_cell(key: Key[Array, ""], grid: Grid) -> Int[Array, "r"]:
    """Running cell masking for the decoder (VideoMAE V2, arXiv:2303.16727, section 3.1): indices of half of all tokens.

    Every 2x2 cell of positions keeps two of its four positions, and the pair moves around the cell with time. The start
    is drawn per clip and is the same in all cells. Some of these tokens are visible to the encoder: as in the released
    code, the decoder still gets a mask token for them, and the loss excludes them (`objectives.reconstruction`).

    Raises:
      UserError: the height or width of the grid is odd.
    """
    t, h, w = grid
    if h % 2 or w % 2:
        raise UserError(f"running cell masking needs an even grid of patches, not {h} by {w}: change the clip size")
    start = jax.random.randint(key, (), 0, 4)
    time, row, column = jnp.meshgrid(jnp.arange(t), jnp.arange(h), jnp.arange(w), indexing="ij")
    phase = (2 * (row % 2) + column % 2 + time + 1 + start) % 4  # the cell keeps the positions of phase 2 and 3
    return jnp.flatnonzero(phase.reshape(-1) >= 2, size=t * h * w // 2)


def membership(indices: Int[Array, "r"], of: Int[Array, "m"], tokens: int) -> Int[Array, "r"]:
    """For each of `indices`, 1 if it is among `of`, else 0; `tokens` is the number of tokens in the clip."""
    return jnp.zeros(tokens, jnp.int32).at[of].set(1)[indices]


def hidden_patches(kept: Int[Array, "b m"], units: Grid, patches: Grid) -> Int[Array, "b n"]:
    """1 for the patches that are not in the units at the indices `kept` (Hiera), in `(t h w)` order.

    Args:
      units, patches: the grids of both; a multiple of the other along each axis.
    """
    hidden = jnp.ones((len(kept), prod(units)), jnp.int32).at[jnp.arange(len(kept))[:, None], kept].set(0)
    hidden = hidden.reshape(-1, *units)
    for axis, (unit, patch) in enumerate(zip(units, patches, strict=True), start=1):
        hidden = hidden.repeat(patch // unit, axis)
    return hidden.reshape(len(kept), -1)


def draw(
    key: Key[Array, ""],
    clips: int,
    grid: Grid,
    mask: Literal["tube", "random", "frame"] = "tube",
    ratio: float = 0.9,
    decoder_mask: Literal["none", "running_cell"] = "none",
) -> tuple[Int[Array, "b m"], Int[Array, "b r"], Int[Array, "b r"]]:
    """Draws an independent mask for each clip of a batch.

    Args:
      clips: size of the batch.
      grid: times, rows and columns of tokens.
      mask: what the encoder does not see; one of `MASKS`.
      ratio: fraction of masked tokens.
      decoder_mask: `none` predicts all masked tokens; `running_cell` predicts half of all tokens.

    Returns:
      Indices of the tokens that the encoder sees, indices of those that the decoder predicts, and 1 for the predicted
      tokens that count in the loss: those that are masked.

    Raises:
      UserError: unknown mask, or a ratio that leaves no token visible or none masked.
    """
    if mask not in MASKS:
        raise UserError(f"unknown mask '{mask}': choose one of {', '.join(MASKS)}")
    if decoder_mask not in ("none", "running_cell"):
        raise UserError(f"unknown decoder_mask '{decoder_mask}': choose none or running_cell")

    def draw_one(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        key, decoder_key = jax.random.split(key)
        kept, masked = MASKS[mask](key, grid, ratio)
        predicted = masked if decoder_mask == "none" else running_cell(decoder_key, grid)
        return kept, predicted, membership(predicted, masked, prod(grid))

    return jax.vmap(draw_one)(jax.random.split(key, clips))
