"""The loss of Moment-DETR (Lei et al. 2021): matching of predicted to annotated moments, spans, classes, saliency."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

SPAN, IOU, LABEL, ALIGN = 10.0, 1.0, 4.0, 0.02
"""Weights in the matching and in the loss."""
BACKGROUND = 0.1
"""Weight of a query that is no moment in the cross-entropy."""
MARGIN = 0.2
"""By which a step of the moment should be rated above another."""
TEMPERATURE = 0.07


def ends(spans: Float[Array, "*b 2"]) -> Float[Array, "*b 2"]:
    """Start and end from centre and width."""
    return jnp.stack([spans[..., 0] - spans[..., 1] / 2, spans[..., 0] + spans[..., 1] / 2], axis=-1)


def generalized_iou(first: Float[Array, "*#b 2"], second: Float[Array, "*#b 2"]) -> Float[Array, "*b"]:
    """IoU of segments (start, end), minus the part of their hull that neither covers (Rezatofighi et al. 2019)."""
    low, high = jnp.maximum(first[..., 0], second[..., 0]), jnp.minimum(first[..., 1], second[..., 1])
    shared = jnp.maximum(high - low, 0)
    union = first[..., 1] - first[..., 0] + second[..., 1] - second[..., 0] - shared
    hull = jnp.maximum(first[..., 1], second[..., 1]) - jnp.minimum(first[..., 0], second[..., 0])
    return shared / union - (hull - union) / hull


def match(
    logits: Float[Array, "b q 2"],
    spans: Float[Array, "b q 2"],
    targets: Float[Array, "b m 2"],
    annotated: Bool[Array, "b m"],
) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """The query of each annotated moment, so that the sum of costs is least; and for which moments there is one.

    Args:
      logits: for being a moment, and for not being one.
      spans: centre and width, as fractions of the video.
      targets: those of the annotated moments.
      annotated: false for rows that only fill the array.
    """
    moment = jax.nn.softmax(logits)[..., 0]
    distance = jnp.abs(spans[:, :, None] - targets[:, None]).sum(axis=-1)
    overlap = generalized_iou(ends(spans)[:, :, None], ends(targets)[:, None])
    cost = SPAN * distance - IOU * overlap - LABEL * moment[..., None]
    # A moment costs less than any filling row, so that with too few queries the filling ones are left out.
    cost = jnp.where(annotated[:, None], cost, 1e3)

    def one(cost: Array) -> tuple[Array, Array]:
        query, moment = optax.assignment.hungarian_algorithm(cost)
        empty = jnp.zeros(cost.shape[1], int)
        return empty.at[moment].set(query), empty.at[moment].set(1)

    query, given = jax.vmap(one)(jax.lax.stop_gradient(cost))
    return query, annotated & (given > 0)


class Losses(NamedTuple):
    """Of one layer of the decoder: mean L1 distance of spans, one minus generalised IoU, weighted cross-entropy."""

    span: Float[Array, ""]
    iou: Float[Array, ""]
    label: Float[Array, ""]

    def total(self) -> Float[Array, ""]:
        """The weighted sum."""
        return SPAN * self.span + IOU * self.iou + LABEL * self.label


def losses(
    logits: Float[Array, "b q 2"],
    spans: Float[Array, "b q 2"],
    targets: Float[Array, "b m 2"],
    query: Int[Array, "b m"],
    matched: Bool[Array, "b m"],
) -> Losses:
    """The losses, given the query of each moment (see `match`)."""
    chosen = jnp.take_along_axis(spans, query[..., None], axis=1)
    count = jnp.maximum(matched.sum(), 1)
    distance = jnp.abs(chosen - targets).mean(axis=-1)
    overlap = generalized_iou(ends(chosen), ends(targets))
    taken = is_taken(query, matched, logits.shape[1])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(taken, 0, 1))
    return Losses(
        jnp.sum(distance, where=matched) / count,
        jnp.sum(1 - overlap, where=matched) / count,
        jnp.mean(entropy * jnp.where(taken, 1, BACKGROUND)),
    )


def is_taken(query: Int[Array, "b m"], matched: Bool[Array, "b m"], queries: int) -> Bool[Array, "b q"]:
    """Which queries have a moment."""
    return (jax.nn.one_hot(query, queries, dtype=bool) & matched[..., None]).any(axis=1)


def rank_saliency(
    saliency: Float[Array, "b t"], positive: Int[Array, "b p"], negative: Int[Array, "b p"]
) -> Float[Array, ""]:
    """Hinge loss of pairs of steps, of which the first should be rated above the second.

    Args:
      positive, negative: such as the best and the worst rated step of the moment, and one inside and one outside it.
    """
    high, low = (jnp.take_along_axis(saliency, steps, axis=1) for steps in (positive, negative))
    return 2 * jax.nn.relu(MARGIN + low - high).mean()


def align(queries: Float[Array, "b q e"], words: Float[Array, "b m e"], taken: Bool[Array, "b q"]) -> Float[Array, ""]:
    """Contrast of the queries that have a moment with the others, by their similarity to the words (all rows count)."""
    logits = jnp.einsum("bqe,bme->bq", queries, words) / TEMPERATURE
    positive = jnp.sum(logits, axis=1, where=taken) / jnp.maximum(taken.sum(axis=1), 1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)
