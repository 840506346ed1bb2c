"""Winograd's convolution is `lax`'s: exactly in float64, closely in float32; and it is taken where it pays alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vidjax.layers import winograd
from vidjax.layers.convolution import conv3d
from vidjax.training.cost import count_macs

SAME = ((1, 1), (1, 1), (1, 1))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def lax_conv(padding):
    spec = ("NTHWC", "THWIO", "NTHWC")
    return partial(lax.conv_general_dilated, window_strides=(1, 1, 1), padding=padding, dimension_numbers=spec)


@pytest.mark.parametrize(
    ("frames", "padding"),
    [(3, SAME), (1, ((0, 0), (1, 1), (1, 1))), (2, ((0, 1), (2, 0), (0, 3))), (5, ((3, 0), (0, 0), (1, 2)))],
)
def test_it_is_lax_in_float64(frames, padding):
    x, kernel = draw(2, 6, 9, 10, 3), draw(frames, 3, 3, 3, 2)
    y, pull = jax.vjp(lax_conv(padding), x, kernel)
    dy = draw(*y.shape)
    ours = jax.jit(winograd.winograd_convolution, static_argnums=2)(x, kernel, padding)
    dkernel = jax.jit(winograd.kernel_gradient, static_argnums=(2, 3))(x, dy, frames, padding)
    for one, other in ((ours, y), (dkernel, pull(dy)[1])):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(other).max())


def taken(x: jax.Array, kernel: jax.Array, strides=(1, 1, 1), padding=SAME) -> int:
    program = jax.make_jaxpr(jax.grad(lambda x, kernel: conv3d(x, kernel, strides, padding).sum(), (0, 1)))(x, kernel)
    return str(program).count("name=winograd_convolution")


def test_convolutions_take_it_where_it_pays(monkeypatch):
    x, kernel = draw(2, 3, 16, 14, 32).astype(jnp.float32), draw(3, 3, 3, 32, 40).astype(jnp.float32)
    assert not taken(x, kernel)  # on the tests' eight devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert taken(x, kernel) == 2  # for the result and for the input's gradient
    assert not taken(x.astype(jnp.float64), kernel.astype(jnp.float64))
    assert not taken(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not taken(x, kernel, strides=(1, 2, 1))
    assert not taken(x, kernel[:, :2], padding=((1, 1), (1, 0), (1, 1)))
    assert not taken(x[..., :16], kernel[..., :16, :])
    assert not taken(x[:1, :1], kernel)  # few tiles
    assert not taken(x[:, :, :5, :5], kernel)  # of which much is not used


def test_convolutions_that_take_it_are_close_to_lax(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    ours = partial(conv3d, strides=(1, 1, 1), padding=SAME)
    exact = draw(2, 3, 16, 14, 32), draw(3, 3, 3, 32, 40)
    rounded = tuple(array.astype(jnp.float32) for array in exact)
    assert count_macs(ours, *rounded) == exact[0].size * exact[1][..., 0, :].size

    @jax.jit
    def both(exact, rounded):
        (y, pull), (y2, pull2) = jax.vjp(lax_conv(SAME), *exact), jax.vjp(ours, *rounded)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (y, *pull(dy)), (y2, *pull2(dy.astype(y2.dtype)))

    for one, other in zip(*both(exact, rounded), strict=True):
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(other, one, atol=3e-6 * np.abs(one).max())
