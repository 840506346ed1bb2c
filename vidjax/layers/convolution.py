"""3-D, factorised and depthwise convolutions, with PyTorch's initialisation."""

from collections.abc import Sequence
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.kernels.convolution import conv3d
from vidjax.kernels.depthwise import depthwise_conv3d
from vidjax.kernels.winograd import Pairs

Padding = Literal["SAME", "VALID"] | Sequence[int] | None

# PyTorch's default for kernels of linear maps and convolutions, kaiming_uniform(a=sqrt(5)), is U(+-1/sqrt(fan_in)).
pytorch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# kaiming_normal(mode="fan_out", nonlinearity="relu")
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def pytorch_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for biases: U(+-1/sqrt(fan_in))."""
    bound = float(fan_in) ** -0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _pairs(padding: Padding, sides: Sequence[int], kernel_size: Sequence[int], strides: Sequence[int]) -> Pairs:
    """Cells before and after each axis. "SAME" is TensorFlow's: if the padding is uneven, the end gets more."""
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(sides, kernel_size, strides, padding))
    padding = [size // 2 for size in kernel_size] if padding is None else padding
    return tuple((cells, cells) for cells in padding)


class Conv3D(nn.Module):
    """3-D convolution with any kernel: dense, spatial `(1, k, k)`, temporal `(k, 1, 1)` or pointwise.

    Attributes:
      padding: cells on both sides of each axis, as in PyTorch; "SAME" or "VALID", as in TensorFlow; None for
        `kernel_size // 2`.
      kernel_init, bias_init: PyTorch's defaults if not given.
      groups: parts of the channels that are convolved separately; a few, as they are separate convolutions here.
      dilation: cells between the kernel's taps in height and width; only with stride 1 and the default padding, of as
        many times more cells.
    """

    features: int
    kernel_size: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: Padding = None
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = pytorch_kernel
    bias_init: nn.initializers.Initializer | None = None
    dtype: DTypeLike | None = None
    groups: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ d"]:
        """Returns a feature map with `features` channels."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias_init = self.bias_init or pytorch_bias(int(np.prod(shape[:-1])))
        bias = self.param("bias", bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        sides, step = x.shape[2:4], self.dilation
        if step > 1:  # cells a dilation apart see only one another: each such grid is convolved as a clip of its own
            x = jnp.pad(x, ((0, 0), (0, 0), *((0, -side % step) for side in sides), (0, 0)))
            x = einops.rearrange(x, "b t (h i) (w j) c -> (b i j) t h w c", i=step, j=step)
        padding = _pairs(self.padding, x.shape[1:4], self.kernel_size, self.strides)
        parts = [(x, kernel)]
        if self.groups > 1:
            parts = zip(*(jnp.split(value, self.groups, axis=-1) for value in (x, kernel)), strict=True)
        x = jnp.concatenate([conv3d(*part, self.strides, padding) for part in parts], axis=-1)
        if step > 1:
            x = einops.rearrange(x, "(b i j) t h w c -> b t (h i) (w j) c", i=step, j=step)
            x = x[:, :, : sides[0], : sides[1]]
        return x if bias is None else x + bias


class MaxPool(nn.Module):
    """`nn.max_pool` as a module, so that saliency maps can replace it.

    Attributes:
      padding: cells on both sides of each axis.
    """

    kernel_size: tuple[int, int, int]
    strides: tuple[int, int, int]
    padding: tuple[int, int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ c"]:
        """The largest value of each window, by channel."""
        return nn.max_pool(x, self.kernel_size, self.strides, [(cells, cells) for cells in self.padding])


class DepthwiseConv3D(nn.Module):
    """Depthwise 3-D convolution.

    Attributes:
      padding: cells on both sides of each axis; None for `kernel_size // 2`, which takes odd sizes and gives an output
        of the same size if the stride is 1.
      kernel_init, bias_init: PyTorch's defaults if not given.
    """

    kernel_size: tuple[int, int, int]
    use_bias: bool = True
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] | None = None
    kernel_init: nn.initializers.Initializer = pytorch_kernel
    bias_init: nn.initializers.Initializer | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ c"]:
        """Returns a feature map with the channels of `x`."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, 1, x.shape[-1]))
        bias_init = self.bias_init or pytorch_bias(int(np.prod(self.kernel_size)))
        bias = self.param("bias", bias_init, (x.shape[-1],)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = depthwise_conv3d(x, kernel, self.strides, self.padding)
        return x if bias is None else x + bias


class DepthwiseConv1D(nn.Module):
    """A convolution over time of each channel by itself, padded with zeros on both sides, without bias.

    Its parameter is that of `nn.Conv` with as many groups as channels.

    Attributes:
      size: of the kernel; the padding is half of it.
    """

    size: int = 3
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b _ c"]:
        """Returns the convolved channels at each position that is a multiple of the stride."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, 1, x.shape[-1]))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        strides, padding = (self.stride, 1, 1), (self.size // 2, 0, 0)
        return depthwise_conv3d(x[:, :, None, None], kernel[:, None, None], strides, padding)[:, :, 0, 0]
