"""3-D ResNets of one pathway: C2D, I3D-ResNet, Slow, and each with non-local blocks.

The networks of facebookresearch/SlowFast, with the temporal kernels of the stem and of the blocks of the four stages:
  C2D   1  1 1 1 1                         Wang et al. 2018, arXiv:1711.07971
  I3D   5  3 (3, 1) (3, 1) (1, 3)          the same; a ResNet, not the Inception of `inception3d`
  Slow  1  1 1 3 3                         Feichtenhofer et al. 2019, arXiv:1812.03982

C2D and I3D halve time by a max pool after the first stage. mmaction2's I3D also halves it in the stem and in the pool
after it: 32 frames become 4. Its clips are every second frame, those of the others every eighth (`Card.stride`).

Heads differ between publishers (`dialect`) for maps larger than in training. slowfast and pytorchvideo average windows
of the training size at every position; the former averages the positions' probabilities, the latter their logits.
mmaction2 averages the whole map. Published figures are for crops of 256 after training with 224. mmaction2's non-local
blocks also differ, see `layers.nonlocal_block`.
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.bottleneck import Stage, Stem, check_stages
from vidjax.layers.card import Card
from vidjax.layers.head import classify_positions, linear_unless_passed, pool_windows
from vidjax.layers.nonlocal_block import Affinity, NonLocal
from vidjax.layers.patches import check_video

Dialect = Literal["slowfast", "pytorchvideo", "mmaction2"]


class SlowNetwork(nn.Module):
    """The classifier.

    Attributes:
      kernels: frames seen by the stem, and by the first convolution of the blocks of each stage (repeated to the
        depth).
      depths: bottleneck blocks in each of the four stages.
      width: of the first stage; each stage is twice as wide as the one before.
      pool: halves time after the first stage.
      temporal_strides: of the stem's convolution and of its pool.
      nonlocal_after: numbers of the blocks followed by a non-local block, in each stage.
      affinity, scale: of the non-local blocks.
      nonlocal_groups: blocks of consecutive frames in which places see each other, for each stage.
      dilated: the last stage keeps the size of the one before, and has dilated convolutions instead (for detection).
      dialect: the publisher whose head (and non-local block) is computed.
      num_classes: None returns the mean feature.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of the features before the head.
      num_frames, image_size: of the clips that the network was trained on, which set the head's windows.
    """

    kernels: Sequence[Sequence[int]]
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    pool: bool = False
    temporal_strides: tuple[int, int] = (1, 1)
    nonlocal_after: Sequence[Sequence[int]] = ((), (), (), ())
    affinity: Affinity = "embedded_gaussian"
    scale: bool = True
    nonlocal_groups: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilated: bool = False
    dialect: Dialect = "slowfast"
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose names are the parameter names."""
        if self.dialect not in ("slowfast", "pytorchvideo", "mmaction2"):
            raise UserError(f"dialect is '{self.dialect}': choose slowfast, pytorchvideo or mmaction2")
        check_stages(self.depths, self.kernels, self.nonlocal_after)
        (stem_kernel,), *kernels = self.kernels
        mmcv = self.dialect == "mmaction2"
        block = partial(
            NonLocal,
            self.affinity,
            pool="after" if mmcv else "before",
            scale=self.scale,
            out_bias=not mmcv,
            dtype=self.dtype,
        )
        self.stem = Stem(self.width, stem_kernel, self.temporal_strides, self.dtype)
        self.stage = [
            Stage(
                self.width * 2**i,
                self.depths[i],
                kernels[i],
                stride,
                self.nonlocal_after[i],
                partial(block, groups=self.nonlocal_groups[i]),
                self.dtype,
                dilation,
            )
            for i, (stride, dilation) in enumerate([(1, 1), (2, 1), (2, 1), (1, 2) if self.dilated else (2, 1)])
        ]
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each stage: a 4th to a 32nd of the height and width (to a 16th if dilated)."""
        conv_stride, pool_stride = self.temporal_strides
        check_video(video, self.channels, (conv_stride * pool_stride + 1 if self.pool else 1, 1, 1))
        x, maps = self.stem(video, train), []
        for i, stage in enumerate(self.stage):
            if self.pool and i == 1:
                x = nn.max_pool(x, (2, 1, 1), (2, 1, 1))
            x = stage(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def positions(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Mean features of the windows of the training size; of the whole map with mmaction2's head."""
        x = self.encode(video, train)
        if self.dialect == "mmaction2":
            return x.mean(axis=(1, 2, 3), keepdims=True)
        frames = max(1, self.num_frames // 2 if self.pool else self.num_frames)
        side = max(1, self.image_size // (16 if self.dilated else 32))
        return pool_windows(x, (frames, side, side))

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


C2D = ((1,), (1,), (1,), (1,), (1,))
I3D = ((5,), (3,), (3, 1), (3, 1), (1, 3))
SLOW = ((1,), (1,), (1,), (3,), (3,))
NONLOCAL = ((), (1, 3), (1, 3, 5), ())


PIXELS = {"mean": (0.45,) * 3, "std": (0.225,) * 3, "source": "facebookresearch/SlowFast"}
TESTED = {"test_size": 256, "views": "10x3"}


def kinetics(stride: int, accuracy: str = "") -> Card:
    """The card of networks trained with SlowFast's pixels, and tested by its rules on larger crops."""
    return Card(**PIXELS, **TESTED, stride=stride, rate=30.0, protocol="slowfast", accuracy=accuracy)


def mmaction2(stride: int, accuracy: str) -> Card:
    """The card of mmaction2's networks."""
    return Card(**TESTED, stride=stride, protocol="mmaction2", source="open-mmlab/mmaction2", accuracy=accuracy)


TINY = {"depths": (1, 1, 1, 1), "width": 8, "image_size": 32, "dropout": 0.0, "card": Card(**PIXELS)}
MMACTION2 = {"dialect": "mmaction2", "num_classes": 400}

VARIANTS = MappingProxyType(
    {
        "slow_tiny": partial(SlowNetwork, SLOW, **TINY),
        "slow_tiny_c2d": partial(SlowNetwork, C2D, **TINY),
        "slow_tiny_pytorchvideo": partial(SlowNetwork, I3D, **TINY, pool=True, dialect="pytorchvideo"),
        "slow_tiny_nonlocal": partial(SlowNetwork, C2D, **TINY, nonlocal_after=((), (0,), (0,), ())),
        "slow_tiny_mmaction2": partial(
            SlowNetwork, I3D, **TINY, pool=True, temporal_strides=(2, 2), nonlocal_after=((), (0,), (0,), ()),
            affinity="gaussian", dialect="mmaction2",
        ),
        "c2d_50_8x8": partial(SlowNetwork, C2D, pool=True, num_classes=400, card=kinetics(8)),
        "c2d_50_8x8_nopool": partial(SlowNetwork, C2D, num_classes=400, card=kinetics(8, "K400 67.2, 10x3 views")),
        "c2d_50_8x8_nonlocal": partial(
            SlowNetwork, C2D, pool=True, nonlocal_after=NONLOCAL, num_classes=400, card=kinetics(8)
        ),
        "i3d_50_8x8": partial(
            SlowNetwork, I3D, pool=True, num_classes=400, card=kinetics(8, "K400 73.5, 10x3 views")
        ),
        "i3d_50_8x8_nonlocal": partial(
            SlowNetwork, I3D, pool=True, nonlocal_after=NONLOCAL, num_classes=400,
            card=kinetics(8, "K400 74.0, 10x3 views"),
        ),
        "slow_50_4x16": partial(
            SlowNetwork, SLOW, num_frames=4, num_classes=400, card=kinetics(16, "K400 72.7, 10x3 views")
        ),
        "slow_50_8x8": partial(SlowNetwork, SLOW, num_classes=400, card=kinetics(8, "K400 74.8, 10x3 views")),
        "slow_50_8x8_nonlocal": partial(
            SlowNetwork, SLOW, nonlocal_after=NONLOCAL, affinity="dot_product", num_classes=400, card=kinetics(8)
        ),
        "i3d_50_32x2_mmaction2": partial(
            SlowNetwork, I3D, **MMACTION2, pool=True, temporal_strides=(2, 2), num_frames=32,
            card=mmaction2(2, "K400 73.47, 10x3 views"),
        ),
        "slow_50_8x8_mmaction2": partial(
            SlowNetwork, SLOW, **MMACTION2,
            card=mmaction2(8, "K400 75.15, 10x3 views"),
        ),
    }
)  # fmt: skip
