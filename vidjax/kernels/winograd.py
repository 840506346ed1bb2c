"""Winograd convolution for CPUs: 3 x 3 kernels with a quarter of the products (Lavin & Gray 2016, arXiv:1509.09308).

F(4 x 4, 3 x 3): a tile of 4 x 4 outputs depends on 6 x 6 cells of the input. Along each axis, the kernel is evaluated
as a polynomial at six points (G), the input cells are transformed by the transpose of interpolation (B^T), and the
outputs by the transpose of evaluation (A^T): channels are multiplied 36 times per tile, once for each pair of points,
instead of 16 x 9 times. The temporal axis is convolved directly. The kernel's gradient uses the transposed matrices.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], ...]

TILE, CELLS = 4, 6
# The sixth point is at infinity. The RMS error is half that of the usual points 0, 1, -1, 2, -2 (the maximum error a
# quarter to a third), and three to five times that of XLA's direct sum.
POINTS = np.array([0, 3 / 4, -3 / 4, 3 / 2, -3 / 2])


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of the paper's section 4: B^T (6, 6) for inputs, G (6, 3) for kernels, A^T (4, 6) for outputs."""
    others = [np.delete(POINTS, i) for i in range(len(POINTS))]
    cells = [[*np.poly(other)[::-1], 0] for other in others] + [np.poly(POINTS)[::-1]]
    scales = [np.prod(point - other) for point, other in zip(POINTS, others, strict=True)]
    kernel = [*(np.vander(POINTS, 3, increasing=True) / np.array(scales)[:, None]), [0, 0, 1]]
    results = [*np.vander(POINTS, TILE, increasing=True), [0, 0, 0, 1]]
    return np.array(cells), np.array(kernel), np.array(results).T


B_T, G, A_T = _matrices()


def on_one_cpu() -> bool:
    """Whether JAX runs on a single CPU device."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def is_faster(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> bool:
    """Whether Winograd convolution and its gradients are faster here; they need 2.5 times the scratch memory.

    Only on CPUs and in float32: bfloat16 is too coarse for the powers of the points, and float64 is used when precision
    matters. Only where it was measured to be faster: with enough channels for the products to outweigh the transforms,
    enough tiles to outweigh the kernel's transform, and at least half of each tile in use. Only on a single device:
    several would exchange the kernel's gradient at 36 points instead of 9 taps.
    """
    if not on_one_cpu() or x.dtype != jnp.float32:
        return False
    if kernel.shape[1:3] != (3, 3) or tuple(strides) != (1, 1, 1) or not all(isinstance(n, int) for n in x.shape):
        return False
    frames, height, width = _sides(x, kernel.shape, padding)
    tiles, places = (len(x) * frames * n for n in (-(-height // TILE) * -(-width // TILE), height * width))
    return min(kernel.shape[3:]) >= 32 and tiles >= max(kernel.shape[3:]) and 8 * tiles <= places


@partial(jax.jit, static_argnums=2)  # so that training.cost finds it by name
def winograd_convolution(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt 3 3 c d"], padding: Pairs
) -> Float[Array, "b _ _ _ d"]:
    """Convolution with stride 1; `padding` gives the cells before and after each axis.

    Equals `lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))`.
    """
    frames, height, width = _sides(x, kernel.shape, padding)
    cells, down, across = _tiles_of(x, padding[1:], height, width)
    rows = jnp.stack(_transform(G, [kernel[:, i] for i in range(3)]))
    kernels = _transform(G, [rows[:, :, j] for j in range(3)])
    products = [_through_time(*pair, padding[0]) for pair in zip(cells, kernels, strict=True)]
    columns = [jnp.stack(_transform(A_T, list(product))) for product in products]
    y = jnp.stack(_transform(A_T, columns), axis=4).reshape(TILE, -1, down, across, TILE, kernel.shape[-1])
    y = jnp.moveaxis(y, 0, 2).reshape(-1, TILE * down, TILE * across, kernel.shape[-1])
    return y[:, :height, :width].reshape(x.shape[0], frames, height, width, -1)


@partial(jax.jit, static_argnums=(2, 3))
def winograd_kernel_gradient(
    x: Float[Array, "b t h w c"], dy: Float[Array, "b t2 h2 w2 d"], frames: int, padding: Pairs
) -> Float[Array, "kt 3 3 c d"]:
    """The gradient of `winograd_convolution` with respect to a kernel of this many frames.

    Equals `jax.vjp(lambda kernel: winograd_convolution(x, kernel, padding), kernel)[1](dy)[0]`.
    """
    (t, c), (b, t2, height, width, d) = (x.shape[1], x.shape[-1]), dy.shape
    cells, down, across = _tiles_of(x, padding[1:], height, width)
    dy = pad_or_cut(dy.reshape(-1, height, width, d), ((0, TILE * down - height), (0, TILE * across - width)))
    slopes = _transform_tiles(A_T.T, dy, down, across)
    starts = [tap - padding[0][0] for tap in range(frames)]

    def product(cell: Array, slope: Array) -> Array:
        """The output gradients of all frames of the kernel are concatenated, for one product per input frame."""
        slope = slope.reshape(CELLS, b, t2, down * across, d)
        shifted = [pad_or_cut(slope, ((0, 0), (s, t - t2 - s), (0, 0))) for s in starts]
        shifted = jnp.concatenate(shifted, axis=-1).reshape(CELLS, -1, frames * d)
        return jnp.einsum("umc,umd->ucd", cell.reshape(CELLS, -1, c), shifted)

    products = [product(*pair) for pair in zip(cells, slopes, strict=True)]
    columns = [jnp.stack(_transform(G.T, list(product))) for product in products]
    gradient = jnp.stack(_transform(G.T, columns), axis=1)
    return jnp.moveaxis(gradient.reshape(3, 3, c, frames, d), 3, 0)


def _sides(x: Array, size: Sequence[int], padding: Pairs) -> list[int]:
    """Frames, rows and columns of the output."""
    return [side + sum(cells) - k + 1 for side, cells, k in zip(x.shape[1:4], padding, size[:3], strict=True)]


def _tiles_of(x: Array, padding: Pairs, height: int, width: int) -> tuple[list[Array], int, int]:
    """The transformed input tiles, with separate axes for clips and frames, and the numbers of rows and columns."""
    (b, t, h, w, c), ((top, _), (left, _)) = x.shape, padding
    down, across = -(-height // TILE), -(-width // TILE)
    bottom, right = TILE * down + 2 - h - top, TILE * across + 2 - w - left
    x = pad_or_cut(x.reshape(-1, h, w, c), ((top, bottom), (left, right)))
    tiles = _transform_tiles(B_T, x, down, across)
    return [cells.reshape(CELLS, b, t, down * across, c) for cells in tiles], down, across


def _transform_tiles(matrix: np.ndarray, x: Float[Array, "n h w c"], down: int, across: int) -> list[Array]:
    """Tiles at all pairs of points: a list over column points of arrays `(6, n, down, across, c)` over row points."""
    rows = jnp.stack(_transform(matrix, _every(x, 1, matrix.shape[1], down)))
    return _transform(matrix, _every(rows, 3, matrix.shape[1], across))


def _every(x: Array, axis: int, size: int, tiles: int) -> list[Array]:
    """The first cells of all tiles along an axis, the second cells, and so on."""
    return [lax.slice_in_dim(x, i, i + TILE * (tiles - 1) + 1, TILE, axis) for i in range(size)]


def _transform(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    """A matrix times a vector of arrays, skipping zeros."""
    return [sum(float(f) * array for f, array in zip(row, arrays, strict=True) if f != 0) for row in matrix]


def _through_time(x: Float[Array, "u b t n c"], kernel: Float[Array, "u kt c d"], padding: tuple[int, int]) -> Array:
    if kernel.shape[1] == 1 and padding == (0, 0):
        return jnp.einsum("ubtnc,ucd->ubtnd", x, kernel[:, 0])
    convolve = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    # A loop, as XLA compiles a copy of its own for every slice of the points.
    return lax.map(lambda pair: convolve(*pair, (1, 1), (padding, (0, 0))), (x, kernel[:, :, None]))


def pad_or_cut(x: Array, padding: Pairs) -> Array:
    """Pads all axes but the first and the last with zeros; negative padding crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*cells, 0) for cells in padding), (0, 0, 0)])
