"""C3D (Tran et al. 2015, arXiv:1412.0767): eight 3x3x3 convolutions, five max pools, three linear layers.

Pitfalls: the first pool does not reduce time; the last is padded by one in height and width, so that 7 becomes 4; there
is no batch norm. The first linear layer flattens the whole feature map, which fixes the number of frames and the image
size; published weights flatten it channels first (`convert.c3d` permutes them). The published networks take pixels of 0
to 255 minus (104, 117, 128), without a std: Caffe's means in BGR order, which mmaction2 subtracts from RGB frames. The
model returns logits, not probabilities.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.patches import check_video

LAYERS = MappingProxyType(  # name: (width relative to the first, followed by a pool)
    {
        "conv1a": (1, True), "conv2a": (2, True), "conv3a": (4, False), "conv3b": (4, True),
        "conv4a": (8, False), "conv4b": (8, True), "conv5a": (8, False), "conv5b": (8, True),
    }
)  # fmt: skip


class C3D(nn.Module):
    """The C3D classifier.

    Attributes:
      width: channels of the first convolution; the others have 2, 4 and 8 times as many.
      hidden: width of the first two linear layers.
      num_classes: None returns the features after the second linear layer and its ReLU.
      head: module applied to these features; None for a linear layer to the classes, if any.
      dropout: rate after each of the first two linear layers.
      num_frames, image_size: of the clips, fixed by the first linear layer.
    """

    width: int = 64
    hidden: int = 4096
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 16
    image_size: int = 112
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        zeros = nn.initializers.zeros_init()
        for name, (times, _) in LAYERS.items():
            conv = Conv3D(
                self.width * times, (3, 3, 3), use_bias=True, kernel_init=kaiming_normal, bias_init=zeros,
                dtype=self.dtype,
            )  # fmt: skip
            setattr(self, name, conv)
        linear = {"kernel_init": nn.initializers.normal(0.005), "dtype": self.dtype}
        self.fc6, self.fc7 = nn.Dense(self.hidden, **linear), nn.Dense(self.hidden, **linear)
        self.drop = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, **linear)

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The five pooled feature maps: all to 1/16 of the frames, 1/2 to 1/32 of the image size (112 becomes 4)."""
        check_video(video, self.channels, least=(16, 32, 32))
        made_for = (self.num_frames, self.image_size, self.image_size)
        if video.shape[1:4] != made_for:
            raise UserError(
                f"the clips have the shape {video.shape[1:4]}, but this C3D is made for {made_for}: "
                "set its fields num_frames and image_size"
            )
        x, maps = video, []
        for name, (_, pooled) in LAYERS.items():
            x = nn.relu(getattr(self, name)(x))
            if pooled:
                window = (1, 2, 2) if name == "conv1a" else (2, 2, 2)
                side = (1, 1) if name == "conv5b" else (0, 0)
                x = nn.max_pool(x, window, window, ((0, 0), side, side))
                maps.append(x)
        return tuple(maps)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`: 1/16 of the frames, 1/32 of the image size (112 becomes 4)."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b hidden"]:
        """Input of the head, without dropout: the features after the second linear layer."""
        return self._hidden(video, train, drop=False)

    def _hidden(self, video: Float[Array, "b t h w c"], train: bool, drop: bool) -> Float[Array, "b hidden"]:
        x = self.encode(video, train)
        x = x.reshape(len(x), -1)
        for layer in (self.fc6, self.fc7):
            x = nn.relu(layer(x))
            x = self.drop(x, deterministic=not train) if drop else x
        return x

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        return self.classifier(self._hidden(video, train, drop=True))


CARD = Card(
    tuple(mean / 255 for mean in (104, 117, 128)), (1 / 255,) * 3, crop_ratio=112 / 128,
    source="arXiv:1412.0767; open-mmlab/mmaction2",
    accuracy="UCF101 83.08 (fine-tuned), 10x1 views",
)  # fmt: skip

VARIANTS = MappingProxyType(
    {
        "c3d_tiny": partial(C3D, width=8, hidden=64, image_size=32),
        "c3d": partial(C3D, num_classes=487, card=CARD),
    }
)
