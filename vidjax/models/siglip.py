"""SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786; google-research/big_vision), applied to each frame.

A ViT without a class token, whose tokens are pooled by a learned query, and a text tower. A clip's feature is the mean
of its frames' features. NaFlex models take images of any shape, as a padded sequence of patches (`SigLip.naflex`).

Pitfalls, all as in the original: GELU is the tanh approximation; the pooling adds an MLP to what the query has attended
to, without adding the query; the text's feature is that of the last place of the context, so that texts are always
padded to it, and padding is not masked; similarities have a bias. Positions are resized by an antialiased linear
interpolation in NaFlex models, and as in transformers in the others.
"""

from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from vidjax.layers.activations import tanh_gelu
from vidjax.layers.attention import Attention, Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Block, Encoder, Mlp, Remat
from vidjax.models.text import check_ids
from vidjax.models.video_text import VideoText

CARD = Card((0.5,) * 3, (0.5,) * 3, source="google-research/big_vision")
NORMAL = nn.initializers.normal(0.02)


class AttentionPool(nn.Module):
    """One learned query that attends to all tokens, then an MLP on a residual branch (MAP, arXiv:2106.04560)."""

    heads: int
    mlp_ratio: float = 4.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b d"]:
        """The pooled feature; `mask` is True for the tokens that count."""
        width = tokens.shape[-1]
        token = self.param("token", nn.initializers.xavier_uniform(), (1, 1, width))
        query = jnp.tile(token.astype(tokens.dtype), (len(tokens), 1, 1))
        attention = Attention(self.heads, dtype=self.dtype, name="attention")
        x = attention(query, tokens, None if mask is None else mask[:, None])
        y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        return (x + Mlp(int(width * self.mlp_ratio), tanh_gelu, dtype=self.dtype, name="mlp")(y))[:, 0]


def flexible_positions(table: Float[Array, "s s d"], shapes: Int[Array, "b 2"], length: int) -> Float[Array, "b n d"]:
    """The table resized to the rows and columns of each image, by an antialiased linear interpolation; row by row.

    Args:
      shapes: rows and columns of patches; their product is at most `length`. Later places have any values.
    """
    place, side = jnp.arange(length), len(table)

    def weights(index: Array, size: Array) -> Float[Array, "n s"]:
        scale = side / size
        distance = jnp.abs((index[:, None] + 0.5) * scale - 0.5 - jnp.arange(side)) / jnp.maximum(scale, 1.0)
        triangle = jnp.maximum(1 - distance, 0.0)
        return triangle / jnp.maximum(triangle.sum(axis=1, keepdims=True), 1e-9)

    def of_image(shape: Int[Array, "2"]) -> Float[Array, "n d"]:
        rows, columns = weights(place // shape[1], shape[0]), weights(place % shape[1], shape[1])
        return jnp.einsum("nr,nc,rcd->nd", rows, columns, table)

    return jax.vmap(of_image)(shapes)


class SigLip(nn.Module):
    """The image tower, and a classifier of its pooled features; applied to each frame.

    Attributes:
      patch_size: frames, height and width of a patch; one frame for images.
      flexible: whether positions are resized as in NaFlex models.
      num_classes: None returns the mean of the frames' pooled features.
      head: module applied to the features of the frames, `b t d`; its outputs are averaged over the frames. None for a
        linear layer to the classes, if any.
      dropout: rate on the pooled features, before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    flexible: bool = False
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 1
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        image = grid((1, self.image_size, self.image_size), (1, *self.patch_size[1:]))[1:]
        method = "antialiased_linear" if self.flexible else "half_pixel_cubic"
        zeros = nn.initializers.zeros_init()
        init = nn.initializers.lecun_normal()
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, init, zeros, self.dtype)
        self.position = PositionTable(image, self.width, method, nn.initializers.normal(self.width**-0.5))
        block = partial(
            Block, self.heads, self.mlp_ratio, activation=tanh_gelu, implementation=self.implementation,
            dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.head_pool = AttentionPool(self.heads, self.mlp_ratio, self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)

    @property
    def features(self) -> int:
        """Width of the joint embedding space."""
        return self.width

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b f n d"]:
        """Normalised tokens of each frame."""
        check_video(video, self.channels)
        frames, *image = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        x = einops.rearrange(x, "b (t h w) d -> (b t) h w d", t=frames, h=image[0])
        x = (x + self.position(tuple(image)).astype(x.dtype)).reshape(len(x), -1, self.width)
        return einops.rearrange(self.norm(self.transformer(x, train)), "(b t) n d -> b t n d", t=frames)

    def naflex(
        self,
        patches: Float[Array, "b n p"],
        mask: Bool[Array, "b n"],
        shapes: Int[Array, "b 2"],
        train: bool = False,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b d"]]:
        """Normalised tokens and pooled features of images of different shapes.

        Args:
          patches: of each image row by row, `(row column channel)`, padded.
          mask: True for the patches that are not padding, whose tokens are meaningless.
          shapes: rows and columns of patches.
        """
        x = self.patch_embedding(patches)
        table = self.position(self.position.grid)
        x = x + flexible_positions(table, shapes, x.shape[1]).astype(x.dtype)
        x = self.norm(self.transformer(x, train, mask=mask[:, None]))
        return x, self.head_pool(x, mask)

    def _pooled(self, video: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b f d"]:
        tokens = self.tokens(video, train)
        pooled = self.head_pool(einops.rearrange(tokens, "b t n d -> (b t) n d"))
        return einops.rearrange(pooled, "(b t) d -> b t d", b=len(video))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised tokens on their grid."""
        tokens = einops.rearrange(self.tokens(video, train), "b t n d -> b (t n) d")
        return on_grid(tokens, grid(video.shape[1:4], self.patch_size))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean of the frames' pooled features; the head is applied to each frame and its outputs are averaged."""
        return self._pooled(video, train).mean(axis=1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Mean output of the head over frames, by default logits `b classes`; without a head, the output of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        features = self.head_dropout(self._pooled(video, train), deterministic=not train)
        return jax.tree.map(lambda outputs: outputs.mean(axis=1), self.classifier(features))


class TextTower(nn.Module):
    """The text tower. Texts are padded with id 0 to the whole context, which is not masked.

    Attributes:
      vocabulary: number of ids.
      context: number of tokens in a padded text.
      features: width of the joint embedding space.
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    features: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        normal = nn.initializers.normal(self.width**-0.5)
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=normal, dtype=self.dtype)
        self.position = self.param("position", normal, (self.context, self.width))
        block = partial(Block, self.heads, self.mlp_ratio, activation=tanh_gelu, dtype=self.dtype)
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.projection = nn.Dense(self.features, kernel_init=normal, dtype=self.dtype)

    def _all_tokens(self, ids: Int[Array, "b m"], train: bool) -> Float[Array, "b n d"]:
        """Normalised tokens of the whole context."""
        check_ids(ids, self.context)
        x = self.token_embedding(jnp.pad(ids, ((0, 0), (0, self.context - ids.shape[1]))))
        return self.norm(self.transformer(x + self.position.astype(x.dtype), train))

    def tokens(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m d"]:
        """Normalised tokens."""
        return self._all_tokens(ids, train)[:, : ids.shape[1]]

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The projected last token, not of unit length."""
        return self.projection(self._all_tokens(ids, train)[:, -1])


def pair(image: partial, text: partial) -> VideoText:
    """Creates a published pair of towers, whose similarities have a bias."""
    return VideoText(image(), text(), CARD, bias=-10.0)


TINY = {"width": 48, "depth": 2, "heads": 4, "patch_size": (1, 8, 8), "num_frames": 2, "image_size": 32}
SO400M = {"width": 1152, "depth": 27, "heads": 16, "mlp_ratio": 4304 / 1152}
GIANT = {"width": 1536, "depth": 40, "heads": 16}
base, large, so400m, giant = (
    partial(SigLip, **size) for size in (VIT_SIZES["base"], VIT_SIZES["large"], SO400M, GIANT)
)
TEXT = {"vocabulary": 256_000, "context": 64}
BASE_TEXT = partial(TextTower, **TEXT, **VIT_SIZES["base"], features=768)
LARGE_TEXT = partial(TextTower, **TEXT, **VIT_SIZES["large"], features=1024)
SO400M_TEXT = partial(TextTower, **TEXT, **SO400M)

VARIANTS = MappingProxyType(
    {
        "siglip2_tiny": partial(SigLip, **TINY),
        "siglip2_base_16": base,
        "siglip2_base_16_naflex": partial(base, image_size=256, flexible=True),
        "siglip2_large_16": partial(large, image_size=256),
        "siglip2_so400m_14": partial(so400m, patch_size=(1, 14, 14)),
        "siglip2_so400m_16_naflex": partial(so400m, image_size=256, flexible=True),
        "siglip2_giant_16": partial(giant, image_size=256),
        "siglip2_tiny_pair": partial(
            pair, partial(SigLip, **TINY),
            partial(TextTower, vocabulary=259, context=16, width=48, depth=2, heads=4, features=48),
        ),
        "siglip2_base_16_pair": partial(pair, base, BASE_TEXT),
        "siglip2_base_16_naflex_pair": partial(pair, partial(base, image_size=256, flexible=True), BASE_TEXT),
        "siglip2_large_16_pair": partial(pair, partial(large, image_size=256), LARGE_TEXT),
        "siglip2_so400m_14_pair": partial(
            pair, partial(so400m, patch_size=(1, 14, 14)), partial(SO400M_TEXT, features=1152)
        ),
        "siglip2_so400m_16_naflex_pair": partial(
            pair, partial(so400m, image_size=256, flexible=True), partial(SO400M_TEXT, features=1152)
        ),
        "siglip2_giant_16_pair": partial(pair, partial(giant, image_size=256), partial(SO400M_TEXT, features=1536)),
    }
)  # fmt: skip
