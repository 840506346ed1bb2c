"""Makes published values of another shape fit: position tables are resized, image kernels inflated."""

from math import isqrt, prod

import jax.numpy as jnp
import numpy as np

from vidjax.convert.rules import Fit, Inflation
from vidjax.errors import UserError
from vidjax.layers.embedding import Resizing, resize_table

Shape = tuple[int, ...]


def inflate(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
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


def first(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """The first rows of a table of positions of a text, which a shorter text needs (as ViCLIP starts from CLIP)."""
    return value[: shape[0]]


def table(method: Resizing, image: bool = False, usual: Shape | None = None) -> Fit:
    """Published positions `(n, d)` as our table `(*grid, d)`, resized where the grid is another.

    Which grid the `n` positions have is not written in weights. It is what the source's configuration says (`native`);
    without one, the grid of the model or the usual one, whichever has so many entries.

    Args:
      method: see `layers.embedding.resize_table`.
      image: the positions are of one (square) image; a table of clips repeats them over time.
      usual: the grid of the family's published tables, where they are of clips.
    """

    def fit(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
        if value.ndim == len(shape):  # a checkpoint of ours, where tables are grids already
            return np.asarray(resize_table(jnp.asarray(value), shape[:-1], method))
        if not image and native is not None and prod(native[:-1]) == len(value):
            old = native[:-1]
        else:
            old = _grid(len(value), shape[:-1], image, usual)
        if value.ndim != 2 or old is None:
            return value
        return np.asarray(resize_table(jnp.asarray(value.reshape(*old, -1)), shape[:-1], method))

    return fit


def _grid(tokens: int, ours: Shape, image: bool, usual: Shape | None) -> Shape | None:
    """The grid that a published table of so many tokens has, where ours is this; None where there is none.

    Raises:
      UserError: it can be read in more than one way.
    """
    side = isqrt(tokens)
    if len(ours) == 1:
        return (tokens,)
    if image:
        return (*(1,) * (len(ours) - 2), side, side) if side**2 == tokens else None
    if len(ours) == 2:
        return ours if tokens == prod(ours) else (side, side) if side**2 == tokens else None
    known = {grid for grid in (ours, usual) if grid and all(grid)}
    read = {grid for grid in known if prod(grid) == tokens}
    if not read:  # the same frames and another size, or the same size and other frames
        sides = {frames: isqrt(tokens // frames) for frames, _, _ in known}
        read = {(frames, side, side) for frames, side in sides.items() if frames * side**2 == tokens}
        read |= {(tokens // (h * w), h, w) for _, h, w in known if tokens % (h * w) == 0}
    if len(read) > 1:
        grids = " or ".join("x".join(map(str, grid)) for grid in sorted(read))
        raise UserError(
            f"a table of {tokens} positions may be one of {grids}: load it with the num_frames and image_size that the "
            "weights were trained with, the model resizes it for other clips"
        )
    return next(iter(read), None)
