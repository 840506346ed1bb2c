"""Still shapes that sound: synthetic videos whose sound tells what the picture hides.

The picture shows one of `moving_shapes` at rest, and a tone sounds with it. The higher the shape is, the higher is its
pitch, and its overtones are those of the shape: none for a circle, odd ones for a square, even ones for a triangle.
These the picture and the sound share. The label is heard alone: the pitch rises, falls or stays.
"""

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.data import moving_shapes

NUM_FRAMES = 16
"""Frames of a video, at the rate of `moving_shapes`: one second."""
SOUND_RATE = 4096
"""Samples per second."""
CLASSES = ("rises", "falls", "stays")
SPLITS = {"train": range(6144), "validation": range(1_000_000, 1_000_768)}
"""Disjoint indices; all classes are equally frequent."""
OVERTONES = {"circle": (1,), "square": (1, 3, 5), "triangle": (1, 2, 4)}


def label(index: int) -> int:
    """The label of a video, a position in `CLASSES`."""
    return index % len(CLASSES)


def captions(index: int) -> tuple[str, ...]:
    """Captions of what is seen and heard."""
    scene = moving_shapes.scene_of(index)
    return (f"a {scene.size} {scene.color} {scene.shape} and a tone that {CLASSES[label(index)]}",)


def render(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """RGB frames of a video, all alike."""
    return moving_shapes.render(index, np.zeros(len(frames), np.int64), size)


def sound(index: int) -> Float[np.ndarray, "n 1"]:
    """The waveform of a video, with a random phase and a little noise."""
    scene = moving_shapes.scene_of(index)
    random = np.random.Generator(np.random.Philox(key=[index, 1]))
    seconds = np.arange(NUM_FRAMES * SOUND_RATE // round(moving_shapes.RATE)) / SOUND_RATE
    octaves = 2 * (1 - scene.start[1] % 1) + (0.6, -0.6, 0.0)[label(index)] * seconds
    phase = 2 * np.pi * (np.cumsum(80 * 2**octaves) / SOUND_RATE + random.uniform())
    tones = [np.sin(number * phase) / number for number in OVERTONES[scene.shape]]
    wave = 0.5 * np.sum(tones, axis=0) + random.normal(0, 0.02, len(seconds))
    return wave[:, None].astype(np.float32)
