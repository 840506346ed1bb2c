"""Heat maps (attention, class activation) overlaid on the frames of a clip."""

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import Float

from vidjax.visualize.reconstruction import save_reconstructions

COLORS = "inferno"
"""A perceptually uniform colour map of matplotlib."""
SATURATION_PERCENTILE = 99
"""Values above this percentile of a map get the brightest colour, so that a single peak does not darken the rest."""


def overlay(video: Float[np.ndarray, "t h w 3"], heat: Float[np.ndarray, "f y x"]) -> Float[np.ndarray, "t h w 3"]:
    """Blends a heat map over greyscale frames, with one colour scale for the whole clip.

    Args:
      video: pixels in [0, 1].
      heat: any grid that covers the clip; resized linearly. Negative values count as zero.
    """
    heat = np.maximum(np.asarray(jax.image.resize(heat, video.shape[:3], "linear")), 0)
    low, high = heat.min(), np.percentile(heat, SATURATION_PERCENTILE)
    # The bounds on the range keep a flat map flat instead of amplifying rounding errors.
    level = np.clip((heat - low) / max(high - low, 1e-3 * high, 1e-12), 0, 1)
    strength = 0.8 * np.sqrt(level)[..., None]
    grey = 0.8 * video.mean(axis=-1, keepdims=True)
    return grey * (1 - strength) + matplotlib.colormaps[COLORS](level)[..., :3] * strength


def save_overlays(
    path: Path,
    video: Float[np.ndarray, "t h w 3"],
    maps: Sequence[Float[np.ndarray, "f y x"]],
    names: Sequence[str],
    caption: str = "",
) -> tuple[Path, Path]:
    """Writes `path.png`, one row for the frames and one for each overlaid map, and `path.gif`, the same animated.

    Args:
      path: without suffix.
      video: pixels in [0, 1].
      maps: see `overlay`; each has its own colour scale.
      names: one per map.
      caption: a line above the image.
    """
    rows = [video, *(overlay(video, heat) for heat in maps)]
    return save_reconstructions(path, [row[None] for row in rows], caption, ("frames", *names))
