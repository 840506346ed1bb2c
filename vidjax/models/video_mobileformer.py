"""Video Mobile-Former (Wang et al. 2022, arXiv:2208.12257): a light 3-D CNN and a few global tokens of the clip.

Each block of the CNN is bridged to the tokens: they attend to its input (local to global), then to each other, and its
output attends to them (global to local). The features themselves are never projected: they are keys and values on the
way in and queries on the way out. The first token also sets the slopes of the block's ReLUs.

No code of it is public, and only the abstract of the paper was available: 3-D CNN and Transformer in parallel, few
tokens (such as 6) for a video, cross-attention between them, 0.5 to 6 GFLOPs. All else is that of Mobile-Former, which
it extends (Chen et al. 2021, arXiv:2108.05895; AAboys/MobileFormer): widths, blocks, bridges and head. Ours are where
time enters, as depthwise kernels of 3 frames instead of 1, without strides, and in means and attention over all places
of all frames; and the number of frames. So a clip of one frame, with image weights in the kernels' middle, has the
outputs of the image model. The variants have its names, which give the million multiply-accumulates of an image; that
they are those of the paper is not verified.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.layers import attention
from vidjax.layers.activations import exact_gelu
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D, kaiming_normal
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm, LayerNorm
from vidjax.layers.patches import check_video
from vidjax.layers.transformer import DropPath, Mlp

NORMAL = nn.initializers.normal(0.01)


def attend(
    query: Float[Array, "b q c"], key: Float[Array, "b n c"], value: Float[Array, "b n c"], heads: int
) -> Float[Array, "b q c"]:
    """Attention with `heads` heads, without projections."""
    split = [x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value)]
    # Few pairs: one side is few tokens. No module, whose weights pictures would show: they are not those of a grid.
    return attention.attend(*split, implementation="xla").reshape(query.shape)


class LocalToGlobal(nn.Module):
    """Tokens attend to all places, which are keys and values as they are; then a norm."""

    heads: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b m d"], x: Float[Array, "b t h w c"], drop_path: float = 0.0, train: bool = False
    ) -> Float[Array, "b m d"]:
        """The new tokens."""
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        places = x.reshape(len(x), -1, x.shape[-1])
        out = attend(dense(x.shape[-1], name="query")(tokens), places, places, self.heads)
        out = out * 2 * nn.hard_sigmoid(dense(x.shape[-1], name="gate")(tokens))
        out = dense(tokens.shape[-1], name="out")(out)
        tokens = tokens + DropPath(name="drop_path")(out, drop_path, train)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)


class GlobalToLocal(nn.Module):
    """Each place, as it is, is a query to the tokens and adds what it finds."""

    heads: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], tokens: Float[Array, "b m d"], drop_path: float = 0.0, train: bool = False
    ) -> Float[Array, "b t h w c"]:
        """The new features."""
        dense = partial(nn.Dense, x.shape[-1], kernel_init=NORMAL, dtype=self.dtype)
        places = x.reshape(len(x), -1, x.shape[-1])
        out = attend(places, dense(name="key")(tokens), dense(name="value")(tokens), self.heads)
        return x + DropPath(name="drop_path")(out, drop_path, train).reshape(x.shape)


class GlobalBlock(nn.Module):
    """Attention of the tokens to one another, as keys and values unprojected, and an MLP; each followed by a norm."""

    heads: int = 4
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b m d"], drop_path: float = 0.0, train: bool = False
    ) -> Float[Array, "b m d"]:
        """The new tokens."""
        width = tokens.shape[-1]
        dense = partial(nn.Dense, width, kernel_init=NORMAL, dtype=self.dtype)
        norm = partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        out = dense(name="out")(attend(dense(name="query")(tokens), tokens, tokens, self.heads))
        tokens = norm(name="norm1")(tokens + DropPath(name="drop_path")(out, drop_path, train))
        mlp = Mlp(2 * width, exact_gelu, kernel_init=NORMAL, dtype=self.dtype, name="mlp")
        return norm(name="norm2")(tokens + mlp(tokens))


class DynamicReLU(nn.Module):
    """The larger of two multiples of each channel, whose slopes depend on the first token (Chen et al. 2020)."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], tokens: Float[Array, "b m d"]) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`."""
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        hidden = nn.relu(dense(tokens.shape[-1] // 4, name="squeeze")(tokens[:, 0]))
        slopes = 2 * nn.hard_sigmoid(dense(2 * x.shape[-1], name="slopes")(hidden))
        first, second = jnp.split(slopes[:, None, None, None], 2, axis=-1)
        return jnp.maximum(x * first, x * (second - 1))  # 1 and 0 at the start, a ReLU


class Block(nn.Module):
    """A bridged block of the CNN; without tokens, as the first block, it is one convolution of each kind.

    Attributes:
      width: of the output.
      expands: factors of the inner width: one for a block of a pointwise, a depthwise and a pointwise convolution; two
        for one of a depthwise (with the stride), pointwise, depthwise and pointwise convolution.
      stride: of the first depthwise convolution, in height and width.
    """

    width: int
    expands: tuple[int, ...]
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        tokens: Float[Array, "b m d"] | None,
        drop_path: float = 0.0,
        train: bool = False,
    ) -> tuple[Float[Array, "b t _ _ e"], Float[Array, "b m d"] | None]:
        """The new features and tokens."""
        width = x.shape[-1]
        branch = DropPath(name="drop_path")
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)

        def pointwise(number: int, x: Array, features: int) -> Array:
            conv = Conv3D(features, (1, 1, 1), kernel_init=kaiming_normal, dtype=self.dtype, name=f"conv{number}")
            return norm(name=f"norm{number}")(conv(x))

        def depthwise(number: int, x: Array, expand: int, stride: int) -> Array:
            conv = DepthwiseConv3D(
                (3, 3, 3), use_bias=False, strides=(1, stride, stride), kernel_init=kaiming_normal, dtype=self.dtype,
                name=f"conv{number}",
            )  # fmt: skip
            return norm(name=f"norm{number}")(conv(jnp.repeat(x, expand, axis=-1)))

        if tokens is None:
            y = nn.relu6(depthwise(1, x, self.expands[0], self.stride))
            y = pointwise(2, y, self.width)
            return (x + y if x.shape == y.shape else y), None
        tokens = LocalToGlobal(dtype=self.dtype, name="to_global")(tokens, x, drop_path, train)
        tokens = GlobalBlock(dtype=self.dtype, name="global")(tokens, drop_path, train)
        if len(self.expands) == 1:
            y = pointwise(1, x, width * self.expands[0])
            y = depthwise(2, DynamicReLU(self.dtype, name="relu1")(y, tokens), 1, self.stride)
            y = pointwise(3, DynamicReLU(self.dtype, name="relu2")(y, tokens), self.width)
            y = x + branch(y, drop_path, train) if x.shape == y.shape else y
        else:
            y = depthwise(1, x, self.expands[0], self.stride)
            x = pointwise(2, DynamicReLU(self.dtype, name="relu1")(y, tokens), self.width)
            y = depthwise(3, x, self.expands[1], 1)
            y = pointwise(4, DynamicReLU(self.dtype, name="relu3")(y, tokens), self.width)
            y = x + branch(y, drop_path, train)
        return GlobalToLocal(dtype=self.dtype, name="to_local")(y, tokens, drop_path, train), tokens


class VideoMobileFormer(nn.Module):
    """The Video Mobile-Former classifier.

    Attributes:
      stem: channels of the first convolution.
      first: width, expansion and stride of the first block.
      blocks: for each of the others its width and expansion, or two expansions for one that halves height and width.
      tokens, token_width: number and width of the global tokens.
      features: width of the layer before the classifier.
      num_classes: None returns that layer's output.
      head: replaces the linear classifier; any module that takes features `b d`.
      dropout: of these features.
      drop_path: rate of the last block; the rates increase linearly over the blocks.
      num_frames, image_size: of the clips that the variant is meant for; other sizes also work.
    """

    stem: int
    first: tuple[int, int, int]
    blocks: tuple[tuple[int, ...], ...]
    tokens: int
    token_width: int
    features: int
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.2
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        conv = partial(Conv3D, kernel_init=kaiming_normal, dtype=self.dtype)
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        self.stem_conv = conv(self.stem, (1, 3, 3), (1, 2, 2))
        self.stem_norm = BatchNorm(dtype=self.dtype)
        self.global_token = self.param("global_token", nn.initializers.normal(1.0), (self.tokens, self.token_width))
        width, expand, stride = self.first
        self.block = [
            Block(width, (expand,), stride, self.dtype),
            *(Block(width, tuple(expands), len(expands), self.dtype) for width, *expands in self.blocks),
        ]
        self.head_bridge = LocalToGlobal(dtype=self.dtype)
        self.head_conv = conv(6 * self.blocks[-1][0], (1, 1, 1))
        self.head_conv_norm = BatchNorm(dtype=self.dtype)
        self.head_dense = dense(self.features)
        self.head_dense_norm = BatchNorm(dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)

    def maps(
        self, video: Float[Array, "b t h w c"], train: bool
    ) -> tuple[list[Float[Array, "b t _ _ _"]], Float[Array, "b m d"]]:
        """The last feature map of each size, and the tokens."""
        check_video(video, self.channels)
        x = nn.relu6(self.stem_norm(self.stem_conv(video), use_running_average=not train))
        tokens = jnp.broadcast_to(self.global_token.astype(x.dtype), (len(x), self.tokens, self.token_width))
        rates = self.drop_path * np.arange(1, len(self.block) + 1) / len(self.block)
        maps = [self.block[0](x, None, train=train)[0]]
        for block, rate in zip(self.block[1:], rates[1:].tolist(), strict=True):
            x, tokens = block(maps[-1], tokens, rate, train)
            maps = [*maps, x] if block.stride > 1 else [*maps[:-1], x]
        return maps, tokens

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b t _ _ _"], ...]:
        """The last feature map of each size: from a 2nd or 4th of the height and width, as in `first`, to a 32nd."""
        return tuple(self.maps(video, train)[0])

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: a linear layer of the mean of the expanded last feature map, and of the first token."""
        (*_, x), tokens = self.maps(video, train)
        token = self.head_bridge(tokens, x, self.drop_path, train)[:, 0]
        x = nn.relu6(self.head_conv_norm(self.head_conv(x), use_running_average=not train))
        x = nn.hard_swish(x.mean(axis=(1, 2, 3)))
        x = self.head_dense(jnp.concatenate([x, token.astype(x.dtype)], axis=-1))
        return nn.hard_swish(self.head_dense_norm(x, use_running_average=not train))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


CARD = Card(source="arXiv:2208.12257")
TOKENS = {"tokens": 6, "token_width": 192, "num_classes": 400, "card": CARD}

VARIANTS = MappingProxyType(
    {
        "video_mobileformer_tiny": partial(
            VideoMobileFormer, stem=8, first=(8, 2, 1), blocks=((12, 3, 2), (12, 2)), tokens=3, token_width=32,
            features=32, dropout=0.0, image_size=32, card=CARD,
        ),
        "video_mobileformer_52m": partial(
            VideoMobileFormer, stem=8, first=(12, 3, 2),
            blocks=((12, 3), (24, 6, 4), (24, 3), (48, 6, 4), (48, 4), (64, 6), (96, 6, 4), (96, 6)),
            features=1024, **TOKENS | {"tokens": 3, "token_width": 128},
        ),
        "video_mobileformer_96m": partial(
            VideoMobileFormer, stem=12, first=(12, 2, 1),
            blocks=((16, 6, 4), (32, 6, 4), (32, 3), (64, 6, 4), (64, 4), (88, 6), (128, 6, 4), (128, 6)),
            features=1280, **TOKENS | {"tokens": 4, "token_width": 128},
        ),
        "video_mobileformer_151m": partial(
            VideoMobileFormer, stem=12, first=(12, 2, 1), features=1280, **TOKENS,
            blocks=(
                (16, 6, 4), (16, 3), (32, 6, 4), (32, 3), (64, 6, 4), (64, 4), (88, 6), (88, 6), (128, 6, 4), (128, 6),
                (128, 6),
            ),
        ),
        "video_mobileformer_214m": partial(
            VideoMobileFormer, stem=12, first=(12, 2, 1), features=1600, **TOKENS,
            blocks=(
                (20, 6, 4), (20, 3), (40, 6, 4), (40, 4), (80, 6, 4), (80, 4), (112, 6), (112, 6), (160, 6, 4),
                (160, 6), (160, 6),
            ),
        ),
        "video_mobileformer_294m": partial(
            VideoMobileFormer, stem=16, first=(16, 2, 1), features=1920, **TOKENS,
            blocks=(
                (24, 6, 4), (24, 4), (48, 6, 4), (48, 4), (96, 6, 4), (96, 4), (128, 6), (128, 6), (192, 6, 4),
                (192, 6), (192, 6),
            ),
        ),
        "video_mobileformer_508m": partial(
            VideoMobileFormer, stem=24, first=(24, 2, 1), features=1920, **TOKENS,
            blocks=(
                (40, 6, 4), (40, 3), (72, 6, 4), (72, 3), (128, 6, 4), (128, 4), (176, 6), (176, 6), (240, 6, 4),
                (240, 6), (240, 6),
            ),
        ),
    }
)  # fmt: skip
