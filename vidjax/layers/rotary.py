"""Rotary position embeddings: positions are rotations of queries and keys rather than terms of the tokens."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError

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


def thirds(indices: Int[Array, "*b n"], clip: tuple[int, int, int], head_width: int) -> Rotation:
    """V-JEPA 2's cosine and sine of the angles of tokens: a third of a head's channels by time, by row, by column.

    Args:
      indices: of the tokens, in the `(t h w)` order of the clip.
      clip: times, rows and columns of tokens in the clip.
      head_width: channels of a head.

    Raises:
      UserError: the heads are too narrow to rotate a pair of channels by each of the three positions.
    """
    third = 2 * (head_width // 3 // 2)
    if not third:
        raise UserError(f"heads of {head_width} channels have no thirds to rotate: use fewer heads or a larger width")
    _, rows, columns = clip
    positions = jnp.stack([indices // (rows * columns), indices // columns % rows, indices % columns], axis=-1)
    frequencies = 10000.0 ** (-np.arange(third // 2) / (third / 2))
    angles = positions[..., None].astype(jnp.float32) * np.tile(frequencies, 2).astype(np.float32)
    angles = angles.reshape(*indices.shape, 3 * third)
    return jnp.cos(angles), jnp.sin(angles)
