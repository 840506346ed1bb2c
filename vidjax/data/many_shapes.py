"""Videos of the embedded data set with several shapes at once, each with a box and a direction of motion.

Shapes, backgrounds and directions are those of `moving_shapes`. Each shape moves on its own; where two meet, one is in
front. As they re-enter on the other side, places are independent of directions, and a single frame carries no
information on them. Boxes are exact. A video is a function of its index, and can have any length.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt8

from vidjax.data.moving_shapes import COLORS, RATE, Scene, boxes_of, centers_of, cover, render_background, scene_of

NUM_FRAMES = 64
"""Frames per video. Later frames can be rendered too."""
SPLITS = {"train": range(4_000_000, 4_000_512), "validation": range(5_000_000, 5_000_128)}
"""Disjoint indices, also from those of `moving_shapes`."""
SHAPES = (2, 4)
"""Least and most shapes of a video."""
RADIUS = (0.07, 0.11)
"""Of the disc with a shape's area, in frame widths."""
KEY_SECONDS = (1.0, 2.0, 3.0)
"""Times of the key frames of a video, at which boxes are annotated."""


@lru_cache(256)
def scenes_of(index: int) -> tuple[Scene, ...]:
    """The shapes of a video, from back to front; the background is that of the first."""
    random = np.random.Generator(np.random.Philox(key=index + (1 << 65)))  # other numbers than the scenes'
    numbers = random.integers(1 << 40, 1 << 41, size=random.integers(*SHAPES, endpoint=True))
    return tuple(scene_of(int(number))._replace(radius=random.uniform(*RADIUS)) for number in numbers)


def boxes(index: int, seconds: float) -> tuple[Float[np.ndarray, "n 4"], Int[np.ndarray, "n"]]:
    """The box of each shape at a time, as fractions of the frame, and its direction: a position in the class names."""
    scenes, frame = scenes_of(index), np.array([round(seconds * RATE)])
    return np.concatenate([boxes_of(scene, frame) for scene in scenes]), np.array([scene.label for scene in scenes])


def tracks(index: int) -> Float[np.ndarray, "m 6"]:
    """The boxes of all shapes in all frames, as tracks; see `moving_shapes.tracks`."""
    frames = np.arange(NUM_FRAMES)
    rows = [
        (np.full(len(frames), n), frames / RATE, boxes_of(scene, frames)) for n, scene in enumerate(scenes_of(index))
    ]
    return np.concatenate([np.column_stack(row) for row in rows])


def render(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Renders frames of a video; see `moving_shapes.render`."""
    scenes = scenes_of(index)
    background = np.round(render_background(scenes[0], size)).astype(np.uint8)
    video = np.broadcast_to(background, (len(frames), *background.shape)).copy()
    for scene in scenes:
        place, alpha = cover(scene, centers_of(scene, frames), size)
        video[place] = np.round(video[place] * (1 - alpha) + np.array(COLORS[scene.color], np.float32) * alpha)
    return video


def video_name(split: str, number: int) -> str:
    """The name of a video of a split."""
    return f"{split}_{number:04d}"
