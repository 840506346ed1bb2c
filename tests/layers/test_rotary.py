import jax
import jax.numpy as jnp
import numpy as np

from vidjax.layers.attention import Attention
from vidjax.layers.rotary import rotate

DRAW = np.random.default_rng(0).standard_normal


def rotation(positions, channels):
    """Angles as of RoFormer: both channels of a pair have the same."""
    angles = np.repeat(np.asarray(positions)[..., None] * 100.0 ** -(np.arange(channels // 2) / channels * 2), 2, -1)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def test_pairs_of_channels_are_multiplied_by_a_complex_number():
    x = DRAW((2, 5, 3, 7)).astype(np.float32)
    cosine, sine = rotation(np.arange(5), 4)
    rotated = np.asarray(rotate(jnp.asarray(x), (cosine, sine)))
    pairs = (x[..., 0:4:2] + 1j * x[..., 1:4:2]) * (np.asarray(cosine) + 1j * np.asarray(sine))[:, None, ::2]
    np.testing.assert_allclose(rotated[..., 0:4:2] + 1j * rotated[..., 1:4:2], pairs, atol=1e-6)
    np.testing.assert_array_equal(rotated[..., 4:], x[..., 4:])
    half = rotate(jnp.asarray(x, jnp.bfloat16), (cosine, sine))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), rotated, atol=0.03)


def test_attention_depends_on_distances_only():
    """For positions that are the same for all clips, or differ."""
    x = jnp.asarray(DRAW((2, 5, 8)), jnp.float32)
    attention = Attention(2, qkv_bias=False)
    params = attention.init(jax.random.key(0), x)
    here = attention.apply(params, x, rotation=rotation(np.arange(5), 4))
    there = attention.apply(params, x, rotation=rotation(np.stack([np.arange(5) + 3, np.arange(5) + 9]), 4))
    np.testing.assert_allclose(here, there, atol=1e-5)
    assert not np.allclose(here, attention.apply(params, x), atol=1e-3)
    other = attention.apply(params, x, rotation=rotation([0, 1, 2, 3, 9], 4))
    assert np.abs(np.asarray(other - here)).max() > 1e-3
