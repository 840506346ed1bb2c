"""Accuracy of a classifier, from the probabilities that it gave to each video."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError


@dataclass(frozen=True)
class Recognition:
    """What `recognition` measures; shares are between 0 and 1.

    Attributes:
      videos: how many were counted.
      top1, top5: share of videos whose label is the likeliest class, or among the five likeliest (all, if fewer).
      top1_interval: 95 % bootstrap interval of `top1` over videos.
      mean_class_accuracy: mean over the classes that occur of the share that is right.
      calibration_error: expected calibration error (Guo et al. 2017): the distance of confidence and accuracy, averaged
        over 15 bins of the confidence by their number of videos.
      confusion: counts, true class by predicted class.
    """

    videos: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    mean_class_accuracy: float
    calibration_error: float
    confusion: Int[np.ndarray, "c c"]

    @property
    def class_accuracy(self) -> Float[np.ndarray, "c"]:
        """Share of each class that is right; nan for a class that does not occur."""
        counts = self.confusion.sum(axis=1)
        return np.divide(self.confusion.diagonal(), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def recognition(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, "n"], seed: int = 0) -> Recognition:
    """Accuracy, its interval, calibration and confusion.

    Args:
      probabilities: of each class for each video; rows sum to one.
      labels: true classes.
      seed: of the bootstrap.

    Raises:
      UserError: no video, a label that is no class, or a probability that is not finite.
    """
    count, classes = probabilities.shape
    if count == 0:
        raise UserError("there is no video with a label to measure accuracy on: label one or more")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels must be in 0..{classes - 1}, but run from {labels.min()} to {labels.max()}")
    if not np.isfinite(probabilities).all():
        raise UserError("the model gave probabilities that are not finite: its weights are damaged, give others")
    rank = (probabilities > probabilities[np.arange(count), labels][:, None]).sum(axis=1)
    # Of equal scores the first class is the predicted one, so that confusion and top-1 agree.
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    top1 = float(right.mean())
    # A resampled mean of zeros and ones is a binomial number: no need to resample the videos one by one.
    resampled = np.random.default_rng(seed).binomial(count, top1, 10_000) / count
    low, high = np.percentile(resampled, [2.5, 97.5])
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    counts = confusion.sum(axis=1)
    return Recognition(
        videos=count,
        top1=top1,
        top5=float((right | (rank < 5)).mean()),
        top1_interval=(float(low), float(high)),
        mean_class_accuracy=float((confusion.diagonal()[counts > 0] / counts[counts > 0]).mean()),
        calibration_error=calibration_error(probabilities.max(axis=1), right),
        confusion=confusion,
    )


def calibration_error(confidence: Float[np.ndarray, "n"], right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equal bins of the confidence."""
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
