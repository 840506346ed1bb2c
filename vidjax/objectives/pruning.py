"""Training a model that drops tokens (DynamicViT, Rao et al. 2021, arXiv:2106.02034)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

RATIO_WEIGHT, DISTILLATION_WEIGHT = 2.0, 0.5  # section 3.4


class PruningLoss(NamedTuple):
    """The terms of the loss.

    Attributes:
      classification: cross-entropy of each clip.
      share: squared difference of the share of tokens that is kept and the one that is asked for, of each clip, as a
        mean over the places of dropping.
      teacher_logits: Kullback-Leibler divergence from the teacher's prediction, of each clip.
      teacher_tokens: mean squared difference to the teacher's tokens, over the kept ones of each clip.
    """

    classification: Float[Array, "b"]
    share: Float[Array, "b"]
    teacher_logits: Float[Array, "b"]
    teacher_tokens: Float[Array, "b"]

    def total(self) -> Float[Array, "b"]:
        """The weighted sum of each clip."""
        distilled = self.teacher_logits + self.teacher_tokens
        return self.classification + RATIO_WEIGHT * self.share + DISTILLATION_WEIGHT * distilled


def share_loss(kept: Sequence[Float[Array, "b n"]], shares: Sequence[float]) -> Float[Array, "b"]:
    """Squared difference of the kept shares of each clip's tokens to `shares`, a mean over the places of dropping."""
    return sum(jnp.square(each.mean(axis=1) - share) for each, share in zip(kept, shares, strict=True)) / len(shares)


def token_loss(
    tokens: Float[Array, "b n d"], target: Float[Array, "b n d"], kept: Bool[Array, "b n"] | Float[Array, "b n"]
) -> Float[Array, "b"]:
    """Mean squared difference of the kept tokens of each clip; 0 if none is kept.

    The original takes the mean over the kept tokens of the whole batch.
    """
    error = jnp.square(tokens.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    kept = jax.lax.stop_gradient(jnp.asarray(kept, jnp.float32))
    return (error * kept).sum(axis=1) / jnp.maximum(kept.sum(axis=1), 1)


def pruning_loss(
    logits: Float[Array, "b classes"],
    tokens: Float[Array, "n m d"],
    kept: Sequence[Float[Array, "n m"]],
    targets: Float[Array, "b classes"],
    shares: Sequence[float],
    teacher_logits: Float[Array, "b classes"],
    teacher_tokens: Float[Array, "n m d"],
) -> PruningLoss:
    """The terms of the loss for what `DynamicViT.masked` returns in training.

    Args:
      tokens, kept: of clips, or of their frames where the model attends within a frame: then `n` is `b` times frames.
      targets: labels, one-hot or soft.
      shares: `DynamicViT.shares`.
      teacher_logits, teacher_tokens: of the model before it drops tokens.

    Example:
      >>> output = model.apply(variables, video, train=True, method="masked", rngs={"pruning": key})
      >>> loss = pruning_loss(*output[:3], targets, model.shares, *teacher).total().mean()
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    tokens, teacher_tokens = (each.reshape(len(logits), -1, each.shape[-1]) for each in (tokens, teacher_tokens))
    kept = [each.reshape(len(logits), -1) for each in kept]
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
    return PruningLoss(
        optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets),
        share_loss(kept, shares),
        (jnp.exp(teacher) * (teacher - log_probabilities)).sum(axis=-1),
        token_loss(tokens, jax.lax.stop_gradient(teacher_tokens), kept[-1]),
    )
