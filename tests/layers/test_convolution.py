"""Convolutions have the padding of TensorFlow and the initialisation of PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vidjax.layers.convolution import Conv3D, DepthwiseConv3D

DIMENSIONS = ("NTHWC", "THWIO", "NTHWC")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_named_padding_is_tensorflows(padding):
    conv = Conv3D(2, (3, 7, 7), (1, 2, 2), padding=padding)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 12, 12, 3)), jnp.float32)
    variables = conv.init(jax.random.key(0), x)
    expected = lax.conv_general_dilated(
        x, variables["params"]["kernel"], (1, 2, 2), padding, dimension_numbers=DIMENSIONS
    )
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-6)


@pytest.mark.parametrize("conv", [Conv3D(64, (3, 3, 3), use_bias=True), DepthwiseConv3D((3, 3, 3))])
def test_convolutions_are_initialised_as_in_pytorch(conv):
    params = conv.init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, 96)))["params"]
    bound = np.prod(params["kernel"].shape[:-1]) ** -0.5
    for leaf in (params["kernel"], params["bias"]):
        assert bound > np.abs(leaf).max() > 0.9 * bound
    assert params["kernel"].std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_groups_of_channels_are_convolved_separately():
    conv = Conv3D(6, (1, 3, 3), (1, 2, 2), use_bias=True, groups=2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 9, 9, 4)), jnp.float32)
    variables = conv.init(jax.random.key(0), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    expected = lax.conv_general_dilated(
        x, kernel, (1, 2, 2), ((0, 0), (1, 1), (1, 1)), dimension_numbers=DIMENSIONS, feature_group_count=2
    )
    np.testing.assert_allclose(conv.apply(variables, x), expected + bias, atol=1e-6)


def test_a_dilated_convolution_skips_cells_also_on_odd_sides():
    conv = Conv3D(3, (1, 3, 3), dilation=2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 7, 4, 2)), jnp.float32)
    variables = conv.init(jax.random.key(0), x)
    expected = lax.conv_general_dilated(
        x, variables["params"]["kernel"], (1, 1, 1), ((0, 0), (2, 2), (2, 2)), rhs_dilation=(1, 2, 2),
        dimension_numbers=DIMENSIONS,
    )  # fmt: skip
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-6)
