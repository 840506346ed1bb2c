"""Depthwise 3-D convolution as a sum of shifted products, with a custom gradient.

XLA's grouped convolutions are many times slower than PyTorch's on CPUs and slow on GPUs, and their gradients even more
so. The gradient supports reverse mode only.
"""

from collections.abc import Sequence
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def depthwise_conv3d(x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw 1 c"]) -> Float[Array, "b t h w c"]:
    """Depthwise convolution; stride 1, odd kernel sizes, same-size output; summed in float32 or higher precision.

    Equals `lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    feature_group_count=c)`.

    The sum of shifted products is fused into one loop by the compiler. For larger kernels, a loop runs over their
    frames: a sum of 125 products compiles slowly and runs no faster.

    Raises:
      ValueError: an even kernel size.
    """
    kt, kh, kw = kernel.shape[:3]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _pad_same(x, kernel.shape[:3])

    def add_frame(total: Array, frames: Array, plane: Array) -> Array:
        for i, j in product(range(kh), range(kw)):
            total += frames[:, :, i : i + x.shape[2], j : j + x.shape[3]].astype(wide) * plane[i, j, 0].astype(wide)
        return total

    def add_later_frame(total: Array, i: Array) -> tuple[Array, None]:
        return add_frame(total, lax.dynamic_slice_in_dim(padded, i, x.shape[1], axis=1), kernel[i]), None

    total = jnp.zeros(x.shape, wide)
    if kt * kh * kw <= 27:
        for i in range(kt):
            total = add_frame(total, padded[:, i : i + x.shape[1]], kernel[i])
    else:
        total, _ = lax.scan(add_later_frame, total, jnp.arange(kt))
    return total.astype(x.dtype)


def _depthwise_gradients(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """The input's gradient is the same operation with the kernel flipped; the kernel's is one sum per tap."""
    x, kernel = saved
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _pad_same(x, kernel.shape[:3])

    def tap(start: Array) -> Array:
        shifted = lax.dynamic_slice(padded, (0, *start, 0), x.shape)
        return jnp.sum(shifted.astype(wide) * dy.astype(wide), axis=(0, 1, 2, 3))

    starts = jnp.asarray(list(np.ndindex(*kernel.shape[:3])))
    dkernel = lax.map(tap, starts).reshape(kernel.shape).astype(kernel.dtype)
    return depthwise_conv3d(dy, kernel[::-1, ::-1, ::-1]), dkernel


depthwise_conv3d.defvjp(lambda x, kernel: (depthwise_conv3d(x, kernel), (x, kernel)), _depthwise_gradients)


def _pad_same(x: Array, kernel_size: Sequence[int]) -> Array:
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(f"a depthwise kernel of size {tuple(kernel_size)} has no centre: use odd sizes")
    return jnp.pad(x, ((0, 0), *((size // 2, size // 2) for size in kernel_size), (0, 0)))
