"""Spatio-temporal detection: frame mAP at an IoU of 0.5 (AVA)."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.average_precision import average_precision, by_falling_score, groups

LEAST_IOU = 0.5
MOST_PER_FRAME = 50
"""Pairs of box and class of a frame that the ActivityNet challenge keeps."""

NONE = np.zeros(0, int)

Dialect = Literal["slowfast", "activitynet", "mmaction2"]


@dataclass(frozen=True)
class Boxes:
    """Annotated or detected actions of persons in key frames, one row for each pair of box and class.

    Attributes:
      frame: number of the key frame.
      box: left, top, right and bottom, as fractions of the frame.
      label: class.
      score: confidence of a detection; None for annotations.
    """

    frame: Int[np.ndarray, "n"]
    box: Float[np.ndarray, "n 4"]
    label: Int[np.ndarray, "n"]
    score: Float[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, chosen: np.ndarray) -> "Boxes":
        score = None if self.score is None else self.score[chosen]
        return Boxes(self.frame[chosen], self.box[chosen], self.label[chosen], score)


@dataclass(frozen=True)
class Detection:
    """Average precision of each class, nan for those without annotations, and its mean over the others."""

    ap: Float[np.ndarray, "c"]
    map: float


def box_iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of each pair of boxes (left, top, right, bottom)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def detection(
    truth: Boxes,
    detections: Boxes,
    classes: Int[np.ndarray, "c"],
    excluded: Int[np.ndarray, "_"] = NONE,
    dialect: Dialect = "slowfast",
) -> Detection:
    """Frame mAP as the published programs for AVA compute it.

    In a frame, each detection looks only at the annotation of its class that it overlaps most; it is a true positive
    if they overlap by half and no earlier detection has taken it. Boxes without area are left out.

    Args:
      truth: the annotations.
      detections: the detections, with scores.
      classes: the classes that are evaluated, such as AVA's 60; rows of others are ignored.
      excluded: frames that are left out.
      dialect: the program whose numbers are wanted, since each gives another. `slowfast`: detections of a frame are
        matched in the order of the rows, whatever their scores, and those in frames without annotations are false
        positives. `activitynet`: matched by score, the first 50 of a frame, without exclusions; frames without
        annotations are ignored. `mmaction2`: matched by score; frames without annotations are ignored, annotations of
        excluded frames are counted, and classes without detections are left out of the mean (others give them 0).

    Raises:
      UserError: the detections have no scores, nothing is annotated, or an unknown dialect.
    """
    if dialect not in get_args(Dialect):
        raise UserError(f"dialect is '{dialect}': choose one of {', '.join(get_args(Dialect))}")
    if detections.score is None:
        raise UserError("the detections have no scores")
    truth, detections = (rows[np.isin(rows.label, classes) & _has_area(rows.box)] for rows in (truth, detections))
    if not len(truth):
        raise UserError("no annotation has one of the classes: there is nothing to compare the detections with")
    total = np.array([(truth.label == kind).sum() for kind in classes])
    if dialect != "activitynet":
        truth, detections = (rows[~np.isin(rows.frame, excluded)] for rows in (truth, detections))
        if dialect == "slowfast":
            total = np.array([(truth.label == kind).sum() for kind in classes])
    if dialect != "slowfast":
        detections = detections[np.isin(detections.frame, truth.frame)]
        detections = detections[by_falling_score(detections.score)]
    if dialect == "activitynet" and len(detections):
        rows = np.concatenate([rows[:MOST_PER_FRAME] for rows in groups(detections.frame).values()])
        detections = detections[np.sort(rows)]
    hits = _match(truth, detections)
    order = by_falling_score(detections.score)
    labels, hits = detections.label[order], hits[order]
    ap = np.full(len(classes), np.nan)
    for place, kind in enumerate(classes):
        of_class = labels == kind
        if total[place] and (of_class.any() or dialect != "mmaction2"):
            ap[place] = average_precision(hits[of_class], total[place])
    return Detection(ap, float(np.nanmean(ap)))


def _has_area(box: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n"]:
    return (box[:, 2:] > box[:, :2]).all(axis=1)


def _match(truth: Boxes, detections: Boxes) -> Bool[np.ndarray, "n"]:
    """Which detections are true positives; those of a frame and class are matched in their order."""
    hits = np.zeros(len(detections), bool)
    truths = groups(truth.frame, truth.label)
    for key, rows in groups(detections.frame, detections.label).items():
        if key in truths:
            iou = box_iou(detections.box[rows], truth.box[truths[key]])
            near = iou.max(axis=1) >= LEAST_IOU
            _, first = np.unique(iou.argmax(axis=1)[near], return_index=True)  # the first for each annotation
            hits[rows[near][first]] = True
    return hits
