"""On GPUs, gradients of 3-D convolutions are 2-D convolutions and matrix products equal to `lax`'s."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vidjax
from benchmark.collectives import read_collectives
from vidjax.kernels import gpu_convolution
from vidjax.kernels.convolution import conv3d
from vidjax.kernels.gpu_convolution import gpu_conv3d
from vidjax.training.sharding import batch_sharding, make_mesh, replicated

SAME = ((1, 1), (1, 1), (1, 1))
PLAIN = partial(lax.conv_general_dilated, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


@pytest.mark.parametrize("many", [256, 1], ids=["convolutions", "products"])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "channels", "features"),
    [
        ((3, 3, 3), (1, 1, 1), SAME, 12, 4),
        ((3, 3, 3), (2, 2, 2), SAME, 12, 5),
        ((3, 7, 7), (1, 2, 2), ((1, 1), (3, 3), (2, 3)), 3, 8),  # all frames of the kernel at once
        ((5, 4, 4), (2, 4, 4), ((2, 1), (0, 0), (0, 0)), 3, 4),
        ((3, 3, 3), (2, 1, 2), ((3, 0), (0, 1), (1, 2)), 11, 4),
        ((2, 3, 3), (3, 1, 1), ((0, 1), (1, 1), (1, 1)), 17, 3),
        ((5, 3, 3), (1, 1, 1), ((7, 2), (1, 1), (0, 0)), 9, 3),  # the kernel's last frame never covers the last inputs
        ((1, 3, 3), (1, 1, 1), SAME, 33, 4),
    ],
)
def test_gradients_equal_lax(monkeypatch, size, strides, padding, channels, features, many):
    monkeypatch.setattr(gpu_convolution, "MANY_CHANNELS", many)
    with jax.enable_x64(True):
        x, kernel = draw(2, 5, 9, 8, channels), draw(*size, channels, features)
        y, pull = jax.vjp(partial(PLAIN, window_strides=strides, padding=padding), x, kernel)
        same, ours = jax.vjp(lambda *args: gpu_conv3d(*args, strides, padding), x, kernel)
        np.testing.assert_array_equal(same, y)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        for one, other in zip(jax.jit(ours)(dy), jax.jit(pull)(dy), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(other).max())


def test_gradients_of_a_kernel_by_vmap_equal_those_one_by_one():
    x, kernel = draw(3, 1, 4, 6, 6, 12), draw(3, 3, 3, 12, 4)
    gradients = jax.grad(lambda x, kernel: (gpu_conv3d(x, kernel, (1, 1, 1), SAME) ** 2).sum(), (0, 1))
    every = jax.jit(jax.vmap(gradients, (0, None)))(x, kernel)
    alone = [jnp.stack(parts) for parts in zip(*(gradients(each, kernel) for each in x), strict=True)]
    for one, other in zip(every, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_bfloat16_gradients_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(gpu_convolution, "MANY_CHANNELS", 1)
    x = jnp.ones((1, 3, 40, 40, 33), jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 3, 33, 1), jnp.bfloat16).at[:, 1, 1].set(1.0).at[2, 1, 1].set(256.0)
    y, pull = jax.vjp(lambda x, kernel: gpu_conv3d(x, kernel, (1, 1, 1), SAME), x, kernel)
    dx, dkernel = pull(jnp.ones_like(y))
    assert dx.dtype == dkernel.dtype == jnp.bfloat16
    assert dx[0, 1, 20, 20, 0] == 258  # 256 + 1 is 256 in bfloat16
    for positions in (14 * 14, 40 * 40):  # convolutions, then products
        monkeypatch.setattr(gpu_convolution, "FEW_POSITIONS", positions)
        program = jax.make_jaxpr(lambda *args: gpu_convolution.kernel_gradient(*args, (3, 3, 3), (1, 1, 1), SAME))(x, y)
        products = [each for each in program.eqns if each.primitive.name == "dot_general"]
        assert len(products) == (27 if positions == 40 * 40 else 0)
        assert all(each.outvars[0].aval.dtype == jnp.float32 for each in products)
    assert dkernel[1, 1, 1, 0, 0] == 4800


def lowered(function, *shapes, platform: str) -> str:
    """The StableHLO of a function for a platform that need not be present."""
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def results(program: str, axes: int) -> list[tuple[int, ...]]:
    """Shapes of the results of convolutions with this many axes."""
    found = re.findall(r"stablehlo\.convolution.*-> tensor<([\dx]+)x\w+>", program)
    return [shape for text in found if len(shape := tuple(map(int, text.split("x")))) == axes]


@pytest.mark.parametrize(
    ("shape", "kernel", "convolutions", "products"),
    [
        ((2, 8, 28, 28, 64), (3, 3, 3, 64, 64), 3, 0),
        ((2, 8, 56, 56, 3), (3, 7, 7, 3, 64), 1, 0),
        ((2, 2, 14, 14, 256), (3, 3, 3, 256, 512), 0, 27),
        ((2, 2, 16, 16, 256), (3, 3, 3, 256, 512), 3, 0),
    ],
)
def test_only_on_gpus_are_gradients_not_3d_convolutions(monkeypatch, shape, kernel, convolutions, products):
    padding = tuple((cells // 2, cells // 2) for cells in kernel[:3])
    inputs = tuple(jax.ShapeDtypeStruct(side, jnp.bfloat16) for side in (shape, kernel))
    programs = {}
    for platform, backend in (("cuda", "gpu"), ("tpu", "tpu")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        gradients = jax.grad(lambda *args: (conv3d(*args, (1, 1, 1), padding) ** 2).sum(), (0, 1))
        programs[platform] = lowered(gradients, *inputs, platform=platform)
    assert len(results(programs["tpu"], 5)) == 3 and not results(programs["tpu"], 4)
    assert results(programs["cuda"], 5) == [(*shape[:-1], kernel[-1])]  # the output alone
    flat, window = results(programs["cuda"], 4), {*kernel[1:3], kernel[-1]}
    assert len([each for each in flat if window <= set(each)]) == convolutions
    assert len(flat) == convolutions + kernel[0]  # and the input's gradient
    assert programs["cuda"].count("stablehlo.dot_general") == products


@pytest.mark.parametrize(
    "name", ["r3d_tiny", *(pytest.param(name, marks=pytest.mark.long) for name in ("c3d_tiny", "i3d_tiny", "s3d_tiny"))]
)
def test_models_lower_for_gpus_without_3d_gradients(monkeypatch, name):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = vidjax.create_model(name, dtype=jnp.bfloat16)
    video = jax.ShapeDtypeStruct((2, model.num_frames, model.image_size, model.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), video)

    def loss(variables, video):
        return (model.apply(variables, video) ** 2).sum()

    forward, backward = (lowered(each, variables, video, platform="cuda") for each in (loss, jax.grad(loss)))
    assert sorted(results(backward, 5)) == sorted(results(forward, 5))
    assert len(results(backward, 4)) > 2 * len(results(forward, 4))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("many", [256, 8], ids=["convolutions", "products"])
def test_several_devices_exchange_gradients_of_kernels_alone(monkeypatch, many):
    monkeypatch.setattr(gpu_convolution, "MANY_CHANNELS", many)
    mesh = make_mesh()

    def loss(kernel, x):
        x = gpu_conv3d(x, kernel, (1, 1, 1), SAME)
        return (gpu_conv3d(x, kernel, (1, 1, 1), SAME) ** 2).sum()

    kernel, x = (
        jax.ShapeDtypeStruct((3, 3, 3, 12, 12), jnp.float32),
        jax.ShapeDtypeStruct((8, 4, 12, 10, 12), jnp.float32),
    )
    gradient = jax.jit(jax.grad(loss), in_shardings=(replicated(mesh), batch_sharding(mesh)))
    collectives = read_collectives(gradient.lower(kernel, x).compile().as_text())
    assert collectives
    assert sum(collective.operand_bytes for collective in collectives) <= 2 * 4 * kernel.size
