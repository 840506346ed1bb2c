"""TSN (Wang et al. 2016, arXiv:1608.00859) and TSM (Lin et al. 2019, arXiv:1811.08383): a 2-D ResNet over frames.

A ResNet with bottleneck blocks sees every frame by itself; the classes of a clip are those of the mean of its frames'
features (TSN). With `shift`, an eighth of the channels that enter each block's residual branch come from the next frame
and an eighth from the previous one, so that the same network sees motion (TSM); the shift has no parameters.

Details: the stride is in the 3x3 convolution; missing frames at the ends of the clip are zeros; features are averaged
before the softmax, also over views (`evaluate.py --average logits`). In training, TSM drops features of each frame.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video


def shift_channels(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Takes the first eighth of the channels from the next frame and the second eighth from the previous one."""
    fold = x.shape[-1] // 8
    following = jnp.pad(x[:, 1:, ..., :fold], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    previous = jnp.pad(x[:, :-1, ..., fold : 2 * fold], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([following, previous, x[..., 2 * fold :]], axis=-1)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution in a residual branch.

    Attributes:
      width: channels of the first two convolutions; the output has four times as many.
      stride: of the 3x3 convolution, in height and width.
      shift: whether the residual branch sees shifted channels.
    """

    width: int
    stride: int = 1
    shift: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b t _ _ d"]:
        """Feature map of `4 * width` channels."""
        conv = partial(Conv3D, kernel_init=kaiming_normal, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        strides = (1, self.stride, self.stride)
        y = shift_channels(x) if self.shift else x
        y = nn.relu(norm(name="norm1")(conv(self.width, (1, 1, 1), name="conv1")(y)))
        y = nn.relu(norm(name="norm2")(conv(self.width, (1, 3, 3), strides, name="conv2")(y)))
        y = norm(name="norm3")(conv(4 * self.width, (1, 1, 1), name="conv3")(y))
        if x.shape[-1] != y.shape[-1] or self.stride > 1:
            x = norm(name="shortcut_norm")(conv(4 * self.width, (1, 1, 1), strides, name="shortcut")(x))
        return nn.relu(x + y)


class SegmentNetwork(nn.Module):
    """The classifier.

    Attributes:
      depths: bottleneck blocks in each of the four stages.
      width: of the first stage; each stage is twice as wide as the one before.
      shift: the temporal shift of TSM.
      num_classes: None returns the mean feature.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of the features before the head.
      num_frames, image_size: of the clips that the row was trained on; any number and size works.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    shift: bool = False
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.4
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Attributes here name the parameters."""
        self.stem = Conv3D(self.width, (1, 7, 7), (1, 2, 2), kernel_init=kaiming_normal, dtype=self.dtype)
        self.stem_norm = BatchNorm(dtype=self.dtype)
        self.group = [
            [
                Bottleneck(self.width * 2**stage, 2 if stage and not i else 1, self.shift, self.dtype)
                for i in range(depth)
            ]
            for stage, depth in enumerate(self.depths)
        ]
        self.head_dropout = nn.Dropout(self.dropout)
        std = 0.001 if self.shift else 0.01
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(std), dtype=self.dtype
        )

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b t _ _ _"], ...]:
        """The feature map of each stage: a 4th to a 32nd of the height and width."""
        check_video(video, self.channels)
        x = nn.relu(self.stem_norm(self.stem(video), use_running_average=not train))
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))
        maps = []
        for blocks in self.group:
            for block in blocks:
                x = block(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """What the head sees: the mean feature over frames and places."""
        return self.encode(video, train).mean(axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head returns, by default logits `b classes`; without a head the result of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        frames = self.encode(video, train).mean(axis=(2, 3))
        if self.shift:  # mean and linear classifier commute
            features = self.head_dropout(frames, deterministic=not train).mean(axis=1)
        else:
            features = self.head_dropout(frames.mean(axis=1), deterministic=not train)
        return self.classifier(features)


SOURCE = "open-mmlab/mmaction2"
TINY = {"depths": (1, 1, 1, 1), "width": 8, "image_size": 32, "dropout": 0.0, "card": Card(source=SOURCE)}

VARIANTS = MappingProxyType(
    {
        "tsn_tiny": partial(SegmentNetwork, **TINY),
        "tsm_tiny": partial(SegmentNetwork, **TINY, shift=True),
        "tsn_50": partial(
            SegmentNetwork, num_classes=400,
            card=Card(crop_ratio=224 / 256, source=SOURCE, accuracy="K400 74.12, 25x10 views"),
        ),
        "tsm_50_8": partial(
            SegmentNetwork, num_classes=400, shift=True, dropout=0.5,
            card=Card(crop_ratio=224 / 256, source=SOURCE, accuracy="K400 73.18, 8 frames x 10 crops"),
        ),
        "tsm_50_16": partial(
            SegmentNetwork, num_classes=400, shift=True, dropout=0.5, num_frames=16,
            card=Card(crop_ratio=224 / 256, source=SOURCE, accuracy="K400 75.12, 16 frames x 10 crops"),
        ),
    }
)  # fmt: skip
