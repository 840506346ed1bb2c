"""C3D (Tran et al. 2015, arXiv:1412.0767): eight 3x3x3 convolutions, five max pools, three linear maps.

Traps: the first pool leaves time alone; the last is padded by one in height and width, so that 7 become 4; there is no
batch norm; the first linear map reads the whole feature map, which fixes frames and size, and the published ones read
it channels first (`convert.c3d` permutes them). The published networks see values of 0 to 255 less (104, 117, 128), no
deviation: Caffe's means in BGR order, which mmaction2 subtracts from RGB frames. The call gives logits, not shares.
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

LAYERS = MappingProxyType(  # name: (width in units of the first, pooled after)
    {
        "conv1a": (1, True), "conv2a": (2, True), "conv3a": (4, False), "conv3b": (4, True),
        "conv4a": (8, False), "conv4b": (8, True), "conv5a": (8, False), "conv5b": (8, True),
    }
)  # fmt: skip


class C3D(nn.Module):
    """The classifier.

    Attributes:
      width: of the first convolution; the others are 2, 4 and 8 times as wide.
      hidden: of the first two linear maps.
      num_classes: None gives what the second linear map makes, after its ReLU.
      head: takes these features to whatever its task wants; None for a linear map to the classes, if there are any.
      dropout: after each of these two.
      num_frames, image_size: of the clips, which the first linear map fixes.
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
        """Attributes here name the parameters."""
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
        """The five pooled maps: all to a 16th of the frames, half to a 32nd of the size (112 gives 4)."""
        check_video(video, self.channels, least=(16, 32, 32))
        made_for = (self.num_frames, self.image_size, self.image_size)
        if video.shape[1:4] != made_for:
            raise UserError(
                f"clips of {video.shape[1:4]} were given to a C3D made for {made_for}: "
                "see its fields num_frames and image_size"
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
        """The last of the `stages`: a sixteenth of the frames, a thirty-second of the size (112 gives 4)."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b hidden"]:
        """What the head sees, but for dropout: the features after the second linear map."""
        return self._hidden(video, train, drop=False)

    def _hidden(self, video: Float[Array, "b t h w c"], train: bool, drop: bool) -> Float[Array, "b hidden"]:
        x = self.encode(video, train)
        x = x.reshape(len(x), -1)
        for layer in (self.fc6, self.fc7):
            x = nn.relu(layer(x))
            x = self.drop(x, deterministic=not train) if drop else x
        return x

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head gives, by default logits `b classes`; without a head what `embed` gives."""
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
