"""Losses of tokens and of a discrete VAE, against NumPy and PyTorch's definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.objectives.tokens import (
    annealed,
    autoencoder_loss,
    divergence_from_uniform,
    logit_laplace_loss,
    masked_token_loss,
    relaxed_tokens,
    warmed_up,
)


def test_only_counted_places_matter_and_all_count_alike():
    logits, tokens = recipe.floats("logits", (2, 3, 2, 5)), np.arange(12).reshape(2, 3, 2) % 5
    counted = np.zeros((2, 3, 2), bool)
    counted[0, 1, 0] = counted[1] = True  # one place of a clip, six of another
    likelihood = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.mean([likelihood[place][tokens[place]] for place in zip(*np.nonzero(counted), strict=True)])
    loss, accuracy = masked_token_loss(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(counted))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert accuracy == pytest.approx((logits.argmax(-1) == tokens)[counted].mean())
    assert masked_token_loss(jnp.asarray(logits), jnp.asarray(tokens), jnp.zeros((2, 3, 2), bool)) == (0.0, 0.0)


def test_relaxed_tokens_are_a_distribution_whose_largest_is_drawn_from_the_softmax():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.2])), (20_000, 3))
    soft = relaxed_tokens(jax.random.key(0), logits, 1.0)
    hard = relaxed_tokens(jax.random.key(0), logits, 0.01)
    np.testing.assert_allclose(soft.sum(axis=-1), 1, rtol=1e-5)
    assert (soft.max(axis=-1) < 0.9).mean() > 0.3 and (hard.max(axis=-1) > 0.99).mean() > 0.95
    shares = np.bincount(np.asarray(hard.argmax(axis=-1)), minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)


def test_divergence_is_zero_for_uniform_and_largest_for_certain_tokens():
    logits = jnp.array([[2.0] * 4, [1000.0, 0, 0, 0], np.log([0.5, 0.5, 1e-30, 1e-30])])
    np.testing.assert_allclose(divergence_from_uniform(logits), [0, np.log(4), np.log(2)], atol=1e-6)


def test_the_reconstruction_loss_is_a_density_of_pixels():
    """It integrates to one, and has its median at the sigmoid of the mean."""
    pixels = jnp.linspace(5e-5, 1 - 5e-5, 10_000)[:, None]
    statistics = jnp.broadcast_to(jnp.array([0.7, np.log(0.4)]), (10_000, 2))
    density = np.exp(-np.asarray(logit_laplace_loss(statistics, pixels)))[:, 0]
    assert density.mean() == pytest.approx(1, abs=1e-3)
    below = np.asarray(pixels)[:, 0] < 1 / (1 + np.exp(-0.7))
    assert density[below].sum() / density.sum() == pytest.approx(0.5, abs=1e-3)


def test_the_autoencoders_loss_weighs_the_divergence_by_the_values_of_a_token():
    """As in the paper: for images of 256 pixels, beta becomes beta / 192."""
    logits, statistics = recipe.floats("logits", (2, 1, 2, 2, 7)), recipe.floats("statistics", (2, 1, 16, 16, 6))
    pixels = 0.5 + 0.4 * np.tanh(recipe.floats("pixels", (2, 1, 16, 16, 3)))
    loss, *parts = autoencoder_loss(*map(jnp.asarray, (logits, statistics, pixels)), 6.6)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    divergence = (p * np.log(p * 7)).sum(axis=-1).mean(axis=(1, 2, 3))
    mean, scale = statistics[..., :3], np.exp(statistics[..., 3:])
    distance = np.abs(np.log(pixels / (1 - pixels)) - mean)
    density = np.exp(-distance / scale) / (2 * scale * pixels * (1 - pixels))
    reconstruction = -np.log(density).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(parts, [reconstruction, divergence], rtol=1e-5)
    np.testing.assert_allclose(loss, reconstruction + 6.6 / 192 * divergence, rtol=1e-5)


def test_schedules_reach_their_last_value_and_stay():
    temperatures = [float(annealed(step, 1.0, 1 / 16, 100)) for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose(temperatures, [1, (1 + 1 / 16) / 2, 1 / 16, 1 / 16], rtol=1e-6)
    np.testing.assert_allclose([warmed_up(step, 6.6, 50) for step in (0, 25, 50, 99)], [0, 3.3, 6.6, 6.6], rtol=1e-6)
