"""Which tokens a masked autoencoder keeps, and which it predicts.

Each function draws one clip's mask from a key and returns sorted token indices in `(t h w)` order. The counts follow
from the grid and the ratio alone, so shapes are static under jit; `jax.vmap` over keys makes a batch:

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
    """A random subset of `range(count)` of `int(ratio * count)` masked members, and the kept ones, each sorted."""
    masked = int(ratio * count)
    if not 0 < masked < count:
        left = "masked" if masked <= 0 else "visible"
        raise UserError(
            f"mask ratio {ratio} leaves no {left} one of {count} {what}: choose another ratio, or larger clips"
        )
    order = jax.random.permutation(key, count)
    return jnp.sort(order[masked:]), jnp.sort(order[:masked])


def tube(key: Key[Array, ""], grid: Grid, ratio: float) -> tuple[Int[Array, "m"], Int[Array, "r"]]:
    """Tube masking (VideoMAE, section 3.2): one spatial mask, the same at every time.

    Returns:
      Indices of the kept tokens and of the masked ones; `int(ratio * h * w)` are masked at each time.
    """
    t, h, w = grid
    offsets = jnp.arange(t)[:, None] * (h * w)
    kept, masked = _split(key, h * w, ratio, "positions")
    return (offsets + kept).reshape(-1), (offsets + masked).reshape(-1)


def random(key: Key[Array, ""], grid: Grid, ratio: float) -> tuple[Int[Array, "m"], Int[Array, "r"]]:
    """Space-time-agnostic masking (Feichtenhofer et al. 2022): `int(ratio * t * h * w)` tokens anywhere."""
    t, h, w = grid
    return _split(key, t * h * w, ratio, "tokens")


def frame(key: Key[Array, ""], grid: Grid, ratio: float) -> tuple[Int[Array, "m"], Int[Array, "r"]]:
    """Frame masking: `int(ratio * t)` whole times are masked."""
    t, h, w = grid
    within = jnp.arange(h * w)
    kept, masked = _split(key, t, ratio, "times")
    return tuple((times[:, None] * (h * w) + within).reshape(-1) for times in (kept, masked))


MASKS: dict[str, Callable] = {"tube": tube, "random": random, "frame": frame}


def running_cell(key: Key[Array, ""], grid: Grid) -> Int[Array, "r"]:
    """Half of all tokens, for the decoder (running cell masking of VideoMAE v2, arXiv:2303.16727, section 3.1).

    Every 2x2 cell of positions keeps two of its four, and the pair runs round the cell with time, from a start drawn
    once a clip; the same in all cells. Some of these tokens are visible to the encoder: the released code gives the
    decoder a mask token for them all the same and leaves them out of the loss (`objectives.reconstruction`).

    Raises:
      UserError: height or width of the grid is odd.
    """
    t, h, w = grid
    if h % 2 or w % 2:
        raise UserError(f"running cell masking wants an even grid of patches, not {h} by {w}: change the clip's size")
    start = jax.random.randint(key, (), 0, 4)
    time, row, column = jnp.meshgrid(jnp.arange(t), jnp.arange(h), jnp.arange(w), indexing="ij")
    place = (2 * (row % 2) + column % 2 + time + 1 + start) % 4  # places 2 and 3 of the running cell are kept
    return jnp.flatnonzero(place.reshape(-1) >= 2, size=t * h * w // 2)


def membership(indices: Int[Array, "r"], of: Int[Array, "m"], tokens: int) -> Int[Array, "r"]:
    """1 where a token of `indices` is one of `of`, else 0, in a clip of `tokens` tokens."""
    return jnp.zeros(tokens, jnp.int32).at[of].set(1)[indices]


def draw(
    key: Key[Array, ""],
    clips: int,
    grid: Grid,
    mask: Literal["tube", "random", "frame"] = "tube",
    ratio: float = 0.9,
    decoder_mask: Literal["none", "running_cell"] = "none",
) -> tuple[Int[Array, "b m"], Int[Array, "b r"], Int[Array, "b r"]]:
    """The masks of a batch, every clip its own.

    Returns:
      Token indices that the encoder keeps, those that the decoder predicts, and 1 for the predicted ones that count in
      the loss: all masked tokens, or with `running_cell` half of all tokens, of which the masked ones count.

    Raises:
      UserError: there is no such mask, or the ratio leaves no token to keep or to predict.
    """
    if mask not in MASKS:
        raise UserError(f"mask is '{mask}': choose one of {', '.join(MASKS)}")
    if decoder_mask not in ("none", "running_cell"):
        raise UserError(f"decoder_mask is '{decoder_mask}': choose none or running_cell")

    def draw_one(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        key, decoder_key = jax.random.split(key)
        kept, masked = MASKS[mask](key, grid, ratio)
        predicted = masked if decoder_mask == "none" else running_cell(decoder_key, grid)
        return kept, predicted, membership(predicted, masked, prod(grid))

    return jax.vmap(draw_one)(jax.random.split(key, clips))
