"""The norms equal Flax's, with their derivatives, and ignore invalid clips."""

import contextlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.layers.normalization import BatchNorm, LayerNorm, local_response_norm, valid_clips

DRAW = np.random.default_rng(0)
X = jnp.asarray(3 + 2 * DRAW.standard_normal((4, 5, 16)), jnp.float32)
PARAMS = {name: jnp.asarray(DRAW.standard_normal(16), jnp.float32) for name in ("scale", "bias")}
TOWARDS = jnp.asarray(DRAW.standard_normal(X.shape), jnp.float32)


def test_layer_norm_has_the_variables_of_flax():
    ours, flaxs = (module.init(jax.random.key(0), X) for module in (LayerNorm(), nn.LayerNorm()))
    jax.tree.map(np.testing.assert_array_equal, ours, flaxs)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_layer_norm_and_all_its_derivatives_equal_flaxs(epsilon):
    def derivatives(module):
        def value(params, x):
            return jnp.sin(module.apply({"params": params}, x))

        def total(params, x):
            return value(params, x).sum()

        def along(params, x):  # forward over reverse mode
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
def test_layer_norm_returns_its_dtype_and_saves_only_its_input(of, to, atol):
    module, x = LayerNorm(dtype=of), X.astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x: module.apply({"params": PARAMS}, x), x)
    assert y.dtype == to
    assert [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.size == x.size] == [jnp.bfloat16]
    expected = nn.LayerNorm(dtype=of).apply({"params": PARAMS}, x)
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), atol=atol)


def test_batch_norm_its_gradients_and_running_statistics_equal_flaxs():
    def derivatives(module):
        def total(params, x):
            y, state = module.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return jnp.sin(y).sum(), state

        return jax.value_and_grad(total, (0, 1), has_aux=True)(PARAMS, X)

    variables = {"batch_stats": {"mean": jnp.linspace(-1, 1, 16), "var": jnp.linspace(0.5, 2, 16)}}
    flaxs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    ours, flaxs = (jax.jit(partial(derivatives, module))() for module in (BatchNorm(False), flaxs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, flaxs)


VALID = jnp.array([True, False, True, True])
STATISTICS = {"batch_stats": {"mean": jnp.linspace(-1, 1, 16), "var": jnp.linspace(0.5, 2, 16)}}
assert_close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4))


def normed(module, x, valid=None):
    """Output, running statistics, and the gradients of all three inputs of a training step."""

    def total(params, x):
        with contextlib.nullcontext() if valid is None else valid_clips(valid):
            y, state = module.apply({"params": params} | STATISTICS, x, mutable=["batch_stats"])
        return jnp.sin(y).sum(), (y, state)

    (_, (y, state)), (params, dx) = jax.value_and_grad(total, (0, 1), has_aux=True)(PARAMS, x)
    return y, dx, state, params


def test_batch_norm_with_invalid_clips_equals_flaxs_without_them():
    y, dx, *rest = jax.jit(partial(normed, BatchNorm(False)))(X, VALID)
    flaxs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    assert_close([y[VALID], dx[VALID], *rest], list(normed(flaxs, X[VALID])))
    assert not y[~VALID].any() and not dx[~VALID].any()


def test_batch_norm_without_valid_clips_changes_nothing():
    y, dx, state, params = normed(BatchNorm(False), X, jnp.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, state, STATISTICS)
    assert not any(leaf.any() for leaf in jax.tree.leaves((y, dx, params)))


class Stack(nn.Module):
    """Two layers with batch norm, scanned over and rematerialised."""

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(lambda stack, x: (BatchNorm(False, name="norm")(nn.Dense(16, name="linear")(x)), None))
        axes = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}, "length": 2}
        return nn.scan(layer, **axes)(self, x)[0]


def test_valid_clips_reaches_batch_norms_in_lifted_modules():
    variables = Stack().init(jax.random.key(0), X)

    def gradients(x, valid=None):
        def total(params, x):
            with contextlib.nullcontext() if valid is None else valid_clips(valid):
                y, state = Stack().apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return (jnp.sin(y) * (1 if valid is None else valid[:, None, None])).sum(), state

        return jax.value_and_grad(total, has_aux=True)(variables["params"], x)

    assert_close(jax.jit(gradients)(X, VALID), gradients(X[VALID]))


def test_under_pmap_each_device_normalises_by_its_own_valid_clips():
    results = jax.pmap(partial(normed, BatchNorm(False)))(X.reshape(2, 2, 5, 16), VALID.reshape(2, 2))
    for device, alone in enumerate((X[:1], X[2:])):
        y, dx, *rest = jax.tree.map(lambda leaf, device=device: leaf[device], results)
        kept = VALID.reshape(2, 2)[device]
        assert_close([y[kept], dx[kept], *rest], list(normed(BatchNorm(False), alone)))


@pytest.mark.parametrize(("size", "alpha", "beta", "k"), [(5, 1e-4, 0.75, 1.0), (3, 2.0, 0.5, 2.0), (7, 0.5, 1.0, 0.1)])
def test_local_response_norm_and_its_gradient_equal_pytorchs(size, alpha, beta, k):
    torch = pytest.importorskip("torch")
    x = DRAW.standard_normal((2, 3, 4, 6)).astype(np.float32)
    peer = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()
    expected = torch.nn.LocalResponseNorm(size, alpha, beta, k)(peer)
    expected.sin().sum().backward()

    def total(x):
        y = local_response_norm(x, size, alpha, beta, k)
        return jnp.sin(y).sum(), y

    (_, y), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(x))
    np.testing.assert_allclose(y, np.moveaxis(expected.detach().numpy(), 1, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, np.moveaxis(peer.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-5)


def test_local_response_norm_by_hand():
    """The sum of squares of Krizhevsky et al. is the mean of this one with `alpha` times `size`."""
    x = jnp.array([1.0, 2.0, 3.0])
    expected = x / np.sqrt(2.0 + 1e-4 * np.array([1 + 4, 1 + 4 + 9, 4 + 9]))
    np.testing.assert_allclose(local_response_norm(x, 3, 3e-4, 0.5, 2.0), expected, rtol=1e-6)
