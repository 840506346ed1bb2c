"""The norms equal a scaled and shifted `jax.nn.standardize`, with gradients. For the modules, see tests/layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.kernels.normalization import standardize, standardize_rows

DRAW = np.random.default_rng(0)
X = jnp.asarray(3 + 2 * DRAW.standard_normal((4, 5, 6)), jnp.float32)
SCALE, BIAS = (jnp.asarray(DRAW.standard_normal(6), jnp.float32) for _ in range(2))
ALL_VALID = jnp.ones(4, bool)


def of_channels(x, scale, bias):
    return jax.nn.standardize(x, axis=(0, 1), epsilon=1e-2) * scale + bias


def of_rows(x, scale, bias):
    return jax.nn.standardize(x, axis=-1, epsilon=1e-2) * scale + bias


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (lambda *inputs: standardize(*inputs, ALL_VALID, 1e-2)[0], of_channels),
        (lambda *inputs: standardize_rows(*inputs, 1e-2, jnp.float32), of_rows),
    ],
)
def test_equals_jax_nn_standardize_with_its_gradients(ours, reference):
    @jax.jit
    def both(*inputs):
        return [(y, pull(jnp.cos(y))) for y, pull in (jax.vjp(f, *inputs) for f in (ours, reference))]

    one, other = both(X, SCALE, BIAS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_invalid_rows_are_zero_and_do_not_affect_the_others():
    valid = jnp.array([True, False, True, True])
    y, mean, variance = jax.jit(standardize, static_argnums=4)(X, SCALE, BIAS, valid, 1e-2)
    np.testing.assert_allclose(y[valid], of_channels(X[valid], SCALE, BIAS), atol=1e-5)
    assert not y[1].any()
    np.testing.assert_allclose(mean, X[valid].mean(axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(variance, X[valid].var(axis=(0, 1)), atol=1e-5)
