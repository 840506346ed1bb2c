"""The embedded data set: synthetic videos whose label is the direction of motion.

One coloured shape moves at constant speed in one of eight directions over a smooth background. The frame is a torus: a
shape that leaves on one side re-enters on the other. The start is uniform on the torus and independent of the
direction, so a single frame carries no information about the label. Mirroring a clip changes its label (right becomes
left), so train without flips.

Every video is a function of its index: nothing is stored, and all machines render the same videos.

Captions describe colour, shape and direction. For zero-shot recognition a quarter of the 192 compositions is held out:
the splits `compositions_train` and `compositions_held_out` are disjoint, but every pair of attributes (colour and
shape, colour and direction, shape and direction) occurs in training. The classes of these two splits are the
compositions; `directions_held_out` has the videos of `compositions_held_out` with the directions, as phrased in
captions, as classes. Each video has three captions: a full one with size and background, a short one, and a vague one
without the colour. Without vague captions a model could match most pairs by colour and would rarely need motion.

For preferences, the captions of `random_motion` name a direction at random, so that they teach everything but motion;
`rejected` are captions that name another direction.

For hashtags as labels, the captions of `hashtags_train` name one to three of colour, shape and direction, at random;
those of `hashtags_validation` all three. `hashtags_long_tail` has fewer and fewer of the videos of `hashtags_train`
from colour to colour, see `TAIL`.

For open-set recognition two directions are held out: `known_train` and `known_validation` have the videos of the other
six, `unknown_validation` those of the two.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

NUM_FRAMES = 64
"""Frames per video. Later frames can be rendered too."""
RATE = 16.0
"""Frames per second."""

CLASSES = ("right", "up and right", "up", "up and left", "left", "down and left", "down", "down and right")
"""The direction of motion, counter-clockwise: class k moves at an angle of k * 45 degrees."""

SPLITS = {"train": range(8192), "validation": range(1_000_000, 1_001_024)}
"""Disjoint indices. In both splits, and in their first 8k examples for any k, all classes are equally frequent."""
COMPOSITION_SPLITS = {
    "compositions_train": ("train", False),
    "compositions_held_out": ("validation", True),
    "directions_held_out": ("validation", True),
}
"""Base split, and whether its held-out compositions are taken or the others; see `split_indices`. Not balanced."""
UNKNOWN = ("up and left", "down")
"""Classes of the open-set splits that are not known in training; each lies between two that are."""
RANDOM_MOTION = "random_motion"
"""The training videos with captions that name a direction at random."""
HASHTAG_SPLITS = {"hashtags_train": "train", "hashtags_long_tail": "train", "hashtags_validation": "validation"}
"""Base splits of the videos with captions of hashtags."""
TAIL = 0.6
"""How many videos of a colour `hashtags_long_tail` has, for each of the colour before it in `COLORS`."""
_KNOWN = tuple(name for name in CLASSES if name not in UNKNOWN)
OPEN_SPLITS = {
    "known_train": ("train", _KNOWN),
    "known_validation": ("validation", _KNOWN),
    "unknown_validation": ("validation", UNKNOWN),
}
"""Base split, and the classes taken from it. As balanced as the base split."""

PHRASES = (
    "to the right", "up and to the right", "up", "up and to the left",
    "to the left", "down and to the left", "down", "down and to the right",
)  # fmt: skip
COLORS = {  # all channels are at least 90 and backgrounds at most 90: shapes are always brighter
    "red": (245, 90, 90), "orange": (250, 160, 90), "yellow": (250, 225, 90), "green": (100, 210, 110),
    "cyan": (90, 215, 225), "blue": (105, 140, 245), "purple": (180, 110, 235), "pink": (250, 150, 200),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
_RADII = {"small": (0.10, 0.12), "large": (0.17, 0.20)}  # of the disc with the shape's area, in frame widths
_WAVES = 4  # of the background
FLOW_BOUND = 20
"""Largest motion, in pixels per frame, that stored flow can represent."""
_INRADIUS = np.sqrt(np.pi / (3 * np.sqrt(3)))  # of the triangle: equilateral, one corner up
_EXTENTS = {  # left, up, right and down of the centre, in radii
    "circle": (1, 1, 1, 1),
    "square": (np.sqrt(np.pi) / 2,) * 4,
    "triangle": (np.sqrt(3) * _INRADIUS, 2 * _INRADIUS, np.sqrt(3) * _INRADIUS, _INRADIUS),
}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


COMPOSITIONS = tuple(
    f"{_article(color)} {color} {shape} moves {phrase}" for color, shape, phrase in product(COLORS, SHAPES, PHRASES)
)
"""The short captions of all compositions of colour, shape and direction."""


def class_names(split: str) -> tuple[str, ...]:
    """Class names of a split."""
    if split in OPEN_SPLITS:
        return OPEN_SPLITS[split][1]
    composed = COMPOSITIONS if split.startswith("compositions") else PHRASES
    return CLASSES if split in (*SPLITS, RANDOM_MOTION, *HASHTAG_SPLITS) else composed


class Scene(NamedTuple):
    """Parameters drawn from the index. Lengths are in frame widths, y points down, velocity is in widths per frame."""

    label: int
    shape: str
    size: str
    radius: float
    color: str
    background: str
    start: np.ndarray
    velocity: np.ndarray
    waves: np.ndarray
    phases: np.ndarray


@lru_cache(256)  # label, captions and frames of an example are requested one after the other
def scene_of(index: int) -> Scene:
    """The scene of a video."""
    random = np.random.Generator(np.random.Philox(key=index))
    angle = 2 * np.pi * label(index) / len(CLASSES)
    speed = random.uniform(1 / 40, 1 / 20)
    size = str(random.choice(list(_RADII)))
    color, background = random.choice(list(COLORS), size=2, replace=False)
    return Scene(
        label=label(index),
        shape=str(random.choice(SHAPES)),
        size=size,
        radius=random.uniform(*_RADII[size]),
        color=str(color),
        background=str(background),
        start=random.uniform(size=2),
        velocity=speed * np.array([np.cos(angle), -np.sin(angle)]),
        waves=random.integers(-1, 2, size=(_WAVES, 2)),
        phases=random.uniform(0, 2 * np.pi, size=_WAVES),
    )


def label(index: int) -> int:
    """The label of a video, a position in `CLASSES`."""
    return index % len(CLASSES)


def label_in(split: str, index: int) -> int:
    """The label of a video of a split, a position in the split's class names."""
    if split in OPEN_SPLITS:
        return class_names(split).index(CLASSES[label(index)])
    return composition(index) if split.startswith("compositions") else label(index)


@lru_cache(2**14)  # opening a run describes every example, which takes seconds
def describe(index: int) -> tuple[int, tuple[str, ...]]:
    """The label (a position in `CLASSES`) of a video and its full, short and vague captions."""
    scene = scene_of(index)
    return scene.label, captions(scene, scene.label)


def captions(scene: Scene, label: int) -> tuple[str, str, str]:
    """The full, short and vague captions of a scene whose shape moves in a direction, a position in `CLASSES`."""
    moving = f"{scene.color} {scene.shape} moves {PHRASES[label]}"
    background = f"{_article(scene.background)} {scene.background} background"
    vague = f"a {scene.shape} moves {PHRASES[label]}"
    return f"a {scene.size} {moving} over {background}", f"{_article(moving)} {moving}", vague


def misled(index: int) -> tuple[str, str]:
    """The full and short captions of a video, with a direction at random."""
    random = np.random.Generator(np.random.Philox(key=index + (1 << 66)))  # other numbers than the scenes'
    return captions(scene_of(index), int(random.integers(len(CLASSES))))[:2]


def rejected(index: int) -> tuple[str, str, str]:
    """The captions of a video with another direction, each of which occurs equally often."""
    turned = 1 + index // len(CLASSES) % (len(CLASSES) - 1)
    return captions(scene_of(index), (label(index) + turned) % len(CLASSES))


def hashtags(index: int, every: bool) -> tuple[str]:
    """A caption of hashtags, `#up_and_left #cyan #triangle`: all three, or one to three of them at random."""
    random = np.random.Generator(np.random.Philox(key=index + (1 << 67)))  # other numbers than the scenes'
    scene = scene_of(index)
    words = CLASSES[scene.label].replace(" ", "_"), scene.color, scene.shape
    count = 3 if every else int(random.integers(1, 4))
    return (" ".join(f"#{words[i]}" for i in random.permutation(3)[:count]),)


def composition(index: int) -> int:
    """The composition of a video: a position in `COMPOSITIONS`."""
    return COMPOSITIONS.index(describe(index)[1][1])


def compositions(held_out: bool) -> tuple[str, ...]:
    """The short captions of the held-out compositions, or of the others."""
    return tuple(text for position, text in enumerate(COMPOSITIONS) if _is_held_out(position) == held_out)


def _is_held_out(position: int) -> bool:
    # The sums of the three shapes are consecutive, so for each colour and direction at most one shape is held out. For
    # each pair of the other attributes, two of the eight colours or directions are.
    rest, direction = divmod(position, len(PHRASES))
    color, shape = divmod(rest, len(SHAPES))
    return (color + shape + direction) % 4 == 0


@cache
def split_indices(split: str) -> Sequence[int]:
    """The indices of a split. Those of `COMPOSITION_SPLITS` and the long tail are computed once, in 0.4 s."""
    if split in SPLITS:
        return SPLITS[split]
    if split == RANDOM_MOTION:
        return SPLITS["train"]
    if split == "hashtags_long_tail":
        return _long_tail(SPLITS["train"])
    if split in HASHTAG_SPLITS:
        return SPLITS[HASHTAG_SPLITS[split]]
    if split in OPEN_SPLITS:
        name, classes = OPEN_SPLITS[split]
        return tuple(index for index in SPLITS[name] if CLASSES[label(index)] in classes)
    name, held_out = COMPOSITION_SPLITS[split]
    return tuple(index for index in SPLITS[name] if _is_held_out(composition(index)) == held_out)


def _long_tail(indices: Sequence[int]) -> tuple[int, ...]:
    """All videos of the first colour, and of each other one a smaller share, by `TAIL`; directions stay as frequent."""
    by_color: dict[str, list[int]] = {color: [] for color in COLORS}
    for index in indices:
        by_color[scene_of(index).color].append(index)
    shares = [each[: round(len(each) * TAIL**rank)] for rank, each in enumerate(by_color.values())]
    return tuple(sorted(index for each in shares for index in each))


def render(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Renders frames of a video.

    Args:
      index: the video; any non-negative integer.
      frames: (t,) frame numbers, in any order.
      size: height and width in pixels.

    Returns:
      RGB frames. The content is the same at every size, up to anti-aliasing.
    """
    scene = scene_of(index)
    return paint(scene, centers_of(scene, frames), size)


def paint(scene: Scene, centers: Float[np.ndarray, "t 2"], size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """RGB frames of a scene whose shape is at these places, x and y in frame widths; they wrap around the borders."""
    background = render_background(scene, size)
    video = np.broadcast_to(np.round(background).astype(np.uint8), (len(centers), size, size, 3)).copy()
    place, alpha = cover(scene, centers, size)
    color = np.array(COLORS[scene.color], np.float32)
    painted = background[place[1:]] * (1 - alpha) + color * alpha
    video[place] = np.round(painted)
    return video


def centers_of(scene: Scene, frames: np.ndarray) -> Float[np.ndarray, "t 2"]:
    """Where the centre of the shape is in these frames, if it did not wrap around the borders."""
    return scene.start + np.asarray(frames, np.int64)[:, None] * scene.velocity


def render_flow(index: int, frames: np.ndarray, size: int) -> UInt8[np.ndarray, "t h w 2"]:
    """The optical flow from each frame to the next: the shape moves, the background does not.

    Args:
      index: which video; any integer from 0.
      frames: (t,) frame numbers, in any order.
      size: height and width in pixels.

    Returns:
      Horizontal and vertical motion; -20 to 20 pixels per frame are stored as 0 to 255 (128 for none), as is usual for
      two-stream networks (Simonyan and Zisserman 2014).
    """
    scene = scene_of(index)
    flow = np.full((len(frames), size, size, 2), 128, np.uint8)
    place, alpha = cover(scene, centers_of(scene, frames), size)
    motion = (np.clip(scene.velocity * size / FLOW_BOUND, -1, 1) + 1) * 127.5
    flow[place] = np.where(alpha > 0.5, np.floor(motion + 0.5), 128)
    return flow


def tracks(index: int) -> Float[np.ndarray, "m 6"]:
    """The shape's bounding box in each frame, as a track: 0, seconds, and x1, y1, x2, y2 as fractions of the frame.

    If the shape wraps around a border, the box contains the part with the shape's centre.
    """
    frames = np.arange(NUM_FRAMES)
    boxes = boxes_of(scene_of(index), frames)
    return np.concatenate([np.zeros((NUM_FRAMES, 1)), frames[:, None] / RATE, boxes], axis=1)


def boxes_of(scene: Scene, frames: np.ndarray) -> Float[np.ndarray, "t 4"]:
    """The bounding boxes of `tracks` in these frames."""
    center = centers_of(scene, frames) % 1
    before, after = np.array(_EXTENTS[scene.shape]).reshape(2, 2) * scene.radius
    return np.concatenate([center - before, center + after], axis=1).clip(0, 1)


def cover(scene: Scene, centers: Float[np.ndarray, "t 2"], size: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Index into frames (t h w) of the pixels in a box around the shape, and the fraction of each that it covers."""
    center = centers % 1 * size  # (t, x y); the indices wrap around the borders
    reach = min(int(np.ceil(1.6 * scene.radius * size)) + 1, (size - 1) // 2)
    pixels = np.floor(center).astype(np.int64)[:, :, None] + np.arange(-reach, reach + 1)  # (t, x y, box)
    x, y = np.moveaxis((pixels + 0.5 - center[:, :, None]) / (scene.radius * size), 1, 0)
    distance = _distance(scene.shape, x[:, None, :], y[:, :, None]) * scene.radius * size  # (t, box, box)
    alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
    columns, rows = np.moveaxis(pixels % size, 1, 0)
    return (np.arange(len(center))[:, None, None], rows[:, :, None], columns[:, None, :]), alpha


def render_background(scene: Scene, size: int) -> Float[np.ndarray, "h w 3"]:
    """A few long waves in dark tones of one colour, periodic across the borders."""
    position = (np.arange(size) + 0.5) / size
    x = np.exp(2j * np.pi * scene.waves[:, :1] * position + 1j * scene.phases[:, None])
    y = np.exp(2j * np.pi * scene.waves[:, 1:] * position)
    waves = (y.T @ x).real / np.sqrt(2 * _WAVES)
    tone = 0.27 + 0.12 * np.tanh(waves)[..., None]
    color = np.array(COLORS[scene.background])
    return (tone * (0.7 * color + 0.3 * color.mean())).astype(np.float32)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the border of the shape, negative inside; all shapes have the area of the unit disc, pi."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - np.sqrt(np.pi) / 2
    return np.maximum(y, np.sqrt(3) / 2 * np.abs(x) - y / 2) - _INRADIUS
