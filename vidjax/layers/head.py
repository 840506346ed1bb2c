"""The head of a classifier: a module given by the user, or a linear layer by default; at one position or at many."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Average = Literal["softmax", "logits"]


def linear_unless_passed(head: nn.Module | None, num_classes: int | None, **linear: Any) -> nn.Module | None:
    """Returns `head` if given, otherwise a linear layer to `num_classes`, or None without classes.

    To be called in a model's `setup` with its field `head`. In both cases the parameters are under `head/`.

    Args:
      linear: fields of the linear layer, such as `kernel_init` and `dtype`.
    """
    if head is not None or num_classes is None:
        return head
    return nn.Dense(num_classes, name="head", **linear)


def pool_windows(x: Float[Array, "b t h w c"], window: tuple[int, int, int]) -> Float[Array, "b _ _ _ c"]:
    """The mean of each window, with stride 1: one position for a map of the training size, more for larger clips.

    Axes that are smaller than the window are averaged whole.
    """
    size = tuple(min(pair) for pair in zip(x.shape[1:4], window, strict=True))
    return nn.avg_pool(x.astype(jnp.float32), size, (1, 1, 1)).astype(x.dtype)  # XLA sums in the type of its input


def average_positions(logits: Float[Array, "b t h w c"], average: Average) -> Float[Array, "b c"]:
    """Logits of a clip from those of its positions.

    Args:
      average: of probabilities, whose logarithm is returned if there is more than one position, as in SlowFast's test;
        or of the logits, as in its training and in PyTorchVideo.
    """
    positions = logits.reshape(len(logits), -1, logits.shape[-1]).astype(jnp.float32)
    if average == "logits" or positions.shape[1] == 1:
        return positions.mean(axis=1).astype(logits.dtype)
    mean = jax.nn.logsumexp(jax.nn.log_softmax(positions), axis=1) - math.log(positions.shape[1])
    return mean.astype(logits.dtype)


def classify_positions(
    positions: Float[Array, "b t h w d"],
    classifier: nn.Module | None,
    dropout: nn.Dropout,
    train: bool,
    *,
    passed: bool,
    average: Average,
) -> PyTree[Float[Array, "b ..."]]:
    """What a network with a fully convolutional head returns, given the features at each position.

    Args:
      classifier: from `linear_unless_passed`. A linear layer sees every position, a passed head the mean features;
        without one these are returned.
      dropout: of the features.
      passed: whether the classifier is a passed head.
      average: see `average_positions`; in training, logits are averaged.
    """
    if classifier is None:
        return positions.mean(axis=(1, 2, 3))
    if passed:
        return classifier(dropout(positions.mean(axis=(1, 2, 3)), deterministic=not train))
    logits = classifier(dropout(positions, deterministic=not train))
    return average_positions(logits, "logits" if train else average)
