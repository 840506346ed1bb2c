"""TSN (Wang et al. 2016, arXiv:1608.00859) and TSM (Lin et al. 2019, arXiv:1811.08383): a 2-D ResNet over frames.

A ResNet with bottleneck blocks sees every frame by itself; the classes of a clip are those of the mean of its frames'
features (TSN). With `shift="both"`, an eighth of the channels that enter each block's residual branch come from the
next frame and an eighth from the previous one, so that the same network sees motion (TSM); the shift has no parameters.
With `shift="past"` only an eighth comes from the previous frame, and `stream` classifies frames as they arrive:

    state = model.init_stream(batch=1)
    step = jax.jit(partial(model.apply, method="stream"))
    for frame in frames:  # b 1 h w c
        state, logits = step(variables, state, frame)

Details: the stride is in the 3x3 convolution; missing frames at the ends of the clip are zeros. The published test
takes one clip and ten crops: TSN averages the features of 25 frames of all crops, which amounts to averaging their
logits, and TSM the probabilities of the crops. In training, TSM drops features of each frame.
With 101 layers only every second block of a group is shifted (`shift_every`), in both implementations. `temporal_pool`
is a max over three frames with stride 2 before the second group, of which no weights are published.

Optical flow and differences of frames are stacked along the channels of the first convolution: five fields, x before y,
or the five differences of six frames. The network of RGB frames starts either (`convert.tsn`: the first kernel is the
mean over its channels, repeated).
"""

from dataclasses import replace
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Any, Literal, get_args

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video

Shift = Literal["none", "both", "past"]
SHIFTED = 8  # a channel in so many is shifted, in each direction


def shift_channels(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Takes the first eighth of the channels from the next frame and the second eighth from the previous one."""
    fold = x.shape[-1] // SHIFTED
    following = jnp.pad(x[:, 1:, ..., :fold], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    previous = jnp.pad(x[:, :-1, ..., fold : 2 * fold], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([following, previous, x[..., 2 * fold :]], axis=-1)


def shift_from_past(x: Float[Array, "b t h w c"], before: Float[Array, "b 1 h w e"]) -> Float[Array, "b t h w c"]:
    """Takes the first eighth of the channels from the previous frame, those of the first frame from `before`."""
    fold = before.shape[-1]
    previous = jnp.concatenate([before.astype(x.dtype), x[:, :-1, ..., :fold]], axis=1)
    return jnp.concatenate([previous, x[..., fold:]], axis=-1)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution in a residual branch.

    Attributes:
      width: channels of the first two convolutions; the output has four times as many.
      stride: of the 3x3 convolution, in height and width.
      shift: of the channels that enter the residual branch.
    """

    width: int
    stride: int = 1
    shift: Shift = "none"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], train: bool, before: Float[Array, "b 1 h w e"] | None = None
    ) -> Float[Array, "b t _ _ d"]:
        """Feature map of `4 * width` channels.

        Args:
          before: the channels that a shift from the past takes from the frame before the first; zeros by default.
        """
        conv = partial(Conv3D, kernel_init=kaiming_normal, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        strides = (1, self.stride, self.stride)
        y = x
        if self.shift == "both":
            y = shift_channels(x)
        elif self.shift == "past":
            y = shift_from_past(x, jnp.zeros_like(cached(x)) if before is None else before)
        y = nn.relu(norm(name="norm1")(conv(self.width, (1, 1, 1), name="conv1")(y)))
        y = nn.relu(norm(name="norm2")(conv(self.width, (1, 3, 3), strides, name="conv2")(y)))
        y = norm(name="norm3")(conv(4 * self.width, (1, 1, 1), name="conv3")(y))
        if x.shape[-1] != y.shape[-1] or self.stride > 1:
            x = norm(name="shortcut_norm")(conv(4 * self.width, (1, 1, 1), strides, name="shortcut")(x))
        return nn.relu(x + y)


def cached(x: Float[Array, "b t h w c"]) -> Float[Array, "b 1 h w e"]:
    """The channels that a shift from the past takes from the last of these frames."""
    return x[:, -1:, ..., : x.shape[-1] // SHIFTED]


class SegmentNetwork(nn.Module):
    """The classifier.

    Attributes:
      depths: bottleneck blocks in each of the four stages.
      width: of the first stage; each stage is twice as wide as the one before.
      shift: the temporal shift of TSM: none, from both neighbouring frames, or from the past only.
      shift_every: shifts the first of so many blocks of a stage.
      temporal_pool: halves the frames by a max pool before the second stage.
      stack: consecutive frames of a clip that are stacked along the channels of the first convolution; a clip of `t`
        frames then gives features of `t / stack`.
      difference: the differences between the stacked frames take their place.
      num_classes: None returns the mean feature.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of the features before the head.
      channels: of a frame, before they are stacked.
      num_frames, image_size: of the clips that the row was trained on; any number and size works.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    shift: Shift = "none"
    shift_every: int = 1
    temporal_pool: bool = False
    stack: int = 1
    difference: bool = False
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
        if self.shift not in get_args(Shift):
            raise UserError(f"shift is '{self.shift}': choose one of {', '.join(get_args(Shift))}")
        if self.difference and self.stack < 2:
            raise UserError(f"stack is {self.stack}, but a difference needs two frames: set stack to 2 or more")
        self.stem = Conv3D(self.width, (1, 7, 7), (1, 2, 2), kernel_init=kaiming_normal, dtype=self.dtype)
        self.stem_norm = BatchNorm(dtype=self.dtype)
        self.group = [
            [
                Bottleneck(
                    self.width * 2**stage,
                    2 if stage and not i else 1,
                    self.shift if i % self.shift_every == 0 else "none",
                    self.dtype,
                )
                for i in range(depth)
            ]
            for stage, depth in enumerate(self.depths)
        ]
        self.head_dropout = nn.Dropout(self.dropout)
        std = 0.01 if self.shift == "none" else 0.001
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(std), dtype=self.dtype
        )

    def _stem(self, video: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b _ _ _ d"]:
        """The input of the first stage, after the frames have been stacked."""
        check_video(video, self.channels)
        if video.shape[1] % self.stack:
            raise UserError(
                f"{video.shape[1]} frames cannot be stacked by {self.stack}: use a multiple of {self.stack}, such as "
                f"{max(1, video.shape[1] // self.stack) * self.stack}"
            )
        x = einops.rearrange(video, "b (t n) h w c -> b t n h w c", n=self.stack)
        x = jnp.diff(x, axis=2) if self.difference else x
        x = einops.rearrange(x, "b t n h w c -> b t h w (n c)")
        x = nn.relu(self.stem_norm(self.stem(x), use_running_average=not train))
        return nn.max_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each stage: a 4th to a 32nd of the height and width."""
        x, maps = self._stem(video, train), []
        if self.temporal_pool and x.shape[1] % 2:
            raise UserError(f"temporal_pool halves the frames, but the clip has {x.shape[1]}: use an even number")
        for stage, blocks in enumerate(self.group):
            if self.temporal_pool and stage == 1:
                x = nn.max_pool(x, (3, 1, 1), (2, 1, 1), ((1, 1), (0, 0), (0, 0)))
            for block in blocks:
                x = block(x, train)
            maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
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
        if self.shift != "none":  # mean and linear classifier commute
            features = self.head_dropout(frames, deterministic=not train).mean(axis=1)
        else:
            features = self.head_dropout(frames.mean(axis=1), deterministic=not train)
        return self.classifier(features)

    def init_stream(self, batch: int = 1, size: tuple[int, int] | None = None) -> tuple[Float[Array, "b 1 _ _ _"], ...]:
        """The state of `stream` before the first frame: zeros, for each shifted block.

        It depends on no variables and is called on the model itself.

        Args:
          size: height and width of the frames; `image_size` by default.

        Raises:
          UserError: the model's shift takes channels from the future, or it has none.
        """
        if self.shift != "past" or self.temporal_pool:
            raise UserError(
                f"a model with shift='{self.shift}' and temporal_pool={self.temporal_pool} cannot see single frames: "
                "set shift='past' and temporal_pool=False"
            )
        sides = [ceil(ceil(side / 2) / 2) for side in size or (self.image_size, self.image_size)]
        channels, state = self.width, []
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                if i % self.shift_every == 0:
                    state.append(jnp.zeros((batch, 1, *sides, channels // SHIFTED), self.dtype or jnp.float32))
                sides = [ceil(side / 2) for side in sides] if stage and not i else sides
                channels = 4 * self.width * 2**stage
        return tuple(state)

    def stream(
        self, state: tuple[Float[Array, "b 1 _ _ _"], ...], frames: Float[Array, "b t h w c"]
    ) -> tuple[tuple[Float[Array, "b 1 _ _ _"], ...], PyTree[Float[Array, "b ..."]]]:
        """Classifies the next frames of a video, usually one, as the whole clip so far would be up to them.

        Args:
          state: from `init_stream` or the previous call.

        Returns:
          the next state, and the output of the head (without a head the features) for the mean of these frames.

        Raises:
          UserError: the state is that of other frames; see `init_stream`.
        """
        expected = [each.shape for each in self.init_stream(len(frames), frames.shape[2:4])]
        if [each.shape for each in state] != expected:
            raise UserError(
                f"the state is not that of {len(frames)} videos of {frames.shape[2]} x {frames.shape[3]} pixels: begin "
                "with init_stream(batch, size) for each size and number"
            )
        before, after = iter(state), []
        x = self._stem(frames, train=False)
        for block in (block for blocks in self.group for block in blocks):
            shifted = block.shift == "past"
            after += [cached(x)] if shifted else []
            x = block(x, False, next(before) if shifted else None)
        features = x.mean(axis=(1, 2, 3))
        return tuple(after), features if self.classifier is None else self.classifier(features)


SOURCE, MIT = "open-mmlab/mmaction2", "mit-han-lab/temporal-shift-module"
TINY = {"depths": (1, 1, 1, 1), "width": 8, "image_size": 32, "dropout": 0.0, "card": Card(source=SOURCE)}
R101 = {"depths": (3, 4, 23, 3)}
TSM = {"shift": "both", "dropout": 0.5}


TESTED = {"crop_ratio": 224 / 256, "sampling": "segments", "protocol": "mmaction2", "views": "1x10"}
TSN_TESTED = {"test_frames": 25, "average": "logits"}


MIT_CARD = Card(crop_ratio=224 / 256, sampling="segments", source=MIT)


def reaching(accuracy: str, **tested: Any) -> Card:
    """The card of a network of RGB frames, published by mmaction2."""
    return Card(source=SOURCE, accuracy=accuracy, **TESTED | tested)


def of_flow(mean: float, std: float, source: str = SOURCE, **tested: Any) -> Card:
    """The card of a network of optical flow, of which x and y are bytes around the middle grey."""
    return Card((mean,) * 2, (std,) * 2, source=source, **{"crop_ratio": 224 / 256} | tested)


VARIANTS = MappingProxyType(
    {
        "tsn_tiny": partial(SegmentNetwork, **TINY),
        "tsn_tiny_flow": partial(SegmentNetwork, **TINY | {"card": of_flow(0.5, 0.226)}, channels=2, stack=2),
        "tsn_tiny_difference": partial(SegmentNetwork, **TINY, stack=4, difference=True),
        "tsm_tiny": partial(SegmentNetwork, **TINY, shift="both"),
        "tsm_tiny_sparse": partial(SegmentNetwork, **TINY | {"depths": (2, 1, 1, 1)}, shift="both", shift_every=2),
        "tsm_tiny_pool": partial(SegmentNetwork, **TINY, shift="both", temporal_pool=True),
        "tsm_tiny_online": partial(SegmentNetwork, **TINY, shift="past"),
        "tsn_50": partial(SegmentNetwork, num_classes=400, card=reaching("K400 74.12, 25x10 views", **TSN_TESTED)),
        "tsn_101": partial(
            SegmentNetwork, **R101, num_classes=400, card=reaching("K400 75.89, 25x10 views", **TSN_TESTED),
        ),
        "tsn_50_flow": partial(
            SegmentNetwork, num_classes=400, channels=2, stack=5, num_frames=15,
            card=of_flow(128 / 255, 128 / 255, consecutive=5, **TESTED | TSN_TESTED | {"test_frames": 125}),
        ),
        "tsn_50_difference": partial(
            SegmentNetwork, num_classes=400, stack=6, difference=True, num_frames=18,
            card=replace(MIT_CARD, consecutive=6),
        ),
        "tsm_50_8": partial(
            SegmentNetwork, **TSM, num_classes=400, card=reaching("K400 73.18, 8 frames x 10 crops"),
        ),
        "tsm_50_16": partial(
            SegmentNetwork, **TSM, num_classes=400, num_frames=16, card=reaching("K400 75.12, 16 frames x 10 crops"),
        ),
        "tsm_50_16_pool": partial(
            SegmentNetwork, **TSM, num_classes=400, num_frames=16, temporal_pool=True, card=MIT_CARD,
        ),
        "tsm_50_8_online": partial(
            SegmentNetwork, **TSM | {"shift": "past"}, num_classes=400, card=MIT_CARD,
        ),
        "tsm_50_8_flow": partial(
            SegmentNetwork, **TSM, num_classes=400, channels=2, stack=5, num_frames=40,
            card=of_flow(
                0.5, 0.226, MIT, accuracy="K400 55.7, 1x1 views", sampling="segments", consecutive=5, views="1x1"
            ),
        ),
        "tsm_50_8_ssv2": partial(
            SegmentNetwork, **TSM, num_classes=174, card=reaching("SSv2 62.72, 8 frames x 3 crops", views="1x3"),
        ),
        "tsm_50_16_ssv2": partial(
            SegmentNetwork, **TSM, num_classes=174, num_frames=16,
            card=reaching("SSv2 64.16, 16 frames x 3 crops", views="1x3"),
        ),
        "tsm_101_8_ssv2": partial(
            SegmentNetwork, **R101, **TSM, shift_every=2, num_classes=174,
            card=reaching("SSv2 63.70, 8 frames x 3 crops", views="1x3"),
        ),
    }
)  # fmt: skip
