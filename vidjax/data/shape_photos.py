"""Photos and clips of the same classes: images and videos of shapes whose label is visible in a single frame.

Many photos have labels and few clips do, as where images of the web join the videos of a data set. Both show scenes of
`moving_shapes`, a photo one frame of its own scene. The label is the form; colours, sizes, the background and the
direction of motion tell nothing of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vidjax.data import moving_shapes

CLASSES = moving_shapes.SHAPES


class Kind(NamedTuple):
    """A source: how many frames each of its examples has, and the scenes of its splits."""

    frames: int
    splits: dict[str, Sequence[int]]


KINDS = {
    "photos": Kind(1, {"train": range(2_000_000, 2_004_096), "validation": range(3_000_000, 3_000_512)}),
    "clips": Kind(
        moving_shapes.NUM_FRAMES, {"train": range(4_000_000, 4_000_256), "validation": range(1_000_000, 1_000_512)}
    ),
}
"""All splits are disjoint. Classes are drawn at random: they are about equally frequent."""


def label(index: int) -> int:
    """The label of a scene, a position in `CLASSES`."""
    return CLASSES.index(moving_shapes.scene_of(index).shape)
