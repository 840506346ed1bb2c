"""Rotary position embeddings: positions are rotations of queries and keys rather than terms of the tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Rotation = tuple[Float[Array, "... s r"], Float[Array, "... s r"]]
"""Cosine and sine of the angles of `s` tokens, by which the first `r` channels of each head are rotated."""


def rotate(x: Float[Array, "*b n k d"], rotation: Rotation) -> Float[Array, "*b n k d"]:
    """Rotates the first channels of every head (RoFormer, Su et al. 2021, arXiv:2104.09864, equation 34).

    Channels `2i` and `2i + 1` are a pair: `y = x cos + (-x[2i + 1], x[2i]) sin`. It is a rotation if both channels of a
    pair have the same angle. Computed in float32 or higher precision.

    Args:
      x: queries or keys of `k` heads.
      rotation: cosine and sine of the angles for each token; the same for all heads.
    """
    cosine, sine = (angles[..., None, :] for angles in rotation)
    rotated, rest = x[..., : cosine.shape[-1]], x[..., cosine.shape[-1] :]
    turned = jnp.stack([-rotated[..., 1::2], rotated[..., ::2]], axis=-1).reshape(rotated.shape)
    return jnp.concatenate([(rotated * cosine + turned * sine).astype(x.dtype), rest], axis=-1)
