import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.layers.patches import grid, patchify, unpatchify

SHAPE, PATCH = (4, 6, 8, 3), (2, 3, 2)


def test_tokens_are_ordered_time_row_column_and_values_frame_row_column_channel():
    video = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    tokens = [
        video[t : t + 2, y : y + 3, x : x + 2].reshape(-1)
        for t in range(0, 4, 2)
        for y in range(0, 6, 3)
        for x in range(0, 8, 2)
    ]
    np.testing.assert_array_equal(patchify(jnp.asarray(video), PATCH), tokens)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_unpatchify_is_the_inverse(leading):
    video = jnp.arange(np.prod((*leading, *SHAPE))).reshape(*leading, *SHAPE)
    patches = patchify(video, PATCH)
    assert patches.shape == (*leading, 16, 36)
    np.testing.assert_array_equal(unpatchify(patches, grid(SHAPE[:3], PATCH), PATCH), video)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((15, 224, 224), "15 frames cannot be cut into patches of 2: use a multiple of 2, such as 14 or 16"),
        ((16, 225, 224), "225 pixels of height cannot be cut into patches of 16: .* such as 224 or 240"),
        ((16, 224, 100), "100 pixels of width cannot be cut into patches of 16: .* such as 96 or 112"),
        ((16, 224, 8), "8 pixels of width cannot be cut into patches of 16: use a multiple of 16, such as 16$"),
        ((0, 224, 224), "0 frames cannot be cut into patches of 2: use a multiple of 2, such as 2$"),
    ],
)
def test_an_indivisible_video_is_rejected_with_the_nearest_sizes(shape, message):
    with pytest.raises(ValueError, match=message):
        grid(shape, (2, 16, 16))


def test_pixels_are_converted_before_they_are_moved():
    """The same as after it, but half as many bytes are copied."""
    video = jnp.linspace(-2, 2, math.prod(SHAPE)).reshape(1, *SHAPE)
    program = jax.make_jaxpr(lambda video: patchify(video, PATCH, jnp.bfloat16))(video)
    assert program.eqns[0].primitive.name == "convert_element_type"
    np.testing.assert_array_equal(patchify(video, PATCH, "bfloat16"), patchify(video, PATCH).astype(jnp.bfloat16))
