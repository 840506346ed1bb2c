"""Average precision of scored predictions, and the greedy matching of predictions to annotations that precedes it."""

import numpy as np
from jaxtyping import Bool, Float, Int


def average_precision(hits: Bool[np.ndarray, "n *t"], total: int) -> Float[np.ndarray, "*t"]:
    """Area under the precision-recall curve, with precision made monotonic (VOC 2010).

    Args:
      hits: whether each prediction, by falling score, matches an annotation, for each of any number of thresholds.
      total: number of annotations, at least 1.
    """
    if not len(hits):
        return np.zeros(hits.shape[1:])
    found = np.cumsum(hits, axis=0, dtype=float)
    precision = found / np.arange(1, len(hits) + 1).reshape(-1, *(1,) * (hits.ndim - 1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (envelope * hits).sum(axis=0) / total


def match_greedily(iou: Float[np.ndarray, "n m"], thresholds: Float[np.ndarray, "t"]) -> Bool[np.ndarray, "n t"]:
    """Which predictions match an annotation: each takes the free one that it overlaps most.

    Args:
      iou: intersection over union of predictions, by falling score, and annotations.
      thresholds: least IoU of a match; each has a matching of its own.
    """
    hits = np.zeros((len(iou), len(thresholds)), bool)
    if not iou.size:
        return hits
    free, rows = np.ones((len(thresholds), iou.shape[1]), bool), np.arange(len(thresholds))
    for index in np.flatnonzero(iou.max(axis=1) >= thresholds.min()):
        left = np.where(free, iou[index], -1.0)
        best = left.argmax(axis=1)
        hits[index] = left[rows, best] >= thresholds
        free[rows[hits[index]], best[hits[index]]] = False
    return hits


def segment_iou(first: Float[np.ndarray, "n 2"], second: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of each pair of segments (start, end); 0 for two segments without length."""
    low = np.maximum(first[:, None, 0], second[None, :, 0])
    high = np.minimum(first[:, None, 1], second[None, :, 1])
    shared = np.maximum(high - low, 0)
    union = (first[:, 1] - first[:, 0])[:, None] + (second[:, 1] - second[:, 0])[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared, dtype=float), where=union > 0)


def by_falling_score(scores: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Indices of the scores in falling order; equal ones keep their order."""
    return np.argsort(-scores, kind="stable")


def groups(*keys: Int[np.ndarray, "n"]) -> dict[tuple[int, ...], Int[np.ndarray, "_"]]:
    """The indices of the rows with each combination of keys, in their order."""
    order = np.lexsort(keys[::-1])
    sorted_keys = np.stack(keys, axis=1)[order]
    first = np.flatnonzero(np.any(np.diff(sorted_keys, axis=0, prepend=sorted_keys[:1] - 1) != 0, axis=1))
    return {
        tuple(sorted_keys[begin].tolist()): order[begin:end]
        for begin, end in zip(first, [*first[1:], len(order)], strict=True)
    }
