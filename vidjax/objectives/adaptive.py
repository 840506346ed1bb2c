"""Training models that choose their computation: AdaViT's shares, and policy gradients (REINFORCE)."""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

USAGE_WEIGHT = 2.0  # the released code's; the paper's is 1


class Used(Protocol):
    """What `models.adavit.Usage` has."""

    tokens: Float[Array, "n blocks m"]
    heads: Float[Array, "n blocks k"]
    branches: Float[Array, "n blocks 2"]


class AdaViTLoss(NamedTuple):
    """Cross-entropy, and squared differences of the shares that are used in the batch and the one asked for."""

    classification: Float[Array, ""]
    tokens: Float[Array, ""]
    heads: Float[Array, ""]
    branches: Float[Array, ""]

    def total(self) -> Float[Array, ""]:
        """The weighted sum."""
        return self.classification + USAGE_WEIGHT * (self.tokens + self.heads + self.branches)


def adavit_loss(
    logits: Float[Array, "b classes"], usage: Used, targets: Float[Array, "b classes"], share: float
) -> AdaViTLoss:
    """The terms of the loss for what `AdaViT.masked` returns in training (Meng et al. 2021, equations 7 and 8).

    Heads of blocks that use neither attention nor MLP do not count, as in the released code, which however takes
    absolute differences for heads and branches.

    Args:
      targets: labels, one-hot or soft.
      share: of patches, heads and branches that should be used.

    Example:
      >>> output = model.apply(variables, video, train=True, method="masked", rngs={"usage": key})
      >>> loss = adavit_loss(*output, targets, share=0.5).total()
    """
    runs = jnp.broadcast_to(usage.branches.max(axis=2, keepdims=True) > 0, usage.heads.shape)
    heads = (usage.heads * runs).sum() / jnp.maximum(runs.sum(), 1)
    losses = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    squares = [jnp.square(each - share) for each in (usage.tokens.mean(), heads, usage.branches.mean())]
    return AdaViTLoss(losses.mean(), *squares)
