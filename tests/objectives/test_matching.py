"""Hard negatives are drawn as often as their similarity says; the matching loss equals its definition."""

import jax
import jax.numpy as jnp
import numpy as np

from vidjax.objectives.matching import hard_negatives, matching_loss


def test_negatives_are_other_valid_columns_with_the_probabilities_of_the_softmax():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    valid = jnp.array([True, True, False, True])
    draw = jax.jit(jax.vmap(hard_negatives, (0, None, None)))
    drawn, is_drawn = draw(jax.random.split(jax.random.key(0), 20_000), logits, valid)
    frequencies = np.stack([np.bincount(np.asarray(column), minlength=4) for column in drawn.T]) / len(drawn)
    expected = np.exp(logits) * np.asarray(valid) * (1 - np.eye(4))
    np.testing.assert_allclose(frequencies, expected / expected.sum(axis=1, keepdims=True), atol=0.02)
    assert is_drawn.all()
    drawn, _ = jax.vmap(hard_negatives, (0, None, None, None))(
        jax.random.split(jax.random.key(0), 20_000), 100 * jnp.eye(4), valid, 0.25
    )
    np.testing.assert_allclose(np.bincount(drawn[:, 0], minlength=4) / len(drawn), [0, 0.5, 0, 0.5], atol=0.02)
    _, is_drawn = hard_negatives(jax.random.key(0), logits, jnp.array([False, True, False, False]))
    np.testing.assert_array_equal(is_drawn, [True, False, True, True])  # the only valid one has no other


def test_matching_is_a_binary_classification_of_the_valid_pairs():
    logits = np.random.default_rng(1).normal(size=(4, 2))
    match, valid = np.array([True, False, True, False]), np.array([True, True, True, False])
    probability = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    expected = -np.log(np.where(match, probability, 1 - probability))[valid].mean()
    loss = matching_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(match), jnp.asarray(valid))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
