"""Open-set recognition: how well a classifier's uncertainty separates videos of unknown classes from known ones."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError

EVIDENCE = 10.0
"""Bound of the logits whose exponential is the evidence of a class, as in `objectives.classification.evidential`."""
ACCEPTED = 95
"""Percentage of known videos that the threshold of `open_set` accepts, as in DEAR (`experiments/get_threshold.py`)."""


@dataclass(frozen=True)
class OpenSet:
    """How well one uncertainty separates known from unknown videos; see `open_set`.

    Attributes:
      auroc: area under the ROC curve: the probability that an unknown video is more uncertain than a known one.
      fpr95: fraction of the known videos that are rejected where at least 95 % of the unknown ones are.
      threshold: uncertainty above which a video is rejected as unknown.
      macro_f1: F1 at the threshold, averaged over the known classes and the unknown one, and over openness.
      known, unknown: uncertainty of each video.
    """

    auroc: float
    fpr95: float
    threshold: float
    macro_f1: float
    known: Float[np.ndarray, "n"]
    unknown: Float[np.ndarray, "m"]


def open_set(
    logits: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, "n"],
    unknown_logits: Float[np.ndarray, "m c"],
    unknown_labels: Int[np.ndarray, "m"] | None = None,
    seed: int = 0,
) -> dict[str, OpenSet]:
    """Open-set metrics of each uncertainty of `uncertainties`, as in DEAR (Bao et al. 2021, arXiv:2107.10161).

    DEAR, and with it InternVideo, counts rejecting an unknown video as a true positive. Its threshold accepts 95 % of
    the training videos; here it accepts 95 % of the known test videos, so no training videos are needed.

    Args:
      logits: of the known videos, averaged over views.
      labels: true classes of the known videos.
      unknown_logits: of the videos of unknown classes.
      unknown_labels: their classes in any numbering, by which `macro_f1` varies openness; if None, all are of one.
      seed: seed of the draws of unknown classes.

    Raises:
      UserError: no known or no unknown videos, or logits that are not finite.
    """
    if len(logits) == 0 or len(unknown_logits) == 0:
        raise UserError(
            f"cannot measure open-set recognition on {len(logits)} known and {len(unknown_logits)} unknown videos: "
            "give at least one of each"
        )
    if not (np.isfinite(logits).all() and np.isfinite(unknown_logits).all()):
        raise UserError("the model's logits are not finite: use other weights, these seem to be damaged")
    groups = np.zeros(len(unknown_logits), np.int64) if unknown_labels is None else unknown_labels
    predicted, unknown_predicted = logits.argmax(axis=1), unknown_logits.argmax(axis=1)
    results, all_known, all_unknown = {}, uncertainties(logits), uncertainties(unknown_logits)
    for name, known in all_known.items():
        unknown, threshold, rejection = all_unknown[name], accepting_threshold(known), logits.shape[1]
        results[name] = OpenSet(
            auroc=auroc(known, unknown),
            fpr95=false_positive_rate(known, unknown),
            threshold=threshold,
            macro_f1=open_macro_f1(
                np.where(known > threshold, rejection, predicted),
                labels,
                np.where(unknown > threshold, rejection, unknown_predicted),
                groups,
                rejection,
                seed=seed,
            ),
            known=known,
            unknown=unknown,
        )
    return results


def uncertainties(logits: Float[np.ndarray, "n c"]) -> dict[str, Float[np.ndarray, "n"]]:
    """The uncertainty of each video by its logits; the higher, the more likely is it of an unknown class.

    Computed in float64 and without cancellation, so that confident videos do not tie.

    Returns:
      `softmax`: one less the largest probability (Hendrycks and Gimpel 2017, arXiv:1610.02136). `entropy`: of the
      probabilities, in nats. `energy`: the negative logarithm of the sum of exponentials (Liu et al. 2020,
      arXiv:2010.03759, at temperature 1). `evidential`: the number of classes over the sum of the Dirichlet parameters,
      one plus the evidence of each class (DEAR's uncertainty); meaningful for a model trained with that loss.
    """
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - largest)
    np.put_along_axis(powers, logits.argmax(axis=1)[:, None], 0, axis=1)
    others = powers.sum(axis=1)  # relative to the largest
    entropy = np.log1p(others) - (powers * (logits - largest)).sum(axis=1) / (1 + others)
    evidence = np.exp(np.clip(logits, -EVIDENCE, EVIDENCE))
    return {
        "softmax": others / (1 + others),
        "entropy": entropy,
        "energy": -(largest[:, 0] + np.log1p(others)),
        "evidential": logits.shape[1] / (1 + evidence).sum(axis=1),
    }


def auroc(known: Float[np.ndarray, "n"], unknown: Float[np.ndarray, "m"]) -> float:
    """The fraction of pairs in which the unknown video is the more uncertain one; a tie counts as half."""
    known = np.sort(known)
    below, not_above = (np.searchsorted(known, unknown, side).sum(dtype=np.int64) for side in ("left", "right"))
    return float((below + not_above) / (2 * len(known) * len(unknown)))


def false_positive_rate(known: Float[np.ndarray, "n"], unknown: Float[np.ndarray, "m"], percent: int = 95) -> float:
    """The fraction of known videos at least as uncertain as the `percent` % most uncertain of the unknown ones.

    Difference: DEAR takes the point of the ROC curve that is nearest to 95 %, which may detect fewer.
    """
    rejected = -(-percent * len(unknown) // 100)
    return float((known >= np.sort(unknown)[::-1][rejected - 1]).mean())


def accepting_threshold(known: Float[np.ndarray, "n"], percent: int = ACCEPTED) -> float:
    """The smallest uncertainty that at least `percent` % of the known videos do not exceed."""
    return float(np.sort(known)[-(-percent * len(known) // 100) - 1])


def open_macro_f1(
    predicted: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    unknown_predicted: Int[np.ndarray, "m"],
    unknown_labels: Int[np.ndarray, "m"],
    classes: int,
    draws: int = 10,
    seed: int = 0,
) -> float:
    """DEAR's open macro-F1: F1 averaged over the classes and the unknown class, then over degrees of openness.

    With u of the unknown classes, openness is 1 - sqrt(2 c / (2 c + u)). For each u the F1 is averaged over `draws`
    random choices of u classes; the mean over u is weighted by openness (`experiments/compare_openness.py`).

    Args:
      predicted: class of each known video, `classes` if it is rejected.
      labels: true classes of the known videos.
      unknown_predicted: likewise of each unknown video.
      unknown_labels: their classes, in any numbering.
      classes: number of known classes, c.
    """
    random, groups = np.random.default_rng(seed), np.unique(unknown_labels)
    scores, weights = [], []
    for number in range(1, len(groups) + 1):
        chosen = [random.choice(groups, number, replace=False) for _ in range(1 if number == len(groups) else draws)]
        parts = [unknown_predicted[np.isin(unknown_labels, few)] for few in chosen]
        scores.append(
            np.mean([_macro_f1(np.r_[labels, np.full(len(x), classes)], np.r_[predicted, x], classes) for x in parts])
        )
        weights.append(1 - np.sqrt(2 * classes / (2 * classes + number)))
    return float(np.average(scores, weights=weights))


def _macro_f1(labels: Int[np.ndarray, "k"], predicted: Int[np.ndarray, "k"], classes: int) -> float:
    """The mean F1 of the classes that occur as a label or a prediction, with `classes` for unknown."""
    occurring = np.bincount(labels, minlength=classes + 1) + np.bincount(predicted, minlength=classes + 1)
    correct = np.bincount(labels[labels == predicted], minlength=classes + 1)
    return float((2 * correct / np.maximum(occurring, 1))[occurring > 0].mean())


def histogram(
    known: Float[np.ndarray, "n"], unknown: Float[np.ndarray, "m"], bins: int = 20
) -> tuple[Float[np.ndarray, "edges"], Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]:
    """The edges of `bins` equal intervals over all values, and the number of known and of unknown videos in each."""
    edges = np.histogram_bin_edges(np.r_[known, unknown], bins)
    return edges, np.histogram(known, edges)[0], np.histogram(unknown, edges)[0]
