"""Depthwise 3-D convolution as a sum of shifted products, with a custom gradient.

XLA's grouped convolutions are many times slower than PyTorch's on CPUs and slow on GPUs, and their gradients even more
so. The gradient supports reverse mode only.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


@partial(jax.jit, static_argnums=(2, 3))  # so that layers of equal shapes are traced once
def depthwise_conv3d(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw 1 c"],
    strides: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] | None = None,
) -> Float[Array, "b _ _ _ c"]:
    """Depthwise convolution, summed in float32 or higher precision.

    Equals `lax.conv_general_dilated(x, kernel, strides, [(p, p) for p in padding], dimension_numbers=("NTHWC", "THWIO",
    "NTHWC"), feature_group_count=c)`.

    The sum of shifted products is fused into one loop by the compiler. For larger kernels, a loop runs over their
    frames, or over their rows if they have one frame: a sum of 125 products compiles slowly and runs no faster.

    Args:
      padding: cells on both sides of each axis, fewer than the kernel has; `size // 2` by default, which gives an
        output of the same size if the stride is 1.

    Raises:
      ValueError: an even kernel size without padding.
    """
    return _depthwise_conv3d(x, kernel, strides, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_conv3d(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[int] | None) -> Array:
    size = kernel.shape[:3]
    padding = _padding(size, padding)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _pad(x, padding)
    sides = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:4], size, strides, strict=True)]
    spans = [(side - 1) * s + 1 for side, s in zip(sides, strides, strict=True)]

    def add_taps(total: Array, part: Array, taps: Array) -> Array:
        for tap in np.ndindex(*taps.shape[:3]):
            places = [slice(i, i + span, s) for i, span, s in zip(tap, spans, strides, strict=True)]
            total += part[:, *places].astype(wide) * taps[*tap, 0].astype(wide)
        return total

    total = jnp.zeros((x.shape[0], *sides, x.shape[-1]), wide)
    if np.prod(size) <= 27:
        return add_taps(total, padded, kernel).astype(x.dtype)
    axis = 0 if size[0] > 1 else 1

    def add_slice(total: Array, i: Array) -> tuple[Array, None]:
        part = lax.dynamic_slice_in_dim(padded, i, spans[axis], axis=axis + 1)
        return add_taps(total, part, lax.dynamic_slice_in_dim(kernel, i, 1, axis)), None

    return lax.scan(add_slice, total, jnp.arange(size[axis]))[0].astype(x.dtype)


def _depthwise_gradients(
    strides: Sequence[int], padding: Sequence[int] | None, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The input's gradient is the same operation with the kernel flipped; the kernel's is one sum per tap.

    With strides, the input's gradient is computed by blocks.
    """
    x, kernel = saved
    size = kernel.shape[:3]
    padding = _padding(size, padding)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _pad(x, padding)
    spans = [(side - 1) * s + 1 for side, s in zip(dy.shape[1:4], strides, strict=True)]

    def tap(start: Array) -> Array:
        shifted = lax.dynamic_slice(padded, (0, *start, 0), (len(x), *spans, x.shape[-1]))
        shifted = shifted[:, :: strides[0], :: strides[1], :: strides[2]]
        return jnp.sum(shifted.astype(wide) * dy.astype(wide), axis=(0, 1, 2, 3))

    starts = jnp.asarray(list(np.ndindex(*size)))
    dkernel = lax.map(tap, starts).reshape(kernel.shape).astype(kernel.dtype)
    if any(stride > 1 for stride in strides):
        return _strided_input_gradient(x, kernel, strides, padding, dy), dkernel
    flipped_padding = tuple(k - 1 - p for k, p in zip(size, padding, strict=True))
    return depthwise_conv3d(dy, kernel[::-1, ::-1, ::-1], (1, 1, 1), flipped_padding), dkernel


def _strided_input_gradient(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[int], dy: Array
) -> Array:
    """The input is divided into blocks of a stride's size, whose cells all depend on the same few outputs.

    Along an axis, cell `r` of block `i` contributes by tap `stride * m + r + padding` to output `i - m`. A sum over `m`
    of whole blocks has fewer products than taps and needs no copy of `dy` with zeros in between.
    """
    c, wide = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
    blocks, counts, missing, around = [], [], [], []
    for n, side, k, s, p in zip(x.shape[1:4], dy.shape[1:4], kernel.shape, strides, padding, strict=False):
        first, last = -((p + s - 1) // s), (k - 1 - p) // s  # of the `m` with a tap
        blocks.append(-(-n // s))
        counts.append(last - first + 1)
        missing.append((-s * first - p, s * (last + 1) + p - k))  # cells of the kernel's blocks that are no taps
        around.append((last, blocks[-1] - first - side, 0))
    kernel = jnp.pad(kernel[..., 0, :], (*missing, (0, 0))).astype(wide)
    kernel = kernel.reshape(*(n for pair in zip(counts, strides, strict=True) for n in pair), c)
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    total = 0.0
    for m in np.ndindex(*counts):
        i, j, k = (count - 1 - cell for count, cell in zip(counts, m, strict=True))
        outputs = dy[:, i : i + blocks[0], None, j : j + blocks[1], None, k : k + blocks[2], None]
        total += outputs.astype(wide) * kernel[m[0], :, None, m[1], :, None, m[2]]
    dx = total.reshape(len(x), *(n * s for n, s in zip(blocks, strides, strict=True)), c)
    return dx[:, : x.shape[1], : x.shape[2], : x.shape[3]].astype(x.dtype)


_depthwise_conv3d.defvjp(
    lambda x, kernel, *how: (_depthwise_conv3d(x, kernel, *how), (x, kernel)), _depthwise_gradients
)


def _padding(size: Sequence[int], padding: Sequence[int] | None) -> Sequence[int]:
    if padding is None and any(cells % 2 == 0 for cells in size):
        raise ValueError(f"a depthwise kernel of size {tuple(size)} has no centre: use odd sizes")
    return [cells // 2 for cells in size] if padding is None else padding


def _pad(x: Array, padding: Sequence[int]) -> Array:
    return jnp.pad(x, ((0, 0), *((cells, cells) for cells in padding), (0, 0)))
