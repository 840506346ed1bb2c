"""Hiera (Ryali et al. 2023, arXiv:2306.00989; facebookresearch/hiera) for clips and images.

A transformer whose grid shrinks and whose width grows at the start of each stage but the first, like MViT's, but
without convolutions and relative positions: pre-training as a masked autoencoder replaces them. Tokens are kept in mask
units of 8x8 patches at one time. Units are what is masked, and attention in the first two stages stays within them.

Tokens are `b u s d`: units in `(t h w)` order, and in a unit its cells, ordered so that each of the three poolings is a
maximum over the four equal parts of the cells; see `layers.mask_units`.

Pitfalls, all as in the original: the first block of a stage attends as those of the stage before; queries are pooled,
and the shortcut is the maximum of a linear map of the normalised input; the norm comes after the mean over tokens; the
masked autoencoder (`models.hiera_mae`) pools twice, the classifier three times with the same weights; the patch
embedding overlaps, so that the pixels of hidden units are set to zero first. An image model has one position table, a
video model one for space and one for time. The original applies the softmax in evaluation. All biases and the biases of
norms start at 0.02, in the autoencoder at zero. Here, an image model classifies each frame.
"""

from dataclasses import replace
from functools import partial
from math import prod
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import DotProduct, Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D
from vidjax.layers.embedding import PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.mask_units import Grid, pool_cells, roll, unroll, visible
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid
from vidjax.layers.transformer import DropPath, Remat, equal_runs, run_equal

IMAGE = Card(crop_ratio=224 / 256, source="facebookresearch/hiera")
VIDEO = Card((0.45,) * 3, (0.225,) * 3, stride=4, crop_ratio=224 / 256, rate=30.0, source="facebookresearch/hiera")

NORMAL, XAVIER = nn.initializers.normal(0.02), nn.initializers.xavier_uniform()


def unit_size(model: nn.Module) -> Grid:
    """Frames, height and width of a mask unit of a `Hiera` or `Pretraining` in pixels."""
    side = 4 * 2 ** (len(model.depths) - 1)
    return (1 if model.images else 2), side, side


def initializers(xavier: bool) -> dict[str, nn.initializers.Initializer]:
    """Of linear layers: those of masked pre-training, or of training a classifier."""
    if xavier:
        return {"kernel_init": XAVIER, "bias_init": nn.initializers.zeros_init()}
    return {"kernel_init": NORMAL, "bias_init": nn.initializers.constant(0.02)}


def flat_xavier(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Xavier's initialisation of a convolution as of the linear map of its patches."""
    return XAVIER(key, (prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


class UnitAttention(nn.Module):
    """Attention within each unit or over all tokens, of pooled queries.

    Attributes:
      width: of the output.
      pool: parts of the cells over which queries are pooled; 1 for no pooling.
      within_units: whether tokens attend to those of their unit only.
    """

    width: int
    heads: int
    pool: int = 1
    within_units: bool = True
    xavier: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b u s c"]) -> Float[Array, "b u _ d"]:
        """The output has `s / pool` cells in each unit."""
        dense = partial(nn.Dense, self.width, dtype=self.dtype, **initializers(self.xavier))
        query, key, value = (
            einops.rearrange(dense(name=name)(x), "b u s (k d) -> b u s k d", k=self.heads)
            for name in ("query", "key", "value")
        )
        query = pool_cells(query, self.pool)
        units, cells = query.shape[1:3]
        if not self.within_units:
            query, key, value = (einops.rearrange(y, "b u s k d -> b (u s) k d") for y in (query, key, value))
        attended = DotProduct(self.implementation, name="dot_product")(query, key, value)
        return dense(name="out")(attended.reshape(len(x), units, cells, self.width))


class Block(nn.Module):
    """Attention, then the MLP, each on a residual branch with drop path.

    Attributes:
      width: of the output.
      pool, within_units: see `UnitAttention`.
      xavier: see `initializers`.
    """

    width: int
    heads: int
    pool: int = 1
    within_units: bool = True
    mlp_ratio: float = 4.0
    xavier: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b u s c"], drop_path: float | Array = 0.0, train: bool = False
    ) -> Float[Array, "b u _ d"]:
        """The output has `s / pool` cells in each unit."""
        linear = initializers(self.xavier)
        dense = partial(nn.Dense, dtype=self.dtype, **linear)
        norm = partial(LayerNorm, epsilon=1e-6, bias_init=linear["bias_init"], dtype=self.dtype)
        attention = UnitAttention(
            self.width, self.heads, self.pool, self.within_units, self.xavier, self.implementation, self.dtype,
            name="attention",
        )  # fmt: skip
        branch = DropPath(name="drop_path")
        y = norm(name="norm1")(x)
        if x.shape[-1] != self.width:
            x = pool_cells(dense(self.width, name="shortcut")(y), self.pool)
        x = x + branch(attention(y), drop_path, train)
        hidden = exact_gelu(dense(int(self.width * self.mlp_ratio), name="fc1")(norm(name="norm2")(x)))
        return x + branch(dense(self.width, name="fc2")(hidden), drop_path, train)


class Hiera(nn.Module):
    """The encoder and classifier.

    Attributes:
      depths: blocks of each stage.
      width, heads: of the first stage; both double from stage to stage.
      images: whether it is an image model, which is applied to each frame: patches of one frame instead of two, and no
        positions in time.
      poolings: how many of the stages after the first begin with pooling: all, or all but the last in pre-training.
      num_classes: None returns the normalised mean token.
      head: module applied to the features `b f d` of each frame, or with `f = 1` of a video; its outputs are averaged
        over them. None for a linear layer to the classes, if any.
      dropout: rate on the mean token, before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      xavier: see `initializers`.
      remat, scan: see `Encoder`; neighbouring blocks that are equal are scanned.
      implementation: of attention, see `attend`.
    """

    depths: tuple[int, ...]
    width: int
    heads: int
    images: bool = False
    poolings: int = 3
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = VIDEO
    xavier: bool = False
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.width % self.heads:
            raise UserError(f"width {self.width} cannot be split into {self.heads} heads: use a divisor of the width")
        if self.poolings >= len(self.depths):
            raise UserError(f"poolings is {self.poolings}: it must be below the number of stages, {len(self.depths)}")
        linear = initializers(self.xavier)
        self.patch_embedding = Conv3D(
            self.width, (1 if self.images else 3, 7, 7), (1 if self.images else 2, 4, 4), use_bias=True,
            kernel_init=flat_xavier if self.xavier else NORMAL, dtype=self.dtype,
        )  # fmt: skip
        side = self.image_size // 4
        self.spatial_position = PositionTable((side, side), self.width, "half_pixel_cubic", NORMAL)
        if not self.images:
            self.temporal_position = PositionTable((self.num_frames // 2,), self.width, "half_pixel_linear", NORMAL)
        blocks = []
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                starts = i == 0 and stage > 0
                blocks.append(
                    Block(
                        self.width * 2**stage, self.heads * 2**stage, 4 if starts and stage <= self.poolings else 1,
                        stage - starts < 2, self.mlp_ratio, self.xavier, self.implementation, self.dtype,
                    )
                )  # fmt: skip
        self.block = blocks
        self.norm = LayerNorm(epsilon=1e-6, bias_init=linear["bias_init"], dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        small = nn.initializers.normal(0.02 * 0.001)  # the original scales its head by 0.001
        bias_init = nn.initializers.constant(0.02 * 0.001)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=small, bias_init=bias_init, dtype=self.dtype
        )

    def stage_tokens(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"] | None = None, train: bool = False
    ) -> list[Float[Array, "b _ _ _"]]:
        """Tokens at the end of each stage, of all units in `(t h w)` order, or only of the units at the indices `kept`.

        The frames of a clip are seen together.
        """
        check_video(video, self.channels)
        units = grid(video.shape[1:4], unit_size(self))
        if kept is not None:
            video = video * visible(kept, units, unit_size(self))[..., None].astype(video.dtype)
        x = self.patch_embedding(video)
        positions = self.spatial_position(x.shape[2:4])
        if not self.images:
            positions = self.temporal_position(x.shape[1:2])[:, None, None] + positions
        x = unroll(x + positions.astype(x.dtype), len(self.depths) - 1)
        x = einops.rearrange(x, "b t h w s d -> b (t h w) s d")
        if kept is not None:
            x = jnp.take_along_axis(x, kept[..., None, None], axis=1)
        stages, ends = [], np.cumsum(self.depths) - 1
        rates = np.linspace(0.0, self.drop_path, len(self.block))
        for run in equal_runs(self, self.block):
            x = run_equal(self, self.block, run, x, rates, train, self.remat)
            if run[1] in ends:
                stages.append(x)
        return stages

    def _apart(self, video: Float[Array, "b t h w c"]) -> Float[Array, "n _ h w c"]:
        """The clips, or for an image model the frames, each as a clip."""
        check_video(video, self.channels)
        return einops.rearrange(video, "b t h w c -> (b t) 1 h w c") if self.images else video

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """Tokens on their grid at the end of each stage: 1/4 to 1/32 of the sides, and half of a video's frames."""
        _, h, w = grid(video.shape[1:4], unit_size(self))
        rolled = (
            roll(einops.rearrange(tokens, "b (t h w) s d -> b t h w s d", h=h, w=w))
            for tokens in self.stage_tokens(self._apart(video), train=train)
        )
        return tuple(x.reshape(len(video), -1, *x.shape[2:]) for x in rolled)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`."""
        return self.stages(video, train)[-1]

    def _pooled(self, video: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b f d"]:
        """The normalised mean token of the clip, or for an image model of each frame."""
        tokens = self.stage_tokens(self._apart(video), train=train)[-1]
        return self.norm(tokens.mean(axis=(1, 2))).reshape(len(video), -1, tokens.shape[-1])

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the normalised mean token; for an image model, its mean over the frames."""
        return self._pooled(video, train).mean(axis=1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`, averaged over frames; without a head that of `embed`."""
        features = self._pooled(video, train)
        if self.classifier is None:
            return features.mean(axis=1)
        features = self.head_dropout(features, deterministic=not train)
        return jax.tree.map(lambda outputs: outputs.mean(axis=1), self.classifier(features))


TINY_SIZE = {"depths": (1, 1, 2, 1), "width": 16, "heads": 1, "num_frames": 4, "image_size": 64}
TINY = {"depths": (1, 2, 7, 2), "width": 96, "heads": 1}
SMALL = TINY | {"depths": (1, 2, 11, 2)}
BASE = TINY | {"depths": (2, 3, 16, 3)}
BASE_PLUS = BASE | {"width": 112, "heads": 2}
LARGE = {"depths": (2, 6, 36, 4), "width": 144, "heads": 2}
HUGE = LARGE | {"width": 256, "heads": 4}
FRAMES = {"images": True, "num_frames": 1, "card": IMAGE}


def video(accuracy: float) -> dict:
    """The fields of a video classifier."""
    return {
        "num_classes": 400,
        "card": replace(VIDEO, accuracy=f"K400 {accuracy}, 5x3 views", views="5x3"),
    }


def image(accuracy: float) -> dict:
    """The fields of an image classifier."""
    return FRAMES | {"num_classes": 1000, "card": replace(IMAGE, accuracy=f"ImageNet {accuracy}")}


VARIANTS = MappingProxyType(
    {
        "hiera_tiny": partial(Hiera, **TINY_SIZE),
        "hiera_tiny_image": partial(Hiera, **TINY_SIZE, images=True, card=IMAGE),
        "hiera_b": partial(Hiera, **BASE, **video(84.0)),
        "hiera_bplus": partial(Hiera, **BASE_PLUS, **video(85.0)),
        "hiera_l": partial(Hiera, **LARGE, **video(87.3)),
        "hiera_h": partial(Hiera, **HUGE, **video(87.8)),
        "hiera_t_image": partial(Hiera, **TINY, **image(82.8)),
        "hiera_s_image": partial(Hiera, **SMALL, **image(83.8)),
        "hiera_b_image": partial(Hiera, **BASE, **image(84.5)),
        "hiera_bplus_image": partial(Hiera, **BASE_PLUS, **image(85.2)),
        "hiera_l_image": partial(Hiera, **LARGE, **image(86.1)),
        "hiera_h_image": partial(Hiera, **HUGE, **image(86.9)),
    }
)
