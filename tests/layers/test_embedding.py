from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidjax.layers.embedding import PatchEmbedding, Resizing, resize_table, sinusoid_table
from vidjax.layers.patches import patchify


def test_patch_embedding_is_a_strided_convolution_with_its_kernel():
    module, video = PatchEmbedding(5, (2, 3, 4)), jax.random.normal(jax.random.key(0), (2, 4, 6, 8, 3))
    patches = patchify(video, (2, 3, 4))
    params = module.init(jax.random.key(1), patches)["params"]
    params = params | {"bias": jnp.arange(5.0)}
    assert params["kernel"].shape == (2, 3, 4, 3, 5)
    convolved = jax.lax.conv_general_dilated(
        video, params["kernel"], (2, 3, 4), "VALID", dimension_numbers=("NTHWC", "THWIO", "NTHWC")
    )
    tokens = module.apply({"params": params}, patches)
    np.testing.assert_allclose(tokens, convolved.reshape(2, -1, 5) + params["bias"], atol=1e-5)


def test_patch_embedding_is_initialised_as_a_linear_map():
    kernel = PatchEmbedding(64, (2, 4, 4)).init(jax.random.key(0), jnp.zeros((1, 1, 96)))["params"]["kernel"]
    assert np.abs(kernel).max() <= np.sqrt(6 / (96 + 64)) and kernel.std() == pytest.approx(
        (2 / (96 + 64)) ** 0.5, rel=0.05
    )


def test_patches_of_another_size_are_rejected():
    with pytest.raises(ValueError, match=r"patches of 100 values do not match the patch size \(2, 4, 4\)"):
        PatchEmbedding(8, (2, 4, 4)).init(jax.random.key(0), jnp.zeros((1, 3, 100)))


def test_sinusoid_table_follows_the_published_formula():
    expected = np.zeros((9, 6))
    for position in range(9):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            expected[position, 2 * pair : 2 * pair + 2] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoid_table(9, 6), expected, atol=1e-7)
    assert sinusoid_table(9, 6).dtype == np.float32
    np.testing.assert_array_equal(sinusoid_table(1568, 384)[:9], sinusoid_table(9, 384))


def test_an_unknown_resizing_method_is_rejected(unchecked):
    with pytest.raises(ValueError, match="unknown resizing method 'area': use nearest, linear, cubic, half_pixel_"):
        resize_table(jnp.zeros((4, 2)), (8,), "area")


SIZES, METHODS = st.sampled_from([1, 4]), st.sampled_from(get_args(Resizing))
QUICK = settings(max_examples=10, deadline=None, derandomize=True, database=None)


@QUICK
@given(SIZES, SIZES, SIZES, SIZES, METHODS)
def test_a_table_is_resized_along_each_axis_alone_and_a_constant_stays_one(h, w, new_h, new_w, method):
    table = np.random.default_rng(0).standard_normal((h, w, 2)).astype(np.float32)
    resized = resize_table(jnp.asarray(table), (new_h, new_w), method)
    assert resized.shape == (new_h, new_w, 2)
    if (new_h, new_w) == (h, w):
        np.testing.assert_array_equal(resized, table)
    columns = [resize_table(jnp.asarray(table[:, i]), (new_h,), method) for i in range(w)]
    for i, row in enumerate(np.stack(columns, axis=1)):
        np.testing.assert_allclose(resized[i], resize_table(jnp.asarray(row), (new_w,), method), atol=1e-5)
    np.testing.assert_allclose(resize_table(jnp.ones((h, w, 1)), (new_h, new_w), method), 1, atol=1e-5)


@QUICK
@given(st.sampled_from([2, 5]), st.sampled_from([2, 5]))
def test_each_method_resizes_a_ramp_as_its_original_does(old, new):
    ramp = jnp.arange(old, dtype=jnp.float32)[:, None]
    nearest, linear, cubic = (resize_table(ramp, (new,), method)[:, 0] for method in ("nearest", "linear", "cubic"))
    np.testing.assert_array_equal(nearest, [int(i * old / new) for i in range(new)])
    np.testing.assert_allclose(linear, np.linspace(0, old - 1, new), atol=1e-5)
    np.testing.assert_allclose(cubic + cubic[::-1], old - 1, atol=1e-4)  # the ramp turned round is its mirror image


@pytest.mark.parametrize(("old", "new"), [(17, 19), (5, 9), (9, 5), (1, 4)])
def test_half_pixel_methods_equal_pytorchs_interpolate(old, new):
    interpolate = pytest.importorskip("torch").nn.functional.interpolate
    for shape, method, mode in (((old,), "half_pixel_linear", "linear"), ((old, old), "half_pixel_cubic", "bicubic")):
        table = np.random.default_rng(old).standard_normal((*shape, 2), np.float32)
        grid = (new,) * len(shape)
        images = np.ascontiguousarray(np.moveaxis(table, -1, 0)[None])
        expected = interpolate(_tensor(images), size=grid, mode=mode)[0].numpy()
        ours = resize_table(jnp.asarray(table), grid, method)
        np.testing.assert_allclose(np.moveaxis(ours, -1, 0), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 5), (16, 3)])
def test_antialiased_linear_equals_pytorchs_interpolate(old, new):
    interpolate = pytest.importorskip("torch").nn.functional.interpolate
    table = np.random.default_rng(old).standard_normal((old, old, 2), np.float32)
    images = np.ascontiguousarray(np.moveaxis(table, -1, 0)[None])
    expected = interpolate(_tensor(images), size=(new, new), mode="bilinear", antialias=True)[0].numpy()
    ours = resize_table(jnp.asarray(table), (new, new), "antialiased_linear")
    np.testing.assert_allclose(np.moveaxis(ours, -1, 0), expected, atol=1e-5)


def _tensor(array: np.ndarray):
    return pytest.importorskip("torch").from_numpy(array)


def test_half_pixel_linear_interpolates_between_the_centres_of_entries():
    """By hand: halving averages pairs; doubling puts the new centres a quarter away from the old ones."""
    ramp = jnp.asarray([0.0, 1.0, 4.0, 9.0])[:, None]
    np.testing.assert_allclose(resize_table(ramp, (2,), "half_pixel_linear")[:, 0], [0.5, 6.5], atol=1e-6)
    np.testing.assert_allclose(resize_table(ramp[:2], (4,), "half_pixel_linear")[:, 0], [0, 0.25, 0.75, 1], atol=1e-6)
