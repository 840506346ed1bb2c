"""Alignment with a frozen teacher where the student sees (UMT, Li et al. 2023, arXiv:2303.16058).

The student encodes a few tokens of each frame, drawn with the teacher's attention as probabilities, and its last layers
match the teacher's at these tokens. Unlike in latent prediction, nothing is predicted elsewhere, and no decoder or
predictor is needed beyond one linear layer for each layer.
"""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def draw_attended(key: Key[Array, ""], attention: Float[Array, "b f m"], ratio: float) -> Int[Array, "b k"]:
    """Draws the visible tokens of each frame without replacement, an attended token with a higher probability.

    Draws one after the other with the attention to the remaining tokens as probabilities, which is what the largest
    sums of log-probability and Gumbel noise are. The tokens of the most attention would be the same in each epoch.

    Args:
      attention: of the class token of a frame to its patches, zero or more, of any sum.
      ratio: fraction of each frame's tokens that is hidden, rounded down to whole tokens.

    Returns:
      Sorted indices in `(t h w)` order, as many for each frame.
    """
    frames, tokens = attention.shape[1:]
    visible = tokens - int(tokens * ratio)
    ranks = jnp.log(jnp.maximum(attention, 1e-30)) + jax.random.gumbel(key, attention.shape)
    _, places = jax.lax.top_k(ranks, visible)
    return einops.rearrange(jnp.sort(places) + tokens * jnp.arange(frames)[:, None], "b f k -> b (f k)")


def alignment_loss(student: Float[Array, "k b m e"], teacher: Float[Array, "k b m e"]) -> Float[Array, "b"]:
    """The squared distance of unit vectors, `2 - 2 cos`, of each clip: the mean over layers and tokens, in float32."""
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    squares = jnp.square(student).sum(axis=-1) * jnp.square(teacher).sum(axis=-1)
    cosine = (student * teacher).sum(axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))  # 0 for vectors of zeros
    return (2 - 2 * cosine).mean(axis=(0, 2))
