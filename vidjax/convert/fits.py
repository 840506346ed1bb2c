"""Makes published values of another shape fit: position tables are resized, image kernels inflated."""

from math import isqrt, prod

import jax.numpy as jnp
import numpy as np

from vidjax.convert.rules import Fit, Inflation
from vidjax.layers.embedding import Resizing, resize_table


def inflate(value: np.ndarray, shape: tuple[int, ...], inflation: Inflation) -> np.ndarray:
    """A kernel of images `(h, w, in, out)` as one of clips `(t, h, w, in, out)`.

    average: repeated over time and divided by its length (Carreira and Zisserman 2017): a clip of one image repeated
    is answered as the image is. central: the image's kernel in the middle, zeros around it (ViViT, section 3.4).
    """
    value = value[None] if value.ndim == len(shape) - 1 else value
    if value.ndim != len(shape) or value.shape[0] != 1 or value.shape[1:] != tuple(shape[1:]):
        return value
    if inflation == "average":
        return np.repeat(value / shape[0], shape[0], axis=0)
    clip = np.zeros(shape, value.dtype)
    clip[shape[0] // 2] = value[0]
    return clip


def table(method: Resizing, image: bool = False) -> Fit:
    """Published positions `(n, d)` as our table `(*grid, d)`, resized where the grid is another.

    Args:
      method: see `layers.embedding.resize_table`.
      image: the positions are of one (square) image; a table of clips repeats them over time.
    """

    def fit(value: np.ndarray, shape: tuple[int, ...], inflation: Inflation) -> np.ndarray:
        if value.ndim == len(shape):  # a checkpoint of ours, where tables are grids already
            return np.asarray(resize_table(jnp.asarray(value), shape[:-1], method))
        old = _grid(value.shape[0], shape[:-1], image)
        if value.ndim != 2 or old is None:
            return value
        return np.asarray(resize_table(jnp.asarray(value.reshape(*old, -1)), shape[:-1], method))

    return fit


def _grid(tokens: int, ours: tuple[int, ...], image: bool) -> tuple[int, ...] | None:
    """The grid that a published table of so many tokens has, where ours is this; None where it cannot be told."""
    side = isqrt(tokens)
    if len(ours) == 1:
        return (tokens,)
    if image:
        return (*(1,) * (len(ours) - 2), side, side) if side**2 == tokens else None
    if tokens == prod(ours):
        return ours
    if len(ours) == 2:
        return (side, side) if side**2 == tokens else None
    frames, height, width = ours
    if tokens % frames == 0 and isqrt(tokens // frames) ** 2 == tokens // frames:  # the same frames, another size
        return (frames, isqrt(tokens // frames), isqrt(tokens // frames))
    return (tokens // (height * width), height, width) if tokens % (height * width) == 0 else None
