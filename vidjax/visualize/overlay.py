"""Maps of where a model looks, laid over the frames that it looked at."""

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import Float

from vidjax.visualize.reconstruction import save_reconstructions

COLORS = "inferno"
"""Of matplotlib: from black over red to yellow, brighter with each step, so that no eye misreads it."""
BRIGHTEST = 99
"""Percentile of a map's values from which on colours are the brightest: a single peak must not leave the rest dark."""


def overlay(video: Float[np.ndarray, "t h w 3"], heat: Float[np.ndarray, "f y x"]) -> Float[np.ndarray, "t h w 3"]:
    """The frames in grey, the more coloured the higher the map is there, on one scale for the whole clip.

    Args:
      video: pixels in [0, 1].
      heat: over any grid that covers the clip; enlarged linearly. What is below zero counts as zero.
    """
    heat = np.maximum(np.asarray(jax.image.resize(heat, video.shape[:3], "linear")), 0)
    low, high = heat.min(), np.percentile(heat, BRIGHTEST)
    share = np.clip((heat - low) / max(high - low, 1e-3 * high, 1e-12), 0, 1)  # rounding is no difference
    strength = 0.8 * np.sqrt(share)[..., None]
    grey = 0.8 * video.mean(axis=-1, keepdims=True)
    return grey * (1 - strength) + matplotlib.colormaps[COLORS](share)[..., :3] * strength


def save_overlays(
    path: Path,
    video: Float[np.ndarray, "t h w 3"],
    maps: Sequence[Float[np.ndarray, "f y x"]],
    names: Sequence[str],
    caption: str = "",
) -> tuple[Path, Path]:
    """Writes `path.png`, a row for the frames and one for each map over them, and `path.gif`, the same moving.

    Args:
      path: without ending.
      video: pixels in [0, 1].
      maps: see `overlay`; each has colours of its own range.
      names: of the maps.
      caption: a line above the picture.
    """
    rows = [video, *(overlay(video, heat) for heat in maps)]
    return save_reconstructions(path, [row[None] for row in rows], caption, ("frames", *names))
