from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.kernels.activations import exact_gelu, quick_gelu, tanh_gelu


@pytest.mark.parametrize(
    ("activation", "plain"),
    [
        (exact_gelu, partial(nn.gelu, approximate=False)),
        (tanh_gelu, nn.gelu),
        (quick_gelu, lambda x: x * jax.nn.sigmoid(1.702 * x)),
    ],
)
def test_activations_have_the_right_derivatives_and_save_one_array(activation, plain):
    x = jnp.linspace(-8, 8, 1001)
    twice, forwards = (lambda f: jax.grad(jax.grad(f))), (lambda f: jax.jacfwd(jax.grad(f)))
    # Autodiff's second derivative of the exact GELU is itself off by 1e-4.
    for order, atol in ((lambda f: f, 1e-6), (jax.grad, 1e-5), (twice, 2e-4), (forwards, 2e-4)):
        actual, expected = (jax.jit(jax.vmap(order(f)))(x) for f in (activation, plain))
        np.testing.assert_allclose(actual, expected, atol=atol)
    slope = jax.vmap(jax.grad(activation))
    assert activation(x.astype(jnp.bfloat16)).dtype == slope(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_allclose(slope(x.astype(jnp.bfloat16)).astype(jnp.float32), slope(x), atol=0.02)
    assert len(jax.tree.leaves(jax.vjp(activation, x)[1])) == 1 < len(jax.tree.leaves(jax.vjp(plain, x)[1]))


def test_gelu_is_not_the_tanh_approximation():
    x = jnp.linspace(-4, 4, 100)
    assert np.abs(exact_gelu(x) - nn.gelu(x)).max() > 1e-4
