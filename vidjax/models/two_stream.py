"""Two-stream networks (Simonyan and Zisserman 2014, Two-Stream Convolutional Networks for Action Recognition in Videos,
arXiv:1406.2199): CNN-M-2048 for a frame, and for the stacked optical flow of ten.

The spatial net sees single frames, the temporal net 2L channels: x and y of L fields of flow, from each of which its
mean is taken off. They are trained one by one (`finetune.py`, with `--data.stream flow` for the temporal one), and
their scores are fused late (`fuse.py`). Instead of at the same pixel, the fields can be sampled along trajectories;
the paper found that a little worse.

Fused early (Feichtenhofer, Pinz and Zisserman 2016, Convolutional Two-Stream Network Fusion for Video Action
Recognition, arXiv:1604.06573), both are one network: after the ReLU of a convolution, in that paper best the last, the
maps of the spatial and the temporal net are added (sum), the larger is taken (max), they are stacked along the channels
(concatenation), or this stack is convolved with kernels of 1x1 to as many channels as one of them (convolution). The
spatial net goes on from there. Its clips have five channels, frames and flow (`--data.stream video+flow`).

In the paper's notation: C(7,96,/2)-N-P-C(5,256,/2)-N-P-C(3,512)-C(3,512)-C(3,512)-P-F4096-F2048, ReLU after each, pools
of 2x2, dropout after both linear layers. The temporal net lacks the second norm. The paper does not say how the local
response norm is set (here Krizhevsky's k = 2, n = 5, alpha = 1e-4, beta = 0.75) nor the padding: here that of CNN-M
(Chatfield et al. 2014, arXiv:1405.3531), 0, 1, 1, 1, 1, which gives maps of 6x6 for frames of 224. The first linear
layer flattens the map, which fixes the size.
"""

from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import FLOW_BOUND, IMAGENET_MEAN, IMAGENET_STD, Card
from vidjax.layers.convolution import Conv3D
from vidjax.layers.flow import stack_frames, stack_trajectories, subtract_mean
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import local_response_norm
from vidjax.layers.patches import check_video

LAYERS = ((1, 7, 2, 0), (8 / 3, 5, 2, 1), (16 / 3, 3, 1, 1), (16 / 3, 3, 1, 1), (16 / 3, 3, 1, 1))
"""Of the convolutions: channels as multiples of the first one's, side, stride and padding."""


Fusion = Literal["sum", "max", "concatenation", "convolution"]
Initialization = Literal["normal", "he"]


def weighted_sum(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Float[Array, "i o"]:
    """The first kernel of fusion by convolution: a quarter of the spatial map and three of the temporal one.

    So begins the network that the authors released (github.com/feichtenhofer/twostreamfusion).
    """
    same = jnp.eye(shape[1], dtype=dtype)
    return jnp.concatenate([same / 4, 3 * same / 4])


class CNNM(nn.Module):
    """The classifier of one stream, or of both.

    Attributes:
      fusion: how the maps of both streams are fused, see the module docstring; None for one stream. The spatial net
        sees the middle one of the frames that are stacked, and its parameters have the same names as alone.
      fusion_layer: number of the convolution after which they are fused, 1 to 5.
      stack: frames of a clip that are stacked along the channels; a clip of `t` frames gives `t / stack` maps, whose
        features are averaged.
      flow: whether the frames are optical flow, or end in it, from which the mean is taken off.
      trajectories: whether flow is stacked along trajectories; the flow must be in pixels of the clip, so that frames
        that are enlarged or shrunk after the flow was stored are followed too slowly or too fast.
      second_norm: the local response norm after the second convolution.
      width: of the first convolution.
      hidden: widths of the two linear layers.
      num_classes: None returns the features after the second linear layer and its ReLU.
      head: module applied to these features; None for a linear layer to the classes, if any.
      dropout: rate after each of the two linear layers.
      initialization: of the kernels: normal with a standard deviation of 0.01, or that of He et al. 2015.
      num_frames: of the clips that the row was trained on; any multiple of `stack` works.
      image_size: fixed by the first linear layer.
    """

    fusion: Fusion | None = None
    fusion_layer: int = 5
    stack: int = 1
    flow: bool = False
    trajectories: bool = False
    second_norm: bool = True
    width: int = 96
    hidden: tuple[int, int] = (4096, 2048)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    initialization: Initialization = "normal"
    channels: int = 3
    num_frames: int = 1
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.trajectories and not self.flow:
            raise UserError("trajectories are those of optical flow: set flow=True, or leave them out")
        if self.fusion not in (None, *get_args(Fusion)):
            raise UserError(f"fusion is '{self.fusion}': choose one of {', '.join(get_args(Fusion))}, or None")
        if not 1 <= self.fusion_layer <= len(LAYERS):
            raise UserError(f"fusion_layer is {self.fusion_layer}: it must be 1 to {len(LAYERS)}")
        if self.initialization not in get_args(Initialization):
            raise UserError(
                f"initialization is '{self.initialization}': choose {' or '.join(get_args(Initialization))}"
            )
        # A standard deviation of 0.01 preserves the scale over hundreds of channels, and loses it over few.
        kernel_init = nn.initializers.normal(0.01) if self.initialization == "normal" else nn.initializers.he_normal()

        def convolutions(count: int) -> list[nn.Module]:
            return [
                Conv3D(
                    round(times * self.width), (1, side, side), (1, stride, stride), (0, padding, padding),
                    use_bias=True, kernel_init=kernel_init, bias_init=nn.initializers.zeros_init(), dtype=self.dtype,
                )
                for times, side, stride, padding in LAYERS[:count]
            ]  # fmt: skip

        self.conv = convolutions(len(LAYERS))
        self.temporal_conv = convolutions(self.fusion_layer if self.fusion else 0)
        if self.fusion == "convolution":
            number = self.fusion_layer - 1
            width = round(LAYERS[number][0] * self.width)
            self.mix = nn.Dense(width, kernel_init=weighted_sum, name=f"fusion_{number}", dtype=self.dtype)
        self.fc6, self.fc7 = (nn.Dense(width, kernel_init=kernel_init, dtype=self.dtype) for width in self.hidden)
        self.drop = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=kernel_init, dtype=self.dtype)

    def _stacked(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b n h w d"]:
        """The images that the first convolution of a stream sees."""
        if video.shape[1] % self.stack:
            raise UserError(
                f"{video.shape[1]} frames cannot be stacked by {self.stack}: use a multiple of {self.stack}, such as "
                f"{max(1, video.shape[1] // self.stack) * self.stack}"
            )
        if not self.flow:
            return stack_frames(video, self.stack)
        if not self.trajectories:
            return stack_frames(subtract_mean(video), self.stack)
        along = stack_trajectories(video, self.stack, 2 * FLOW_BOUND * self.card.std[-1])
        return along - stack_frames(video.mean(axis=(2, 3), keepdims=True), self.stack)

    def _fused(
        self, spatial: Float[Array, "b n h w d"], temporal: Float[Array, "b n h w d"]
    ) -> Float[Array, "b n h w _"]:
        if self.fusion == "sum":
            return spatial + temporal
        if self.fusion == "max":
            return jnp.maximum(spatial, temporal)
        both = jnp.concatenate([spatial, temporal], axis=-1)
        return both if self.fusion == "concatenation" else nn.relu(self.mix(both))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The map before the linear layers, of each stack of frames.

        Raises:
          UserError: the clip has another size than the model is made for, or its frames cannot be stacked.
        """
        check_video(video, self.channels, least=(1, 32, 32))
        if video.shape[2:4] != (self.image_size, self.image_size):
            raise UserError(
                f"the frames have the size {video.shape[2:4]}, but the model takes {(self.image_size,) * 2}: resize "
                "them, or set its field image_size"
            )
        if self.fusion:
            flow = self._stacked(video[..., 3:])
            x = video[:, self.stack // 2 :: self.stack, ..., :3]
        else:
            x = self._stacked(video)
        for number, conv in enumerate(self.conv):
            x = nn.relu(conv(x))
            if number < len(self.temporal_conv):
                flow = nn.relu(self.temporal_conv[number](flow))
                if number == self.fusion_layer - 1:
                    x = self._fused(x, flow)
                flow = norm_and_pool(flow, number, second_norm=False)
            x = norm_and_pool(x, number, self.second_norm)
        return x

    def _hidden(self, video: Float[Array, "b t h w c"], train: bool, drop: bool) -> Float[Array, "b hidden"]:
        x = self.encode(video, train)
        x = x.reshape(*x.shape[:2], -1)
        for layer in (self.fc6, self.fc7):
            x = nn.relu(layer(x))
            x = self.drop(x, deterministic=not train) if drop else x
        return x.mean(axis=1)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b hidden"]:
        """Input of the head, without dropout: the features after the second linear layer."""
        return self._hidden(video, train, drop=False)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        return self.classifier(self._hidden(video, train, drop=True))


def norm_and_pool(x: Float[Array, "b n h w d"], number: int, second_norm: bool) -> Float[Array, "b n _ _ d"]:
    """What follows the ReLU of a convolution."""
    if number == 0 or (number == 1 and second_norm):
        x = local_response_norm(x, 5, 5 * 1e-4, 0.75, 2.0)
    return nn.max_pool(x, (1, 2, 2), (1, 2, 2)) if number in (0, 1, 4) else x


def join_streams(variables: dict[str, Any], spatial: dict[str, Any], temporal: dict[str, Any]) -> dict[str, Any]:
    """The variables of an early fusion whose streams have been trained one by one, as its paper begins.

    Args:
      variables: of the fused network; its head, its fusion, and a first linear layer of other shape are kept.
      spatial, temporal: of the networks of one stream.
    """
    params = dict(variables["params"])
    known = dict(spatial["params"]) | {f"temporal_{name}": value for name, value in temporal["params"].items()}
    for name in params.keys() & known.keys() - {"head"}:
        if jax.tree.map(jnp.shape, params[name]) == jax.tree.map(jnp.shape, known[name]):
            params[name] = known[name]
    return variables | {"params": params}


SOURCE = "Simonyan and Zisserman 2014"
# 25 frames of a video, each with its corners, its centre, and their mirror images.
TESTED = {"crop_ratio": 224 / 256, "protocol": "mmaction2", "views": "25x10", "source": SOURCE}


def of_flow(**tested: str) -> Card:
    """The card of a temporal net: levels of stored flow around the middle."""
    return Card((0.5,) * 2, (1 / 255,) * 2, **TESTED | tested)


FLOW = {"channels": 2, "stack": 10, "num_frames": 10, "flow": True, "second_norm": False}
FUSED_CARD = Card(
    (*IMAGENET_MEAN, 0.5, 0.5), (*IMAGENET_STD, 1 / 255, 1 / 255), crop_ratio=224 / 256,
    source="Feichtenhofer, Pinz and Zisserman 2016",
)  # fmt: skip
FUSED = {"channels": 5, "stack": 10, "num_frames": 10, "flow": True, "card": FUSED_CARD}
UCF = {"num_classes": 101}
TINY = {"width": 6, "hidden": (32, 16), "image_size": 64, "dropout": 0.0, "initialization": "he"}

VARIANTS = MappingProxyType(
    {
        "two_stream_tiny_rgb": partial(CNNM, **TINY),
        "two_stream_tiny_flow": partial(CNNM, **TINY | FLOW | {"stack": 4, "num_frames": 4}, card=of_flow()),
        "two_stream_tiny_trajectories": partial(
            CNNM, **TINY | FLOW | {"stack": 4, "num_frames": 4}, trajectories=True, card=of_flow(),
        ),
        "two_stream_tiny_sum": partial(CNNM, **TINY | FUSED | {"stack": 4, "num_frames": 4}, fusion="sum"),
        "two_stream_tiny_max": partial(CNNM, **TINY | FUSED | {"stack": 4, "num_frames": 4}, fusion="max"),
        "two_stream_tiny_concatenation": partial(
            CNNM, **TINY | FUSED | {"stack": 4, "num_frames": 4}, fusion="concatenation"
        ),
        "two_stream_tiny_convolution": partial(
            CNNM, **TINY | FUSED | {"stack": 4, "num_frames": 4}, fusion="convolution"
        ),
        "two_stream_rgb": partial(
            CNNM, **UCF, dropout=0.9, card=Card(accuracy="UCF101 split 1 72.7, 25x10 views", **TESTED),
        ),
        "two_stream_flow": partial(
            CNNM, **UCF | FLOW, dropout=0.9, card=of_flow(accuracy="UCF101 split 1 81.0, 25x10 views"),
        ),
        "two_stream_trajectories": partial(
            CNNM, **UCF | FLOW, dropout=0.9, trajectories=True,
            card=of_flow(accuracy="UCF101 split 1 80.2, 25x10 views"),
        ),
        "two_stream_sum": partial(CNNM, **UCF | FUSED, dropout=0.9, fusion="sum"),
        "two_stream_max": partial(CNNM, **UCF | FUSED, dropout=0.9, fusion="max"),
        "two_stream_concatenation": partial(CNNM, **UCF | FUSED, dropout=0.9, fusion="concatenation"),
        "two_stream_convolution": partial(CNNM, **UCF | FUSED, dropout=0.9, fusion="convolution"),
    }
)  # fmt: skip
