"""The video model of VATT (Akbari et al. 2021, arXiv:2104.11178; google-research/vatt), and what its towers share.

A ViT on tubelets, whose output is a learned token in front of them. It is pre-trained beside towers of sound and text
(`vatt_pretraining`). In a modality-agnostic model the three have one transformer, with a layer before and after it
for each of them.

Pitfalls, all as in the original: positions (a sum of one table per axis) are normalised before they are added, and the
first token has none. In pre-training half of the tokens of video and sound are dropped after that (DropToken), the same
ones in all clips of a batch. Pixels are in [-1, 1]. Attention weights are not dropped out here; all other dropout is
the original's. Positions of other sizes are interpolated linearly, not by splines.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import Attention, Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Encoder, Remat

CARD = Card((0.5,) * 3, (0.5,) * 3, stride=2, source="google-research/vatt", views="4x3")
XAVIER = nn.initializers.xavier_uniform()


class Block(nn.Module):
    """Pre-norm block with dropout of the branches and inside the MLP, which is four times as wide."""

    heads: int
    dropout: float
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_path: float, train: bool, mask: Bool[Array, "b 1 n"] | None = None
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`; `mask` is true for tokens to attend to, and no path is dropped."""
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        dense = partial(nn.Dense, kernel_init=XAVIER, dtype=self.dtype)
        attention = Attention(self.heads, implementation=self.implementation, dtype=self.dtype, name="attention")
        x = x + drop(name="dropout1")(attention(norm(name="norm1")(x), mask=mask))
        hidden = exact_gelu(dense(4 * x.shape[-1], name="fc1")(norm(name="norm2")(x)))
        out = dense(x.shape[-1], name="fc2")(drop(name="hidden_dropout")(hidden))
        return x + drop(name="dropout2")(out)


def blocks(tower: nn.Module) -> Encoder:
    """The blocks of a tower, from its fields."""
    block = partial(Block, tower.heads, tower.dropout, tower.implementation, tower.dtype)
    return Encoder(block, tower.depth, remat=tower.remat, scan=tower.scan)


class Positions(nn.Module):
    """Adds the normalised sum of one position table per axis, and a token in front.

    Attributes:
      sizes: places along each axis, by its name; tables are resized linearly for others.
    """

    sizes: tuple[tuple[str, int], ...]
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid d"], train: bool = False, drop_token: float = 0.0
    ) -> Float[Array, "b n d"]:
        """Tokens in the order of the grid, after the first one.

        Args:
          drop_token: fraction of the tokens to drop (with the PRNG key "masking"); those kept are in any order.
        """
        width, axes = x.shape[-1], len(self.sizes)
        init = nn.initializers.truncated_normal(width**-0.5)
        total = jnp.zeros(())
        for axis, (name, size) in enumerate(self.sizes):
            table = PositionTable((size,), width, "linear", init, name=name)((x.shape[1 + axis],))
            total = total + table.reshape(*(-1 if i == axis else 1 for i in range(axes)), width)
        x = x + LayerNorm(epsilon=1e-6, name="norm")(total).astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x.reshape(len(x), -1, width))
        if drop_token:
            x = drop_tokens(self.make_rng("masking"), x, drop_token)
        first = self.param("token", init, (width,))
        return jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, width)), x], axis=1)


def drop_tokens(key: Array, x: Float[Array, "b n d"], rate: float) -> Float[Array, "b m d"]:
    """DropToken: the first `n (1 - rate)` tokens of a permutation, the same for all clips of the batch."""
    kept = jax.random.permutation(key, x.shape[1])[: int(x.shape[1] * (1 - rate))]
    return x[:, kept]


class VideoTransformer(nn.Module):
    """The video tower, and a classifier on its first token.

    Attributes:
      outputs: features behind the transformer, of the layer that a modality-agnostic model adds there; None for a
        modality-specific one, which has none before it either.
      num_classes: None returns features.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      drop_token: fraction of the tokens that are dropped in training, with the PRNG key "masking".
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
    """

    width: int
    depth: int
    heads: int
    patch_size: tuple[int, int, int] = (4, 16, 16)
    outputs: int | None = None
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_token: float = 0.0
    channels: int = 3
    num_frames: int = 32
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        t, h, w = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, dtype=self.dtype)
        self.position = Positions((("frames", t), ("rows", h), ("columns", w)), self.dropout)
        self.transformer, self.drop = blocks(self), nn.Dropout(self.dropout)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        if self.outputs is not None:
            self.embedding_layer, self.projection = layers_around(self.width, self.outputs, self.dtype)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=XAVIER, dtype=self.dtype)

    def run(
        self, tokens: Float[Array, "b n d"], train: bool = False, mask: Bool[Array, "b 1 n"] | None = None
    ) -> Float[Array, "b n d"]:
        """The transformer and its norm, which a modality-agnostic model uses for sound and text too."""
        context = {} if mask is None else {"mask": mask}
        return self.drop(self.norm(self.transformer(tokens, train, **context)), not train)

    def tokens(
        self, video: Float[Array, "b t h w c"], train: bool = False, drop_token: float = 0.0
    ) -> Float[Array, "b n d"]:
        """The first token, then those of the patches."""
        check_video(video, self.channels)
        t, h, w = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        if self.outputs is not None:
            x = exact_gelu(self.embedding_layer(x))
        x = einops.rearrange(x, "b (t h w) d -> b t h w d", t=t, h=h, w=w)
        x = self.run(self.position(x, train, drop_token), train)
        return x if self.outputs is None else exact_gelu(self.projection(x))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Tokens of the patches on their grid; none is dropped."""
        t, h, w = grid(video.shape[1:4], self.patch_size)
        return einops.rearrange(self.tokens(video, train)[:, 1:], "b (t h w) d -> b t h w d", t=t, h=h, w=w)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the first token."""
        return self.tokens(video, train, self.drop_token if train else 0.0)[:, 0]

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        return features if self.classifier is None else self.classifier(features)


def layers_around(width: int, outputs: int, dtype: DTypeLike | None) -> tuple[nn.Dense, nn.Dense]:
    """A modality's layers before and after the transformer of a modality-agnostic model; GELU follows each."""
    return nn.Dense(width, kernel_init=XAVIER, dtype=dtype), nn.Dense(outputs, kernel_init=XAVIER, dtype=dtype)


MEDIUM = {"width": 1024, "depth": 12, "heads": 16}
TINY = {"width": 96, "depth": 2, "heads": 4, "patch_size": (2, 8, 8), "num_frames": 8, "image_size": 32}

VARIANTS = MappingProxyType(
    {
        "vatt_tiny": partial(VideoTransformer, **TINY),
        "vatt_base": partial(
            VideoTransformer, **VIT_SIZES["base"], card=replace(CARD, accuracy="79.6, K400, 4x3 views")
        ),
        "vatt_medium": partial(VideoTransformer, **MEDIUM, card=replace(CARD, accuracy="81.1, K400, 4x3 views")),
        "vatt_large": partial(
            VideoTransformer, **VIT_SIZES["large"], card=replace(CARD, accuracy="82.1, K400, 4x3 views")
        ),
        "vatt_tiny_agnostic": partial(VideoTransformer, **TINY, outputs=128),
        "vatt_medium_agnostic": partial(
            VideoTransformer, **MEDIUM, outputs=1024, card=replace(CARD, accuracy="79.9, K400, 4x3 views")
        ),
    }
)
