"""Initialisation in one loop per distribution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.models import create_model, example_inputs
from vidjax.training.initialize import PIECE, fast_to_compile


class Layers(nn.Module):
    """Several distributions, sizes below and above a piece, shapes that repeat, and a batch statistic."""

    @nn.compact
    def __call__(self, x):
        for name, init in {
            "normal": nn.initializers.normal(0.02),
            "xavier": nn.initializers.xavier_uniform(),
            "lecun": nn.initializers.lecun_normal(),
            "truncated": nn.initializers.truncated_normal(0.02),
            "other": nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0),
            "orthogonal": nn.initializers.orthogonal(),
        }.items():
            for copy in range(2):
                self.param(f"{name}_{copy}", init, (3, 5, 7) if copy else (PIECE // 32, 33))
        return nn.BatchNorm(use_running_average=False)(nn.Dense(4, bias_init=nn.initializers.uniform(0.1))(x))


def assert_same(actual, expected):
    def compare(path, a, b):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7, err_msg=jax.tree_util.keystr(path))

    jax.tree.map_with_path(compare, actual, expected)


def fast(init, key):
    return jax.jit(fast_to_compile(*jax.make_jaxpr(init, return_shape=True)(key)))(key)


def init_layers(key):
    return Layers().init(key, jnp.zeros((2, 3)))


def test_numbers_are_those_of_init():
    key = jax.random.fold_in(jax.random.key(3), 4)
    assert_same(fast(init_layers, key), jax.jit(init_layers)(key))


@pytest.mark.parametrize(
    "name",
    ["vivit_tiny_joint", *(pytest.param(name, marks=pytest.mark.long) for name in ("r2plus1d_tiny", "clip_tiny"))],
)
def test_models_are_initialised_alike(name):
    model = create_model(name)

    def init(key):
        return model.init(key, *(jnp.zeros(each.shape, each.dtype) for each in example_inputs(model)))

    assert_same(fast(init, jax.random.key(0)), jax.jit(init)(jax.random.key(0)))


def test_there_is_one_loop_per_distribution():
    """Also in later versions of JAX, whose names of distributions may differ: normal (scaled by 0.02 or for orthogonal
    matrices), uniform in two intervals (xavier's, and the bias's), truncated normal in two intervals, and the keys."""
    key = jax.random.key(0)
    quick = fast_to_compile(*jax.make_jaxpr(init_layers, return_shape=True)(key))
    loops = str(jax.make_jaxpr(quick)(key)).count("scan[")
    assert loops == 6


def test_other_generators_are_used_as_they_are():
    key = jax.random.key(0, impl="rbg")
    assert_same(fast(init_layers, key), jax.jit(init_layers)(key))


def test_other_types_are_drawn_as_they_are():
    """Bfloat16 numbers take 16 bits each, so that a loop over pieces of 32 bits would give others."""

    def init(key):
        return nn.Dense(5, param_dtype=jnp.bfloat16).init(key, jnp.zeros((2, 3)))

    assert_same(fast(init, jax.random.key(0)), jax.jit(init)(jax.random.key(0)))
