"""Image-text matching with hard negatives (ALBEF; Li et al. 2021, arXiv:2107.07651, section 3.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def hard_negatives(
    key: Key[Array, ""], logits: Float[Array, "b b"], valid: Bool[Array, "b"], floor: float = 0.0
) -> tuple[Int[Array, "b"], Bool[Array, "b"]]:
    """Draws another column for each row, the likelier the more similar it is: with the probabilities of the softmax.

    Args:
      logits: similarities, matching pairs on the diagonal.
      valid: false for columns that are never drawn.
      floor: added to the softmax over all columns (BLIP: 1e-4), so that any other column may be drawn.

    Returns:
      The columns, and whether there was one to draw.
    """
    allowed = valid & ~jnp.eye(len(logits), dtype=bool)
    if floor:
        logits = jnp.log(jax.nn.softmax(jnp.where(valid, logits, -jnp.inf)) + floor)
    return jax.random.categorical(key, jnp.where(allowed, logits, -jnp.inf)), allowed.any(axis=1)


def matching_loss(logits: Float[Array, "n 2"], match: Bool[Array, "n"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """Mean cross-entropy of telling pairs that match (class 1) from those that do not, over the valid pairs."""
    log_likelihood = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.where(match, log_likelihood[:, 1], log_likelihood[:, 0])
    return jnp.where(valid, losses, 0).sum() / jnp.maximum(valid.sum(), 1)
