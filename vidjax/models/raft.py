"""RAFT (Teed and Deng 2020, arXiv:2003.12039): optical flow between the consecutive frames of a video.

Features of both frames are correlated at all pairs of places of an eighth of the resolution. A recurrent unit looks up
the correlations around where the flow points so far, at four scales, and corrects the flow, starting from zero.

Pitfalls of the published code, which torchvision's follows: channels of a looked-up neighbourhood are ordered by x,
then y; convolutions before norms have biases; the context encoder of the small model has no norm; the flow is not
differentiated from one update to the next; the large model upsamples by weights that it predicts, the small one
bilinearly, with corners on corners. torchvision asks for frames of 128 pixels or more, as its sampling divides by the
side of the coarsest map minus one, which is not done here.
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.normalization import BatchNorm
from vidjax.layers.patches import check_video, grid

SIDE = 8  # of a place, in pixels
LEVELS = 4  # scales of the correlations
MASK_GAIN = 0.25  # of the predicted weights of upsampling, which lessens their gradients
Norm = Literal["instance", "batch", "none"]


def convolution(
    features: int, kernel: tuple[int, int], name: str, dtype: DTypeLike | None, stride: int = 1, **fields
) -> Conv3D:
    """A convolution of each frame, with a bias."""
    return Conv3D(features, (1, *kernel), (1, stride, stride), use_bias=True, dtype=dtype, name=name, **fields)


def instance_norm(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Normalises each channel of each frame, without parameters; statistics are float32 or higher."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = y.mean(axis=(2, 3), keepdims=True), y.var(axis=(2, 3), keepdims=True)
    return ((y - mean) * lax.rsqrt(variance + 1e-5)).astype(x.dtype)


class Block(nn.Module):
    """A residual block: two convolutions of 3x3, or in a bottleneck 1x1, 3x3 and 1x1, with ReLU after every one.

    Attributes:
      stride: other than one, the shortcut is a convolution too.
    """

    width: int
    stride: int
    bottleneck: bool
    norm: Norm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """A map of the block's width."""
        inner = self.width // 4
        layers = ((self.width, 3, self.stride), (self.width, 3, 1))
        if self.bottleneck:
            layers = ((inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1))
        normed = partial(NormedConvolution, norm=self.norm, dtype=self.dtype)
        shortcut = x if self.stride == 1 else normed(self.width, 1, self.stride, name="shortcut")(x, train)
        for number, layer in enumerate(layers, start=1):
            x = nn.relu(normed(*layer, name=f"conv{number}")(x, train))
        return nn.relu(shortcut + x)


class NormedConvolution(nn.Module):
    """A convolution and its norm."""

    features: int
    side: int
    stride: int
    norm: Norm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The normalised map."""
        sides = (self.side, self.side)
        x = convolution(self.features, sides, "conv", self.dtype, self.stride, kernel_init=kaiming_normal)(x)
        if self.norm == "batch":
            return BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        return instance_norm(x) if self.norm == "instance" else x


class Encoder(nn.Module):
    """Features of each frame at an eighth of its resolution.

    Attributes:
      widths: of the first convolution, the three groups of two blocks, and the output.
    """

    widths: tuple[int, int, int, int, int]
    bottleneck: bool
    norm: Norm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The features."""
        x = nn.relu(NormedConvolution(self.widths[0], 7, 2, self.norm, self.dtype, name="stem")(video, train))
        for group, width in enumerate(self.widths[1:4], start=1):
            for i in range(2):
                stride = 2 if group > 1 and i == 0 else 1
                x = Block(width, stride, self.bottleneck, self.norm, self.dtype, name=f"layer{group}_{i}")(x, train)
        return convolution(self.widths[4], (1, 1), "output", self.dtype, kernel_init=kaiming_normal)(x)


def bilinear(place: Float[Array, "*n"], size: int) -> Float[Array, "*n s"]:
    """Weights of the cells 0 to size - 1 for linear interpolation at a place; there are zeros outside of them."""
    return jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(size)), 0)


def correlate(
    first: Float[Array, "b t h w d"], second: Float[Array, "b t h w d"]
) -> tuple[Float[Array, "b t h w _ _"], ...]:
    """Correlations of every place of one frame with all of the other, in scales that each halve the other's map."""
    volume = jnp.einsum("bthwd,btyxd->bthwyx", first, second, precision="highest") / first.shape[-1] ** 0.5
    volumes = [volume]
    for _ in range(LEVELS - 1):
        _, _, _, _, rows, columns = volumes[-1].shape
        even = volumes[-1][..., : rows // 2 * 2, : columns // 2 * 2]
        volumes.append(einops.reduce(even, "b t h w (y p) (x q) -> b t h w y x", "mean", p=2, q=2))
    return tuple(volumes)


def look_up(
    volumes: Sequence[Float[Array, "b t h w _ _"]], places: Float[Array, "b t h w 2"], radius: int
) -> Float[Array, "b t h w n"]:
    """Correlations at whole steps around a place (x, y), of all scales, interpolated by products with weights.

    A product does without gathering single values, which is slow on TPUs.
    """
    steps, found = jnp.arange(-radius, radius + 1), []
    for level, volume in enumerate(volumes):
        x, y = jnp.moveaxis(places[..., None] / 2**level + steps, -2, 0)
        rows = jnp.einsum("bthwyx,bthwjy->bthwjx", volume, bilinear(y, volume.shape[-2]), precision="highest")
        cells = jnp.einsum("bthwjx,bthwix->bthwij", rows, bilinear(x, volume.shape[-1]), precision="highest")
        found.append(cells.reshape(*cells.shape[:4], -1))
    return jnp.concatenate(found, axis=-1)


class GRU(nn.Module):
    """A gated recurrent unit whose products are convolutions."""

    kernel: tuple[int, int]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, hidden: Float[Array, "b t h w d"], x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """The next hidden state."""
        make = partial(convolution, hidden.shape[-1], self.kernel, dtype=self.dtype)
        both = jnp.concatenate([hidden, x], axis=-1)
        update, reset = nn.sigmoid(make("update")(both)), nn.sigmoid(make("reset")(both))
        new = jnp.tanh(make("new")(jnp.concatenate([reset * hidden, x], axis=-1)))
        return (1 - update) * hidden + update * new


class Update(nn.Module):
    """One update of the flow.

    Attributes:
      radius: of the neighbourhoods that are looked up, in places.
      correlation_widths: of the convolutions of what was looked up, 1x1 and, if there is a second, 3x3.
      flow_widths: of those of the flow, 7x7 and 3x3.
      motion_width: of both together, with the flow itself as the last two channels.
      separable: whether there are two recurrent units, with kernels of 1x5 and 5x1, or one of 3x3.
      head_width: of the convolution before the flow.
    """

    radius: int
    correlation_widths: tuple[int, ...]
    flow_widths: tuple[int, int]
    motion_width: int
    separable: bool
    head_width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        state: tuple[Float[Array, "b t h w d"], Float[Array, "b t h w 2"]],
        context: Float[Array, "b t h w c"],
        volumes: Sequence[Float[Array, "b t h w _ _"]],
    ) -> tuple[
        tuple[Float[Array, "b t h w d"], Float[Array, "b t h w 2"]],
        tuple[Float[Array, "b t h w d"], Float[Array, "b t h w 2"]],
    ]:
        """The next state, hidden and flow in places, twice, as `nn.scan` asks for: to go on with, and to be kept."""
        hidden, flow = state
        flow = lax.stop_gradient(flow)
        make = partial(convolution, dtype=self.dtype)
        rows, columns = flow.shape[2:4]
        here = jnp.stack(jnp.meshgrid(jnp.arange(columns), jnp.arange(rows)), axis=-1)
        seen = look_up(volumes, here + flow, self.radius)
        for number, width in enumerate(self.correlation_widths, start=1):
            seen = nn.relu(make(width, (1, 1) if number == 1 else (3, 3), f"correlation{number}")(seen))
        moved = nn.relu(make(self.flow_widths[0], (7, 7), "flow1")(flow))
        moved = nn.relu(make(self.flow_widths[1], (3, 3), "flow2")(moved))
        motion = jnp.concatenate([seen, moved], axis=-1)
        motion = nn.relu(make(self.motion_width - 2, (3, 3), "motion")(motion))
        x = jnp.concatenate([context, motion, flow], axis=-1)
        for number, kernel in enumerate(((1, 5), (5, 1)) if self.separable else ((3, 3),), start=1):
            hidden = GRU(kernel, self.dtype, name=f"gru{number}")(hidden, x)
        change = make(2, (3, 3), "head2")(nn.relu(make(self.head_width, (3, 3), "head1")(hidden)))
        state = hidden, flow + change.astype(flow.dtype)
        return state, state


def upsample(flow: Float[Array, "b t h w 2"]) -> Float[Array, "b t _ _ 2"]:
    """The flow of all pixels, bilinearly: the corner places are the corner pixels."""
    rows, columns = (bilinear(jnp.linspace(0, side - 1, SIDE * side), side) for side in flow.shape[2:4])
    return SIDE * jnp.einsum("ph,qw,bthwc->btpqc", rows, columns, flow, precision="highest")


def upsample_by_weights(
    flow: Float[Array, "b t h w 2"], weights: Float[Array, "b t h w n"]
) -> Float[Array, "b t _ _ 2"]:
    """The flow of all pixels, each a mean of the nine places around its own by the softmax of these weights."""
    rows, columns = flow.shape[2:4]
    padded = jnp.pad(flow, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    around = [padded[:, :, y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    weights = einops.rearrange(weights, "b t h w (k p q) -> b t h w k p q", p=SIDE, q=SIDE)
    weights = nn.softmax(weights.astype(flow.dtype), axis=4)
    mean = jnp.einsum("bthwkpq,bthwkc->bthpwqc", weights, SIDE * jnp.stack(around, axis=4), precision="highest")
    return einops.rearrange(mean, "b t h p w q c -> b t (h p) (w q) c")


class RAFT(nn.Module):
    """Optical flow.

    Attributes:
      feature_widths, context_widths: see `Encoder`.
      bottleneck: whether the encoders' blocks are bottlenecks.
      context_norm: of the context encoder; that of features has instance norms.
      hidden: width of the recurrent unit; the other channels of the context are its input.
      mask_width: of the convolution before the weights of upsampling; None upsamples bilinearly.
      updates: of the flow.
      num_frames, image_size: of the clips that the variant is meant for; more frames and other sides also work.
      others: see `Update`.
    """

    feature_widths: tuple[int, int, int, int, int] = (64, 64, 96, 128, 256)
    context_widths: tuple[int, int, int, int, int] = (64, 64, 96, 128, 256)
    bottleneck: bool = False
    context_norm: Norm = "batch"
    hidden: int = 128
    radius: int = 4
    correlation_widths: tuple[int, ...] = (256, 192)
    flow_widths: tuple[int, int] = (128, 64)
    motion_width: int = 128
    separable: bool = True
    head_width: int = 256
    mask_width: int | None = 256
    updates: int = 12
    channels: int = 3
    num_frames: int = 2
    image_size: int = 224
    card: Card = Card((0.5,) * 3, (0.5,) * 3, source="torchvision, princeton-vl/RAFT")
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.feature_encoder = Encoder(self.feature_widths, self.bottleneck, "instance", self.dtype)
        self.context_encoder = Encoder(self.context_widths, self.bottleneck, self.context_norm, self.dtype)
        scanned = nn.scan(
            Update,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.updates,
        )
        self.update = scanned(
            self.radius, self.correlation_widths, self.flow_widths, self.motion_width, self.separable,
            self.head_width, self.dtype,
        )  # fmt: skip
        if self.mask_width is not None:
            self.mask1 = convolution(self.mask_width, (3, 3), "mask1", self.dtype)
            self.mask2 = convolution(9 * SIDE**2, (1, 1), "mask2", self.dtype)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The features that are correlated."""
        check_video(video, self.channels)
        grid(video.shape[1:4], (1, SIDE, SIDE))
        return self.feature_encoder(video, train)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean of the features."""
        return self.encode(video, train).mean(axis=(1, 2, 3))

    def _refine(
        self, video: Float[Array, "b t h w c"], train: bool
    ) -> tuple[Float[Array, "n b s _ _ d"], Float[Array, "n b s _ _ 2"]]:
        """The hidden state and the flow after each update."""
        least = SIDE * 2 ** (LEVELS - 1)  # the coarsest map has a place
        check_video(video, self.channels, (2, least, least))
        features = self.encode(video, train)
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        volumes = correlate(features[:, :-1], features[:, 1:])
        context = self.context_encoder(video[:, :-1], train)
        hidden = jnp.tanh(context[..., : self.hidden].astype(features.dtype))
        flow = jnp.zeros((*hidden.shape[:4], 2), features.dtype)
        _, kept = self.update((hidden, flow), nn.relu(context[..., self.hidden :]), volumes)
        return kept

    def _upsample(
        self, hidden: Float[Array, "b s h w d"], flow: Float[Array, "b s h w 2"]
    ) -> Float[Array, "b s _ _ 2"]:
        if self.mask_width is None:
            return upsample(flow)
        return upsample_by_weights(flow, MASK_GAIN * self.mask2(nn.relu(self.mask1(hidden))))

    def flows(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "n b _ h w 2"]:
        """The flow after each update, all of which enter the loss in training; see the call."""
        hidden, flow = self._refine(video, train)
        folded = self._upsample(*(jax.lax.collapse(each, 0, 2) for each in (hidden, flow)))
        return folded.reshape(*flow.shape[:2], *folded.shape[1:])

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ h w 2"]:
        """The flow (x, y) from each frame to the next in pixels, for t - 1 frames, after the last update."""
        hidden, flow = self._refine(video, train)
        return self._upsample(hidden[-1], flow[-1])


SMALL = {
    "feature_widths": (32, 32, 64, 96, 128),
    "context_widths": (32, 32, 64, 96, 160),
    "bottleneck": True,
    "context_norm": "none",
    "hidden": 96,
    "radius": 3,
    "correlation_widths": (96,),
    "flow_widths": (64, 32),
    "motion_width": 82,
    "separable": False,
    "head_width": 128,
    "mask_width": None,
}
TINY = {
    "feature_widths": (8, 8, 8, 8, 12),
    "context_widths": (8, 8, 8, 8, 16),
    "hidden": 8,
    "radius": 1,
    "correlation_widths": (8, 8),
    "flow_widths": (8, 4),
    "motion_width": 8,
    "head_width": 8,
    "mask_width": 8,
    "updates": 3,
    "image_size": 64,
}

VARIANTS = MappingProxyType(
    {
        "raft_tiny": partial(RAFT, **TINY),
        "raft_small": partial(RAFT, **SMALL),
        "raft_large": partial(RAFT),
    }
)
