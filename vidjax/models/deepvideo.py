"""DeepVideo (Karpathy et al. 2014, Large-scale Video Classification with Convolutional Neural Networks, CVPR).

An AlexNet on videos, with four ways of fusing the frames of a clip:
  single   one frame
  early    the first kernel spans ten frames
  late     two towers with shared parameters see frames 15 apart; the first linear layer sees both
  slow     ten frames become 4, 2 and 1 by kernels of 4, 2 and 2 frames with stride 2 in the first three convolutions
With `multiresolution`, two networks with parameters of their own see the frame at half the resolution (context) and its
central quarter (fovea); they lack the last pool, so that their maps have the size of the whole network's, 7x7.

In the paper's notation each network is C(96,11,3)-N-P-C(256,5,1)-N-P-C(384,3,1)-C(384,3,1)-C(256,3,1)-P-FC(4096)-
FC(4096): channels, side and stride of convolutions, each followed by a ReLU; pools of 2x2 without overlap; the local
response norm of Krizhevsky et al. with k = 2, n = 5, alpha = 1e-4 (times the sum of squares) and beta = 0.5.

No code was published. The paper does not give the padding: half the kernel, which gives 7x7 for frames of 170 as for
streams of 89, as it states. Nor how the context is reduced (here the mean of 2x2 pixels), nor dropout in this training
(here that of Krizhevsky et al.). The first linear layer flattens the map, which fixes the clip's size.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import local_response_norm
from vidjax.layers.patches import check_video

Fusion = Literal["single", "early", "late", "slow"]


class Layer(NamedTuple):
    """A convolution: channels as multiples of `width`, side and stride in space."""

    features: int
    kernel: int
    stride: int


LAYERS = MappingProxyType(
    {
        "conv1": Layer(3, 11, 3), "conv2": Layer(8, 5, 1), "conv3": Layer(12, 3, 1), "conv4": Layer(12, 3, 1),
        "conv5": Layer(8, 3, 1),
    }
)  # fmt: skip
FRAMES = MappingProxyType({"single": 1, "early": 10, "late": 16, "slow": 10})
# Frames that a kernel spans, and its stride over time; without padding. Other kernels span one frame.
IN_TIME = MappingProxyType(
    {
        "single": {}, "early": {"conv1": (10, 1)}, "late": {},
        "slow": {"conv1": (4, 2), "conv2": (2, 2), "conv3": (2, 2)},
    }
)  # fmt: skip


def fovea(video: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ c"]:
    """The central half of height and width."""
    height, width = video.shape[2] // 2, video.shape[3] // 2
    top, left = height - height // 2, width - width // 2
    return video[:, :, top : top + height, left : left + width]


def context(video: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ c"]:
    """The whole frame at half its height and width."""
    return nn.avg_pool(video, (1, 2, 2), (1, 2, 2))


class DeepVideo(nn.Module):
    """The classifier.

    Attributes:
      fusion, multiresolution: see the module docstring.
      width: of which the convolutions have 3, 8, 12, 12 and 8 times as many channels.
      hidden: width of the two linear layers.
      num_classes: None returns the features after the second linear layer and its ReLU.
      head: module applied to these features; None for a linear layer to the classes, if any.
      dropout: rate after each of the two linear layers.
      num_frames: given by the fusion.
      image_size: fixed by the first linear layer.
    """

    fusion: Fusion = "single"
    multiresolution: bool = False
    width: int = 32
    hidden: int = 4096
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 1
    image_size: int = 170
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.fusion not in get_args(Fusion):
            raise UserError(f"fusion is '{self.fusion}': choose one of {', '.join(get_args(Fusion))}")
        self.streams = {"fovea_": fovea, "context_": context} if self.multiresolution else {"": lambda video: video}
        normal = nn.initializers.normal(0.01)
        for stream in self.streams:
            for name, layer in LAYERS.items():
                span, stride = IN_TIME[self.fusion].get(name, (1, 1))
                conv = Conv3D(
                    layer.features * self.width, (span, layer.kernel, layer.kernel),
                    (stride, layer.stride, layer.stride), (0, layer.kernel // 2, layer.kernel // 2), use_bias=True,
                    kernel_init=normal, bias_init=nn.initializers.zeros_init(), dtype=self.dtype,
                )  # fmt: skip
                setattr(self, stream + name, conv)
        self.fc6, self.fc7 = (nn.Dense(self.hidden, kernel_init=normal, dtype=self.dtype) for _ in range(2))
        self.drop = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=normal, dtype=self.dtype)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The map before the linear layers, with the channels of both streams; of two frames for `late`, else of one.

        Raises:
          UserError: the clip has another size than the model is made for, or too few frames for the fusion.
        """
        least = 20 if self.multiresolution else 22
        check_video(video, self.channels, least=(1, least, least))
        frames = FRAMES[self.fusion]
        if video.shape[1] != frames:
            raise UserError(
                f"the clip has {video.shape[1]} frames, but for {self.fusion} fusion the model takes {frames}: give as "
                "many, or choose another fusion"
            )
        if video.shape[2:4] != (self.image_size, self.image_size):
            raise UserError(
                f"the frames have the size {video.shape[2:4]}, but the model takes {(self.image_size,) * 2}: resize "
                "them, or set its field image_size"
            )
        video = video[:, :: FRAMES["late"] - 1] if self.fusion == "late" else video
        return jnp.concatenate([self._stream(name, see(video)) for name, see in self.streams.items()], axis=-1)

    def _stream(self, prefix: str, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ d"]:
        """The convolutions of one stream."""
        for name in LAYERS:
            x = nn.relu(getattr(self, prefix + name)(x))
            if name in ("conv1", "conv2"):
                x = local_response_norm(x, 5, 5 * 1e-4, 0.5, 2.0)
            if name in ("conv1", "conv2") or (name == "conv5" and not self.multiresolution):
                x = nn.max_pool(x, (1, 2, 2), (1, 2, 2))
        return x

    def _hidden(self, video: Float[Array, "b t h w c"], train: bool, drop: bool) -> Float[Array, "b hidden"]:
        x = self.encode(video, train)
        x = x.reshape(len(x), -1)
        for layer in (self.fc6, self.fc7):
            x = nn.relu(layer(x))
            x = self.drop(x, deterministic=not train) if drop else x
        return x

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b hidden"]:
        """Input of the head, without dropout: the features after the second linear layer."""
        return self._hidden(video, train, drop=False)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        return self.classifier(self._hidden(video, train, drop=True))


def reaching(hit: float, crop_ratio: float = 170 / 200) -> Card:
    """The card of a network with this accuracy, over 20 random clips with 4 crops each."""
    return Card(
        (117 / 255,) * 3, (1 / 255,) * 3, crop_ratio=crop_ratio, source="Karpathy et al. 2014",
        accuracy=f"Sports-1M hit@1 {hit}, 20x4 views",
    )  # fmt: skip


TINY = {"width": 2, "hidden": 16, "dropout": 0.0, "image_size": 32}
SPORTS = {"num_classes": 487}

VARIANTS = MappingProxyType(
    {
        "deepvideo_tiny_early": partial(DeepVideo, "early", **TINY, num_frames=10),
        "deepvideo_tiny_late": partial(DeepVideo, "late", **TINY | {"hidden": 128}, num_frames=16),
        "deepvideo_tiny_single": partial(DeepVideo, "single", **TINY),
        "deepvideo_tiny_slow": partial(DeepVideo, "slow", **TINY, num_frames=10),
        "deepvideo_tiny_multiresolution": partial(DeepVideo, "slow", True, **TINY | {"image_size": 64}, num_frames=10),
        "deepvideo_single": partial(DeepVideo, "single", **SPORTS, card=reaching(59.3)),
        "deepvideo_early": partial(DeepVideo, "early", **SPORTS, num_frames=10, card=reaching(57.7)),
        "deepvideo_late": partial(DeepVideo, "late", **SPORTS, num_frames=16, card=reaching(59.3)),
        "deepvideo_slow": partial(DeepVideo, "slow", **SPORTS, num_frames=10, card=reaching(60.9)),
        "deepvideo_single_multiresolution": partial(
            DeepVideo, "single", True, **SPORTS, image_size=178, card=reaching(60.0, 178 / 200),
        ),
    }
)  # fmt: skip
