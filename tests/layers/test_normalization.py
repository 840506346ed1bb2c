from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.layers.normalization import BatchNorm, LayerNorm

DRAW = np.random.default_rng(0)
X = jnp.asarray(3 + 2 * DRAW.standard_normal((4, 5, 16)), jnp.float32)
PARAMS = {name: jnp.asarray(DRAW.standard_normal(16), jnp.float32) for name in ("scale", "bias")}
TOWARDS = jnp.asarray(DRAW.standard_normal(X.shape), jnp.float32)


def test_layer_norm_starts_with_flaxs_variables():
    ours, flaxs = (module.init(jax.random.key(0), X) for module in (LayerNorm(), nn.LayerNorm()))
    jax.tree.map(np.testing.assert_array_equal, ours, flaxs)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_layer_norm_is_flaxs_with_all_its_derivatives(epsilon):
    def derivatives(module):
        def value(params, x):
            return jnp.sin(module.apply({"params": params}, x))

        def total(params, x):
            return value(params, x).sum()

        def along(params, x):  # forwards over backwards
            return jax.jvp(partial(jax.grad(total, 1), params), (x,), (TOWARDS,))[1]

        tangents = (jax.tree.map(jnp.cos, PARAMS), TOWARDS)
        forwards = jax.jvp(value, (PARAMS, X), tangents)
        return (
            forwards,
            jax.grad(total, (0, 1))(PARAMS, X),
            along(PARAMS, X),
            jax.grad(lambda x: along(PARAMS, x).sum())(X),
        )

    ours, flaxs = (jax.jit(partial(derivatives, module))() for module in (LayerNorm(epsilon), nn.LayerNorm(epsilon)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, flaxs)


@pytest.mark.parametrize(("of", "to", "atol"), [(None, jnp.float32, 1e-5), (jnp.bfloat16, jnp.bfloat16, 0.04)])
def test_layer_norm_gives_its_type_and_keeps_its_input_alone(of, to, atol):
    module, x = LayerNorm(dtype=of), X.astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x: module.apply({"params": PARAMS}, x), x)
    assert y.dtype == to
    assert [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.size == x.size] == [jnp.bfloat16]
    expected = nn.LayerNorm(dtype=of).apply({"params": PARAMS}, x)
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), atol=atol)


def test_batch_norm_is_flaxs_with_its_gradients_and_running_statistics():
    def derivatives(module):
        def total(params, x):
            y, state = module.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return jnp.sin(y).sum(), state

        return jax.value_and_grad(total, (0, 1), has_aux=True)(PARAMS, X)

    variables = {"batch_stats": {"mean": jnp.linspace(-1, 1, 16), "var": jnp.linspace(0.5, 2, 16)}}
    flaxs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    ours, flaxs = (jax.jit(partial(derivatives, module))() for module in (BatchNorm(False), flaxs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, flaxs)
