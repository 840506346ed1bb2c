"""3-D, factorised and depthwise convolutions, and batch norm with the originals' constants.

XLA's own 3-D and grouped convolutions are several times slower than PyTorch's on CPUs, and their gradients worse. So a
convolution along space or time alone is a 2-D one over folded axes, and a depthwise one is a sum of shifted products,
with gradients of their own where XLA's are slow. `experiments/benchmark.py convolution` measures each against `lax`.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Padding = Literal["SAME", "VALID"] | Sequence[int] | None
Pairs = tuple[tuple[int, int], ...]

# PyTorch's defaults: its momentum of 0.1 is Flax's 0.9. PyTorch's running variance is unbiased, Flax's is not.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

# PyTorch's default for kernels of linear maps and convolutions, kaiming_uniform(a=sqrt(5)), is U(+-1/sqrt(fan_in)).
pytorch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# kaiming_normal(mode="fan_out", nonlinearity="relu")
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pytorch_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for biases: U(+-1/sqrt(fan_in))."""
    bound = float(fan_in) ** -0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _pairs(padding: Padding, sides: Sequence[int], kernel_size: Sequence[int], strides: Sequence[int]) -> Pairs:
    """Cells before and after each axis. "SAME" is TensorFlow's: where the stride makes it uneven, more at the end."""
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(sides, kernel_size, strides, padding))
    padding = [size // 2 for size in kernel_size] if padding is None else padding
    return tuple((cells, cells) for cells in padding)


def conv3d(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], strides: Sequence[int], padding: Pairs
) -> Float[Array, "b _ _ _ d"]:
    """A 3-D convolution, by the way that is fastest for its kernel; `padding` in cells before and after each axis."""
    (b, t, h, w, _), (kt, kh, kw, c, d) = x.shape, kernel.shape
    if kt == 1 and padding[0] == (0, 0):
        x = x[:, :: strides[0]]
        y = _conv2d(x.reshape(-1, h, w, c), kernel[0], tuple(strides[1:]), tuple(padding[1:]))
        return y.reshape(b, -1, *y.shape[1:])
    if kh == kw == 1 and padding[1:] == ((0, 0), (0, 0)):
        x = x[:, :, :: strides[1], :: strides[2]]
        y = _conv2d(x.reshape(b, t, -1, c), kernel[:, :, 0], (strides[0], 1), (padding[0], (0, 0)))
        return y.reshape(b, -1, *x.shape[2:4], d)
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))
    x = jnp.pad(x, ((0, 0), padding[0], *[(0, 0)] * 3))
    frames = (x.shape[1] - kt) // strides[0] + 1
    taps = [x[:, i : i + (frames - 1) * strides[0] + 1 : strides[0]] for i in range(kt)]  # time goes into channels
    x = jnp.concatenate(taps, axis=-1).reshape(-1, h, w, kt * c)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, d)
    y = _conv2d(x, kernel, tuple(strides[1:]), tuple(padding[1:]))
    return y.reshape(b, frames, *y.shape[1:])


def _plain_conv2d(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_conv2d(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    return _plain_conv2d(x, kernel, strides, padding)


def _cpu_conv2d_gradients(
    strides: Sequence[int], padding: Pairs, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The input's gradient is XLA's; the kernel's, which XLA is slow at, is one matrix product a tap."""
    x, kernel = saved
    (_, h, w, c), (kh, kw, _, d), (_, oh, ow, _) = x.shape, kernel.shape, dy.shape
    dx = jax.linear_transpose(lambda x: _plain_conv2d(x, kernel, strides, padding), x)(dy)[0]
    taps = product(range(kh), range(kw))
    if strides == (1, 1) and d < c:  # whichever of the two is narrower is shifted
        before = [size - 1 - low for size, (low, _) in zip((kh, kw), padding, strict=True)]
        after = [h + kh - 1 - before[0] - oh, w + kw - 1 - before[1] - ow]
        dy = jnp.pad(dy, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
        flat = x.reshape(-1, c)
        shifted = (dy[:, kh - 1 - i : kh - 1 - i + h, kw - 1 - j : kw - 1 - j + w] for i, j in taps)
        products = [flat.T @ tap.reshape(-1, d) for tap in shifted]
    else:
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        flat, (sh, sw) = dy.reshape(-1, d), strides
        shifted = (x[:, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw] for i, j in taps)
        products = [tap.reshape(-1, c).T @ flat for tap in shifted]
    return dx, jnp.stack(products).reshape(kernel.shape)


_cpu_conv2d.defvjp(lambda x, kernel, *how: (_cpu_conv2d(x, kernel, *how), (x, kernel)), _cpu_conv2d_gradients)


def _conv2d(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    convolve = _cpu_conv2d if jax.default_backend() == "cpu" else _plain_conv2d
    return convolve(x, kernel, strides, padding)


class Conv3D(nn.Module):
    """3-D convolution of any kernel: dense, spatial `(1, k, k)`, temporal `(k, 1, 1)` or pointwise.

    Attributes:
      padding: cells on both sides of each axis, PyTorch's way; "SAME" or "VALID", TensorFlow's; None for
        `kernel_size // 2`.
      kernel_init, bias_init: PyTorch's defaults where not given.
    """

    features: int
    kernel_size: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: Padding = None
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = pytorch_kernel
    bias_init: nn.initializers.Initializer | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ d"]:
        """Feature map of `features` channels."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias_init = self.bias_init or pytorch_bias(int(np.prod(shape[:-1])))
        bias = self.param("bias", bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = _pairs(self.padding, x.shape[1:4], self.kernel_size, self.strides)
        x = conv3d(x, kernel, self.strides, padding)
        return x if bias is None else x + bias


@jax.custom_vjp
def depthwise_conv3d(x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw 1 c"]) -> Float[Array, "b t h w c"]:
    """Each channel by its own kernel; stride 1, odd sizes, padded to the same size; summed in float32 or finer.

    A sum of shifted products, which compilers fuse into one loop. Larger kernels go through time in a loop: a sum of
    125 products compiles slowly and runs no faster.
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
    """The input's gradient is the same operation with the kernel turned round; the kernel's, one sum a tap."""
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
        raise ValueError(f"a depthwise kernel of {tuple(kernel_size)} has no middle: use odd sizes")
    return jnp.pad(x, ((0, 0), *((size // 2, size // 2) for size in kernel_size), (0, 0)))


class DepthwiseConv3D(nn.Module):
    """Each channel convolved by its own kernel; stride 1, same size out.

    Attributes:
      kernel_size: odd sizes.
      kernel_init, bias_init: PyTorch's defaults where not given.
    """

    kernel_size: tuple[int, int, int]
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = pytorch_kernel
    bias_init: nn.initializers.Initializer | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Same shape as `x`."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, 1, x.shape[-1]))
        bias_init = self.bias_init or pytorch_bias(int(np.prod(self.kernel_size)))
        bias = self.param("bias", bias_init, (x.shape[-1],)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = depthwise_conv3d(x, kernel)
        return x if bias is None else x + bias
