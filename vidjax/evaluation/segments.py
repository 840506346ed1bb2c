"""Segments from the outputs of a localiser: the best points, suppression, and times in seconds (ActionFormer)."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from vidjax.evaluation.average_precision import by_falling_score
from vidjax.evaluation.suppression import per_class, soft_nms, vote


@dataclass(frozen=True)
class Selection:
    """How segments are selected; the defaults are those of THUMOS 2014 in the original.

    Attributes:
      least_score: points with at most this probability are ignored, and segments whose score falls below it.
      points: number of best pairs of point and class of each level.
      least_length: in steps of the features; shorter segments are ignored.
      sigma: of the soft suppression.
      classes_apart: whether segments of one class leave those of others alone.
      segments: most segments of a video.
      vote: IoU of segments that are averaged, without `classes_apart`; 0 for no averaging.
    """

    least_score: float = 0.001
    points: int = 2000
    least_length: float = 0.05
    sigma: float = 0.5
    classes_apart: bool = True
    segments: int = 200
    vote: float = 0.0


@dataclass(frozen=True)
class Clock:
    """Times of the features of a video.

    Attributes:
      fps: frames per second.
      stride: frames from one feature to the next.
      frames: frames that a feature is of, whose middle is its time.
      duration: of the video, in seconds.
    """

    fps: float
    stride: float
    frames: float
    duration: float

    def seconds(self, steps: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Seconds at these steps of the features, within the video."""
        return np.clip((steps * self.stride + self.frames / 2) / self.fps, 0, self.duration)

    def steps(self, seconds: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Steps of the features at these seconds."""
        return seconds * self.fps / self.stride - self.frames / 2 / self.stride


def select(
    probabilities: list[Float[np.ndarray, "_ classes"]],
    offsets: list[Float[np.ndarray, "_ 2"]],
    strides: tuple[int, ...],
    selection: Selection,
    clock: Clock,
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Segments of one video in seconds, by falling score, with scores and classes.

    Args:
      probabilities: of the classes at each point of each level; zero beyond the end of the video.
      offsets: distances to start and end, in strides.
      strides: of the levels.
    """
    segments, scores, labels = [], [], []
    for level, distances, stride in zip(probabilities, offsets, strides, strict=True):
        flat = level.reshape(-1)
        best = by_falling_score(flat)
        best = best[flat[best] > selection.least_score][: selection.points]
        point, label = np.divmod(best, level.shape[1])
        segment = point[:, None] * stride + distances[point] * np.array([-stride, stride])
        long = _long(segment, selection.least_length)
        segments.append(segment[long])
        scores.append(flat[best][long])
        labels.append(label[long])
    segments, scores, labels = (np.concatenate(each) for each in (segments, scores, labels))
    suppress = partial(soft_nms, sigma=selection.sigma, least=selection.least_score, most=selection.segments)
    if selection.classes_apart:
        kept, final = per_class(suppress, segments, scores, labels, selection.segments)
    else:
        kept, final = suppress(segments, scores)
    chosen = segments[kept]
    if selection.vote and not selection.classes_apart and len(kept):
        chosen = vote(chosen, segments, scores, selection.vote)
    return clock.seconds(chosen), final, labels[kept]


def _long(segment: Float[np.ndarray, "n 2"], least: float) -> Bool[np.ndarray, "n"]:
    return segment[:, 1] - segment[:, 0] > least
