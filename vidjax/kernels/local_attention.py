"""Attention within a band of a sequence, in time and memory that grow linearly with its length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vidjax.kernels.chunked_attention import LOWEST, scores_of, weigh

BLOCK = 32
"""Least number of queries that share one set of keys; a block of `n` queries is scored with `n + 2 * reach` keys."""


@jax.jit(static_argnames="reach")  # so that layers of equal shapes are traced once
def attend_locally(
    query: Float[Array, "*b t k d"],
    key: Float[Array, "*b t k d"],
    value: Float[Array, "*b t k d"],
    valid: Bool[Array, "*b t"],
    reach: int,
) -> Float[Array, "*b t k d"]:
    """Scaled dot-product attention of each token to the valid ones at most `reach` places away.

    Equals `attend(query, key, value, mask=(abs(i - j) <= reach) & valid[..., None, :])` for valid queries. A query
    without a valid key within reach attends to the keys within reach equally.
    """
    length = query.shape[-3]
    block = max(BLOCK, reach)
    blocks = -(-length // block)
    places = jnp.arange(blocks)[:, None] * block
    queries = places + jnp.arange(block)
    keys = places + jnp.arange(-reach, block + reach)
    near = jnp.abs(queries[:, :, None] - keys[:, None, :]) <= reach
    inside = (keys >= 0) & (keys < length)

    def cut(x: Array) -> Array:  # to `*b k m n d`: m blocks of n tokens
        x = jnp.swapaxes(x, -2, -3)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - length), (0, 0)])
        return x.reshape(*x.shape[:-2], blocks, block, x.shape[-1])

    def around(x: Array) -> Array:  # each block with the tokens within reach before and after it, by slices: a gather's
        # gradient is a scatter
        x = jnp.pad(cut(x), [(0, 0)] * (x.ndim - 2) + [(1, 1), (0, 0), (0, 0)])
        before, here, after = (x[..., start : start + blocks, :, :] for start in range(3))
        return jnp.concatenate([before[..., block - reach :, :], here, after[..., :reach, :]], axis=-2)

    query, key, value = cut(query), around(key), around(value)
    usable = jnp.take(valid, jnp.clip(keys, 0, length - 1), axis=-1)[..., None, :, None, :]
    scores = jnp.where(usable, scores_of(query, key), LOWEST)
    scores = jnp.where(near & inside[:, None, :], scores, -jnp.inf)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.maximum(highest, LOWEST))  # the last block may have queries beyond the end
    attended = weigh(weights, value) / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)
    attended = attended.reshape(*attended.shape[:-3], blocks * block, attended.shape[-1])[..., :length, :]
    return jnp.swapaxes(attended, -2, -3).astype(value.dtype)
