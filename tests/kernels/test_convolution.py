"""The convolutions equal `lax`'s in values and gradients, in float64 or close to it in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmark.collectives import read_collectives
from vidjax.kernels import winograd
from vidjax.kernels.convolution import conv3d
from vidjax.kernels.depthwise import depthwise_conv3d
from vidjax.training.cost import count_macs
from vidjax.training.sharding import batch_sharding, make_mesh, replicated

DIMENSIONS = ("NTHWC", "THWIO", "NTHWC")
SAME = ((1, 1), (1, 1), (1, 1))


@pytest.fixture(autouse=True)
def one_cpu_in_double_precision(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with jax.enable_x64(True):
        yield


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def assert_same_with_gradients(ours, reference, *inputs) -> None:
    @jax.jit
    def both(*inputs):
        (y, pull), (y2, pull2) = jax.vjp(ours, *inputs), jax.vjp(reference, *inputs)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (y, *pull(dy)), (y2, *pull2(dy))

    for one, other in zip(*both(*inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(other).max())


@pytest.mark.parametrize(
    ("size", "strides", "padding", "channels", "features"),
    [
        ((1, 3, 3), (1, 1, 1), ((0, 0), (1, 1), (1, 1)), 5, 3),
        ((1, 3, 3), (2, 2, 2), ((0, 0), (0, 1), (1, 1)), 3, 5),
        ((3, 1, 1), (1, 1, 1), ((1, 1), (0, 0), (0, 0)), 6, 3),
        ((3, 1, 1), (2, 1, 1), ((1, 1), (0, 0), (0, 0)), 3, 6),
        ((1, 1, 1), (2, 2, 2), ((0, 0), (0, 0), (0, 0)), 4, 3),
        ((3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), 5, 4),
        ((3, 5, 5), (2, 2, 2), ((1, 1), (2, 2), (1, 2)), 3, 4),
        ((2, 3, 3), (2, 1, 1), ((0, 1), (1, 1), (1, 1)), 4, 3),
        ((3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (0, 1)), 9, 10),
        ((3, 3, 3), (2, 1, 2), ((1, 1), (1, 1), (1, 1)), 10, 9),
        ((1, 3, 3), (1, 1, 1), ((0, 0), (1, 1), (1, 1)), 17, 9),
        ((5, 3, 3), (3, 1, 1), ((2, 1), (1, 1), (1, 1)), 9, 9),
        ((3, 3, 3), (1, 1, 1), ((0, 0), (2, 2), (0, 0)), 17, 18),
        ((3, 3, 3), (1, 1, 1), ((1, 1), (3, 3), (0, 4)), 9, 3),
        ((3, 3, 3), (1, 1, 1), ((3, 0), (1, 1), (1, 1)), 9, 3),
        ((3, 3, 3), (2, 2, 2), ((1, 1), (1, 1), (1, 1)), 5, 24),
        ((1, 1, 1), (1, 1, 1), ((0, 0), (0, 0), (0, 0)), 17, 9),
        ((1, 1, 1), (2, 3, 2), ((0, 0), (0, 0), (0, 0)), 16, 20),
        ((1, 1, 1), (1, 1, 1), ((1, 0), (1, 1), (0, 1)), 16, 5),
        ((1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)), 3, 24),
        ((3, 3, 3), (1, 1, 1), ((1, 1), (0, 1), (1, 1)), 3, 32),
    ],
)
def test_convolution_equals_lax(size, strides, padding, channels, features):
    reference = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=DIMENSIONS)
    ours = partial(conv3d, strides=strides, padding=padding)
    assert_same_with_gradients(ours, reference, draw(2, 5, 9, 8, channels), draw(*size, channels, features))


@pytest.mark.parametrize(
    ("size", "strides", "channels", "features"),
    [((3, 3, 3), (1, 1, 1), 9, 8), ((3, 3, 3), (2, 2, 2), 9, 10), ((3, 1, 1), (1, 1, 1), 9, 8)],
)
def test_kernel_gradients_a_few_rows_at_a_time(size, strides, channels, features):
    padding = tuple((cells // 2, cells // 2) for cells in size)
    reference = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=DIMENSIONS)
    ours = partial(conv3d, strides=strides, padding=padding)
    assert_same_with_gradients(ours, reference, draw(2, 6, 48, 40, channels), draw(*size, channels, features))


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), None),
        ((5, 5, 5), (1, 1, 1), None),
        ((3, 1, 1), (1, 1, 1), None),
        ((1, 3, 3), (1, 1, 1), None),
        ((3, 3, 3), (1, 1, 1), (1, 0, 2)),
        ((3, 3, 3), (1, 2, 2), None),
        ((3, 3, 3), (2, 2, 2), None),
        ((3, 3, 3), (1, 8, 8), None),
        ((1, 9, 9), (1, 8, 8), None),
        ((3, 5, 5), (1, 4, 4), None),
        ((2, 3, 4), (2, 3, 1), (1, 0, 2)),
    ],
)
def test_depthwise_convolution_equals_lax(size, strides, padding):
    cells = padding or [k // 2 for k in size]
    reference = partial(
        lax.conv_general_dilated, window_strides=strides, padding=[(k, k) for k in cells],
        dimension_numbers=DIMENSIONS, feature_group_count=6,
    )  # fmt: skip
    ours = partial(depthwise_conv3d, strides=strides, padding=padding)
    assert_same_with_gradients(ours, reference, draw(2, 5, 11, 10, 6), draw(*size, 1, 6))


def test_depthwise_convolution_accumulates_in_float32():
    x = jnp.full((1, 5, 5, 5, 1), 1.0, jnp.bfloat16)
    kernel = jnp.full((5, 5, 5, 1, 1), 1.0, jnp.bfloat16).at[2, 2, 2].set(2.0)
    assert depthwise_conv3d(x, kernel)[0, 2, 2, 2, 0] == 126.0
    small = kernel.at[0, 0, 0].set(2.0**-9)  # would be lost in a bfloat16 sum with 1
    gradient = jax.grad(lambda kernel: depthwise_conv3d(x, kernel).astype(jnp.float32).sum())(small)
    assert gradient.dtype == jnp.bfloat16 and gradient[2, 2, 2, 0, 0] == 125.0


def test_strided_depthwise_convolution_accumulates_in_float32():
    x = jnp.full((1, 3, 16, 16, 1), 1.0, jnp.bfloat16)
    kernel = jnp.full((1, 9, 9, 1, 1), 1.0, jnp.bfloat16).at[0, 0, 0].set(256.0)  # 256 + 1 is 256 in bfloat16
    y, pull = jax.vjp(lambda x, kernel: depthwise_conv3d(x, kernel, (1, 8, 8)), x, kernel)
    dx, dkernel = pull(jnp.ones_like(y).at[0, 0, 0, 0].set(256.0))
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    assert y[0, 1, 1, 1, 0] == 256 + 80
    assert dx[0, 1, 4, 4, 0] == 260  # 256 + 3 at the corner of four outputs, rounded
    assert dkernel[0, 4, 4, 0, 0] == 268  # 256 + 11 outputs, rounded


def test_an_even_depthwise_kernel_is_rejected():
    with pytest.raises(ValueError, match="has no centre: use odd sizes"):
        depthwise_conv3d(draw(1, 4, 4, 4, 2), draw(2, 3, 3, 1, 2))


@pytest.mark.parametrize(
    ("frames", "padding"),
    [(3, SAME), (1, ((0, 0), (1, 1), (1, 1))), (2, ((0, 1), (2, 0), (-1, 3))), (5, ((3, 0), (0, 0), (1, 2)))],
)
def test_winograd_convolution_equals_lax(frames, padding):
    x, kernel = draw(2, 6, 9, 10, 3), draw(frames, 3, 3, 3, 2)
    y, pull = jax.vjp(
        partial(lax.conv_general_dilated, window_strides=(1, 1, 1), padding=padding, dimension_numbers=DIMENSIONS),
        x,
        kernel,
    )
    dy = draw(*y.shape)
    ours = winograd.winograd_convolution(x, kernel, padding)
    dkernel = winograd.winograd_kernel_gradient(x, dy, frames, padding)
    for one, other in ((ours, y), (dkernel, pull(dy)[1])):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(other).max())


def count_winograd(x: jax.Array, kernel: jax.Array, strides=(1, 1, 1), padding=SAME) -> int:
    program = jax.make_jaxpr(jax.grad(lambda x, kernel: conv3d(x, kernel, strides, padding).sum(), (0, 1)))(x, kernel)
    return str(program).count("name=winograd_")


def test_winograd_is_used_only_where_it_is_faster(monkeypatch):
    x, kernel = draw(2, 3, 16, 14, 32).astype(jnp.float32), draw(3, 3, 3, 32, 40).astype(jnp.float32)
    assert count_winograd(x, kernel) == 3  # for the output and both gradients
    assert not count_winograd(x.astype(jnp.float64), kernel.astype(jnp.float64))
    assert not count_winograd(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not count_winograd(x, kernel, strides=(1, 2, 1))
    assert not count_winograd(x, kernel[:, :2], padding=((1, 1), (1, 0), (1, 1)))
    assert not count_winograd(x[..., :16], kernel[..., :16, :])
    assert not count_winograd(x[:1, :1], kernel)  # few tiles
    assert count_winograd(jnp.tile(x[:, :, :8, :8], (2, 1, 1, 1, 1)), kernel)
    assert not count_winograd(jnp.tile(x[:, :, :5, :5], (2, 1, 1, 1, 1)), kernel)  # as many tiles, half of them empty
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert not count_winograd(x, kernel)


def test_winograd_convolutions_are_close_to_lax_in_float32():
    ours = partial(conv3d, strides=(1, 1, 1), padding=SAME)
    reference = partial(lax.conv_general_dilated, window_strides=(1, 1, 1), padding=SAME, dimension_numbers=DIMENSIONS)
    exact = draw(2, 3, 16, 14, 32), draw(3, 3, 3, 32, 40)
    rounded = tuple(array.astype(jnp.float32) for array in exact)
    macs = count_macs(ours, *rounded)
    assert macs == exact[0].size * exact[1][..., 0, :].size
    assert count_macs(jax.grad(lambda *args: ours(*args).sum(), (0, 1)), *rounded) == 3 * macs

    @jax.jit
    def both(exact, rounded):
        (y, pull), (y2, pull2) = jax.vjp(reference, *exact), jax.vjp(ours, *rounded)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (y, *pull(dy)), (y2, *pull2(dy.astype(y2.dtype)))

    for one, other in zip(*both(exact, rounded), strict=True):
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(other, one, atol=3e-6 * np.abs(one).max())


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("size", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)])
def test_several_devices_exchange_gradients_of_kernels_and_no_clips(monkeypatch, size):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    mesh, padding = make_mesh(), tuple((cells // 2, cells // 2) for cells in size)

    def loss(kernel, x):
        return (conv3d(conv3d(x, kernel, (1, 1, 1), padding), kernel, (1, 1, 1), padding) ** 2).sum()

    kernel, x = jax.ShapeDtypeStruct((*size, 9, 9), jnp.float32), jax.ShapeDtypeStruct((8, 6, 48, 40, 9), jnp.float32)
    gradient = jax.jit(jax.grad(loss), in_shardings=(replicated(mesh), batch_sharding(mesh)))
    collectives = read_collectives(gradient.lower(kernel, x).compile().as_text())
    assert collectives  # the gradient of the kernel in each of the two convolutions
    assert sum(collective.operand_bytes for collective in collectives) <= 2 * 4 * kernel.size
