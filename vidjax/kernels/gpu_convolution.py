"""3-D convolution on GPUs, with gradients by 2-D convolutions and matrix products.

XLA's gradient of a 3-D kernel was reported to take 30 times as long as PyTorch's (openxla/xla#34273). XLA gives 3-D
convolutions on NVIDIA GPUs channels first, and channels last, which tensor cores need, to 2-D ones in 16 bits only
(`findings/xla_gpu_conv3d_channels_first.sh`). Both gradients are therefore computed frame by frame of the kernel, each
as a 2-D gradient of folded clips and frames. Nothing loops over clips, so that several devices exchange gradients of
kernels only.

The gradients support reverse mode only. No GPU has measured them.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vidjax.kernels.winograd import Pairs, pad_or_cut

FEW_CHANNELS = 32
"""Up to this many input channels times frames of the kernel, as in the first layer, all frames of the kernel are one
2-D convolution: three channels alone would leave most of a tensor core idle."""
MANY_CHANNELS, FEW_POSITIONS = 256, 14 * 14
"""From this many channels on both sides, and up to this many output positions a frame, the kernel's gradient is matrix
products: they contract over positions, and copying a shifted input costs little beside so many outputs."""

_conv2d = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def gpu_conv3d(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], strides: Sequence[int], padding: Pairs
) -> Float[Array, "b _ _ _ d"]:
    """3-D convolution; `padding` gives the cells before and after each axis.

    Equals `lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))`.
    """
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))


def _gradients(strides: Sequence[int], padding: Pairs, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = input_gradient(dy, kernel, x.shape[1:4], strides, padding)
    return dx, kernel_gradient(x, dy, kernel.shape[:3], strides, padding)


gpu_conv3d.defvjp(lambda x, kernel, *how: (gpu_conv3d(x, kernel, *how), (x, kernel)), _gradients)


def input_gradient(
    dy: Float[Array, "b t2 h2 w2 d"],
    kernel: Float[Array, "kt kh kw c d"],
    sides: tuple[int, int, int],
    strides: Sequence[int],
    padding: Pairs,
) -> Float[Array, "b t h w c"]:
    """The gradient of `gpu_conv3d` with respect to an input of these `sides` (t, h, w), summed in float32 or higher.

    Equals `jax.vjp(lambda x: gpu_conv3d(x, kernel, strides, padding), x)[1](dy)[0]`.
    """
    (t, *space), (b, t2, *_), c = sides, dy.shape, kernel.shape[3]
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    total = jnp.zeros((b, t, *space, c), wide)
    for frame, taken in zip(kernel, _frames(len(kernel), t, t2, strides[0], padding[0][0]), strict=True):
        if taken:
            count, first, output = taken
            convolve = partial(_conv2d, rhs=frame, window_strides=strides[1:], padding=padding[1:])
            x = jax.ShapeDtypeStruct((b * count, *space, c), dy.dtype)
            dy_frames = dy[:, output : output + count]
            (dx,) = jax.linear_transpose(convolve, x)(dy_frames.reshape(-1, *dy.shape[2:]))
            dx = dx.reshape(b, count, *space, c).astype(wide)
            after = t - first - (count - 1) * strides[0] - 1
            total += lax.pad(dx, jnp.zeros((), wide), ((0, 0, 0), (first, after, strides[0] - 1), *[(0, 0, 0)] * 3))
    return total.astype(dy.dtype)


def kernel_gradient(
    x: Float[Array, "b t h w c"],
    dy: Float[Array, "b t2 h2 w2 d"],
    size: tuple[int, int, int],
    strides: Sequence[int],
    padding: Pairs,
) -> Float[Array, "kt kh kw c d"]:
    """The gradient of `gpu_conv3d` with respect to a kernel of this `size`, by the cheapest form for the shape.

    Equals `jax.vjp(lambda kernel: gpu_conv3d(x, kernel, strides, padding), kernel)[1](dy)[0]`.
    """
    (t, c), (_, t2, *positions, d), stride = (x.shape[1], x.shape[-1]), dy.shape, strides[0]
    if size[0] * c <= FEW_CHANNELS:
        x = pad_or_cut(x, (padding[0], (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, i : i + (t2 - 1) * stride + 1 : stride] for i in range(size[0])], axis=-1)
        gradient = _by_convolution(_fold(x), _fold(dy), size[1:], strides[1:], padding[1:])
        return jnp.moveaxis(gradient.reshape(*size[1:], size[0], c, d), 2, 0)
    small = min(c, d) >= MANY_CHANNELS and np.prod(positions) <= FEW_POSITIONS
    gradient_2d = _by_products if small else _by_convolution
    frames = []
    for taken in _frames(size[0], t, t2, stride, padding[0][0]):
        if frames:  # one after the other, or XLA would hold the copied frames of all at once
            x, dy, frames[-1] = lax.optimization_barrier((x, dy, frames[-1]))
        if taken:
            count, first, output = taken
            inputs, outputs = x[:, first : first + (count - 1) * stride + 1 : stride], dy[:, output : output + count]
            frames.append(gradient_2d(_fold(inputs), _fold(outputs), size[1:], strides[1:], padding[1:]))
        else:
            frames.append(jnp.zeros((*size[1:], c, d), dy.dtype))
    return jnp.stack(frames)


def _by_convolution(x: Array, dy: Array, size: Sequence[int], strides: Sequence[int], padding: Pairs) -> Array:
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), dy.dtype)
    return jax.linear_transpose(partial(_conv2d, x, window_strides=strides, padding=padding), kernel)(dy)[0]


def _by_products(x: Array, dy: Array, size: Sequence[int], strides: Sequence[int], padding: Pairs) -> Array:
    """One product for each place of the kernel; only one shifted input need exist at a time."""
    x = pad_or_cut(x, padding)
    down, across = ((n - 1) * stride + 1 for n, stride in zip(dy.shape[1:3], strides, strict=True))
    wide, positions = jnp.promote_types(dy.dtype, jnp.float32), (0, 1, 2)
    products = []
    for i, j in np.ndindex(*size):
        shifted = x[:, i : i + down : strides[0], j : j + across : strides[1]]
        products.append(lax.dot_general(shifted, dy, ((positions,) * 2, ((), ())), preferred_element_type=wide))
    return jnp.stack(products).reshape(*size, x.shape[-1], dy.shape[-1]).astype(dy.dtype)


def _fold(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _frames(size: int, t: int, t2: int, stride: int, before: int) -> list[tuple[int, int, int] | None]:
    """For each frame of a kernel: how many frames it covers, the first of these, and the output that this belongs to.

    The next frames are `stride` apart, their outputs 1. None if it only covers padding.
    """
    taken: list[tuple[int, int, int] | None] = []
    for tap in range(size):
        output = max(0, -(-(before - tap) // stride))
        count = min(t2, (t - 1 + before - tap) // stride + 1) - output
        taken.append((count, output * stride + tap - before, output) if count > 0 else None)
    return taken
