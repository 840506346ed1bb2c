"""Attention with relative terms on a grid equals the softmax formula, in chunks and at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.kernels import chunked_attention, grid_attention
from vidjax.kernels.grid_attention import attend_on_grid, grid_attention_weights

GRID, HEADS, QUERIES = (2, 3, 2), 2, 7


def inputs(before: int, leading: tuple[int, ...] = (2,)):
    """Queries, keys and values with `before` keys without a place, and the terms."""
    draw = np.random.default_rng(0).standard_normal
    keys = before + int(np.prod(GRID))
    shapes = [(*leading, n, HEADS, 4) for n in (QUERIES, keys, keys)]
    terms = tuple(jnp.asarray(draw((*leading, QUERIES, HEADS, side)), jnp.float32) for side in GRID)
    return *(jnp.asarray(draw(shape), jnp.float32) for shape in shapes), terms


def naive_attend(query, key, value, terms):
    """In float64, with one addition per key."""
    query, key, value, *terms = (np.moveaxis(np.asarray(x, np.float64), -2, -3) for x in (query, key, value, *terms))
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1])
    before = key.shape[-2] - int(np.prod(GRID))
    for i, (t, h, w) in enumerate(np.ndindex(*GRID)):
        scores[..., before + i] += terms[0][..., t] + terms[1][..., h] + terms[2][..., w]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.moveaxis(weights @ value, -3, -2), weights


@pytest.mark.parametrize("before", [0, 1])
def test_terms_are_added_by_the_place_of_a_key_and_not_to_keys_without_one(before):
    arrays = inputs(before)
    expected, weights = naive_attend(*arrays)
    np.testing.assert_allclose(jax.jit(attend_on_grid)(*arrays), expected, atol=1e-5)
    np.testing.assert_allclose(grid_attention_weights(arrays[0], arrays[1], arrays[3]), weights, atol=1e-5)


def test_chunks_of_queries_have_the_same_output_and_gradients(monkeypatch):
    arrays = inputs(1, leading=(2, 3))

    def both(*arrays):
        return jax.value_and_grad(lambda *a: (attend_on_grid(*a) ** 2).sum(), argnums=(0, 1, 2, 3))(*arrays)

    expected = jax.jit(both)(*arrays)
    monkeypatch.setattr(grid_attention, "few_pairs", lambda *_: False)
    monkeypatch.setattr(chunked_attention, "CHUNK_CPU", 4)  # unequal chunks
    chunked = jax.jit(lambda *arrays: both(*arrays))(*arrays)
    for one, other in zip(jax.tree.leaves(chunked), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


def test_large_scores_do_not_overflow():
    query, key, value, terms = inputs(1)
    out = attend_on_grid(100 * query, 100 * key, value, tuple(1e4 * term for term in terms))
    assert jnp.isfinite(out).all() and jnp.abs(out).max() <= jnp.abs(value).max() + 1e-6
