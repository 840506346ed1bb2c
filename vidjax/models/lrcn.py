"""LRCN (Donahue et al. 2015, arXiv:1411.4389): a convolutional network on each frame, followed by an LSTM.

The features of each frame after `fc6` are the inputs of an LSTM of 256 units, from whose output the classes are
predicted at each frame. The probabilities of the 16 frames of a clip are averaged (section 4; the paper's better
variant, LRCN-fc6).

Both networks of images are here. `hybrid` is the released one (examples/LRCN_activity_recognition of
LisaAnne/lisa-caffe-public): CaffeNet with the smaller first kernels of Zeiler and Fergus and more channels, which the
paper describes as a hybrid of the two. `caffenet` is BVLC's reference network. Neither is the single-tower AlexNet of
torchvision: the second, fourth and fifth convolution have two groups, and pools precede norms.

Pitfalls: Caffe rounds the size of pooled maps up, which matters for the hybrid's second pool (26 becomes 13). The first
linear layer flattens the map, which fixes the image size. Caffe's LSTM has the gates in another order and one bias
(`convert.lrcn`). Pixels of 0 to 255 are RGB here and BGR in Caffe, minus the means of the release's training script,
whose 128.68 for red is presumably ImageNet's 123.68 mistyped. Dropout after `fc6` is 0.9, as in the release.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D
from vidjax.layers.head import average_positions, linear_unless_passed
from vidjax.layers.normalization import local_response_norm
from vidjax.layers.patches import check_video
from vidjax.layers.recurrent import LSTM

Network = Literal["hybrid", "caffenet"]


class Layer(NamedTuple):
    """A convolution: channels, sides of the kernel, stride and padding of both axes, groups of channels."""

    features: int
    kernel: int
    stride: int
    padding: int
    groups: int


LAYERS = MappingProxyType(
    {
        "hybrid": {
            "conv1": Layer(96, 7, 2, 0, 1), "conv2": Layer(384, 5, 2, 0, 2), "conv3": Layer(512, 3, 1, 1, 1),
            "conv4": Layer(512, 3, 1, 1, 2), "conv5": Layer(384, 3, 1, 1, 2),
        },
        "caffenet": {
            "conv1": Layer(96, 11, 4, 0, 1), "conv2": Layer(256, 5, 1, 2, 2), "conv3": Layer(384, 3, 1, 1, 1),
            "conv4": Layer(384, 3, 1, 1, 2), "conv5": Layer(256, 3, 1, 1, 2),
        },
    }
)  # fmt: skip
POOLED, NORMED = ("conv1", "conv2", "conv5"), ("conv1", "conv2")


def pooled_side(side: int) -> int:
    """The side of a map after Caffe's pool of three cells with stride two, which rounds up."""
    return (side - 2) // 2 + 1


def final_side(network: Network, side: int) -> int:
    """The side of the last map for frames of this side; below one if they are too small."""
    for name, layer in LAYERS[network].items():
        side = (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        side = pooled_side(side) if name in POOLED else side
    return side


class LRCN(nn.Module):
    """The classifier.

    Attributes:
      network: see the module docstring.
      width: channels of the first convolution; those of the others are in proportion.
      hidden: width of the linear layer `fc6`.
      units: width of the LSTM.
      num_classes: None returns the mean output of the LSTM.
      head: module applied to this mean; None for a linear layer at each frame, if there are classes.
      dropout, unit_dropout: rates after `fc6` and after the LSTM.
      num_frames: that the variant was trained with; any number works.
      image_size: fixed by `fc6`.
    """

    network: Network = "hybrid"
    width: int = 96
    hidden: int = 4096
    units: int = 256
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.9
    unit_dropout: float = 0.5
    channels: int = 3
    num_frames: int = 16
    image_size: int = 227
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.network not in get_args(Network):
            raise UserError(f"network is '{self.network}': choose one of {', '.join(get_args(Network))}")
        if self.width % 6:
            raise UserError(f"width {self.width} cannot be divided among the layers: use a multiple of 6, such as 96")
        normal, constant = nn.initializers.normal(0.01), nn.initializers.constant(0.1)
        for name, layer in LAYERS[self.network].items():
            conv = Conv3D(
                layer.features * self.width // 96, (1, layer.kernel, layer.kernel), (1, layer.stride, layer.stride),
                (0, layer.padding, layer.padding), use_bias=True, kernel_init=normal, bias_init=constant,
                dtype=self.dtype, groups=layer.groups,
            )  # fmt: skip
            setattr(self, name, conv)
        self.fc6 = nn.Dense(self.hidden, kernel_init=normal, bias_init=constant, dtype=self.dtype)
        self.lstm7 = LSTM(self.units, state_bias=False)
        self.drop, self.unit_drop = nn.Dropout(self.dropout), nn.Dropout(self.unit_dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=normal, dtype=self.dtype)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The map of each frame after the last pool, 6x6 for the published size."""
        check_video(video, self.channels)
        if video.shape[2:4] != (self.image_size, self.image_size):
            raise UserError(
                f"the frames have the size {video.shape[2:4]}, but the model takes {(self.image_size,) * 2}: resize "
                "them, or set its field image_size"
            )
        if final_side(self.network, self.image_size) < 1:
            raise UserError(f"{self.image_size} pixels of height are too few for this network: use more, such as 227")
        x = video
        for name in LAYERS[self.network]:
            x = nn.relu(getattr(self, name)(x))
            if name in POOLED:
                ends = [(0, 2 * pooled_side(side) + 1 - side) for side in x.shape[2:4]]
                x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), *ends))
            x = local_response_norm(x) if name in NORMED else x
        return x

    def _states(self, video: Float[Array, "b t h w c"], train: bool, drop: bool = True) -> Float[Array, "b t d"]:
        """The LSTM's output at each frame."""
        x = self.encode(video, train)
        x = nn.relu(self.fc6(x.reshape(*x.shape[:2], -1)))
        x, _ = self.lstm7(self.drop(x, deterministic=not (train and drop)))
        x = x if self.dtype is None else x.astype(self.dtype)
        return self.unit_drop(x, deterministic=not (train and drop))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean output of the LSTM, without dropout."""
        return self._states(video, train, drop=False).mean(axis=1)

    def frames(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t classes"]:
        """The logits of each frame, whose cross-entropies are averaged in the paper's training."""
        if self.classifier is None:
            raise UserError("the model has no classes: set num_classes")
        return self.classifier(self._states(video, train))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Logarithms of the mean probabilities of the frames, `b classes`.

        With a passed head, its output for the mean output of the LSTM; without a head, that of `embed`.
        """
        if self.classifier is None:
            return self.embed(video, train)
        if self.head is not None:
            return self.classifier(self._states(video, train).mean(axis=1))
        return average_positions(self.frames(video, train)[:, :, None, None], "softmax")


CARD = Card(
    tuple(mean / 255 for mean in (128.68, 116.779, 103.939)), (1 / 255,) * 3, crop_ratio=227 / 240,
    source="arXiv:1411.4389; LisaAnne/lisa-caffe-public",
)  # fmt: skip
TINY = {  # with pixels of the scale of its kernels, which Adam's equal steps need
    "width": 6, "hidden": 256, "units": 256, "dropout": 0.0, "unit_dropout": 0.0, "num_frames": 4, "image_size": 67,
}  # fmt: skip

VARIANTS = MappingProxyType(
    {
        "lrcn_tiny": partial(LRCN, **TINY),
        "lrcn_tiny_caffenet": partial(LRCN, "caffenet", **TINY),
        "lrcn": partial(LRCN, num_classes=101, card=CARD),
        "lrcn_caffenet": partial(LRCN, "caffenet", num_classes=101, card=CARD),
    }
)
