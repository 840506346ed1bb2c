"""X3D (Feichtenhofer 2020, arXiv:2004.04730): a tiny ResNet with depthwise convolutions, expanded axis by axis.

XS, S and M are one network for clips of different lengths and sizes; L is deeper. Each block expands the channels,
convolves every channel by itself in space and time, and reduces them again. Every other block, from the first of a
stage on, weights its channels by squeeze and excitation, before the swish. All strides are in space.

Widths and depths are given as such. The published ones are the paper's (12, 24, 48, 96) and (1, 2, 5, 3) times the
expansion factors 2 and 2.2 (L: 5), rounded up for depths. For other factors than 2, facebookresearch/SlowFast rounds
widths to integers, PyTorchVideo to multiples of 8.

Publishers (`dialect`) differ in two places:
  - the projected shortcut of the first stage, which has as many channels as its input, has no batch norm in
    PyTorchVideo (48 parameters);
  - for maps larger than in training, slowfast and pytorchvideo average windows of the training size at every position;
    the former averages the positions' probabilities, the latter their logits. mmaction2 averages the whole map.

The published figures are for test crops of 182, 182, 256 and 356 pixels.
"""

import math
from functools import partial
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D, kaiming_normal
from vidjax.layers.head import classify_positions, linear_unless_passed, pool_windows
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video

Dialect = Literal["slowfast", "pytorchvideo", "mmaction2"]


def squeezed_width(width: int) -> int:
    """A sixteenth of the width, rounded to a multiple of 8 that is not below nine tenths of it: 54 to 8, 216 to 16."""
    rounded = max(8, (width + 64) // 128 * 8)
    return rounded + 8 if rounded < 0.9 * width / 16 else rounded


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a weight between 0 and 1 that depends on all channels' means over the clip."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`."""
        conv = partial(
            Conv3D, kernel_size=(1, 1, 1), use_bias=True, kernel_init=kaiming_normal,
            bias_init=nn.initializers.zeros_init(), dtype=self.dtype,
        )  # fmt: skip
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        weight = conv(squeezed_width(x.shape[-1]), name="reduce")(mean)
        return x * nn.sigmoid(conv(x.shape[-1], name="expand")(nn.relu(weight)))


class Block(nn.Module):
    """Residual block: a 1x1x1, a 3x3x3 depthwise and a 1x1x1 convolution.

    Attributes:
      width: channels of the output.
      inner: channels of the depthwise convolution.
      stride: of the depthwise convolution, in height and width.
      squeeze: whether there is squeeze and excitation.
      shortcut_norm: batch norm of a projected shortcut, even if the width does not change.
    """

    width: int
    inner: int
    stride: int = 1
    squeeze: bool = False
    shortcut_norm: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b t _ _ d"]:
        """A map of `width` channels."""
        conv = partial(Conv3D, kernel_size=(1, 1, 1), kernel_init=kaiming_normal, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        strides = (1, self.stride, self.stride)
        y = nn.relu(norm(name="norm1")(conv(self.inner, name="conv1")(x)))
        y = DepthwiseConv3D((3, 3, 3), False, strides, kernel_init=kaiming_normal, dtype=self.dtype, name="conv2")(y)
        y = norm(name="norm2")(y)
        if self.squeeze:
            y = SqueezeExcitation(self.dtype, name="squeeze")(y)
        y = conv(self.width, name="conv3")(nn.swish(y))
        y = norm(scale_init=nn.initializers.zeros_init(), name="norm3")(y)
        if x.shape[-1] != self.width or self.stride > 1:
            has_norm = self.shortcut_norm or x.shape[-1] != self.width
            x = conv(self.width, strides=strides, name="shortcut")(x)
            x = norm(name="shortcut_norm")(x) if has_norm else x
        return nn.relu(x + y)


class X3D(nn.Module):
    """The classifier.

    Attributes:
      widths, depths: channels and blocks of the four stages.
      stem_width: channels of the stem.
      expansion: inner channels of a block for one of its output.
      head_width: features that the classifier sees.
      dialect: the publisher whose first shortcut and head are computed.
      num_classes: None returns the features before the classifier.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of the features before the head.
      num_frames, image_size: of the clips that the network was trained on, which set the head's windows.
    """

    widths: tuple[int, int, int, int] = (24, 48, 96, 192)
    depths: tuple[int, int, int, int] = (3, 5, 11, 7)
    stem_width: int = 24
    expansion: float = 2.25
    head_width: int = 2048
    dialect: Dialect = "slowfast"
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.dialect not in ("slowfast", "pytorchvideo", "mmaction2"):
            raise UserError(f"dialect is '{self.dialect}': choose slowfast, pytorchvideo or mmaction2")
        conv = partial(Conv3D, kernel_init=kaiming_normal, dtype=self.dtype)
        self.stem_spatial = conv(self.stem_width, (1, 3, 3), (1, 2, 2))
        self.stem_temporal = DepthwiseConv3D((5, 1, 1), False, kernel_init=kaiming_normal, dtype=self.dtype)
        self.stem_norm = BatchNorm(dtype=self.dtype)
        inner = [int(self.expansion * width) for width in self.widths]
        self.group = [
            [
                Block(width, inner[stage], 1 if i else 2, i % 2 == 0, self.dialect != "pytorchvideo", dtype=self.dtype)
                for i in range(depth)
            ]
            for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True))
        ]
        self.head_conv = conv(inner[-1], (1, 1, 1))
        self.head_norm = BatchNorm(dtype=self.dtype)
        self.head_hidden = nn.Dense(self.head_width, use_bias=False, kernel_init=kaiming_normal, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b t _ _ _"], ...]:
        """The feature map of each stage: a 4th to a 32nd of the height and width."""
        check_video(video, self.channels)
        x = self.stem_temporal(self.stem_spatial(video))
        x = nn.relu(self.stem_norm(x, use_running_average=not train))
        maps = []
        for blocks in self.group:
            for block in blocks:
                x = block(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def positions(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """What the classifier sees at each position of the head's window; at one position with mmaction2's head."""
        x = nn.relu(self.head_norm(self.head_conv(self.encode(video, train)), use_running_average=not train))
        if self.dialect == "mmaction2":
            x = x.mean(axis=(1, 2, 3), keepdims=True)
        else:
            side = math.ceil(self.image_size / 32)
            x = pool_windows(x, (self.num_frames, side, side))
        return nn.relu(self.head_hidden(x))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """What the head sees, averaged over the positions."""
        return self.positions(video, train).mean(axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head returns, by default logits `b classes`; without a head the result of `embed`.

        In evaluation of a map with several positions, the default dialect returns logarithms of mean probabilities.
        """
        average = "softmax" if self.dialect == "slowfast" else "logits"
        return classify_positions(
            self.positions(video, train), self.classifier, self.head_dropout, train,
            passed=self.head is not None, average=average,
        )  # fmt: skip


PIXELS = {"mean": (0.45,) * 3, "std": (0.225,) * 3}


def kinetics(
    stride: int, test_size: int, accuracy: float, source: str = "facebookresearch/SlowFast", protocol: str = "slowfast"
) -> Card:
    """The card of networks trained with SlowFast's pixels, and tested by its rules on larger crops."""
    return Card(
        **PIXELS, stride=stride, rate=30.0, test_size=test_size, protocol=protocol, views="10x3",
        source=source, accuracy=f"K400 {accuracy}, 10x3 views",
    )  # fmt: skip


pytorchvideo = partial(kinetics, source="facebookresearch/pytorchvideo")
mmaction2 = partial(kinetics, source="open-mmlab/mmaction2", protocol="slowfast_offset")

PV, MM = {"dialect": "pytorchvideo", "num_classes": 400}, {"dialect": "mmaction2", "num_classes": 400}
XS = {"num_frames": 4, "image_size": 160}
S = {"num_frames": 13, "image_size": 160}
L = {"depths": (5, 10, 25, 15), "image_size": 312}
TINY = {
    "widths": (8, 12, 16, 24), "depths": (1, 2, 1, 1), "stem_width": 8, "head_width": 32, "num_frames": 4,
    "image_size": 32, "dropout": 0.0,
}  # fmt: skip

VARIANTS = MappingProxyType(
    {
        "x3d_tiny": partial(X3D, **TINY, card=Card(**PIXELS)),
        "x3d_tiny_pytorchvideo": partial(X3D, **TINY, dialect="pytorchvideo", card=Card(**PIXELS)),
        "x3d_tiny_mmaction2": partial(X3D, **TINY, dialect="mmaction2", card=Card(**PIXELS)),
        "x3d_xs": partial(X3D, **XS, num_classes=400, card=kinetics(12, 182, 69.5)),
        "x3d_s": partial(X3D, **S, num_classes=400, card=kinetics(6, 182, 73.5)),
        "x3d_m": partial(X3D, num_classes=400, card=kinetics(5, 256, 76.2)),
        "x3d_l": partial(X3D, **L, num_classes=400, card=kinetics(5, 356, 77.5)),
        "x3d_xs_pytorchvideo": partial(X3D, **XS, **PV, card=pytorchvideo(12, 182, 69.12)),
        "x3d_s_pytorchvideo": partial(X3D, **S, **PV, card=pytorchvideo(6, 182, 73.33)),
        "x3d_m_pytorchvideo": partial(X3D, **PV, card=pytorchvideo(5, 256, 75.94)),
        "x3d_l_pytorchvideo": partial(X3D, **L, **PV, card=pytorchvideo(5, 356, 77.44)),
        "x3d_s_mmaction2": partial(X3D, **S, **MM, card=mmaction2(6, 182, 73.3)),
        "x3d_m_mmaction2": partial(X3D, **MM, card=mmaction2(5, 256, 76.4)),
    }
)
