"""P3D (Qiu, Yao and Mei 2017, arXiv:1711.10305; names as in qijiezhao/pseudo-3d-pytorch, a port of the Caffe release).

A ResNet of bottlenecks whose 3x3x3 convolution is factorised into a spatial one, S, and a temporal one, T, each with
batch norm and ReLU. They are combined in one of three ways, which alternate from block to block: A, T(S(x)); B,
S(x) + T(x); C, S(x) + T(S(x)). The last group has no T.

Pitfalls: the alternation continues across groups. Time is reduced only by max pools, after the stem and after each of
the first three groups, so that one of sixteen frames remains. For longer clips, the port mixes the remaining frames
with the channels; here features are averaged over them.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, pytorch_bias, pytorch_kernel
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video

Part = Callable[[Array], Array]


def kernel_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """N(0, 2 / (kt kh outputs)); as in the port, without the kernel's width."""
    return (2.0 / (prod(shape[:2]) * shape[-1])) ** 0.5 * jax.random.normal(key, shape, dtype)


def series(space: Part, time: Part, x: Array) -> Array:
    """P3D-A."""
    return time(space(x))


def parallel(space: Part, time: Part, x: Array) -> Array:
    """P3D-B."""
    return space(x) + time(x)


def series_with_skip(space: Part, time: Part, x: Array) -> Array:
    """P3D-C."""
    x = space(x)
    return x + time(x)


def space_only(space: Part, time: Part, x: Array) -> Array:
    """A block of the last group."""
    return space(x)


COMBINATIONS = (series, parallel, series_with_skip)


class Bottleneck(nn.Module):
    """Residual block: pointwise reduction, spatial and temporal convolution combined, pointwise expansion."""

    width: int
    combine: Callable[[Part, Part, Array], Array]
    stride: int = 1
    kernel_init: nn.initializers.Initializer = kernel_init
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b t _ _ d"]:
        """Returns a feature map with `4 * width` channels."""
        strides = (1, self.stride, self.stride)

        def unit(x: Array, features: int, size: tuple[int, int, int], name: str, strides=(1, 1, 1)) -> Array:
            x = Conv3D(features, size, strides, kernel_init=self.kernel_init, dtype=self.dtype, name=name)(x)
            return BatchNorm(use_running_average=not train, dtype=self.dtype, name=f"{name}_norm")(x)

        def space(x: Array) -> Array:
            return nn.relu(unit(x, self.width, (1, 3, 3), "spatial"))

        def time(x: Array) -> Array:
            return nn.relu(unit(x, self.width, (3, 1, 1), "temporal"))

        y = nn.relu(unit(x, self.width, (1, 1, 1), "reduce", strides))
        y = unit(self.combine(space, time, y), 4 * self.width, (1, 1, 1), "expand")
        if x.shape != y.shape:
            x = unit(x, 4 * self.width, (1, 1, 1), "shortcut", strides)
        return nn.relu(x + y)


class P3D(nn.Module):
    """The P3D classifier.

    Attributes:
      depths: number of blocks in each of the four groups.
      width: channels of the first group's bottlenecks, doubled by each group.
      num_classes: None returns the mean of the last feature map.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on this mean, before the head.
      num_frames, image_size: of the clips that the variant is meant for; other sizes also work.
    """

    depths: tuple[int, int, int, int]
    width: int = 64
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 16
    image_size: int = 160
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.stem = Conv3D(self.width, (1, 7, 7), (1, 2, 2), kernel_init=kernel_init, dtype=self.dtype)
        self.stem_norm = BatchNorm(dtype=self.dtype)
        blocks: list[list[Bottleneck]] = []
        for group, depth in enumerate(self.depths):
            preceding = sum(self.depths[:group])
            blocks.append(
                [
                    Bottleneck(
                        self.width * 2**group,
                        COMBINATIONS[(preceding + i) % 3] if group < 3 else space_only,
                        stride=2 if group and not i else 1,
                        kernel_init=kernel_init if group < 3 else pytorch_kernel,
                        dtype=self.dtype,
                    )
                    for i in range(depth)
                ]
            )
        self.group = blocks
        self.head_dropout = nn.Dropout(self.dropout)
        linear = {"kernel_init": pytorch_kernel, "bias_init": pytorch_bias(32 * self.width), "dtype": self.dtype}
        self.classifier = linear_unless_passed(self.head, self.num_classes, **linear)

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each group: 1/2 to 1/16 of the frames, 1/4 to 1/32 of height and width."""
        check_video(video, self.channels, least=(16, 32, 32))
        x = nn.relu(self.stem_norm(self.stem(video), use_running_average=not train))
        x = nn.max_pool(x, (2, 3, 3), (2, 2, 2), ((0, 0), (1, 1), (1, 1)))
        maps = []
        for blocks in self.group:
            x = nn.max_pool(x, (2, 1, 1), (2, 1, 1)) if maps else x
            for block in blocks:
                x = block(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`: 1/16 of the frames, 1/32 of height and width."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the mean of the last feature map."""
        return self.encode(video, train).mean(axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


def reaching(accuracy: str = "") -> Card:
    """Card with the accuracy reported by the port."""
    return Card(source="qijiezhao/pseudo-3d-pytorch", accuracy=accuracy)


TINY = {"depths": (1, 1, 1, 1), "width": 8, "dropout": 0.0, "image_size": 32, "card": reaching()}

VARIANTS = MappingProxyType(
    {
        "p3d_tiny": partial(P3D, **TINY),
        "p3d_63": partial(P3D, (3, 4, 6, 3), num_classes=400, card=reaching()),
        "p3d_131": partial(P3D, (3, 4, 23, 3), num_classes=400, card=reaching()),
        "p3d_199": partial(P3D, (3, 8, 36, 3), num_classes=400, card=reaching("UCF101 91.2 (fine-tuned, RGB)")),
    }
)
