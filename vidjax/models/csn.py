"""CSN, channel-separated networks (Tran et al. 2019, arXiv:1904.02811): ResNets with depthwise 3-D convolutions.

In a bottleneck block, channels interact only in 1x1x1 convolutions, and space and time only in a 3x3x3 depthwise one.
"ir" (interaction-reduced) replaces the 3x3x3 convolution of a 3-D ResNet by a depthwise one. "ip" (interaction-
preserved) puts a 1x1x1 convolution before it, with batch norm but without activation. From the second stage on, the
depthwise convolution of the first block halves space and time.

Publishers (`dialect`) differ in the epsilon of batch norm, 1e-5 in PyTorchVideo and 1e-3 in mmaction2 (and in VMZ,
whose weights it has), and in the head for maps larger than in training: pytorchvideo averages the logits of windows of
the training size at every position, mmaction2 the features of the whole map.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D, kaiming_normal
from vidjax.layers.head import linear_unless_passed, pool_windows
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video


class Bottleneck(nn.Module):
    """Residual block of a 1x1x1, a 3x3x3 depthwise and a 1x1x1 convolution.

    Attributes:
      width: channels of the depthwise convolution; the output has four times as many.
      stride: of the depthwise convolution, in time, height and width.
      preserve: a 1x1x1 convolution before the depthwise one (ip).
      epsilon: of batch norm.
    """

    width: int
    stride: int = 1
    preserve: bool = False
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b _ _ _ d"]:
        """A map of `4 * width` channels."""
        conv = partial(Conv3D, kernel_size=(1, 1, 1), kernel_init=kaiming_normal, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, epsilon=self.epsilon, dtype=self.dtype)
        strides = (self.stride,) * 3
        y = nn.relu(norm(name="norm1")(conv(self.width, name="conv1")(x)))
        if self.preserve:
            y = norm(name="interaction_norm")(conv(self.width, name="interaction")(y))
        y = DepthwiseConv3D((3, 3, 3), False, strides, kernel_init=kaiming_normal, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y))
        y = norm(name="norm3")(conv(4 * self.width, name="conv3")(y))
        if x.shape[-1] != y.shape[-1] or self.stride > 1:
            x = norm(name="shortcut_norm")(conv(4 * self.width, strides=strides, name="shortcut")(x))
        return nn.relu(x + y)


class ChannelSeparatedNetwork(nn.Module):
    """The classifier.

    Attributes:
      kind: interaction-reduced or interaction-preserved.
      depths: bottleneck blocks in each of the four stages.
      width: of the first stage; each stage is twice as wide as the one before.
      dialect: the publisher whose batch norm and head are computed.
      num_classes: None returns the mean feature.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of the features before the head.
      num_frames, image_size: of the clips that the network was trained on, which set the head's windows.
    """

    kind: Literal["ir", "ip"] = "ir"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    dialect: Literal["pytorchvideo", "mmaction2"] = "mmaction2"
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 32
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.kind not in ("ir", "ip"):
            raise UserError(f"kind is '{self.kind}': choose ir or ip")
        if self.dialect not in ("pytorchvideo", "mmaction2"):
            raise UserError(f"dialect is '{self.dialect}': choose pytorchvideo or mmaction2")
        epsilon = 1e-5 if self.dialect == "pytorchvideo" else 1e-3
        self.stem = Conv3D(self.width, (3, 7, 7), (1, 2, 2), kernel_init=kaiming_normal, dtype=self.dtype)
        self.stem_norm = BatchNorm(epsilon=epsilon, dtype=self.dtype)
        self.group = [
            [
                Bottleneck(self.width * 2**stage, 2 if stage and not i else 1, self.kind == "ip", epsilon, self.dtype)
                for i in range(depth)
            ]
            for stage, depth in enumerate(self.depths)
        ]
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each stage: all frames to an 8th of them, a 4th to a 32nd of the height and width."""
        check_video(video, self.channels)
        x = nn.relu(self.stem_norm(self.stem(video), use_running_average=not train))
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))
        maps = []
        for blocks in self.group:
            for block in blocks:
                x = block(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """What the head sees: the mean feature, over the windows of the training size with PyTorchVideo's head."""
        x = self.encode(video, train)
        if self.dialect == "pytorchvideo":
            side = max(1, self.image_size // 32)
            x = pool_windows(x, (max(1, self.num_frames // 8), side, side))
        return x.mean(axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head returns, by default logits `b classes`; without a head the result of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


SOURCE = "open-mmlab/mmaction2"
IR, IP = partial(ChannelSeparatedNetwork, "ir"), partial(ChannelSeparatedNetwork, "ip")
PYTORCHVIDEO = {"dialect": "pytorchvideo", "dropout": 0.0}
D101, D152 = {"depths": (3, 4, 23, 3), "num_classes": 400}, {"depths": (3, 8, 36, 3), "num_classes": 400}
TINY = {"depths": (1, 1, 1, 1), "width": 8, "num_frames": 8, "image_size": 32}
MM_TINY = TINY | {"dropout": 0.0, "card": Card(stride=2, source=SOURCE)}


TESTED = {"stride": 2, "test_size": 256, "views": "10x3", "protocol": "mmaction2"}
PIXELS = {"mean": (0.45,) * 3, "std": (0.225,) * 3, "source": "facebookresearch/pytorchvideo"}


def mmaction2(accuracy: float | None = None) -> Card:
    """The card of networks pre-trained on IG-65M, which mmaction2 fine-tuned or converted, with its pixels."""
    return Card(**TESTED, source=SOURCE, accuracy=f"K400 {accuracy}, 10x3 views" if accuracy else "")


def vmz(accuracy: float) -> Card:
    """The card of VMZ's networks with its pixels, trained from scratch; others were pre-trained on Sports-1M."""
    return Card(
        (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989), **TESTED,
        source="facebookresearch/VMZ", accuracy=f"K400 {accuracy}, 10x3 views",
    )  # fmt: skip


def pytorchvideo(accuracy: float | None = None) -> Card:
    """The card of networks trained with SlowFast's pixels, and tested by its rules."""
    accuracy = f"K400 {accuracy}, 10x3 views" if accuracy else ""
    return Card(**PIXELS, **TESTED | {"rate": 30.0, "protocol": "slowfast"}, accuracy=accuracy)


VARIANTS = MappingProxyType(
    {
        "ircsn_tiny": partial(IR, **MM_TINY),
        "ipcsn_tiny": partial(IP, **MM_TINY),
        "ircsn_tiny_pytorchvideo": partial(IR, **TINY, **PYTORCHVIDEO, card=Card(**PIXELS)),
        "ircsn_50": partial(IR, num_classes=400, card=mmaction2(79.44)),
        "ircsn_101": partial(IR, **D101, card=mmaction2()),
        "ircsn_152": partial(IR, **D152, card=mmaction2(82.87)),
        "ipcsn_50": partial(IP, num_classes=400, card=mmaction2()),
        "ipcsn_101": partial(IP, **D101, card=mmaction2()),
        "ipcsn_152": partial(IP, **D152, card=mmaction2(82.68)),
        "ircsn_152_vmz": partial(IR, **D152, card=vmz(76.53)),
        "ipcsn_152_vmz": partial(IP, **D152, card=vmz(77.8)),
        "ircsn_50_pytorchvideo": partial(IR, **PYTORCHVIDEO, num_classes=400, card=pytorchvideo()),
        "ircsn_101_pytorchvideo": partial(IR, **PYTORCHVIDEO, **D101, card=pytorchvideo(77.0)),
        "ircsn_152_pytorchvideo": partial(IR, **PYTORCHVIDEO, **D152, card=pytorchvideo()),
    }
)
