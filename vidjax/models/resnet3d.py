"""The residual networks of R(2+1)D (Tran et al. 2018, arXiv:1711.11248; torchvision.models.video).

The networks have five groups of convolutions, of which the stem is the first, and differ in the kind of convolution:
  R2D       2-D; the frames are folded into the channels of the first one
  f-R2D     2-D over each frame; time is averaged at the end
  R3D       3-D
  MCx       3-D in the groups before x, 2-D from x on
  rMCx      the reverse: 2-D in the groups before x, 3-D from x on
  R(2+1)D   2-D over space, batch norm, ReLU, 1-D over time

Pitfalls: there is no max pool after the stem, except in mmaction2. The number of planes between the two halves of a
(2+1)-D convolution is chosen to match the parameters of a 3-D one; torchvision computes it once per block from the
block's channels, the paper for each convolution. The stem has 45 planes, not the 83 of the formula (which mmaction2
uses). mmaction2 also factorises the shortcut, with the planes for a kernel of three frames. The epsilon of batch norm
is 1e-5 in torchvision, 1e-3 in the paper's code and its published weights, and 1e-3 in mmaction2 except for the norms
inside its convolutions. 2-D groups do not stride in time.
"""

import dataclasses
from functools import partial
from types import MappingProxyType
from typing import Literal

import einops
import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video

Kind = Literal["2d", "3d", "2plus1d"]
Size = tuple[int, int, int]


def planes_between(inputs: int, features: int, kernel_size: Size) -> int:
    """Planes between the halves of a (2+1)-D convolution that match the parameters of a 3-D one (section 3.5)."""
    t, h, w = kernel_size
    return t * h * w * inputs * features // (h * w * inputs + t * features)


class Convolution(nn.Module):
    """A 3-D convolution; with `planes`, a spatial convolution to this many planes followed by a temporal one."""

    features: int
    kernel_size: Size
    strides: Size
    planes: int | None = None
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b _ _ _ d"]:
        """Returns a feature map with `features` channels."""
        conv = partial(Conv3D, kernel_init=kaiming_normal, dtype=self.dtype)
        if self.planes is None:
            return conv(self.features, self.kernel_size, self.strides, name="full")(x)
        (kt, kh, kw), (st, sh, sw) = self.kernel_size, self.strides
        x = conv(self.planes, (1, kh, kw), (1, sh, sw), name="spatial")(x)
        x = BatchNorm(use_running_average=not train, epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return conv(self.features, (kt, 1, 1), (st, 1, 1), name="temporal")(nn.relu(x))


class Block(nn.Module):
    """Residual block of two convolutions; the shortcut is projected if the shape changes.

    Attributes:
      planes: of the first convolution, the second and the shortcut; None if it is not factorised.
      epsilon, inner_epsilon: of the batch norms after convolutions, and of those inside them.
    """

    features: int
    kernel_size: Size
    strides: Size
    planes: tuple[int | None, int | None, int | None]
    epsilon: float = 1e-5
    inner_epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b _ _ _ d"]:
        """Returns a feature map with `features` channels."""
        conv = partial(Convolution, self.features, epsilon=self.inner_epsilon, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, epsilon=self.epsilon, dtype=self.dtype)
        first, second, third = self.planes
        y = conv(self.kernel_size, self.strides, planes=first, name="conv1")(x, train)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.kernel_size, (1, 1, 1), planes=second, name="conv2")(y, train)
        y = norm(name="norm2")(y)
        if x.shape[-1] != self.features or self.strides != (1, 1, 1):
            x = conv((1, 1, 1), self.strides, planes=third, name="shortcut")(x, train)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet3D(nn.Module):
    """The classifier of this family.

    Attributes:
      groups: kind of convolution in the stem and in each of the four groups of blocks.
      depths, widths: of the groups of blocks.
      fold_frames: folds the frames into the channels of the first convolution (R2D).
      midplanes: planes of (2+1)-D convolutions, computed per convolution (paper) or once per block (torchvision).
      stem_planes: planes of the stem; None for the formula.
      factorized_shortcut, stem_pool: mmaction2's (2+1)-D shortcuts and max pool after the stem.
      epsilon: of batch norm.
      inner_epsilon: of the batch norms inside (2+1)-D convolutions; `epsilon` by default.
      num_classes: None returns the mean of the last feature map.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on this mean, before the head.
      num_frames, image_size: of the clips that the variant is meant for; other sizes also work, except that
        `fold_frames` fixes the number of frames.
    """

    groups: tuple[Kind, Kind, Kind, Kind, Kind]
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    fold_frames: bool = False
    midplanes: Literal["per_convolution", "per_block"] = "per_convolution"
    stem_planes: int | None = 45
    factorized_shortcut: bool = False
    stem_pool: bool = False
    epsilon: float = 1e-5
    inner_epsilon: float | None = None
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 112
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        for kind in self.groups:
            if kind not in ("2d", "3d", "2plus1d"):
                raise UserError(f"a group of convolutions is '{kind}': choose 2d, 3d or 2plus1d")
        if self.midplanes not in ("per_convolution", "per_block"):
            raise UserError(f"midplanes is '{self.midplanes}': choose per_convolution or per_block")
        stem, width = self.groups[0], self.widths[0]
        kernel_size = (1 if stem == "2d" else 3, 7, 7)
        planes = None
        if stem == "2plus1d":
            planes = self.stem_planes or planes_between(self.channels, width, kernel_size)
        inner_epsilon = self.epsilon if self.inner_epsilon is None else self.inner_epsilon
        self.stem = Convolution(width, kernel_size, (1, 2, 2), planes, inner_epsilon, self.dtype)
        self.stem_norm = BatchNorm(epsilon=self.epsilon, dtype=self.dtype)
        blocks, inputs = [], width
        for group, (kind, depth, width) in enumerate(zip(self.groups[1:], self.depths, self.widths, strict=True)):
            blocks.append([])
            for i in range(depth):
                stride = 2 if group and not i else 1
                blocks[group].append(self.block(kind, inputs, width, stride))
                inputs = width
        self.group = blocks
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )

    def block(self, kind: Kind, inputs: int, width: int, stride: int) -> Block:
        """Creates one block of a group."""
        kernel_size = (1 if kind == "2d" else 3, 3, 3)
        strides = (1 if kind == "2d" else stride, stride, stride)
        planes: tuple = (None, None, None)
        if kind == "2plus1d":
            second = inputs if self.midplanes == "per_block" else width
            planes = (planes_between(inputs, width, kernel_size), planes_between(second, width, kernel_size))
            planes += (planes_between(inputs, width, (3, 1, 1)) if self.factorized_shortcut else None,)
        inner_epsilon = self.epsilon if self.inner_epsilon is None else self.inner_epsilon
        return Block(width, kernel_size, strides, planes, self.epsilon, inner_epsilon, self.dtype)

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each group of blocks: 1/2 to 1/16 of height and width (1/4 to 1/32 with `stem_pool`)."""
        check_video(video, self.channels)
        x = video
        if self.fold_frames:
            if x.shape[1] != self.num_frames:
                raise UserError(
                    f"the clip has {x.shape[1]} frames, but the model's first convolution takes {self.num_frames}: "
                    "use as many frames, or set the model's field num_frames"
                )
            x = einops.rearrange(x, "b t h w c -> b 1 h w (t c)")
        x = nn.relu(self.stem_norm(self.stem(x, train), use_running_average=not train))
        if self.stem_pool:
            x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))
        maps = []
        for blocks in self.group:
            for block in blocks:
                x = block(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`: 1/16 of height and width (1/32 with `stem_pool`)."""
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


TORCHVISION = Card(
    (0.43216, 0.394666, 0.37645),
    (0.22803, 0.22145, 0.216989),
    stride=2,
    crop_ratio=112 / 128,
    source="torchvision; arXiv:1711.11248",
)


def reaching(accuracy: float) -> Card:
    """The card of weights published by torchvision."""
    return dataclasses.replace(TORCHVISION, accuracy=f"K400 {accuracy}, 5x1 views")


FLAT, FULL, FACTORIZED = ("2d",) * 5, ("3d",) * 5, ("2plus1d",) * 5
MC = {x: FULL[: x - 1] + FLAT[x - 1 :] for x in (2, 3, 4, 5)}
RMC = {x: FLAT[: x - 1] + FULL[x - 1 :] for x in (2, 3, 4, 5)}
D18 = {"depths": (2, 2, 2, 2), "num_classes": 400}
D34 = {"depths": (3, 4, 6, 3), "num_classes": 400, "card": TORCHVISION}
TINY = {
    "depths": (1, 1, 1, 1), "widths": (16, 24, 32, 48), "num_frames": 8, "image_size": 32, "card": TORCHVISION,
}  # fmt: skip

VARIANTS = MappingProxyType(
    {
        "r2d_tiny": partial(ResNet3D, FLAT, **TINY, fold_frames=True),
        "fr2d_tiny": partial(ResNet3D, FLAT, **TINY),
        "r3d_tiny": partial(ResNet3D, FULL, **TINY),
        "r2plus1d_tiny": partial(ResNet3D, FACTORIZED, **TINY),
        "r2d_18": partial(ResNet3D, FLAT, **D18, fold_frames=True, card=TORCHVISION),
        "fr2d_18": partial(ResNet3D, FLAT, **D18, card=TORCHVISION),
        "r3d_18": partial(ResNet3D, FULL, **D18, card=reaching(63.20)),
        "mc2_18": partial(ResNet3D, MC[2], **D18, card=TORCHVISION),
        "mc3_18": partial(ResNet3D, MC[3], **D18, card=reaching(63.96)),
        "mc4_18": partial(ResNet3D, MC[4], **D18, card=TORCHVISION),
        "mc5_18": partial(ResNet3D, MC[5], **D18, card=TORCHVISION),
        "rmc2_18": partial(ResNet3D, RMC[2], **D18, card=TORCHVISION),
        "rmc3_18": partial(ResNet3D, RMC[3], **D18, card=TORCHVISION),
        "rmc4_18": partial(ResNet3D, RMC[4], **D18, card=TORCHVISION),
        "rmc5_18": partial(ResNet3D, RMC[5], **D18, card=TORCHVISION),
        "r2plus1d_18": partial(ResNet3D, FACTORIZED, **D18, midplanes="per_block", card=reaching(67.463)),
        "r2plus1d_18_paper": partial(ResNet3D, FACTORIZED, **D18, epsilon=1e-3, card=TORCHVISION),
        "r2d_34": partial(ResNet3D, FLAT, **D34, fold_frames=True),
        "fr2d_34": partial(ResNet3D, FLAT, **D34),
        "r3d_34": partial(ResNet3D, FULL, **D34),
        "mc2_34": partial(ResNet3D, MC[2], **D34),
        "mc3_34": partial(ResNet3D, MC[3], **D34),
        "mc4_34": partial(ResNet3D, MC[4], **D34),
        "mc5_34": partial(ResNet3D, MC[5], **D34),
        "rmc2_34": partial(ResNet3D, RMC[2], **D34),
        "rmc3_34": partial(ResNet3D, RMC[3], **D34),
        "rmc4_34": partial(ResNet3D, RMC[4], **D34),
        "rmc5_34": partial(ResNet3D, RMC[5], **D34),
        "r2plus1d_34": partial(ResNet3D, FACTORIZED, **D34, epsilon=1e-3),
        "r2plus1d_34_mmaction2": partial(
            ResNet3D, FACTORIZED, depths=(3, 4, 6, 3), num_classes=400, num_frames=8, image_size=224, dropout=0.5,
            stem_planes=None, factorized_shortcut=True, stem_pool=True, epsilon=1e-3, inner_epsilon=1e-5,
            card=Card(
                stride=8, source="open-mmlab/mmaction2", accuracy="K400 69.76, 10x3 views", test_size=256,
                protocol="mmaction2", views="10x3",
            ),
        ),
    }
)  # fmt: skip
