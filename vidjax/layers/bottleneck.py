"""The stem and the stages of bottleneck blocks of the 3-D ResNets of SlowFast (Feichtenhofer et al. 2019).

A block is a temporal `(k, 1, 1)`, a spatial `(1, 3, 3)` and a 1x1x1 convolution. The spatial stride is in the second,
as in torchvision's ResNet. The last scale of a block is zero at first.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.normalization import BatchNorm


class Stem(nn.Module):
    """A `(k, 7, 7)` convolution with stride 2, batch norm, ReLU, and a 3x3 max pool with stride 2.

    Attributes:
      width: channels.
      kernel: frames that the convolution sees.
      temporal_strides: of the convolution and of the pool.
    """

    width: int
    kernel: int = 1
    temporal_strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b _ _ _ d"]:
        """A map of a quarter of the height and width."""
        of_conv, of_pool = self.temporal_strides
        conv = Conv3D(
            self.width, (self.kernel, 7, 7), (of_conv, 2, 2), kernel_init=kaiming_normal, dtype=self.dtype, name="conv"
        )
        x = BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(conv(x))
        return nn.max_pool(nn.relu(x), (1, 3, 3), (of_pool, 2, 2), ((0, 0), (1, 1), (1, 1)))


class Bottleneck(nn.Module):
    """Residual block of three convolutions; the shortcut is projected if the shape changes.

    Attributes:
      width: channels of the first two convolutions; the output has four times as many.
      kernel: frames that the first convolution sees.
      stride, dilation: of the second convolution, in height and width.
    """

    width: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b t _ _ d"]:
        """A map of `4 * width` channels."""
        conv = partial(Conv3D, kernel_init=kaiming_normal, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        strides = (1, self.stride, self.stride)
        y = nn.relu(norm(name="norm1")(conv(self.width, (self.kernel, 1, 1), name="conv1")(x)))
        spatial = conv(self.width, (1, 3, 3), strides, dilation=self.dilation, name="conv2")
        y = nn.relu(norm(name="norm2")(spatial(y)))
        y = conv(4 * self.width, (1, 1, 1), name="conv3")(y)
        y = norm(scale_init=nn.initializers.zeros_init(), name="norm3")(y)
        if x.shape[-1] != y.shape[-1] or self.stride > 1:
            x = norm(name="shortcut_norm")(conv(4 * self.width, (1, 1, 1), strides, name="shortcut")(x))
        return nn.relu(x + y)


def check_stages(
    depths: Sequence[int], kernels: Sequence[Sequence[int]], nonlocal_after: Sequence[Sequence[int]]
) -> None:
    """Checks the fields of a network of a stem and stages of bottleneck blocks.

    Raises:
      UserError: not every stage has kernels and non-local blocks, a kernel is even, or a block does not exist.
    """
    count = len(depths)
    if len(kernels) != count + 1 or not all(kernels) or len(kernels[0]) > 1 or len(nonlocal_after) != count:
        raise UserError(
            f"kernels are {kernels}, nonlocal_after is {nonlocal_after}: give kernels of the stem (one) and of each of "
            f"the {count} stages, and non-local blocks of each stage (or none)"
        )
    if even := [frames for each in kernels for frames in each if frames % 2 == 0]:
        raise UserError(f"kernels {kernels} have one of {even[0]} frames: it has no centre, use 1, 3 or 5")
    for stage, (after, depth) in enumerate(zip(nonlocal_after, depths, strict=True)):
        if wrong := [block for block in after if not 0 <= block < depth]:
            raise UserError(f"nonlocal_after has block {wrong[0]} of stage {stage}: it has {depth}, counted from 0")


class Stage(nn.Module):
    """Bottleneck blocks of one width, some of them followed by a non-local block.

    Attributes:
      width: channels of the blocks' inner convolutions.
      depth: number of blocks.
      kernels: frames that the first convolution of each block sees; repeated to the depth.
      stride: of the first block, in height and width.
      nonlocal_after: numbers of the blocks that are followed by a non-local block.
      nonlocal_block: creates one, which is called as `nonlocal_block(name=...)(x, train)`.
      dilation: of all blocks.
    """

    width: int
    depth: int
    kernels: Sequence[int] = (1,)
    stride: int = 1
    nonlocal_after: Sequence[int] = ()
    nonlocal_block: Callable[..., nn.Module] | None = None
    dtype: DTypeLike | None = None
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b t _ _ d"]:
        """A map of `4 * width` channels."""
        for i in range(self.depth):
            kernel, stride = self.kernels[i % len(self.kernels)], 1 if i else self.stride
            x = Bottleneck(self.width, kernel, stride, self.dilation, self.dtype, name=f"block_{i}")(x, train)
            if i in self.nonlocal_after:
                x = self.nonlocal_block(name=f"nonlocal_{i}")(x, train)
        return x
