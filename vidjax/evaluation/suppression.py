"""Non-maximum suppression of predicted segments (NumPy)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from vidjax.evaluation.average_precision import by_falling_score, segment_iou
from vidjax.evaluation.moments import hull_iou

TINY = 1e-6
"""Added to each length in ActionFormer's suppression, so that segments without length do not divide by zero."""

Kept = tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]
"""Indices of the segments that are left, by falling score, and their scores."""


def _padded_iou(segments: Float[np.ndarray, "n 2"], one: Float[np.ndarray, "2"]) -> Float[np.ndarray, "n"]:
    shared = np.maximum(np.minimum(segments[:, 1], one[1]) - np.maximum(segments[:, 0], one[0]), 0)
    lengths = segments[:, 1] - segments[:, 0] + TINY
    return shared / (lengths + (one[1] - one[0] + TINY) - shared)


def hard_nms(
    segments: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, "n"], threshold: float, least: float, most: int
) -> Kept:
    """Drops segments that a better one overlaps by `threshold` or more, and scores of at most `least`."""
    order = by_falling_score(scores)
    order = order[scores[order] > least]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        kept.append(order[0])
        order = order[1:][_padded_iou(segments[order[1:]], segments[order[0]]) < threshold]
    return np.array(kept, int), scores[kept]


def soft_nms(
    segments: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, "n"], sigma: float, least: float, most: int
) -> Kept:
    """Lowers the scores of segments that a better one overlaps, by exp(-IoU² / sigma) (Bodla et al. 2017).

    Repeatedly takes the best segment that is left. Segments whose score falls below `least` are dropped.
    """
    left, rest, kept, final = np.arange(len(scores)), scores.copy(), [], []
    while len(left) and len(kept) < most:
        best = rest.argmax()
        kept.append(left[best])
        final.append(rest[best])
        iou = _padded_iou(segments[left], segments[left[best]])
        rest = rest * np.exp(-(iou**2) / sigma)
        stays = rest >= least
        stays[best] = False
        left, rest = left[stays], rest[stays]
    return np.array(kept, int), np.array(final, scores.dtype)


def per_class(
    suppress: Callable[[np.ndarray, np.ndarray], Kept],
    segments: Float[np.ndarray, "n 2"],
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    most: int,
) -> Kept:
    """Applies `suppress(segments, scores)` to each class; of all classes together, the best `most` are left."""
    kept, final = [np.zeros(0, int)], [np.zeros(0, scores.dtype)]
    for kind in np.unique(labels):
        rows = np.flatnonzero(labels == kind)
        chosen, values = suppress(segments[rows], scores[rows])
        kept.append(rows[chosen])
        final.append(values)
    kept, final = np.concatenate(kept), np.concatenate(final)
    order = by_falling_score(final)[:most]
    return kept[order], final[order]


def vote(
    kept: Float[np.ndarray, "m 2"],
    segments: Float[np.ndarray, "n 2"],
    scores: Float[np.ndarray, "n"],
    threshold: float,
) -> Float[np.ndarray, "m 2"]:
    """Replaces each kept segment by the mean of all that it overlaps by `threshold`, weighted by score and IoU."""
    iou = segment_iou(kept, segments)
    weights = np.where(iou >= threshold, scores * iou, 0)
    return weights @ segments / weights.sum(axis=1, keepdims=True)


def nms_of_moments(
    windows: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, "n"], threshold: float, most: int
) -> Kept:
    """Moment-DETR's: drops windows whose overlap with a better one is above `threshold` of the hull of both."""
    order = by_falling_score(scores)
    kept: list[int] = []
    while len(order) and len(kept) < most:
        kept.append(order[0])
        order = order[1:][hull_iou(windows[order[:1]], windows[order[1:]])[0] <= threshold]
    return np.array(kept, int), scores[kept]
