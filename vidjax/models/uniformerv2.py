"""UniFormerV2 (Li et al. 2022, arXiv:2211.09552; OpenGVLab/UniFormerV2): CLIP's image ViT and what makes it see motion.

The image ViT processes each frame separately. Two kinds of block are added. The blocks of the ViT become local
UniBlocks (`local`, for Something-Something) by depthwise convolutions over three frames. Global UniBlocks attend to the
outputs of some of the last layers, for all frames at once, by cross-attention of a learned query; the ViT does not
depend on them. Each computes a video token from the tokens of its layer, and `fusion` says how these become one:
  sequential: the video token of a block is the query of the next one (in the released code, and all published weights);
  parallel: every block has its own query, and the video tokens, one after another, are projected to one;
  hierarchical_kv: the video token of a block is one of the tokens that the next one attends to;
  hierarchical_q: the video token of a block is one of the queries of the next one, which so has one more. Queries do
    not see one another. How the last ones become one token is left open by the paper: here, by their mean.
Last, a learned gate for each channel balances the video token with the mean of the frames' class tokens.

All that is new starts without effect: local aggregations and both parts of global blocks end in zeros, as do the
queries. With CLIP's weights, the model therefore starts as CLIP on each frame.

Pitfalls, all as in the original: the norms have epsilon 1e-5, and the ViT has none after its last block; a local
aggregation starts with a batch norm and has no non-linearity; class tokens take no part in it, nor in the position
encoding of a global block, but global blocks attend to them. With two frames a patch (Something-Something), an
embedding sees three frames, of which the second is the patch's first. Pixels are not normalised as for CLIP.

Drop path drops branches of a clip. The original's, by the order of its axes, drops those of a position in all clips of
a batch, and in a global block those of the whole batch.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.activations import quick_gelu
from vidjax.layers.attention import Attention
from vidjax.layers.card import Card
from vidjax.layers.convolution import DepthwiseConv3D, pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm, LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import (
    VIT_SIZES,
    Block,
    DropPath,
    Encoder,
    Mlp,
    Remat,
    run_block,
    scaled_by_depth,
)

EPSILON = 1e-5
REDUCTION = 1.5  # of the channels in a local aggregation
ZEROS = nn.initializers.zeros_init()
# Xavier initialisation of query, key and value as one matrix, as in PyTorch: its fans add up to four times the width.
FUSED = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")

Fusion = Literal["sequential", "parallel", "hierarchical_kv", "hierarchical_q"]


def on_patches(x: Float[Array, "b t m d"]) -> Float[Array, "b t _ d"]:
    """What is added to all tokens of a frame if `x` is added to those of its patches: nothing to the class token."""
    return jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))


class LocalAggregation(nn.Module):
    """Local MHRA: each token takes from its place in the previous and in the next frame, by a learned affinity."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t m d"], train: bool = False) -> Float[Array, "b t m d"]:
        """The output has the shape of `x`."""
        width = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype)
        x = BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        bias_init = pytorch_bias(width)
        x = dense(int(width // REDUCTION), kernel_init=pytorch_kernel, bias_init=bias_init, name="value")(x)
        x = DepthwiseConv3D((3, 1, 1), dtype=self.dtype, name="affinity")(x[:, :, :, None])[:, :, :, 0]
        return dense(width, kernel_init=ZEROS, name="out")(x)


class LocalBlock(nn.Module):
    """A local UniBlock: a block of the ViT, with local aggregation of the patch tokens before each of its two parts."""

    heads: int
    mlp_ratio: float
    kernel_init: nn.initializers.Initializer
    out_init: nn.initializers.Initializer
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t n d"], drop_path: float | Array = 0.0, train: bool = False
    ) -> Float[Array, "b t n d"]:
        """The output has the shape of `x`: the tokens of each frame, class token first."""
        norm = partial(LayerNorm, epsilon=EPSILON, dtype=self.dtype)
        init = {"kernel_init": self.kernel_init, "out_init": self.out_init, "dtype": self.dtype}
        attention = Attention(self.heads, **init, name="attention")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), quick_gelu, **init, name="mlp")
        branch = DropPath(name="drop_path")
        aggregate = partial(LocalAggregation, self.dtype)
        x = x + on_patches(branch(aggregate(name="local1")(x[:, :, 1:], train), drop_path, train))
        x = x + branch(attention(norm(name="norm1")(x)), drop_path, train)
        x = x + on_patches(branch(aggregate(name="local2")(x[:, :, 1:], train), drop_path, train))
        return x + branch(mlp(norm(name="norm2")(x)), drop_path, train)


class GlobalBlock(nn.Module):
    """A global UniBlock: position encoding of the patch tokens, cross-attention of the queries to all tokens, MLP.

    Attributes:
      dropout: rate inside the MLP.
    """

    heads: int
    mlp_ratio: float
    fusion: Fusion
    dropout: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t n d"],
        drop_path: float | Array,
        train: bool,
        previous: Float[Array, "b p d"] | None,
        sides: tuple[int, int],
    ) -> Float[Array, "b q d"]:
        """The video token, or tokens.

        Args:
          x: the tokens of each frame, class token first.
          previous: the output of the previous block; None for the first.
          sides: height and width of the grid of patches.
        """
        width, branch = x.shape[-1], DropPath(name="drop_path")
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(LayerNorm, epsilon=EPSILON, dtype=self.dtype)
        patches = einops.rearrange(x[:, :, 1:], "b t (h w) d -> b t h w d", h=sides[0])
        position = DepthwiseConv3D((3, 3, 3), bias_init=ZEROS, dtype=self.dtype, name="position")(patches)
        x = x + on_patches(einops.rearrange(position, "b t h w d -> b t (h w) d"))
        context = einops.rearrange(x, "b t n d -> b (t n) d")
        if previous is None or self.fusion != "sequential":
            query = self.param("query", ZEROS, (1, 1, width)).astype(x.dtype)
            query = jnp.broadcast_to(query, (len(x), 1, width))
        else:
            query = previous
        if previous is not None and self.fusion == "hierarchical_kv":
            context = jnp.concatenate([previous, context], axis=1)
        if previous is not None and self.fusion == "hierarchical_q":
            query = jnp.concatenate([previous, query], axis=1)
        attention = Attention(self.heads, kernel_init=FUSED, out_init=ZEROS, dtype=self.dtype, name="attention")
        attended = attention(norm(name="norm_query")(query), norm(name="norm_context")(context))
        query = query + branch(attended, drop_path, train)
        init = {"kernel_init": nn.initializers.xavier_uniform(), "bias_init": pytorch_bias(width)}
        hidden = dense(round(width * self.mlp_ratio), **init, name="fc1")
        hidden = nn.Dropout(self.dropout, name="dropout")(
            quick_gelu(hidden(norm(name="norm_mlp")(query))), deterministic=not train
        )
        return query + branch(dense(width, kernel_init=ZEROS, name="fc2")(hidden), drop_path, train)


class VideoTransformer(nn.Module):
    """The global blocks; for the attributes, see `UniFormerV2`."""

    heads: int
    mlp_ratio: float
    fusion: Fusion
    dropout: float
    drop_path: float
    remat: Remat
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, layers: tuple[Float[Array, "b t n d"], ...], sides: tuple[int, int], train: bool = False
    ) -> Float[Array, "b q d"]:
        """The video token, or the tokens that the last step of the fusion makes one of.

        Args:
          layers: the tokens that a global block reads, for each.
          sides: height and width of the grid of patches.
        """
        tokens = []
        for i, (x, rate) in enumerate(zip(layers, np.linspace(0.0, self.drop_path, len(layers)), strict=True)):
            block = GlobalBlock(self.heads, self.mlp_ratio, self.fusion, self.dropout, self.dtype, name=f"block_{i}")
            context = {"previous": tokens[-1] if tokens else None, "sides": sides}
            tokens.append(run_block(block, x, float(rate), train, self.remat, **context))
        return jnp.concatenate(tokens, axis=1) if self.fusion == "parallel" else tokens[-1]


class UniFormerV2(nn.Module):
    """The UniFormerV2 classifier.

    Attributes:
      global_layers: numbers of the layers of the ViT whose tokens a global block reads, in ascending order.
      local: whether the layers of the ViT are local UniBlocks.
      fusion: of the video tokens of the global blocks, see the module.
      frozen: the ViT keeps CLIP's weights (see `frozen_parts`), and the head sees the video token alone.
      patch_size: frames, height and width from one token to the next. With two frames, tokens see three.
      num_classes: None returns what the head would see.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate before the head, and inside the MLPs of global blocks.
      drop_path: rate of the ViT's last block.
      global_drop_path: rate of the last global block.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      remat: see `Encoder`.
    """

    width: int
    depth: int
    heads: int
    global_layers: tuple[int, ...]
    local: bool = False
    fusion: Fusion = "sequential"
    frozen: bool = False
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    drop_path: float = 0.0
    global_drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.fusion not in get_args(Fusion):
            raise UserError(f"fusion is '{self.fusion}': choose one of {', '.join(get_args(Fusion))}")
        chosen = tuple(self.global_layers)
        if not chosen or sorted(set(chosen)) != [*chosen] or not 0 <= min(chosen) <= max(chosen) < self.depth:
            raise UserError(
                f"global_layers is {chosen}: give layers of the backbone in ascending order, which has {self.depth}, "
                f"numbered from 0 to {self.depth - 1}"
            )
        normal = nn.initializers.normal(self.width**-0.5)
        image = grid((1, self.image_size, self.image_size), (1, *self.patch_size[1:]))[1:]
        seen = (2 * self.patch_size[0] - 1, *self.patch_size[1:])
        self.patch_embedding = PatchEmbedding(self.width, seen, nn.initializers.normal(0.02), None, self.dtype)
        self.class_token = self.param("class_token", normal, (1, 1, self.width))
        self.class_position = self.param("class_position", normal, (1, 1, self.width))
        self.position = PositionTable(image, self.width, "cubic", normal)
        self.norm_pre = LayerNorm(epsilon=EPSILON, dtype=self.dtype)
        init = scaled_by_depth(self.width, self.depth) | {"dtype": self.dtype}
        block = partial(Block, epsilon=EPSILON, activation=quick_gelu)
        block = partial(LocalBlock if self.local else block, heads=self.heads, mlp_ratio=self.mlp_ratio, **init)
        returned = (*chosen, self.depth - 1)
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, returned=returned)
        self.video_transformer = VideoTransformer(
            self.heads, self.mlp_ratio, self.fusion, self.dropout, self.global_drop_path, self.remat, self.dtype
        )
        if self.fusion == "parallel":
            init = nn.initializers.xavier_uniform()
            self.fusion_projection = nn.Dense(self.width, use_bias=False, kernel_init=init, dtype=self.dtype)
        if not self.frozen:
            self.balance = self.param("balance", ZEROS, (self.width,))
        self.norm = LayerNorm(epsilon=EPSILON, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=pytorch_kernel, bias_init=pytorch_bias(self.width),
            dtype=self.dtype,
        )  # fmt: skip

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Beginnings of the paths of the parameters that are not trained: those of CLIP if the model is `frozen`."""
        embeddings = ("patch_embedding/", "class_token", "class_position", "position/", "norm_pre/")
        return (*embeddings, "transformer/") if self.frozen else ()

    def patches(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b n p"]:
        """The pixels that each token sees: of a patch of one frame, or of two and the frame before."""
        stride, *sides = self.patch_size
        seen = 2 * stride - 1
        last = video.shape[1] - stride + 1
        frames = jnp.pad(video, ((0, 0), (stride - 1, 0), *[(0, 0)] * 3))
        frames = jnp.stack([frames[:, i : i + last : stride] for i in range(seen)], axis=2)
        return patchify(einops.rearrange(frames, "b t s h w c -> b (t s) h w c"), (seen, *sides))

    def layers(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ d"], ...]:
        """The tokens of each frame, class token first, after each layer in `global_layers`, and after the last layer.

        Not normalised.
        """
        check_video(video, self.channels)
        frames, *image = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(self.patches(video))
        x = einops.rearrange(x, "b (t h w) d -> b t h w d", t=frames, h=image[0])
        x = einops.rearrange(x + self.position(tuple(image)).astype(x.dtype), "b t h w d -> b t (h w) d")
        token = (self.class_token + self.class_position).astype(x.dtype)
        token = jnp.broadcast_to(token, (*x.shape[:2], 1, self.width))
        return self.transformer(self.norm_pre(jnp.concatenate([token, x], axis=2)), train)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The ViT's patch tokens on their grid, without class tokens; not normalised."""
        tokens = einops.rearrange(self.layers(video, train)[-1][:, :, 1:], "b t n d -> b (t n) d")
        return on_grid(tokens, grid(video.shape[1:4], self.patch_size))

    def video_token(
        self, layers: tuple[Float[Array, "b t n d"], ...], sides: tuple[int, int], train: bool = False
    ) -> Float[Array, "b d"]:
        """The token that the global blocks make of the layers that they read, see `VideoTransformer`."""
        tokens = self.video_transformer(layers, sides, train)
        if self.fusion == "parallel":
            return self.fusion_projection(einops.rearrange(tokens, "b q d -> b (q d)"))
        return tokens.mean(axis=1)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the video token, balanced with the mean class token unless frozen; normalised."""
        *read, last = self.layers(video, train)
        _, height, width = grid(video.shape[1:4], self.patch_size)
        token = self.video_token(tuple(read), (height, width), train)
        if not self.frozen:
            weight = jax.nn.sigmoid(self.balance).astype(token.dtype)
            token = (1 - weight) * token + weight * last[:, :, 0].mean(axis=1)
        return self.norm(token)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


CARD = Card(
    (0.45, 0.45, 0.45), (0.225, 0.225, 0.225), source="OpenGVLab/UniFormerV2", sampling="segments",
    protocol="slowfast_offset",
)  # fmt: skip


def tested(accuracy: str, views: str) -> Card:
    """The card of a model with published weights. The scripts of Something-Something average logits of the views."""
    average = "logits" if accuracy.startswith("SSv2") else "softmax"
    return replace(CARD, accuracy=f"{accuracy}, {views} views", views=views, average=average)


TINY = {
    "width": 48, "depth": 2, "heads": 3, "global_layers": (0, 1), "patch_size": (1, 8, 8), "dropout": 0.0,
    "image_size": 32, "card": CARD,
}  # fmt: skip
BASE = {**VIT_SIZES["base"], "global_layers": (8, 9, 10, 11), "num_classes": 400}
LARGE = {**VIT_SIZES["large"], "global_layers": (20, 21, 22, 23), "patch_size": (1, 14, 14), "num_classes": 400}
HIGH = LARGE | {"image_size": 336}
SSV2 = {"local": True, "drop_path": 0.2, "global_drop_path": 0.4, "num_classes": 174, "num_frames": 16}

VARIANTS = MappingProxyType(
    {
        "uniformerv2_tiny": partial(UniFormerV2, **TINY),
        "uniformerv2_tiny_ssv2": partial(UniFormerV2, **TINY | {"local": True, "patch_size": (2, 8, 8)}),
        "uniformerv2_base_16": partial(UniFormerV2, **BASE, card=tested("K400 84.4", "4x3")),
        "uniformerv2_large_14": partial(UniFormerV2, **LARGE, card=tested("K400 88.8", "4x3")),
        "uniformerv2_large_14_336": partial(UniFormerV2, **HIGH, num_frames=32, card=tested("K400 89.7", "2x3")),
        "uniformerv2_large_14_336_frozen": partial(UniFormerV2, **HIGH, frozen=True, card=tested("K400 86.7", "3x1")),
        "uniformerv2_base_16_ssv2": partial(
            UniFormerV2, **BASE | SSV2 | {"global_layers": tuple(range(4, 12)), "patch_size": (2, 16, 16)},
            card=tested("SSv2 69.5", "1x3"),
        ),
        "uniformerv2_large_14_ssv2": partial(
            UniFormerV2, **LARGE | SSV2 | {"global_layers": tuple(range(8, 24)), "patch_size": (2, 14, 14)},
            card=tested("SSv2 72.1", "1x3"),
        ),
    }
)  # fmt: skip
