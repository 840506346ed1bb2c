"""Targets and losses of temporal localisation by points (ActionFormer, Zhang et al. 2022)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

CENTER_RADIUS = 1.5
"""Points this many strides from the centre of an action, and inside it, are positive."""
SHORTEST = 1e-3
"""Actions longer by at most this than the shortest around a point also count."""
MOMENTUM = 0.9
"""Of the running number of positive points, which the losses are divided by."""


class Points(NamedTuple):
    """The points of all levels, one after the other, in steps of the features.

    Attributes:
      place: where each is in time.
      stride: of its level.
      least, most: an action is of this level if its farther end is this far away.
    """

    place: Float[np.ndarray, "n"]
    stride: Float[np.ndarray, "n"]
    least: Float[np.ndarray, "n"]
    most: Float[np.ndarray, "n"]


def points(length: int, strides: Sequence[int]) -> Points:
    """Points at multiples of each stride. A level takes distances of 2 to 4 strides; first and last more.

    Args:
      length: of the features.
      strides: of the levels, each twice the one before.
    """
    rows = []
    for number, stride in enumerate(strides):
        place = np.arange(0, length, stride, dtype=np.float32)
        least = 0 if number == 0 else 2 * stride
        most = 10_000 if number == len(strides) - 1 else 4 * stride
        rows.append(np.stack([place, *(np.full_like(place, value) for value in (stride, least, most))]))
    return Points(*np.concatenate(rows, axis=1))


class Targets(NamedTuple):
    """What each point should say.

    Attributes:
      classes: 1 for the classes of the shortest action around the point; of several equally short ones, all.
      offsets: distances to the start and end of the first of these, in strides; anything where there is none.
    """

    classes: Float[Array, "b n classes"]
    offsets: Float[Array, "b n 2"]


def targets(
    points: Points,
    segments: Float[Array, "b m 2"],
    labels: Int[Array, "b m"],
    annotated: Bool[Array, "b m"],
    num_classes: int,
) -> Targets:
    """The targets of each point.

    Args:
      segments: start and end of the actions of each video, in steps of the features.
      labels: their classes.
      annotated: false for rows that only fill the array.
    """
    place, stride = points.place[:, None], points.stride[:, None]
    start, end = segments[:, None, :, 0], segments[:, None, :, 1]  # `b 1 m`
    left, right = place - start, end - place
    center = (start + end) / 2
    first = jnp.maximum(center - CENTER_RADIUS * stride, start)
    last = jnp.minimum(center + CENTER_RADIUS * stride, end)
    farther = jnp.maximum(left, right)
    chosen = (place > first) & (place < last) & (farther >= points.least[:, None]) & (farther <= points.most[:, None])
    length = jnp.where(chosen & annotated[:, None], end - start, jnp.inf)
    shortest = length.min(axis=-1, keepdims=True, initial=jnp.inf)
    same = (length <= shortest + SHORTEST) & jnp.isfinite(length)
    classes = jnp.einsum("bnm,bmc->bnc", same.astype(jnp.float32), jax.nn.one_hot(labels, num_classes))
    best = length.argmin(axis=-1)[..., None]
    offsets = jnp.concatenate([jnp.take_along_axis(x, best, axis=-1) for x in (left, right)], axis=-1)
    return Targets(jnp.minimum(classes, 1), offsets / stride)


def focal(
    logits: Float[Array, "*b"], targets: Float[Array, "*b"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*b"]:
    """Sigmoid focal loss (Lin et al. 2017); targets may be soft."""
    probability = jax.nn.sigmoid(logits)
    right = probability * targets + (1 - probability) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * (1 - right) ** gamma * optax.losses.sigmoid_binary_cross_entropy(logits, targets)


def distance_iou(offsets: Float[Array, "*b 2"], targets: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
    """One minus the IoU of two segments around a point, plus the squared distance of their centres over their hull."""
    (left, right), (left_target, right_target) = (jnp.moveaxis(x, -1, 0) for x in (offsets, targets))
    shared = jnp.minimum(left, left_target) + jnp.minimum(right, right_target)
    union = left + right + left_target + right_target - shared
    hull = jnp.maximum(left, left_target) + jnp.maximum(right, right_target)
    distance = (right - left - right_target + left_target) / 2
    tiny = 1e-8
    return 1 - shared / jnp.maximum(union, tiny) + jnp.square(distance / jnp.maximum(hull, tiny))


def localize(
    logits: Float[Array, "b n classes"],
    offsets: Float[Array, "b n 2"],
    targets: Targets,
    valid: Bool[Array, "b n"],
    positives: Float[Array, ""],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """The losses of classes and of offsets, and the new running number of positive points.

    Both are sums over valid points, divided by the running number after its update.

    Args:
      valid: false for points beyond the end of their video.
      positives: running number of positive points; the original starts with 100 for THUMOS and 200 for ActivityNet.
    """
    positive = (targets.classes.sum(axis=-1) > 0) & valid
    positives = MOMENTUM * positives + (1 - MOMENTUM) * jnp.maximum(positive.sum(), 1)
    smooth = targets.classes * (1 - label_smoothing) + label_smoothing / (logits.shape[-1] + 1)
    classification = jnp.sum(focal(logits, smooth), where=valid[..., None]) / positives
    wanted = jnp.where(positive[..., None], targets.offsets, 1)  # elsewhere they may be of an action that is not there
    regression = jnp.sum(distance_iou(offsets, wanted), where=positive) / positives
    return classification, regression, positives
