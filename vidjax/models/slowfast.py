"""SlowFast networks (Feichtenhofer et al. 2019, arXiv:1812.03982): two ResNets at two frame rates.

The fast pathway sees all frames of the clip and has an eighth of the channels; the slow one sees one frame in `alpha`.
After the stem and after each stage but the last, a lateral connection joins the fast pathway's features to the slow
one's channels. The head sees the mean features of both.

The clip is that of the fast pathway. facebookresearch/SlowFast and PyTorchVideo take the slow pathway's frames at
equal distances from the first to the last frame, both included, rounded down: 0, 10, 20 and 31 of 32 for alpha 8.
mmaction2 takes frames 0, 8, 16 and 24, has neither norm nor ReLU after lateral convolutions, and averages whole maps
in the head; see `models.slow` for the heads of the others. The published names count slow frames: 8x8 is 8 slow frames
8 apart, and a clip of 32 frames 2 apart.

In "50_50" networks of 101 layers, both pathways have temporal kernels in only the first 6 blocks of the third stage, in
"50_101" the slow one. The lateral kernel is 5, except 7 in the network of 50 layers with alpha 4 (and in mmaction2's of
101 layers).

Time-to-channel and time-strided sampling are two other lateral connections of the paper (section 3.3), of which there
is no public code; they have no parameters, and their features are concatenated.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.bottleneck import Stage, Stem, check_stages
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.head import classify_positions, linear_unless_passed, pool_windows
from vidjax.layers.nonlocal_block import Affinity, NonLocal
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video

Connection = Literal["time_strided_convolution", "time_to_channel", "time_strided_sampling"]
Pathways = tuple[Float[Array, "b _ _ _ _"], Float[Array, "b _ _ _ _"]]


class Lateral(nn.Module):
    """Features of the fast pathway at the slow one's frame rate.

    Attributes:
      connection: a convolution over time with stride `alpha` and twice the channels; all `alpha` frames as channels,
        frame by frame; or the first of every `alpha` frames.
      kernel: frames that the convolution sees.
      norm: batch norm and ReLU after the convolution.
    """

    alpha: int
    connection: Connection = "time_strided_convolution"
    kernel: int = 5
    norm: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], train: bool) -> Float[Array, "b _ h w _"]:
        """`x` has `alpha` times as many frames as the output."""
        if self.connection == "time_to_channel":
            return einops.rearrange(x, "b (t a) h w c -> b t h w (a c)", a=self.alpha)
        if self.connection == "time_strided_sampling":
            return x[:, :: self.alpha]
        if self.connection != "time_strided_convolution":
            raise UserError(
                f"lateral is '{self.connection}': choose time_strided_convolution, time_to_channel or "
                "time_strided_sampling"
            )
        size, strides = (self.kernel, 1, 1), (self.alpha, 1, 1)
        conv = Conv3D(2 * x.shape[-1], size, strides, kernel_init=kaiming_normal, dtype=self.dtype, name="conv")
        if not self.norm:
            return conv(x)
        return nn.relu(BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(conv(x)))


class SlowFast(nn.Module):
    """The classifier.

    Attributes:
      alpha: frames of the fast pathway for one of the slow pathway.
      slow_kernels, fast_kernels: frames seen by the stem, and by the first convolution of the blocks of each stage
        (repeated to its depth).
      depths: bottleneck blocks in each of the four stages, of both pathways.
      width: of the slow pathway's first stage; each stage is twice as wide as the one before.
      channel_ratio: slow channels for one of the fast pathway (1 / beta).
      lateral, lateral_kernel: see `Lateral`.
      nonlocal_after: numbers of the slow pathway's blocks followed by a non-local block, in each stage.
      affinity: of the non-local blocks.
      dilated: the last stage keeps the size of the one before, and has dilated convolutions instead (for detection).
      dialect: the publisher whose slow frames, lateral connections and head are computed.
      num_classes: None returns the mean features.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of the features before the head.
      num_frames, image_size: of the clips that the network was trained on; any multiple of `alpha` frames works, and
        the size sets the head's windows.
    """

    alpha: int
    slow_kernels: Sequence[Sequence[int]] = ((1,), (1,), (1,), (3,), (3,))
    fast_kernels: Sequence[Sequence[int]] = ((5,), (3,), (3,), (3,), (3,))
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    channel_ratio: int = 8
    lateral: Connection = "time_strided_convolution"
    lateral_kernel: int = 5
    nonlocal_after: Sequence[Sequence[int]] = ((), (), (), ())
    affinity: Affinity = "dot_product"
    dilated: bool = False
    dialect: Literal["slowfast", "pytorchvideo", "mmaction2"] = "slowfast"
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 32
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose names are the parameter names."""
        if self.dialect not in ("slowfast", "pytorchvideo", "mmaction2"):
            raise UserError(f"dialect is '{self.dialect}': choose slowfast, pytorchvideo or mmaction2")
        if self.width % self.channel_ratio:
            raise UserError(
                f"width {self.width} cannot be divided by the channel_ratio {self.channel_ratio}: use a multiple of it"
            )
        if self.lateral_kernel % 2 == 0:
            raise UserError(f"lateral_kernel is {self.lateral_kernel}: a kernel over time has a centre, use 5 or 7")
        for kernels in (self.slow_kernels, self.fast_kernels):
            check_stages(self.depths, kernels, self.nonlocal_after)
        widths = {"slow": self.width, "fast": self.width // self.channel_ratio}
        block = partial(NonLocal, self.affinity, pool="before", dtype=self.dtype)

        def stage(pathway: str, i: int, kernels: Sequence[int], after: Sequence[int] = ()) -> Stage:
            width, name = widths[pathway] * 2**i, f"stage_{i}_{pathway}"
            stride, dilation = (1, 2) if self.dilated and i == 3 else (2 if i else 1, 1)
            return Stage(width, self.depths[i], kernels, stride, after, block, self.dtype, dilation, name=name)

        ((slow_stem,), *slow), ((fast_stem,), *fast) = self.slow_kernels, self.fast_kernels
        self.slow_stem = Stem(widths["slow"], slow_stem, dtype=self.dtype)
        self.fast_stem = Stem(widths["fast"], fast_stem, dtype=self.dtype)
        norm = self.dialect != "mmaction2"
        self.lateral_connection = [
            Lateral(self.alpha, self.lateral, self.lateral_kernel, norm, self.dtype, name=f"lateral_{i}")
            for i in range(4)
        ]
        self.slow = [stage("slow", i, slow[i], self.nonlocal_after[i]) for i in range(4)]
        self.fast = [stage("fast", i, fast[i]) for i in range(4)]
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )

    def split(self, video: Float[Array, "b f h w c"]) -> Pathways:
        """The clips that the slow and the fast pathway see.

        Raises:
          UserError: a wrong shape or dtype, or a number of frames that is not a multiple of `alpha`.
        """
        check_video(video, self.channels, (self.alpha, 1, 1))
        frames = video.shape[1]
        if frames % self.alpha:
            nearest = frames // self.alpha * self.alpha
            raise UserError(
                f"{frames} frames cannot be shared between the pathways, of which the slow one sees one frame in "
                f"{self.alpha}: use a multiple of {self.alpha}, such as {nearest} or {nearest + self.alpha}"
            )
        if self.dialect == "mmaction2":
            return video[:, :: self.alpha], video
        count = frames // self.alpha
        return video[:, np.arange(count) * (frames - 1) // max(count - 1, 1)], video

    def run(
        self, slow: Float[Array, "b t h w c"], fast: Float[Array, "b f h w c"], train: bool = False
    ) -> tuple[Pathways, ...]:
        """Both pathways' map of each stage, before its lateral connection, given both clips."""
        slow, fast, maps = self.slow_stem(slow, train), self.fast_stem(fast, train), []
        for lateral, slow_stage, fast_stage in zip(self.lateral_connection, self.slow, self.fast, strict=True):
            slow = slow_stage(jnp.concatenate([slow, lateral(fast, train)], axis=-1), train)
            fast = fast_stage(fast, train)
            maps.append((slow, fast))
        return tuple(maps)

    def pathways(self, video: Float[Array, "b f h w c"], train: bool = False) -> tuple[Pathways, ...]:
        """Both pathways' map of each stage, a 4th to a 32nd of the height and width (to a 16th if dilated)."""
        return self.run(*self.split(video), train)

    def stages(self, video: Float[Array, "b f h w c"], train: bool = False) -> tuple[Float[Array, "b t _ _ _"], ...]:
        """The maps of `pathways`, slow and fast concatenated on the slow grid: fast frames are averaged by `alpha`."""
        to_slow = partial(einops.reduce, pattern="b (t a) h w c -> b t h w c", reduction="mean", a=self.alpha)
        return tuple(jnp.concatenate([slow, to_slow(fast)], axis=-1) for slow, fast in self.pathways(video, train))

    def encode(self, video: Float[Array, "b f h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def positions(self, slow: Float[Array, "b t h w d"], fast: Float[Array, "b f h w e"]) -> Float[Array, "b 1 _ _ _"]:
        """Mean features over time and windows of the training size, or the whole map with mmaction2's head."""
        if self.dialect == "mmaction2":
            return jnp.concatenate([x.mean(axis=(1, 2, 3), keepdims=True) for x in (slow, fast)], axis=-1)
        side = max(1, self.image_size // (16 if self.dilated else 32))
        return jnp.concatenate([pool_windows(x, (x.shape[1], side, side)) for x in (slow, fast)], axis=-1)

    def embed(self, video: Float[Array, "b f h w c"], train: bool = False) -> Float[Array, "b d"]:
        """What the head sees, averaged over the positions: slow features, then fast ones."""
        return self.positions(*self.pathways(video, train)[-1]).mean(axis=(1, 2, 3))

    def classify(
        self, slow: Float[Array, "b t h w d"], fast: Float[Array, "b f h w e"], train: bool = False
    ) -> PyTree[Float[Array, "b ..."]]:
        """What the head returns for the pathways' last maps."""
        average = "softmax" if self.dialect == "slowfast" else "logits"
        return classify_positions(
            self.positions(slow, fast), self.classifier, self.head_dropout, train,
            passed=self.head is not None, average=average,
        )  # fmt: skip

    def __call__(self, video: Float[Array, "b f h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head returns, by default logits `b classes`; without a head the result of `embed`.

        In evaluation of a map with several positions, the default dialect returns logarithms of mean probabilities.
        """
        return self.classify(*self.pathways(video, train)[-1], train)


PIXELS = {"mean": (0.45,) * 3, "std": (0.225,) * 3, "source": "facebookresearch/SlowFast"}
TESTED = {"stride": 2, "test_size": 256, "views": "10x3"}


def kinetics(accuracy: str = "") -> Card:
    """The card of networks trained with SlowFast's pixels, and tested by its rules on larger crops."""
    return Card(**PIXELS, **TESTED, rate=30.0, protocol="slowfast", accuracy=accuracy)


def mmaction2(accuracy: str) -> dict:
    """Fields of mmaction2's networks."""
    card = Card(**TESTED, protocol="mmaction2", source="open-mmlab/mmaction2", accuracy=accuracy)
    return {"dialect": "mmaction2", "num_classes": 400, "card": card}


TINY = {
    "depths": (1, 1, 1, 1), "width": 16, "num_frames": 8, "image_size": 32, "dropout": 0.0, "card": Card(**PIXELS),
}  # fmt: skip
D101 = {"depths": (3, 4, 23, 3), "num_classes": 400}
SIX_OF_23 = (3,) * 6 + (1,) * 17
SLOW_50 = {"slow_kernels": ((1,), (1,), (1,), SIX_OF_23, (3,))}
FAST_50 = {"fast_kernels": ((5,), (3,), (3,), SIX_OF_23, (3,))}

VARIANTS = MappingProxyType(
    {
        "slowfast_tiny": partial(SlowFast, 4, **TINY),
        "slowfast_tiny_pytorchvideo": partial(SlowFast, 4, **TINY, dialect="pytorchvideo"),
        "slowfast_tiny_mmaction2": partial(SlowFast, 4, **TINY, dialect="mmaction2"),
        "slowfast_tiny_nonlocal": partial(SlowFast, 4, **TINY, nonlocal_after=((), (0,), (), ())),
        "slowfast_tiny_time_to_channel": partial(SlowFast, 4, **TINY, lateral="time_to_channel"),
        "slowfast_tiny_sampling": partial(SlowFast, 4, **TINY, lateral="time_strided_sampling"),
        "slowfast_50_4x16": partial(SlowFast, 8, num_classes=400, card=kinetics("K400 75.6, 10x3 views")),
        "slowfast_50_4x16_time_to_channel": partial(
            SlowFast, 8, num_classes=400, lateral="time_to_channel", card=kinetics()
        ),
        "slowfast_50_4x16_sampling": partial(
            SlowFast, 8, num_classes=400, lateral="time_strided_sampling", card=kinetics()
        ),
        "slowfast_50_8x8": partial(
            SlowFast, 4, num_classes=400, lateral_kernel=7, card=kinetics("K400 77.0, 10x3 views")
        ),
        "slowfast_50_16x8": partial(
            SlowFast, 4, num_classes=174, lateral_kernel=7, num_frames=64,
            card=replace(kinetics("SSv2 63.0, 1x1 views"), sampling="segments", views="1x1"),
        ),
        "slowfast_101_8x8": partial(SlowFast, 4, **D101, card=kinetics("K400 77.90, 10x3 views")),
        "slowfast_101_8x8_50_50": partial(SlowFast, 4, **D101, **SLOW_50, **FAST_50, card=kinetics()),
        "slowfast_101_8x8_50_101": partial(SlowFast, 4, **D101, **SLOW_50, card=kinetics()),
        "slowfast_101_16x8_50_50": partial(
            SlowFast, 4, **D101, **SLOW_50, **FAST_50, num_frames=64, card=kinetics("K400 78.70, 10x3 views")
        ),
        "slowfast_50_4x16_mmaction2": partial(SlowFast, 8, **mmaction2("K400 75.55, 10x3 views")),
        "slowfast_50_8x8_mmaction2": partial(SlowFast, 4, **mmaction2("K400 76.8, 10x3 views"), lateral_kernel=7),
        "slowfast_101_8x8_mmaction2": partial(
            SlowFast, 4, **mmaction2("K400 78.65, 10x3 views"), depths=(3, 4, 23, 3), lateral_kernel=7
        ),
    }
)  # fmt: skip
