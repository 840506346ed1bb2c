"""Brief shapes: synthetic videos in which most frames say nothing, for models that choose what they compute.

A large shape of `moving_shapes` appears for a quarter of the video, at any time; before and after it the background is
alone. The label is the colour of the shape, so that a few places of a few frames suffice. Everything else tells
nothing: the colour of the background and the direction of motion are independent of the label.
"""

import numpy as np
from jaxtyping import UInt8

from vidjax.data import moving_shapes

NUM_FRAMES = 16
"""Frames of a video, at the rate of `moving_shapes`: one second."""
SHOWN = 4
"""Frames in a row with the shape."""
CLASSES = ("red", "yellow", "green", "blue")
BACKGROUNDS = ("orange", "cyan", "purple", "pink")
SPLITS = {"train": range(6144), "validation": range(1_000_000, 1_000_768)}
"""Disjoint indices; all classes are equally frequent."""


def label(index: int) -> int:
    """The label of a video, a position in `CLASSES`."""
    return index // len(moving_shapes.CLASSES) % len(CLASSES)  # all directions are equally frequent in each


def shown(index: int) -> range:
    """The frames of a video that show its shape."""
    first = int(np.random.Generator(np.random.Philox(key=[index, 2])).integers(NUM_FRAMES - SHOWN + 1))
    return range(first, first + SHOWN)


def scene_of(index: int) -> moving_shapes.Scene:
    """The scene of a video."""
    drawn = moving_shapes.scene_of(index)
    background = BACKGROUNDS[list(moving_shapes.COLORS).index(drawn.background) % len(BACKGROUNDS)]
    radius = {"small": 1.7, "large": 1.0}[drawn.size] * drawn.radius
    return drawn._replace(color=CLASSES[label(index)], background=background, size="large", radius=radius)


def render(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """RGB frames of a video."""
    scene, frames = scene_of(index), np.asarray(frames, np.int64)
    background = np.round(moving_shapes.render_background(scene, size)).astype(np.uint8)
    video = np.repeat(background[None], len(frames), axis=0)
    seen = np.isin(frames, shown(index))
    video[seen] = moving_shapes.paint(scene, moving_shapes.centers_of(scene, frames[seen]), size)
    return video
