"""Untrimmed videos of the embedded data set: a shape that moves several times, with pauses in which it stands still.

Scenes and directions are those of `moving_shapes`. Each motion has a direction, a speed and a length of its own, so
that a single frame carries no information on what moves where, nor on whether anything does. Segments are exact. A
video is a function of its index, can have any length, and a longer one begins like a shorter one.

Each direction of a video has a sentence, such as "a red circle moves to the left", that asks for all its motions. The
videos of sentences are more and shorter ones: Moment-DETR learns from many sentences, and slowly to point at what is a
small part of a video.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vidjax.data.moving_shapes import CLASSES, RATE, captions, paint, scene_of

SPLITS = {
    "train": range(2_000_000, 2_000_128),
    "validation": range(3_000_000, 3_000_048),
    "moments_train": range(2_500_000, 2_500_256),
    "moments_validation": range(3_500_000, 3_500_096),
}
"""Disjoint indices, also from those of `moving_shapes`; the last two are asked sentences."""
NUM_FRAMES = {"train": 480, "validation": 480, "moments_train": 256, "moments_validation": 256}
"""Frames per video of each split, half a minute or 16 s. Later frames can be rendered too."""
SUBSETS = {"train": "training", "validation": "validation"}
"""Names of the splits in ActivityNet's annotations."""
CLIP = 2.0
"""Seconds of video that are rated together, as in QVHighlights."""
LEAST = 0.5
"""Seconds of a motion that a sentence asks for: of one that begins just before the end, hardly anything is seen."""
MOTION, PAUSE = (24, 64), (12, 48)
"""Least and most frames of a motion and of the pause before it."""


class Motions(NamedTuple):
    """The motions of a video, one after the other.

    Attributes:
      start, end: frame numbers; the shape moves in the steps between them.
      label: direction, a position in `moving_shapes.CLASSES`.
      velocity: in frame widths per frame, y points down.
    """

    start: Int[np.ndarray, "m"]
    end: Int[np.ndarray, "m"]
    label: Int[np.ndarray, "m"]
    velocity: Float[np.ndarray, "m 2"]


@lru_cache(256)
def motions(index: int, frames: int) -> Motions:
    """The motions that begin before frame number `frames`."""
    random = np.random.Generator(np.random.Philox(key=index + (1 << 64)))  # other numbers than the scene's
    rows, end = [], 0
    while (start := end + int(random.integers(*PAUSE, endpoint=True))) < frames:
        end = start + int(random.integers(*MOTION, endpoint=True))
        rows.append((start, end, int(random.integers(len(CLASSES))), random.uniform(1 / 40, 1 / 20)))
    start, end, label, speed = np.array(rows).reshape(-1, 4).T
    angle = 2 * np.pi * label / len(CLASSES)
    velocity = speed[:, None] * np.stack([np.cos(angle), -np.sin(angle)], axis=1)
    return Motions(start.astype(int), end.astype(int), label.astype(int), velocity)


def segments(index: int, frames: int) -> Float[np.ndarray, "m 3"]:
    """Start and end in seconds, and direction, of each motion in the first `frames` frames."""
    start, end, label, _ = motions(index, frames)
    return np.stack([start / RATE, np.minimum(end, frames) / RATE, label], axis=1)


def render(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Renders frames of a video; see `moving_shapes.render`."""
    frames = np.asarray(frames, np.int64)
    start, end, _, velocity = motions(index, int(frames.max(initial=0)) + 1)
    moved = np.clip(frames[:, None], start, end) - start  # `t m`, frames in motion
    scene = scene_of(index)
    return paint(scene, scene.start + moved @ velocity, size)


def annotations() -> dict[str, Any]:
    """The segments of the videos of both splits in the form of ActivityNet's JSON file."""
    database = {}
    for split, subset in SUBSETS.items():
        frames = NUM_FRAMES[split]
        for number, index in enumerate(SPLITS[split]):
            found = segments(index, frames).tolist()
            found = [{"segment": [start, end], "label": CLASSES[int(label)]} for start, end, label in found]
            entry = {"subset": subset, "duration": frames / RATE, "annotations": found}
            database[video_name(split, number)] = entry
    return {"version": "untrimmed shapes", "database": database}


def queries(split: str) -> list[dict[str, Any]]:
    """The sentences about the videos of a split as lines of QVHighlights' file: several a video, some with two moments.

    The sentence is a full, short or vague caption. The one rating of a clip, 0 to 4, is the part of it in which the
    shape moves in this direction.
    """
    rows, frames = [], NUM_FRAMES[split]
    duration = frames / RATE
    clips = np.arange(0, duration, CLIP)
    for number, index in enumerate(SPLITS[split]):
        found = segments(index, frames)
        found = found[found[:, 1] - found[:, 0] >= LEAST]
        random = np.random.Generator(np.random.Philox(key=index + (2 << 64)))
        for label in np.unique(found[:, 2]).astype(int).tolist():
            windows = found[found[:, 2] == label, :2]
            inside = np.minimum(windows[:, 1:], clips + CLIP) - np.maximum(windows[:, :1], clips)
            ratings = np.rint(4 * np.maximum(inside, 0).sum(axis=0) / CLIP).astype(int)
            rows.append(
                {
                    "qid": len(rows),
                    "query": captions(scene_of(index), label)[int(random.integers(3))],
                    "vid": video_name(split, number),
                    "duration": duration,
                    "relevant_windows": windows.tolist(),
                    "relevant_clip_ids": np.flatnonzero(ratings).tolist(),
                    "saliency_scores": ratings[ratings > 0, None].tolist(),
                }
            )
    return rows


def video_name(split: str, number: int) -> str:
    """The name of a video of a split, which its annotations and its file of features have."""
    return f"{split}_{number:04d}"
