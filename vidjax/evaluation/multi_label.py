"""Recognition of videos that have several labels, from predicted class probabilities."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.average_precision import average_precision, by_falling_score


@dataclass(frozen=True)
class MultiLabel:
    """Results of `multi_label`, between 0 and 1.

    Attributes:
      videos: number of videos.
      top1, top5: fraction of videos of whose labels one is the most likely class, or among the five most likely.
      counts: number of videos with each class.
      average_precision: of each class, over the videos by falling probability; nan for a class that does not occur.
    """

    videos: int
    top1: float
    top5: float
    counts: Int[np.ndarray, "c"]
    average_precision: Float[np.ndarray, "c"]

    @property
    def mean_average_precision(self) -> float:
        """The mean over the classes that occur."""
        return float(np.nanmean(self.average_precision))


def multi_label(probabilities: Float[np.ndarray, "n c"], labels: Bool[np.ndarray, "n c"]) -> MultiLabel:
    """Computes accuracy and average precision, with precision made monotonic as in `average_precision`.

    Args:
      probabilities: one row per video.
      labels: which classes each video has.

    Raises:
      UserError: no videos, a video without a class, or a probability that is not finite.
    """
    if not len(labels) or not labels.any(axis=1).all():
        raise UserError("cannot measure accuracy: there are no videos, or some without a label")
    if not np.isfinite(probabilities).all():
        raise UserError("the model's probabilities are not finite: use other weights, these seem to be damaged")
    first = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    hits = np.take_along_axis(labels, first, axis=1)
    precision = np.full(labels.shape[1], np.nan)
    for label in np.flatnonzero(labels.any(axis=0)):
        ranked = labels[by_falling_score(probabilities[:, label]), label]
        precision[label] = average_precision(ranked[:, None], int(ranked.sum()))[0]
    top1, top5 = float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
    return MultiLabel(len(labels), top1, top5, labels.sum(axis=0), precision)
