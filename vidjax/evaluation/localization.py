"""Temporal action localisation: mAP at thresholds of temporal IoU, and recall (ActivityNet, THUMOS 2014)."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.average_precision import average_precision, by_falling_score, groups, match_greedily, segment_iou

ACTIVITYNET = np.linspace(0.5, 0.95, 10)
"""Thresholds of the ActivityNet challenge."""
THUMOS = np.linspace(0.3, 0.7, 5)
"""Thresholds of most papers on THUMOS 2014."""
DUPLICATE = 1e-3
"""Seconds; annotations of a class whose starts and ends differ by at most this are the same to OpenTAD."""

Dialect = Literal["opentad", "activitynet", "actionformer"]


@dataclass(frozen=True)
class Instances:
    """Annotated or predicted instances of actions.

    Attributes:
      video: number of the video; predictions may be in videos without annotations.
      segment: start and end in seconds.
      label: class, 0 or more.
      score: confidence of a prediction; None for annotations.
    """

    video: Int[np.ndarray, "n"]
    segment: Float[np.ndarray, "n 2"]
    label: Int[np.ndarray, "n"]
    score: Float[np.ndarray, "n"] | None = None

    def __post_init__(self) -> None:
        lengths = {len(value) for value in (self.video, self.segment, self.label, self.score) if value is not None}
        if len(lengths) > 1:
            raise UserError(f"instances have {' and '.join(map(str, sorted(lengths)))} entries in their fields")

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, chosen: np.ndarray) -> "Instances":
        score = None if self.score is None else self.score[chosen]
        return Instances(self.video[chosen], self.segment[chosen], self.label[chosen], score)


@dataclass(frozen=True)
class Localization:
    """Measures of temporal localisation.

    Attributes:
      classes: the classes that have annotations.
      ap: average precision of each of these classes at each threshold.
      map: its mean over classes.
      average_map: the mean over thresholds.
      recall: by k, the mean over classes of the fraction of annotations that one of the first `k` times as many
        predictions of the same video and class overlaps, at each threshold.
    """

    classes: Int[np.ndarray, "c"]
    ap: Float[np.ndarray, "c t"]
    map: Float[np.ndarray, "t"]
    average_map: float
    recall: dict[int, Float[np.ndarray, "t"]]


def localization(
    truth: Instances,
    predictions: Instances,
    thresholds: Float[np.ndarray, "t"] = ACTIVITYNET,
    dialect: Dialect = "opentad",
    recall_at: tuple[int, ...] = (1, 5),
) -> Localization:
    """Scores predicted segments as the published programs do.

    By falling score, each prediction takes the free annotation of its video and class that it overlaps most, if it does
    so by the threshold. Predictions in videos without annotations are false positives; a class without predictions has
    an average precision of 0, and predictions of a class without annotations are ignored.

    Args:
      truth: the annotations.
      predictions: the predictions, with scores.
      thresholds: least temporal IoU, such as `ACTIVITYNET` or `THUMOS`.
      dialect: the program whose numbers are wanted. `opentad`: annotations are counted once. `activitynet`, the
        challenge's: annotated duplicates count as further annotations. `actionformer`: as `opentad`, but classes are
        renumbered by their place among the annotated ones, so that a predicted class without annotations counts as the
        class whose new number it has.
      recall_at: the multiples of `Localization.recall`.

    Raises:
      UserError: there is no annotation, the predictions have no scores, or an unknown dialect.
    """
    if dialect not in get_args(Dialect):
        raise UserError(f"dialect is '{dialect}': choose one of {', '.join(get_args(Dialect))}")
    if not len(truth):
        raise UserError("there is no annotation to compare the predictions with")
    if predictions.score is None:
        raise UserError("the predictions have no scores")
    if dialect != "activitynet":
        truth = without_duplicates(truth)
    classes = np.unique(truth.label)
    truth_label, label = np.searchsorted(classes, truth.label), predictions.label
    place = np.minimum(np.searchsorted(classes, label), len(classes) - 1)
    unknown = label if dialect == "actionformer" else -1
    label = np.where(classes[place] == label, place, unknown)
    truths, guesses = groups(truth_label, truth.video), groups(label, predictions.video)
    order = by_falling_score(predictions.score)
    rank = np.argsort(order)
    hits = np.zeros((len(predictions), len(thresholds)), bool)
    found = {k: np.zeros((len(classes), len(thresholds))) for k in recall_at}
    for (kind, video), annotated in truths.items():
        if (kind, video) not in guesses:
            continue
        guessed = guesses[kind, video]
        guessed = guessed[np.argsort(rank[guessed])]
        iou = segment_iou(predictions.segment[guessed], truth.segment[annotated])
        hits[guessed] = match_greedily(iou, thresholds)
        for k, counts in found.items():
            best = iou[: k * len(annotated)].max(axis=0)
            counts[kind] += (best[:, None] >= thresholds).sum(axis=0)
    total = np.bincount(truth_label, minlength=len(classes))
    ranked = label[order]
    ap = np.stack([average_precision(hits[order[ranked == kind]], total[kind]) for kind in range(len(classes))])
    recall = {k: (counts / total[:, None]).mean(axis=0) for k, counts in found.items()}
    return Localization(classes, ap, ap.mean(axis=0), float(ap.mean()), recall)


def without_duplicates(truth: Instances) -> Instances:
    """The annotations without those whose class and, to a thousandth of a second, times are those of an earlier one."""
    kept = []
    for rows in groups(truth.label, truth.video).values():
        chosen: list[int] = []
        for row in rows:
            apart = np.abs(truth.segment[chosen] - truth.segment[row]).max(axis=1, initial=0) > DUPLICATE
            if apart.all():
                chosen.append(row)
        kept += chosen
    return truth[np.sort(np.array(kept, int))]
