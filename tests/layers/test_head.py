"""Fully convolutional heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.layers.head import average_positions, pool_windows


def test_windows_are_means_and_small_maps_are_averaged_whole():
    x = jnp.asarray(recipe.floats("map", (2, 2, 4, 3, 5)))
    pooled = pool_windows(x, (2, 3, 3))
    assert pooled.shape == (2, 1, 2, 1, 5)
    np.testing.assert_allclose(pooled[:, 0, 1, 0], x[:, :, 1:].mean(axis=(1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(pool_windows(x, (8, 7, 7))[:, 0, 0, 0], x.mean(axis=(1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_positions_are_averaged_after_or_before_the_softmax(average):
    logits = jnp.asarray(3 * recipe.floats("logits", (2, 1, 2, 2, 5)))
    ours = jax.nn.softmax(average_positions(logits, average))
    places = logits.reshape(2, 4, 5)
    expected = jax.nn.softmax(places).mean(axis=1) if average == "softmax" else jax.nn.softmax(places.mean(axis=1))
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    other = average_positions(logits, "logits" if average == "softmax" else "softmax")
    assert not np.allclose(ours, jax.nn.softmax(other), atol=1e-3)


def test_one_position_keeps_its_logits():
    logits = jnp.asarray(recipe.floats("logits", (2, 1, 1, 1, 5)))
    np.testing.assert_array_equal(average_positions(logits, "softmax"), logits[:, 0, 0, 0])


def test_bfloat16_is_averaged_in_float32():
    """Summed in bfloat16, 1,568 ones are 0.16 on average: sums above 256 no longer grow by one."""
    ones = jnp.ones((1, 32, 7, 7, 2), jnp.bfloat16)
    assert pool_windows(ones, (32, 7, 7)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(pool_windows(ones, (32, 7, 7)), 1.0)
    logits = jnp.asarray(3 * recipe.floats("logits", (2, 4, 2, 2, 5)), jnp.bfloat16)
    exact = average_positions(logits.astype(jnp.float32), "softmax")
    np.testing.assert_allclose(average_positions(logits, "softmax").astype(jnp.float32), exact, rtol=2**-8)
