"""Attention to keys on a grid of time, height and width, with relative terms that are decomposed by axis (MViTv2)."""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.kernels.attention import few_pairs
from vidjax.kernels.chunked_attention import over_queries, scores_of, weigh

Terms = tuple[Float[Array, "*b q k t"], Float[Array, "*b q k h"], Float[Array, "*b q k w"]]


def attend_on_grid(
    query: Float[Array, "*b q k d"], key: Float[Array, "*b n k d"], value: Float[Array, "*b n k d"], terms: Terms
) -> Float[Array, "*b q k d"]:
    """Scaled dot-product attention with `terms[0][t] + terms[1][h] + terms[2][w]` added to the score of a key.

    Equals `jax.nn.dot_product_attention(query, key, value, bias)`, where `bias` has the sum of the terms for the keys
    on the grid, and zero for those before it. The terms of all pairs are not stored where there are many
    (`attend` chooses likewise), nor are the scores; the backward pass then recomputes them.

    Args:
      key, value: those without a place, such as the class token, then those on the grid, in the order `(t h w)`.
      terms: for each query, those of the keys by their place in time, height and width.
    """
    if not few_pairs(query, key):
        return over_queries(_some_queries, (query, *terms), (key, value))
    queries, keys = jax.tree.map(lambda x: jnp.swapaxes(x, -2, -3), ((query, *terms), (key, value)))
    return jnp.swapaxes(_some_queries(queries, keys), -2, -3)


def grid_attention_weights(
    query: Float[Array, "*b q k d"], key: Float[Array, "*b n k d"], terms: Terms
) -> Float[Array, "*b k q n"]:
    """The attention weights of `attend_on_grid`: for each head and query, those of all keys."""
    query, key, *terms = (jnp.swapaxes(x, -2, -3) for x in (query, key, *terms))
    return jax.nn.softmax(_scores(query, key, tuple(terms)))


def _scores(query: Array, key: Array, terms: tuple[Array, ...]) -> Array:
    """Scores of queries `*b q d` and keys `*b n d`, with the terms `*b q _`."""
    over_time, over_height, over_width = terms
    bias = over_time[..., :, None, None] + over_height[..., None, :, None] + over_width[..., None, None, :]
    bias = einops.rearrange(bias, "... t h w -> ... (t h w)")
    before = [(0, 0)] * (bias.ndim - 1) + [(key.shape[-2] - bias.shape[-1], 0)]
    return scores_of(query, key) + jnp.pad(bias, before)


def _some_queries(queries: tuple[Array, ...], pair: tuple[Array, Array], rows: None = None) -> Array:
    """Attention of queries `*b q d` to keys and values `*b n d`, with all their scores in memory."""
    query, *terms = queries
    scores = _scores(query, pair[0], tuple(terms))
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return (weigh(weights, pair[1]) / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)
