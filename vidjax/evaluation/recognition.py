"""Recognition accuracy and calibration from predicted class probabilities."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError


@dataclass(frozen=True)
class Recognition:
    """Results of `recognition`; accuracies are between 0 and 1.

    Attributes:
      videos: number of videos.
      top1, top5: fraction of videos whose label is the most likely class, or among the five most likely.
      top1_interval: 95 % bootstrap interval of `top1` over videos.
      mean_class_accuracy: accuracy per class, averaged over the classes that occur.
      calibration_error: expected calibration error (Guo et al. 2017): the difference between confidence and accuracy in
        15 bins of the confidence, averaged with the number of videos as weights.
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
        """Accuracy of each class; nan for a class that does not occur."""
        counts = self.confusion.sum(axis=1)
        return np.divide(self.confusion.diagonal(), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def recognition(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, "n"], seed: int = 0) -> Recognition:
    """Computes accuracy with its confidence interval, calibration error and confusion matrix.

    Args:
      probabilities: one row per video, which sums to one.
      labels: true classes.
      seed: seed of the bootstrap.

    Raises:
      UserError: no videos, a label that is not a class, or a probability that is not finite.
    """
    count, classes = probabilities.shape
    if count == 0:
        raise UserError("cannot measure accuracy: there are no labelled videos")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels must be in 0..{classes - 1}, but range from {labels.min()} to {labels.max()}")
    if not np.isfinite(probabilities).all():
        raise UserError("the model's probabilities are not finite: use other weights, these seem to be damaged")
    rank = (probabilities > probabilities[np.arange(count), labels][:, None]).sum(axis=1)
    # With equal scores the first class is predicted, for top-1 as in the confusion matrix.
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    top1 = float(correct.mean())
    # A bootstrap sample of zeros and ones has a binomially distributed sum: no need to resample single videos.
    resampled = np.random.default_rng(seed).binomial(count, top1, 10_000) / count
    low, high = np.percentile(resampled, [2.5, 97.5])
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    counts = confusion.sum(axis=1)
    return Recognition(
        videos=count,
        top1=top1,
        top5=float((correct | (rank < 5)).mean()),
        top1_interval=(float(low), float(high)),
        mean_class_accuracy=float((confusion.diagonal()[counts > 0] / counts[counts > 0]).mean()),
        calibration_error=calibration_error(probabilities.max(axis=1), correct),
        confusion=confusion,
    )


def calibration_error(confidence: Float[np.ndarray, "n"], correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over `bins` equal intervals of the confidence."""
    bin_index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def wilson_interval(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of an accuracy, of 95 % by default (Wilson 1927), also right near 0 and 1 and for few videos.

    Raises:
      UserError: no videos.
    """
    if count == 0:
        raise UserError("cannot measure accuracy: there are no labelled videos")
    fraction, spread = correct / count, z**2 / count
    centre = fraction + spread / 2
    half = math.sqrt(spread * (fraction * (1 - fraction) + spread / 4))
    return max((centre - half) / (1 + spread), 0.0), min((centre + half) / (1 + spread), 1.0)
