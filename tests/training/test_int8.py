"""Frozen parameters as int8: how near they are, and that they come back the same from floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from vidjax.runs.frozen import FrozenParts
from vidjax.training.int8 import dequantized, quantized
from vidjax.training.state import Aux


def draw() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    channels = jnp.array([1.0, 100.0, 0.0, 1e-3])  # each has a scale of its own
    return {
        "a/kernel": jax.random.normal(keys[0], (5, 3, 4)) * channels,
        "b/embedding": jax.random.normal(keys[1], (4, 6)) * channels[:, None],
        "a/norm/scale": jax.random.normal(keys[2], (4,)),
    }


def test_kernels_keep_a_scale_for_each_channel_and_tables_for_each_row():
    params = draw()
    kept = quantized(params)
    assert {path: (leaf.dtype.name, leaf.shape) for path, leaf in kept.items()} == {
        "a/kernel/int8": ("int8", (5, 3, 4)),
        "a/kernel/scale": ("bfloat16", (1, 1, 4)),
        "b/embedding/int8": ("int8", (4, 6)),
        "b/embedding/scale": ("bfloat16", (4, 1)),
        "a/norm/scale": ("float32", (4,)),
    }
    back = dequantized(kept)
    assert back.keys() == params.keys() and jnp.all(back["a/norm/scale"] == params["a/norm/scale"])
    for path, axes in (("a/kernel", (0, 1)), ("b/embedding", 1)):
        largest = jnp.abs(params[path]).max(axes, keepdims=True)
        assert jnp.all(jnp.abs(back[path] - params[path]) <= 1.01 * largest / 127 / 2), path


def test_floats_of_int8_become_the_same_int8():
    kept = jax.jit(quantized)(draw())
    on_host = dequantized({path: np.asarray(leaf) for path, leaf in kept.items()})
    again = jax.jit(quantized)({path: jnp.asarray(leaf) for path, leaf in on_host.items()})
    jax.tree.map(np.testing.assert_array_equal, again, kept)


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_the_backward_pass_is_given_the_integers_not_their_floats(kind, capsys):
    params = {"frozen": {"kernel": jnp.eye(24)}, "own": {"kernel": jnp.ones((24, 4))}}
    parts = FrozenParts(("frozen",), kind)
    few, frozen = parts.split(params, jax.random.key(0))
    aux = Aux({}, None, (frozen, None), 0)

    def loss(params, aux, x):  # the first layer's input is needed for the gradient of `own`, its kernel for that of x
        return jnp.tanh(jnp.tanh(x * params["own"]["kernel"].sum()) @ params["frozen"]["kernel"]).sum(), aux

    print_saved_residuals(lambda few: parts.loss(loss)(few, aux, jnp.ones((2, 24)))[0], few)
    saved = capsys.readouterr().out
    assert "f32[2,24]" in saved
    assert ("f32[24,24]" in saved) == (kind == "float32")
