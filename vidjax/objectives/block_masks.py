"""Block-wise masks of images (BEiT, arXiv:2106.08254, algorithm 1) and of stretches of videos (BEVT, arXiv:2112.01529).

Each function draws the mask of one image or clip from a key, and `jax.vmap` over keys makes a batch:

    masked = jax.vmap(lambda key: block_wise(key, 14, 14, 75))(jax.random.split(key, batch))  # (batch, 14, 14)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from vidjax.errors import UserError

ATTEMPTS = 10
"""A mask is finished after so many blocks in a row that do not fit."""


def count_masked(rows: int, columns: int, ratio: float, least: int) -> int:
    """The number of patches to mask.

    Args:
      ratio: of them to all patches.
      least: of a block, see `block_wise`.

    Raises:
      UserError: a mask would leave nothing visible, or nothing to predict.
    """
    count = round(ratio * rows * columns)
    what = f"mask_ratio {ratio:g} of {rows}x{columns} patches"
    if count < 1 or count < least:
        raise UserError(
            f"{what} leaves nothing to predict: {count} masked patches are fewer than one block of {least}, raise the "
            "ratio, lower --least_patches or use larger clips"
        )
    if count >= rows * columns:
        raise UserError(f"{what} leaves nothing visible: lower the ratio or use larger clips")
    return count


def block_wise(
    key: Key[Array, ""], rows: int, columns: int, count: int, least: int = 16, aspect_ratio: float = 0.3
) -> Bool[Array, "h w"]:
    """True for masked patches: blocks are added until `count` patches are masked, or ten blocks in a row do not fit.

    A block fits if it is smaller than the image in both directions, masks a patch that was not masked, and does not
    exceed the count. Its area is drawn between `least` and what is left to mask. So a mask may have fewer patches.

    Args:
      least: patches of the smallest block.
      aspect_ratio: smallest height divided by width; the largest is its inverse, and the logarithm is uniform.
    """
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, mask, failures = state
        key, *keys = jax.random.split(key, 5)
        left = count - mask.sum()
        area = least + jax.random.uniform(keys[0]) * (left - least)
        logarithm = math.log(aspect_ratio)
        aspect = jnp.exp(jax.random.uniform(keys[1], minval=logarithm, maxval=-logarithm))
        height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top = jnp.floor(jax.random.uniform(keys[2]) * (rows - height + 1))
        start = jnp.floor(jax.random.uniform(keys[3]) * (columns - width + 1))
        block = (row >= top) & (row < top + height) & (column >= start) & (column < start + width)
        new = (block & ~mask).sum()
        fits = (height < rows) & (width < columns) & (new > 0) & (new <= left)
        return key, mask | (block & fits), jnp.where(fits, 0, failures + 1)

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        return (state[1].sum() < count) & (state[2] < ATTEMPTS)

    first = (key, jnp.zeros((rows, columns), bool), jnp.int32(0))
    return jax.lax.while_loop(goes_on, attempt, first)[1]


def stretch(
    key: Key[Array, ""], mask: Bool[Array, "h w"], times: int, shares: tuple[float, float] = (0.5, 1.0)
) -> Bool[Array, "t h w"]:
    """The same mask at consecutive times, and none at the others; a stretch that reaches the end goes on at the start.

    Args:
      shares: the shortest and the longest stretch as fractions of all times; at least one time is masked.
    """
    start_key, length_key = jax.random.split(key)
    shortest, longest = max(int(shares[0] * times), 1), min(int(shares[1] * times), times)
    start = jax.random.randint(start_key, (), 0, times)
    length = jax.random.randint(length_key, (), shortest, longest + 1)
    return ((jnp.arange(times) - start) % times < length)[:, None, None] & mask


def draw_images(
    key: Key[Array, ""], shape: tuple[int, int], grid: tuple[int, int], count: int, least: int
) -> Bool[Array, "b f h w"]:
    """An independent mask for each of `shape` images; see `block_wise`."""
    keys = jax.random.split(key, math.prod(shape))
    return jax.vmap(lambda key: block_wise(key, *grid, count, least))(keys).reshape(*shape, *grid)


def draw_videos(
    key: Key[Array, ""], clips: int, grid: tuple[int, int, int], count: int, least: int
) -> Bool[Array, "b t h w"]:
    """An independent mask for each clip; see `stretch`."""

    def one(key: Array) -> Array:
        block_key, time_key = jax.random.split(key)
        return stretch(time_key, block_wise(block_key, *grid[1:], count, least), grid[0])

    return jax.vmap(one)(jax.random.split(key, clips))


def draw_frames(key: Key[Array, ""], clips: int, times: int, frames: int) -> Int[Array, "b f"]:
    """For each clip, the sorted numbers of different frames drawn from all `times`."""
    order = jax.vmap(lambda key: jax.random.permutation(key, times))(jax.random.split(key, clips))
    return jnp.sort(order[:, :frames], axis=1)
