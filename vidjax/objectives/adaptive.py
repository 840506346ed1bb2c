"""Training models that choose their computation: AdaViT's shares, AdaFrame's gains, policy gradients; Ada3D."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

USAGE_WEIGHT = 2.0  # the default of AdaViT's released code
ENTROPY_WEIGHT = 0.02  # of Ada3D's decisions; ours


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
    logits: Float[Array, "b classes"],
    tokens: Float[Array, "n blocks m"],
    heads: Float[Array, "n blocks k"],
    branches: Float[Array, "n blocks 2"],
    targets: Float[Array, "b classes"],
    share: float,
) -> AdaViTLoss:
    """The terms of the loss for what `AdaViT.masked` returns in training (Meng et al. 2021, as we read the paper).

    Heads of blocks that use neither attention nor MLP do not count, as in the released code. That code takes absolute
    differences for heads and branches, and has further terms, which are left out here: for the shares of each head and
    branch, for the entropy of the decisions and for the least number of patches.

    Args:
      targets: labels, one-hot or soft.
      share: of patches, heads and branches that should be used.

    Example:
      >>> output = model.apply(variables, video, train=True, method="masked", rngs={"usage": key})
      >>> loss = adavit_loss(output.logits, *output.usage, targets, share=0.5).total()
    """
    runs = jnp.broadcast_to(branches.max(axis=2, keepdims=True) > 0, heads.shape)
    used = (heads * runs).sum() / jnp.maximum(runs.sum(), 1)
    losses = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    squares = [jnp.square(each - share) for each in (tokens.mean(), used, branches.mean())]
    return AdaViTLoss(losses.mean(), *squares)


def policy_gradient_loss(
    log_probabilities: Float[Array, "*b"], rewards: Float[Array, "*b"], baseline: Float[Array, "*#b"] | float = 0.0
) -> Float[Array, "*b"]:
    """A loss whose gradient is that of the expected reward, in expectation over the actions (Williams 1992), negated.

    Args:
      log_probabilities: of the actions that were drawn.
      rewards: that followed; no gradient flows into them.
      baseline: expected reward, which must not depend on the action; it reduces the variance.
    """
    return -log_probabilities * jax.lax.stop_gradient(rewards - baseline)


def margin_rewards(
    logits: Float[Array, "b s classes"], labels: Int[Array, "b"], discount: float = 0.9
) -> tuple[Float[Array, "b s"], Float[Array, "b s"]]:
    """What each step gained, and the discounted sum of what the steps after it gained (AdaFrame, as we read it).

    A gain is the increase of the margin, the probability of the label minus the highest other one, over its best value
    before, which is 0 before the first step.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)[:, None]
    margins = jnp.where(right, probabilities, 0).sum(axis=-1) - jnp.where(right, 0, probabilities).max(axis=-1)
    best = jnp.maximum(jax.lax.cummax(margins, axis=1), 0)
    gains = jnp.diff(best, axis=1, prepend=0)

    def before(following: Array, gain: Array) -> tuple[Array, Array]:
        return gain + discount * following, following

    returns = jax.lax.scan(before, jnp.zeros(len(gains)), gains.T, reverse=True)[1].T
    return gains, returns


class AdaFrameLoss(NamedTuple):
    """The terms of each clip: cross-entropy after the last step, error of the utilities, and policy gradient."""

    classification: Float[Array, "b"]
    utility: Float[Array, "b"]
    selection: Float[Array, "b"]

    def total(self) -> Float[Array, "b"]:
        """Their sum."""
        return self.classification + self.utility + self.selection


def adaframe_loss(
    logits: Float[Array, "b s classes"],
    log_probabilities: Float[Array, "b s"],
    utilities: Float[Array, "b s"],
    labels: Int[Array, "b"],
    discount: float = 0.9,
) -> AdaFrameLoss:
    """The terms of the loss for what `AdaFrame.episode` returns in training (Wu et al. 2019, as we read it).

    The utility predicts the sum of the gains that follow, and is the baseline of the policy gradient.

    Example:
      >>> episode = model.apply(variables, video, train=True, method="episode", rngs={"places": key})
      >>> terms = adaframe_loss(episode.logits, episode.log_probabilities, episode.utilities, labels)
    """
    returns = margin_rewards(logits, labels, discount)[1]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, -1].astype(jnp.float32), labels)
    selection = policy_gradient_loss(log_probabilities, returns, utilities)
    # After the last step there is nothing to choose.
    error = 0.5 * jnp.square(utilities - jax.lax.stop_gradient(returns)).sum(axis=1)
    return AdaFrameLoss(losses, error, selection[:, :-1].sum(axis=1))


class Ada3DLoss(NamedTuple):
    """The terms of each clip: cross-entropy, policy gradients of the frames and of the convolutions, and entropy."""

    classification: Float[Array, "b"]
    frames: Float[Array, "b"]
    convolutions: Float[Array, "b"]
    entropy: Float[Array, "b"]

    def total(self) -> Float[Array, "b"]:
        """Their sum, less the weighted entropy, without which decisions soon become certain, also wrong ones."""
        return self.classification + self.frames + self.convolutions - ENTROPY_WEIGHT * self.entropy


def ada3d_rewards(
    logits: Float[Array, "b classes"],
    frames: Float[Array, "b t"],
    convolutions: Float[Array, "b k"],
    labels: Int[Array, "b"],
    penalty: float = 1.0,
) -> Float[Array, "b 2"]:
    """Rewards of both kinds of decisions: 1 minus the squared share that is used if the class is right, else -penalty.

    Args:
      frames, convolutions: what is used, 1 or 0.
      penalty: a larger one puts the right class before savings.
    """
    shares = jnp.stack([frames.mean(axis=1), convolutions.mean(axis=1)], axis=1)
    right = logits.argmax(axis=1) == labels
    return jnp.where(right[:, None], 1 - jnp.square(shares), -penalty)


def ada3d_loss(
    logits: Float[Array, "b classes"],
    frames: Float[Array, "b t"],
    convolutions: Float[Array, "b k"],
    log_probabilities: Float[Array, "b 2"],
    entropies: Float[Array, "b 2"],
    labels: Int[Array, "b"],
    penalty: float = 1.0,
    baseline: Float[Array, "b 2"] | float = 0.0,
) -> Ada3DLoss:
    """The terms of the loss for what `Ada3D.masked` returns in training (Li et al. 2021; the entropy is ours).

    Args:
      baseline: rewards expected for the clips, such as those of the more probable decisions (self-critical training).

    Example:
      >>> output = model.apply(variables, video, train=True, method="masked", rngs={"usage": key})
      >>> greedy = model.apply(variables, video, method="masked")
      >>> baseline = ada3d_rewards(greedy.logits, *greedy.usage, labels)
      >>> chosen = (output.log_probabilities, output.entropies)
      >>> terms = ada3d_loss(output.logits, *output.usage, *chosen, labels, baseline=baseline)
    """
    rewards = ada3d_rewards(logits, frames, convolutions, labels, penalty)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    gradients = policy_gradient_loss(log_probabilities, rewards, baseline)
    return Ada3DLoss(losses, gradients[:, 0], gradients[:, 1], entropies.sum(axis=1))
