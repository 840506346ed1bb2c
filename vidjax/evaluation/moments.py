"""Moment retrieval and highlight detection as QVHighlights scores them (Lei et al. 2021, Moment-DETR's evaluation)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.average_precision import average_precision, by_falling_score, match_greedily

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Temporal IoU of a match."""
LENGTHS = {"full": (0, 150), "short": (0, 10), "middle": (10, 30), "long": (30, 150)}
"""Moments by length: longer than the first number of seconds, at most as long as the second."""
RATINGS = {"fair": 2, "good": 3, "very_good": 4}
"""Least rating, of 0 to 4, that makes a clip a highlight."""
MOST_WINDOWS = 10
CLIP = 2
"""Seconds of video that one saliency score is for."""


@dataclass(frozen=True)
class Moments:
    """The annotated or predicted moments of one query.

    Attributes:
      windows: start and end in seconds. The first predicted one is what recall is of, whatever its score.
      scores: confidence of each predicted window; None for annotations.
    """

    windows: Float[np.ndarray, "n 2"]
    scores: Float[np.ndarray, "n"] | None = None


@dataclass(frozen=True)
class Retrieval:
    """Fractions of 1 at the thresholds of `THRESHOLDS`, over the queries with a moment of this length.

    Attributes:
      queries: number of these queries.
      r1: fraction of queries whose first window overlaps a moment.
      map: mean over queries of the average precision.
      average_map: the mean over thresholds.
    """

    queries: int
    r1: Float[np.ndarray, "t"]
    map: Float[np.ndarray, "t"]
    average_map: float


@dataclass(frozen=True)
class Highlights:
    """Fractions of 1.

    Attributes:
      map: mean of the average precision over queries and annotators.
      hit1: fraction of queries whose best clip an annotator calls a highlight.
    """

    map: float
    hit1: float


def moment_retrieval(truth: Sequence[Moments], predictions: Sequence[Moments]) -> dict[str, Retrieval]:
    """Scores the windows predicted for each query, by length of the annotated moments (see `LENGTHS`).

    For recall, the first listed window counts, with the moment that it overlaps most; for the average precision, up to
    ten windows. Moments of other lengths are left out of the annotations; predictions stay.

    Raises:
      UserError: the numbers of queries differ, a query has no predicted window, or windows have no scores.
    """
    _check(truth, predictions)
    for query, predicted in enumerate(predictions):
        if not len(predicted.windows) or predicted.scores is None:
            raise UserError(f"query {query} has no predicted windows with scores: predict one or more for each query")
    results = {}
    for name, (above, most) in LENGTHS.items():
        r1, precisions = [], []
        for annotated, predicted in zip(truth, predictions, strict=True):
            lengths = annotated.windows[:, 1] - annotated.windows[:, 0]
            windows = annotated.windows[(lengths > above) & (lengths <= most)]
            if not len(windows):
                continue
            r1.append(hull_iou(predicted.windows[:1], windows).max() >= THRESHOLDS)
            first, scores = predicted.windows[:MOST_WINDOWS], predicted.scores[:MOST_WINDOWS]
            iou = hull_iou(first[by_falling_score(scores)], windows)
            precisions.append(average_precision(match_greedily(iou, THRESHOLDS), len(windows)))
        nothing = np.full(len(THRESHOLDS), np.nan)
        mean_ap = np.mean(precisions, axis=0) if precisions else nothing
        mean_r1 = np.mean(r1, axis=0) if r1 else nothing
        results[name] = Retrieval(len(r1), mean_r1, mean_ap, float(mean_ap.mean()))
    return results


def hull_iou(first: Float[np.ndarray, "n 2"], second: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    """Overlap of each pair of windows over the time from the first start to the last end."""
    low, high = np.minimum, np.maximum
    shared = low(first[:, None, 1], second[None, :, 1]) - high(first[:, None, 0], second[None, :, 0])
    hull = high(first[:, None, 1], second[None, :, 1]) - low(first[:, None, 0], second[None, :, 0])
    return np.divide(np.maximum(shared, 0), hull, out=np.zeros_like(hull, dtype=float), where=hull > 0)


def highlights(
    ratings: Sequence[Int[np.ndarray, "clips annotators"]], saliency: Sequence[Float[np.ndarray, "_"]]
) -> dict[str, Highlights]:
    """Scores the saliency predicted for each clip of two seconds, for each least rating of `RATINGS`.

    An annotator without a highlight counts 0. Predictions are cut or padded with zeros to the length of the video.

    Args:
      ratings: for each query, that of each clip of the video by each annotator; 0 for clips that were not rated.
      saliency: for each query, the predicted scores of the clips.

    Raises:
      UserError: the numbers of queries differ.
    """
    _check(ratings, saliency)
    results = {}
    for name, least in RATINGS.items():
        precisions, hits = [], []
        for rated, predicted in zip(ratings, saliency, strict=True):
            chosen = rated >= least
            best = int(np.argmax(predicted)) if len(predicted) else len(rated)
            hits.append(best < len(rated) and bool(chosen[best].any()))
            scores = np.zeros(len(rated))
            scores[: len(predicted)] = predicted[: len(rated)]
            precisions += [_clip_precision(chosen[:, annotator], scores) for annotator in range(rated.shape[1])]
        results[name] = Highlights(float(np.mean(precisions)), float(np.mean(hits)))
    return results


def _clip_precision(chosen: np.ndarray, scores: np.ndarray) -> float:
    """Mean of the monotonic precision over the steps of recall; clips with equal scores are one step."""
    if not chosen.any():
        return 0.0
    if chosen.all():
        return 1.0
    order = by_falling_score(scores)
    last = np.append(np.diff(scores[order]) != 0, True)  # of those with equal scores
    found = np.cumsum(chosen[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.diff(found, prepend=0) > 0].mean())


def _check(truth: Sequence, predictions: Sequence) -> None:
    if len(truth) != len(predictions) or not len(truth):
        raise UserError(f"there are {len(truth)} annotated queries and {len(predictions)} predicted ones")
