"""Adapts published values to other shapes: resizes position tables and inflates image kernels."""

from math import isqrt, prod

import jax.numpy as jnp
import numpy as np

from vidjax.convert.rules import Fit, Inflation
from vidjax.errors import UserError
from vidjax.layers.embedding import Resizing, resize_table

Shape = tuple[int, ...]


def inflate(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """Inflates an image kernel `(h, w, in, out)` to a clip kernel `(t, h, w, in, out)`.

    `average` repeats the kernel over time and divides it by its length (Carreira and Zisserman 2017), so that a clip
    that repeats one image gives the output of that image. `central` puts the image kernel in the middle, with zeros
    around it (ViViT, section 3.4).
    """
    value = value[None] if value.ndim == len(shape) - 1 else value
    if value.ndim != len(shape) or value.shape[0] != 1 or value.shape[1:] != tuple(shape[1:]):
        return value
    if inflation == "average":
        return np.repeat(value / shape[0], shape[0], axis=0)
    clip = np.zeros(shape, value.dtype)
    clip[shape[0] // 2] = value[0]
    return clip


def across_modalities(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """Adapts a kernel of RGB images to other channels, such as stacked optical flow, and inflates it.

    Each channel gets the mean over RGB (cross-modality initialisation, Wang et al. 2016, arXiv:1608.00859, section
    4.1). It is not divided by the number of channels, so that an input with more channels has a larger response.
    """
    if value.shape[-2] != shape[-2]:
        value = np.repeat(value.mean(axis=-2, keepdims=True), shape[-2], axis=-2)
    return inflate(value, shape, inflation)


def first(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """The first rows of a table of text positions, for a shorter context (as when ViCLIP starts from CLIP)."""
    return value[: shape[0]]


def table(method: Resizing, image: bool = False, usual: Shape | None = None) -> Fit:
    """Converts published positions `(n, d)` to our table `(*grid, d)`, resizing them if the grids differ.

    Weights do not record the grid of the `n` positions. It is taken from the source's configuration (`native`) or,
    without one, it is the grid of the model or the usual one, whichever has `n` entries.

    Args:
      method: see `layers.embedding.resize_table`.
      image: the positions are those of one (square) image; for clips they are repeated over time.
      usual: grid of the family's published tables, if they are those of clips.
    """

    def fit(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
        if value.ndim == len(shape):  # in our own checkpoints tables already are grids
            return np.asarray(resize_table(jnp.asarray(value), shape[:-1], method))
        if not image and native is not None and prod(native[:-1]) == len(value):
            grid = native[:-1]
        else:
            grid = _grid(len(value), shape[:-1], image, usual)
        if value.ndim != 2 or grid is None:
            return value
        return np.asarray(resize_table(jnp.asarray(value.reshape(*grid, -1)), shape[:-1], method))

    return fit


def _grid(tokens: int, target: Shape, image: bool, usual: Shape | None) -> Shape | None:
    """The grid of a published table with this number of tokens, given our grid; None if no grid fits.

    Raises:
      UserError: more than one grid fits.
    """
    side = isqrt(tokens)
    if len(target) == 1:
        return (tokens,)
    if image:
        return (*(1,) * (len(target) - 2), side, side) if side**2 == tokens else None
    if len(target) == 2:
        return target if tokens == prod(target) else (side, side) if side**2 == tokens else None
    known = {grid for grid in (target, usual) if grid and all(grid)}
    candidates = {grid for grid in known if prod(grid) == tokens}
    if not candidates:  # the same number of frames at another size, or the same size with another number of frames
        sides = {frames: isqrt(tokens // frames) for frames, _, _ in known}
        candidates = {(frames, side, side) for frames, side in sides.items() if frames * side**2 == tokens}
        candidates |= {(tokens // (h * w), h, w) for _, h, w in known if tokens % (h * w) == 0}
    if len(candidates) > 1:
        grids = " or ".join("x".join(map(str, grid)) for grid in sorted(candidates))
        raise UserError(
            f"a table of {tokens} positions may be one of {grids}: load it with the num_frames and image_size that the "
            "weights were trained with, the model resizes it for other clips"
        )
    return next(iter(candidates), None)
