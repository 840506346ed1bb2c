"""Brief shapes: synthetic videos in which most frames say nothing, for models that choose what they compute.

One of `moving_shapes` appears for a quarter of the video, at any time; before and after it the background is alone. The
label is the shape, so that a few places of a few frames suffice, and other places and frames tell nothing.
"""

import numpy as np
from jaxtyping import UInt8

from vidjax.data import moving_shapes

NUM_FRAMES = 16
"""Frames of a video, at the rate of `moving_shapes`: one second."""
SHOWN = 4
"""Frames in a row with the shape."""
CLASSES = ("circle", "square", "triangle")
SPLITS = {"train": range(6144), "validation": range(1_000_000, 1_000_768)}
"""Disjoint indices; all classes are equally frequent."""


def label(index: int) -> int:
    """The label of a video, a position in `CLASSES`."""
    return index % len(CLASSES)


def shown(index: int) -> range:
    """The frames of a video that show its shape."""
    first = int(np.random.Generator(np.random.Philox(key=[index, 2])).integers(NUM_FRAMES - SHOWN + 1))
    return range(first, first + SHOWN)


def render(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """RGB frames of a video."""
    drawn = moving_shapes.scene_of(index)
    larger = {"small": 2.0, "large": 1.2}[drawn.size]
    scene = drawn._replace(shape=CLASSES[label(index)], radius=larger * drawn.radius)
    frames = np.asarray(frames, np.int64)
    background = np.round(moving_shapes.render_background(scene, size)).astype(np.uint8)
    video = np.repeat(background[None], len(frames), axis=0)
    seen = np.isin(frames, shown(index))
    video[seen] = moving_shapes.paint(scene, moving_shapes.centers_of(scene, frames[seen]), size)
    return video
