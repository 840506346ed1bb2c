"""ActionFormer (Zhang et al. 2022, arXiv:2202.07925): temporal action localisation on features of a long video.

A pyramid of levels, each with half the length of the one before, is classified at every point, and the distances to the
start and the end of the action around the point are predicted. As in the original, convolutions see zeros beyond the
end of a video and norms then shift these, so that the last valid steps depend on whether and how far the sequence is
padded: evaluate with the padding of the training.
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import attend_locally
from vidjax.layers.card import Card
from vidjax.layers.convolution import DepthwiseConv1D
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import DropPath

Norm = partial(LayerNorm, epsilon=1e-5)
PRIOR = 0.01
"""Probability of each class that the head starts with."""


def convolve(features: int, **fields) -> nn.Conv:
    """A convolution of three steps over time, padded with zeros on both sides."""
    return nn.Conv(features, (3,), padding=1, **fields)


def clear(x: Float[Array, "b t d"], valid: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
    """Zeros beyond the end of each video."""
    return x * valid[..., None].astype(x.dtype)


class Attention(nn.Module):
    """Attention of tokens to those near by, whose queries, keys and values are convolved over time first.

    Attributes:
      window: tokens that each one attends to, itself in the middle; 1 or less for all.
      stride: of the convolutions.
    """

    heads: int
    window: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]) -> Float[Array, "b _ d"]:
        """Returns the attended tokens, `t / stride` of them; those beyond the end of a video are zero."""
        width = x.shape[-1]
        shorter = valid[:, :: self.stride]

        def project(name: str) -> Array:
            size = self.stride + 1 if self.stride > 1 else 3
            y = clear(DepthwiseConv1D(size, self.stride, self.dtype, name=f"{name}_conv")(x), shorter)
            y = Norm(dtype=self.dtype, name=f"{name}_norm")(y)
            y = nn.Dense(width, dtype=self.dtype, name=name)(y)
            return einops.rearrange(y, "b t (k d) -> b t k d", k=self.heads)

        query, key, value = (project(name) for name in ("query", "key", "value"))
        reach = self.window // 2 if self.window > 1 else query.shape[1]
        y = einops.rearrange(attend_locally(query, key, value, shorter, reach), "b t k d -> b t (k d)")
        return clear(nn.Dense(width, dtype=self.dtype, name="out")(y), shorter)


class Block(nn.Module):
    """A pre-norm transformer block whose branches have learned scales; with a stride, half as many tokens leave it.

    Attributes:
      scaled: whether there are scales, in the original if paths are dropped in training.
      dropout: rate after each projection.
    """

    heads: int
    window: int
    stride: int = 1
    scaled: bool = True
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"], rate: float = 0.0, train: bool = False
    ) -> Float[Array, "b _ d"]:
        """The rate is of drop path."""
        width, shorter = x.shape[-1], valid[:, :: self.stride]
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)

        def add(x: Array, branch: Array, name: str) -> Array:
            if self.scaled:
                scale = self.param(f"{name}_scale", nn.initializers.constant(1e-4), (width,))
                branch = DropPath(name=f"{name}_drop_path")(branch * scale.astype(branch.dtype), rate, train)
            return x + branch

        attended = Attention(self.heads, self.window, self.stride, self.dtype, name="attention")(
            Norm(dtype=self.dtype, name="norm1")(x), valid
        )
        if self.stride > 1:
            x = nn.max_pool(x, (self.stride + 1,), (self.stride,), [((self.stride + 1) // 2,) * 2])
        x = add(clear(x, shorter), drop(name="dropout")(attended), "attention")
        hidden = nn.Dense(4 * width, dtype=self.dtype, name="fc1")(Norm(dtype=self.dtype, name="norm2")(x))
        hidden = drop(name="dropout_1")(exact_gelu(hidden))
        hidden = drop(name="dropout_2")(nn.Dense(width, dtype=self.dtype, name="fc2")(hidden))
        return add(x, clear(hidden, shorter), "mlp")


class Head(nn.Module):
    """Two convolutions with norms, and one to the outputs; the same for all levels."""

    width: int
    features: int
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]) -> Float[Array, "b t o"]:
        """The outputs at each point; zero beyond the end of a video."""
        for number in range(2):
            conv = convolve(self.width, use_bias=False, dtype=self.dtype, name=f"conv_{number}")
            x = nn.relu(Norm(dtype=self.dtype, name=f"norm_{number}")(clear(conv(x), valid)))
        return clear(convolve(self.features, bias_init=self.bias_init, dtype=self.dtype, name="out")(x), valid)


def position_table(length: int, width: int) -> Float[np.ndarray, "t d"]:
    """Sines in even and cosines in odd channels, divided by the square root of the width."""
    angles = np.arange(length)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    table = np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles))
    return (table / np.sqrt(width)).astype(np.float32)


class ActionFormer(nn.Module):
    """Classes and distances to start and end at each point of a pyramid.

    Attributes:
      num_classes: number of actions; 1 for proposals that another classifier names, as on ActivityNet.
      channels: width of the features of the video.
      max_length: length to which sequences are padded in training and evaluation.
      depths: convolutions and blocks before the pyramid, and levels above its first.
      window: tokens that attention reaches on each level, or one number for each; 1 or less for all.
      neck: what prepares the levels for the heads: norms, or a feature pyramid network.
      position: whether to add the position table; longer sequences stretch it.
      drop_path: rate of each block.
      dropout: rate after each projection of a block.
      card: the class names; features are not preprocessed.
    """

    num_classes: int
    channels: int
    width: int = 512
    neck_width: int = 512
    head_width: int = 512
    heads: int = 4
    max_length: int = 2304
    depths: tuple[int, int, int] = (2, 2, 5)
    window: int | tuple[int, ...] = 19
    neck: Literal["identity", "fpn"] = "identity"
    position: bool = False
    drop_path: float = 0.1
    dropout: float = 0.1
    card: Card = Card()
    dtype: DTypeLike | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each level, in steps of the features."""
        return tuple(2**level for level in range(self.depths[2] + 1))

    def input_shape(self, steps: int) -> tuple[int, ...]:
        """Shape of so many features."""
        return (steps, self.channels)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """One video's features and length."""
        features = jax.ShapeDtypeStruct((1, *self.input_shape(self.max_length)), jnp.float32)
        return features, jax.ShapeDtypeStruct((1,), jnp.int32)

    @nn.compact
    def __call__(
        self, features: Float[Array, "b t c"], lengths: Int[Array, "b"], train: bool = False
    ) -> tuple[list[Float[Array, "b _ classes"]], list[Float[Array, "b _ 2"]]]:
        """Logits, and distances to start and end in strides, at each point of each level.

        Args:
          features: zero beyond the length of each video; `t` is a multiple of the last stride.
          lengths: valid steps of each video.

        Raises:
          UserError: the length is no multiple of the last stride, or not one window for each level.
        """
        windows = (self.window,) * len(self.strides) if isinstance(self.window, int) else self.window
        if len(windows) != len(self.strides):
            raise UserError(
                f"window has {len(windows)} numbers: give one, or one for each of {len(self.strides)} levels"
            )
        if features.shape[1] % self.strides[-1]:
            raise UserError(f"features of {features.shape[1]} steps: pad them to a multiple of {self.strides[-1]}")
        block = partial(Block, self.heads, scaled=self.drop_path > 0, dropout=self.dropout, dtype=self.dtype)
        valid = jnp.arange(features.shape[1]) < lengths[:, None]
        x = features
        for number in range(self.depths[0]):
            conv = convolve(self.width, use_bias=False, dtype=self.dtype, name=f"embed_{number}")
            x = nn.relu(Norm(dtype=self.dtype, name=f"embed_norm_{number}")(clear(conv(x), valid)))
        if self.position:
            table = jnp.asarray(position_table(self.max_length, self.width))
            if x.shape[1] > self.max_length:
                table = jax.image.resize(table, (x.shape[1], self.width), "linear")
            x = x + clear(jnp.broadcast_to(table[: x.shape[1]], x.shape).astype(x.dtype), valid)
        for number in range(self.depths[1]):
            x = block(windows[0], name=f"stem_{number}")(x, valid, self.drop_path, train)
        levels, masks = [x], [valid]
        for number, window in enumerate(windows[1:]):
            levels.append(block(window, 2, name=f"branch_{number}")(levels[-1], masks[-1], self.drop_path, train))
            masks.append(masks[-1][:, ::2])
        if self.neck == "fpn":
            levels = self._join(levels, masks)
        levels = [Norm(dtype=self.dtype, name=f"neck_norm_{n}")(level) for n, level in enumerate(levels)]
        start = nn.initializers.constant(-np.log((1 - PRIOR) / PRIOR))
        classify = Head(self.head_width, self.num_classes, start, self.dtype, name="classes")
        locate = Head(self.head_width, 2, dtype=self.dtype, name="offsets")
        logits, offsets = [], []
        for number, (level, mask) in enumerate(zip(levels, masks, strict=True)):
            scale = self.param(f"offset_scale_{number}", nn.initializers.ones_init(), ())
            logits.append(classify(level, mask))
            offsets.append(nn.relu(locate(level, mask) * scale))
        return logits, offsets

    def _join(self, levels: Sequence[Array], masks: Sequence[Array]) -> list[Array]:
        """A feature pyramid network: each level with those above it added, and a depthwise convolution."""
        width = self.neck_width
        joined = []
        for number, (level, mask) in reversed(list(enumerate(zip(levels, masks, strict=True)))):
            lateral = nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"lateral_{number}")
            x = clear(lateral(level), mask)
            joined.insert(0, x + jnp.repeat(joined[0], 2, axis=1) if joined else x)
        return [
            clear(DepthwiseConv1D(dtype=self.dtype, name=f"smooth_{number}")(x), mask)
            for number, (x, mask) in enumerate(zip(joined, masks, strict=True))
        ]


CARD = Card(source="happyharrycn/actionformer_release")
# Sizes of the released checkpoints (configs at commit 61ea7eb, which drop paths but no units).
ANET = MappingProxyType(
    {
        "card": CARD,
        "num_classes": 1, "width": 256, "neck_width": 256, "head_width": 256, "max_length": 192,
        "window": (7, 7, 7, 7, 7, -1), "position": True, "dropout": 0.0,
    }
)  # fmt: skip
LOCALIZERS = MappingProxyType(
    {
        "actionformer_thumos_i3d": partial(ActionFormer, num_classes=20, channels=2048, dropout=0.0, card=CARD),
        "actionformer_anet_i3d": partial(ActionFormer, channels=2048, **ANET),
        "actionformer_anet_tsp": partial(ActionFormer, channels=512, **ANET),
        "actionformer_tiny": partial(
            ActionFormer, num_classes=8, channels=32, width=32, neck_width=32, head_width=32, max_length=128,
            depths=(2, 1, 3), window=9,
        ),
    }
)  # fmt: skip
