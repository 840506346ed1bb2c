"""Inception-v1 over space and time: I3D, S3D and S3D-G.

I3D (Carreira and Zisserman 2017, arXiv:1705.07750; google-deepmind/kinetics-i3d) inflates every kernel of Inception-v1.
S3D (Xie et al. 2018, arXiv:1712.04851; torchvision's `s3d`) factorises each kernel into a spatial and a temporal one,
each with batch norm and ReLU. S3D-G gates channels by their mean over the clip: y = x * sigmoid(W mean(x) + b).

Pitfalls: I3D uses TensorFlow's SAME padding, with more padding at the end if it is uneven; torchvision's S3D pads
symmetrically and does not pad its last pool. The parameters are the same, the activations are not, and S3D checkpoints
of both kinds exist (`padding`). I3D's released batch norms have no scale; with it (`norm_scale`) there are 12,697,264
parameters. The classifier is preceded by average pooling over windows of 2x7x7 with stride 1, dropout, and the mean
over the windows, so that of more than two remaining frames the first and the last have half the weight. A window is
reduced to the size of a smaller feature map; the originals reject such clips (I3D all that do not leave 7x7).

S3D-G has a gate after every branch ("branch"), as in the authors' TensorFlow code (tensorflow/models, slim's s3dg) and
in CoCLR's "s3dg" (TengdaHan/CoCLR; the weights released there are for its "s3d", without gates, and load into `s3d`
with `epsilon=1e-5`, `norm_momentum=0.9`). "concat" is the other reading of the paper: one gate after each module.
Neither has the paper's 11.56 M parameters: they have 9,508,000 and 12,119,712. The authors' code also has a dense 3x7x7
stem, another gate after `conv_2c`, no batch norm after temporal convolutions and no biases in the gates.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, pytorch_bias, pytorch_kernel
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video

Padding = Literal["tensorflow", "symmetric"]
Gating = Literal["concat", "branch"]
Initialization = Literal["sonnet", "pytorch", "normal"]

INITIALIZERS = MappingProxyType(
    {
        # Sonnet 1: N(0, 1 / fan_in) truncated at two std, without rescaling for the truncation
        "sonnet": nn.initializers.variance_scaling(0.87962566**2, "fan_in", "truncated_normal"),
        "pytorch": pytorch_kernel,
        "normal": nn.initializers.normal(0.01),
    }
)

# Channels of branch 0; reduction and 3x3x3 of branch 1; reduction and 3x3x3 of branch 2; branch 3.
Widths = tuple[int, int, int, int, int, int]
INCEPTION_V1 = MappingProxyType(
    {
        "3b": (64, 96, 128, 16, 32, 32),
        "3c": (128, 128, 192, 32, 96, 64),
        "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64),
        "4d": (128, 128, 256, 24, 64, 64),
        "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128),
        "5b": (256, 160, 320, 32, 128, 128),
        "5c": (384, 192, 384, 48, 128, 128),
    }
)

POOLS = MappingProxyType({"4b": (3, 3, 3), "5b": (2, 2, 2)})  # max pools of stride 2 before these modules
# With symmetric padding, smaller clips leave an empty map. TensorFlow's padding leaves one that contains only padding.
LEAST_VIDEO = MappingProxyType({"tensorflow": (1, 17, 17), "symmetric": (5, 17, 17)})


def max_pool(
    x: Float[Array, "b t h w c"], window: tuple, strides: tuple, padding: Padding
) -> Float[Array, "b _ _ _ c"]:
    """Max pooling, padded with minus infinity; `symmetric` does not pad windows of 2."""
    sides = "SAME" if padding == "tensorflow" else [((size - 1) // 2,) * 2 for size in window]
    return nn.max_pool(x, window, strides, sides)


class Unit(nn.Module):
    """Convolution, batch norm and ReLU.

    Attributes:
      norm: creates the batch norm: `norm(use_running_average=..., name=...)`.
    """

    features: int
    kernel_size: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: Padding = "tensorflow"
    kernel_init: nn.initializers.Initializer = pytorch_kernel
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Returns a feature map with `features` channels."""
        sides = "SAME" if self.padding == "tensorflow" else None
        x = Conv3D(
            self.features, self.kernel_size, self.strides, sides,
            kernel_init=self.kernel_init, dtype=self.dtype, name="conv",
        )(x)  # fmt: skip
        return nn.relu(self.norm(use_running_average=not train, name="norm")(x))


class Separable(nn.Module):
    """A spatial `Unit` followed by a temporal one.

    Attributes:
      unit: creates a `Unit` with the settings of the network.
    """

    features: int
    kernel_size: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    unit: Callable[..., nn.Module] = Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Returns a feature map with `features` channels."""
        (kt, kh, kw), (st, sh, sw) = self.kernel_size, self.strides
        x = self.unit(self.features, (1, kh, kw), (1, sh, sw), name="spatial")(x, train)
        return self.unit(self.features, (kt, 1, 1), (st, 1, 1), name="temporal")(x, train)


class Gate(nn.Module):
    """Multiplies each channel by a gate in (0, 1), computed from the means of all channels over the clip."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`."""
        width = x.shape[-1]
        linear = nn.Dense(
            width, kernel_init=pytorch_kernel, bias_init=pytorch_bias(width), dtype=self.dtype, name="linear"
        )
        return x * nn.sigmoid(linear(x.mean(axis=(1, 2, 3), keepdims=True)))


class Inception(nn.Module):
    """Four parallel branches: pointwise; twice a reduction and a 3x3x3 convolution; max pool and pointwise.

    Attributes:
      widths: see `Widths`.
      unit: creates a pointwise convolution.
      convolution: creates a 3x3x3 convolution: `Unit` in I3D, `Separable` in S3D.
      gate: creates a gate, used with `gating`.
    """

    widths: Widths
    unit: Callable[..., nn.Module]
    convolution: Callable[..., nn.Module]
    gate: Callable[..., nn.Module]
    gating: Gating | None = None
    padding: Padding = "tensorflow"

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t h w d"]:
        """Returns the concatenated feature maps of the branches."""
        width0, reduce1, width1, reduce2, width2, width3 = self.widths
        cube = (3, 3, 3)
        reduced1 = self.unit(reduce1, name="branch1_reduce")(x, train)
        reduced2 = self.unit(reduce2, name="branch2_reduce")(x, train)
        pooled = max_pool(x, cube, (1, 1, 1), self.padding)
        branches = [
            self.unit(width0, name="branch0")(x, train),
            self.convolution(width1, cube, name="branch1")(reduced1, train),
            self.convolution(width2, cube, name="branch2")(reduced2, train),
            self.unit(width3, name="branch3")(pooled, train),
        ]
        if self.gating == "branch":
            branches = [self.gate(name=f"gate{i}")(branch) for i, branch in enumerate(branches)]
        x = jnp.concatenate(branches, axis=-1)
        return self.gate(name="gate")(x) if self.gating == "concat" else x


class Inception3D(nn.Module):
    """I3D, S3D (`separable`) or S3D-G (`separable` and `gating`).

    Attributes:
      separable: replaces each 3-D convolution by a spatial and a temporal one.
      gating: position of S3D-G's gates; None for no gates.
      padding: of convolutions and max pools: TensorFlow's SAME, or symmetric.
      norm_scale: whether batch norms have a scale in addition to the bias.
      epsilon, norm_momentum: of the batch norms; momentum in Flax's convention, the weight of the old statistics.
      initialization: of the kernels: Sonnet's default, PyTorch's default, or N(0, 0.01).
      width_multiplier: factor on all channels.
      num_classes: None returns the mean of the windows.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on the means of the windows, before the head.
      num_frames, image_size: of the clips that the variant is meant for; any size from `LEAST_VIDEO` up also works.
    """

    separable: bool = False
    gating: Gating | None = None
    padding: Padding = "tensorflow"
    norm_scale: bool = False
    epsilon: float = 1e-3
    norm_momentum: float = 0.999
    initialization: Initialization = "sonnet"
    width_multiplier: float = 1.0
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    channels: int = 3
    num_frames: int = 64
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, named like the parameters; `mixed` contains `mixed_3b` to `mixed_5c`."""
        choices = {"gating": (None, "concat", "branch"), "padding": LEAST_VIDEO, "initialization": INITIALIZERS}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise UserError(f"{field} is '{getattr(self, field)}': choose one of {', '.join(map(str, known))}")
        kernel_init = INITIALIZERS[self.initialization]
        norm = partial(
            BatchNorm, momentum=self.norm_momentum, epsilon=self.epsilon, use_scale=self.norm_scale, dtype=self.dtype
        )
        unit = partial(Unit, padding=self.padding, kernel_init=kernel_init, norm=norm, dtype=self.dtype)
        convolution = partial(Separable, unit=unit) if self.separable else unit
        gate = partial(Gate, self.dtype)
        self.conv_1a = convolution(self._channels(64), (7, 7, 7), (2, 2, 2))
        self.conv_2b = unit(self._channels(64))
        self.conv_2c = convolution(self._channels(192), (3, 3, 3))
        self.mixed = {
            name: Inception(tuple(map(self._channels, widths)), unit, convolution, gate, self.gating, self.padding)
            for name, widths in INCEPTION_V1.items()
        }
        width0, _, width1, _, width2, width3 = map(self._channels, INCEPTION_V1["5c"])
        pytorch = self.initialization == "pytorch"
        bias_init = pytorch_bias(width0 + width1 + width2 + width3) if pytorch else nn.initializers.zeros_init()
        linear = {"kernel_init": kernel_init, "bias_init": bias_init, "dtype": self.dtype}
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, **linear)

    def _channels(self, published: int) -> int:
        return max(1, round(published * self.width_multiplier))

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map before each pool, and the last: 1/2 to 1/8 of the frames, 1/2 to 1/32 of height and width."""
        check_video(video, self.channels, least=LEAST_VIDEO[self.padding])
        x = self.conv_1a(video, train)
        maps = [x]
        x = max_pool(x, (1, 3, 3), (1, 2, 2), self.padding)
        x = self.conv_2c(self.conv_2b(x, train), train)
        maps.append(x)
        x = max_pool(x, (1, 3, 3), (1, 2, 2), self.padding)
        for name, module in self.mixed.items():
            if name in POOLS:
                maps.append(x)
                x = max_pool(x, POOLS[name], (2, 2, 2), self.padding)
            x = module(x, train)
        return *maps, x

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`: 1/8 of the frames and 1/32 of height and width."""
        return self.stages(video, train)[-1]

    def windows(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Averages of the last feature map over windows of 2x7x7."""
        x = self.encode(video, train)
        window = tuple(min(most, side) for most, side in zip((2, 7, 7), x.shape[1:4], strict=True))
        return nn.avg_pool(x.astype(jnp.float32), window, (1, 1, 1), "VALID").astype(x.dtype)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head, without dropout: the mean of the windows."""
        return self.windows(video, train).mean(axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        # Equal to the original's 1x1x1 convolution of every window followed by their mean, as the head is linear.
        windows = self.head_dropout(self.windows(video, train), deterministic=not train)
        return self.classifier(windows.mean(axis=(1, 2, 3)))


def two_stream(rgb: Float[Array, "b classes"], flow: Float[Array, "b classes"]) -> Float[Array, "b classes"]:
    """Logits of two-stream I3D: the sum of those of the separately trained RGB and flow models."""
    return rgb + flow


I3D_SOURCE = "google-deepmind/kinetics-i3d"
I3D_TEST = "(both streams 74.2), test set, all frames, one crop"
I3D_RGB_CARD = Card((0.5,) * 3, (0.5,) * 3, crop_ratio=224 / 256, source=I3D_SOURCE, accuracy=f"K400 71.1 {I3D_TEST}")
# The input is TV-L1 flow in pixels (horizontal, vertical), clipped to +-20 and divided by 20. In uint8, -20 is stored
# as 0 and 20 as 255, so that it is normalised like pixels.
I3D_FLOW_CARD = Card((0.5,) * 2, (0.5,) * 2, crop_ratio=224 / 256, source=I3D_SOURCE, accuracy=f"K400 63.4 {I3D_TEST}")
S3D_CARD = Card(
    (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989), stride=2, crop_ratio=224 / 256,
    source="torchvision", accuracy="K400 68.368, 1x1 views of 128 frames",
)  # fmt: skip
S3DG_CARD = Card(source="TengdaHan/CoCLR")

S3D = {
    "separable": True, "padding": "symmetric", "norm_scale": True, "initialization": "pytorch", "dropout": 0.2,
    "num_frames": 128, "card": S3D_CARD,
}  # fmt: skip
TINY = {"width_multiplier": 0.125, "num_frames": 16, "image_size": 32, "card": Card()}

VARIANTS = MappingProxyType(
    {
        "i3d_tiny": partial(Inception3D, **TINY, norm_momentum=0.9),
        "i3d_tiny_flow": partial(
            Inception3D, **TINY | {"card": Card((0.5,) * 2, (0.5,) * 2)}, channels=2, norm_momentum=0.9
        ),
        "i3d_rgb": partial(Inception3D, num_classes=400, card=I3D_RGB_CARD),
        "i3d_flow": partial(Inception3D, num_classes=400, channels=2, card=I3D_FLOW_CARD),
        "s3d_tiny": partial(Inception3D, **S3D | TINY, norm_momentum=0.9),
        "s3d": partial(Inception3D, **S3D, num_classes=400),
        "s3dg": partial(
            Inception3D,
            **S3D | {"gating": "branch", "initialization": "normal", "num_frames": 64, "card": S3DG_CARD},
            num_classes=400,
        ),
    }
)
