"""Multiply-accumulates, compared with counts by hand and published counts."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from vidjax.kernels.convolution import conv3d
from vidjax.layers.convolution import depthwise_conv3d
from vidjax.models import create_model
from vidjax.training.cost import PEAKS, count_macs, peak_flops


def test_products_convolutions_and_loops_are_counted():
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    assert count_macs(jnp.matmul, a, b) == 3 * 4 * 5 * 6
    video, kernel = jnp.ones((1, 8, 8, 8, 3)), jnp.ones((3, 3, 3, 3, 7))
    dimensions = ("NDHWC", "DHWIO", "NDHWC")
    convolve = partial(jax.lax.conv_general_dilated, padding="SAME", dimension_numbers=dimensions)
    strided, depthwise = partial(convolve, window_strides=(1, 2, 2)), partial(convolve, window_strides=(1, 1, 1))
    assert count_macs(strided, video, kernel) == 8 * 4 * 4 * 7 * 27 * 3
    depthwise = partial(depthwise, feature_group_count=3)
    assert count_macs(depthwise, video, jnp.ones((3, 3, 3, 1, 3))) == 8 * 8 * 8 * 3 * 27

    for size in (3, 5):  # the library's own, which contains no convolution primitive
        kernel = jnp.ones((size, size, size, 1, 3))
        assert count_macs(jax.jit(depthwise_conv3d), video, kernel) == 8 * 8 * 8 * 3 * size**3
        with_strides = partial(depthwise_conv3d, strides=(1, 2, 4))
        assert count_macs(with_strides, video, kernel) == 8 * 4 * 2 * 3 * size**3
    of_pixels = partial(conv3d, strides=(1, 1, 1), padding=((0, 0), (1, 1), (1, 1)))  # with a fourth input on CPUs
    assert count_macs(of_pixels, video, jnp.ones((1, 3, 3, 3, 24))) == 8 * 8 * 8 * 24 * 27

    def scanned(x):
        return jax.lax.scan(lambda c, _: (jnp.matmul(c, jnp.ones((6, 6))), None), x, length=5)[0]

    assert count_macs(jax.jit(jax.checkpoint(scanned)), jnp.ones((2, 6))) == 5 * 2 * 6 * 6


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("small", 11.536),
        pytest.param("base", 35.440, marks=pytest.mark.long),
        pytest.param("large", 142.636, marks=pytest.mark.long),
        pytest.param("huge", 237.607, marks=pytest.mark.long),
    ],
)
def test_pretraining_costs_are_published_without_the_patches_that_are_never_embedded(name, gmacs):
    model = create_model(f"videomae_{name}_pretrain")
    indices = jax.ShapeDtypeStruct((1, 160), jnp.int32), jax.ShapeDtypeStruct((1, 1408), jnp.int32)
    video = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), video, *indices)
    never_embedded = 1408 * 1536 * model.width
    assert count_macs(model.apply, variables, video, *indices) + never_embedded == pytest.approx(gmacs * 1e9, rel=1e-3)


def test_peak_flops_by_device_kind():
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is peak_flops("cpu", "float32") is None
    assert peak_flops("NVIDIA A10G") < peak_flops("NVIDIA A10") < peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") < peak_flops("NVIDIA H100 80GB HBM3") < peak_flops("NVIDIA GB200")


def test_every_peak_is_reachable_and_has_a_source():
    for kind, peak in PEAKS.items():  # a general name would hide more specific ones after it
        assert (peak_flops(kind), peak_flops(kind, "float32")) == (peak.bfloat16, peak.float32)
        assert 0 < peak.float32 <= peak.bfloat16 and peak.source
