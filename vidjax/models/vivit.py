"""ViViT, models 1 to 4 (Arnab et al. 2021, arXiv:2103.15691; google-research/scenic, projects/vivit).

A ViT over tubelets, with tokens in `(t h w)` order. 1, *joint*: every token attends to every other. 2, *factorized
encoder*: a transformer over each frame of tubelets, then a shallow one over the frames' class tokens. 3, *factorized
self-attention*: each block attends over time at each position, then over space in each frame. 4, *factorized dot
product*: as 1, but half of the heads attend over time and half over space, without additional parameters.

Pitfalls: GELU is the tanh approximation; models 3 and 4 have no class token and average their tokens; both transformers
of model 2 end in a norm; the released large model 2 for Kinetics has 24 temporal layers instead of the paper's 4. The
head is initialised to zero. Stochastic depth rescales the remaining branches, as in timm; Scenic's does not, and its
model 3 has none. Scenic initialises MLP biases to N(0, 1e-6), we to zero.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.activations import tanh_gelu
from vidjax.layers.adapters import Adapter, require_method
from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.factorized_attention import FactorizedDotProductBlock, FactorizedSelfAttentionBlock
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Block, Encoder, Remat

Embedding = Literal["tubelet", "uniform_frames"]
Pooling = Literal["class_token", "mean"]

NORMAL = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros_init()


def uniform_frames(video: Float[Array, "b t h w c"], count: int) -> Float[Array, "b _ h w c"]:
    """Uniformly sampled frames, with the same spacing to both ends (section 3.2), as in Scenic."""
    frames = video.shape[1]
    return video if count >= frames else video[:, (np.arange(1, count + 1) * frames / (count + 1)).astype(int)]


def cut(
    video: Float[Array, "b t h w c"],
    patch_size: tuple[int, int, int],
    embedding: Embedding,
    dtype: DTypeLike | None,
) -> tuple[Float[Array, "b n p"], tuple[int, int, int]]:
    """Tubelets of the clip, or patches of one frame per tubelet, and their grid."""
    shape = grid(video.shape[1:4], patch_size)
    if embedding == "tubelet":
        return patchify(video, patch_size, dtype), shape
    return patchify(uniform_frames(video, shape[0]), (1, *patch_size[1:]), dtype), shape


def kernel_patch(patch_size: tuple[int, int, int], embedding: Embedding) -> tuple[int, int, int]:
    """Patch size of the embedding's kernel.

    Raises:
      UserError: an unknown embedding.
    """
    if embedding not in ("tubelet", "uniform_frames"):
        raise UserError(f"embedding is '{embedding}': choose tubelet or uniform_frames")
    return patch_size if embedding == "tubelet" else (1, *patch_size[1:])


def prepend(token: Float[Array, "1 1 d"], x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """Prepends the token to each sequence of `x`."""
    return jnp.concatenate([jnp.tile(token.astype(x.dtype), (len(x), 1, 1)), x], axis=1)


BLOCKS = MappingProxyType(
    {
        "joint": partial(Block, activation=tanh_gelu),
        "factorized_self_attention": FactorizedSelfAttentionBlock,
        "factorized_dot_product": FactorizedDotProductBlock,
    }
)


class ViViT(nn.Module):
    """Models 1, 3 and 4: one transformer over all tokens.

    Attributes:
      attention: see the module docstring.
      embedding: of tubelets, or of patches from uniformly sampled frames, one per tubelet.
      pooling: feature that is classified; models 3 and 4 have no class token.
      num_classes: None returns the pooled feature.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on this feature, before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the position table is made for; it is resized for other sizes.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`; "ring" is meant for joint attention.
      adapter: trained beside frozen weights, see `layers.adapters`.
    """

    width: int
    depth: int
    heads: int
    attention: Literal["joint", "factorized_self_attention", "factorized_dot_product"] = "joint"
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (2, 16, 16)
    embedding: Embedding = "tubelet"
    pooling: Pooling = "class_token"
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 32
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.attention not in BLOCKS:
            raise UserError(f"attention is '{self.attention}': choose {', '.join(BLOCKS)}")
        if self.pooling == "class_token" and self.attention != "joint":
            raise UserError(f"ViViT with {self.attention} has no class token: set pooling to mean")
        require_method(self.adapter, self, "adapter", "adaptformer", *(["prompt"] if self.attention == "joint" else []))
        patch = kernel_patch(self.patch_size, self.embedding)
        self.patch_embedding = PatchEmbedding(self.width, patch, dtype=self.dtype)
        if self.pooling == "class_token":
            self.class_token = self.param("class_token", ZEROS, (1, 1, self.width))
            self.class_position = self.param("class_position", NORMAL, (1, 1, self.width))
        shape = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        self.position = PositionTable(shape, self.width, "linear")
        block = partial(
            BLOCKS[self.attention], self.heads,
            mlp_ratio=self.mlp_ratio, implementation=self.implementation, adapter=self.adapter, dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan, adapter=self.adapter)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=ZEROS, dtype=self.dtype)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """Normalised tokens; class token first, if any."""
        check_video(video, self.channels)
        patches, shape = cut(video, self.patch_size, self.embedding, self.dtype)
        x = self.patch_embedding(patches)
        x = x + self.position(shape).reshape(-1, self.width).astype(x.dtype)
        if self.pooling == "class_token":
            x = prepend(self.class_token + self.class_position, x)
        context = {} if self.attention == "joint" else {"frames": shape[0]}
        return self.norm(self.transformer(x, train, **context))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens on their grid."""
        tokens = self.tokens(video, train)
        tokens = tokens[:, 1:] if self.pooling == "class_token" else tokens
        return on_grid(tokens, grid(video.shape[1:4], self.patch_size))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the class token, or the mean of all tokens."""
        tokens = self.tokens(video, train)
        return tokens[:, 0] if self.pooling == "class_token" else tokens.mean(axis=1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


class FactorizedEncoder(nn.Module):
    """Model 2: a spatial transformer, applied to each frame, then a temporal one.

    The other fields are those of `ViViT`.

    Attributes:
      temporal_depth: number of blocks in the temporal transformer.
      pooling: of both transformers.
    """

    width: int
    depth: int
    heads: int
    temporal_depth: int = 4
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (2, 16, 16)
    embedding: Embedding = "tubelet"
    pooling: Pooling = "class_token"
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 32
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        require_method(self.adapter, self, "adapter", "adaptformer", "prompt")
        patch = kernel_patch(self.patch_size, self.embedding)
        self.patch_embedding = PatchEmbedding(self.width, patch, dtype=self.dtype)
        if self.pooling == "class_token":
            self.class_token = self.param("class_token", ZEROS, (1, 1, self.width))
            self.class_position = self.param("class_position", NORMAL, (1, 1, self.width))
            self.temporal_class_token = self.param("temporal_class_token", ZEROS, (1, 1, self.width))
            self.temporal_class_position = self.param("temporal_class_position", NORMAL, (1, 1, self.width))
        frames, *image = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        self.position = PositionTable(tuple(image), self.width, "linear")
        self.temporal_position = PositionTable((frames,), self.width, "linear")
        block = partial(
            Block, self.heads, self.mlp_ratio, activation=tanh_gelu,
            implementation=self.implementation, adapter=self.adapter, dtype=self.dtype,
        )  # fmt: skip
        encoder = partial(
            Encoder, block, drop_path=self.drop_path, remat=self.remat, scan=self.scan, adapter=self.adapter
        )
        self.spatial_transformer = encoder(depth=self.depth)
        self.spatial_norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.temporal_transformer = encoder(depth=self.temporal_depth)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=ZEROS, dtype=self.dtype)

    def spatial(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ _ d"], Float[Array, "b f d"]]:
        """Output of the spatial transformer: normalised patch tokens on their grid, and one feature per frame."""
        check_video(video, self.channels)
        patches, (t, h, w) = cut(video, self.patch_size, self.embedding, self.dtype)
        x = einops.rearrange(self.patch_embedding(patches), "b (t n) d -> (b t) n d", t=t)
        x = x + self.position((h, w)).reshape(-1, self.width).astype(x.dtype)
        if self.pooling == "class_token":
            x = prepend(self.class_token + self.class_position, x)
        x = self.spatial_norm(self.spatial_transformer(x, train))
        pooled = x[:, 0] if self.pooling == "class_token" else x.mean(axis=1)
        patches = x[:, 1:] if self.pooling == "class_token" else x
        patches = einops.rearrange(patches, "(b t) (h w) d -> b t h w d", t=t, h=h)
        return patches, einops.rearrange(pooled, "(b t) d -> b t d", t=t)

    def temporal(self, x: Float[Array, "b f d"], train: bool = False) -> Float[Array, "b n d"]:
        """Output of the temporal transformer: normalised tokens of the frames; class token first, if any."""
        x = x + self.temporal_position((x.shape[1],)).astype(x.dtype)
        if self.pooling == "class_token":
            x = prepend(self.temporal_class_token + self.temporal_class_position, x)
        return self.norm(self.temporal_transformer(x, train))

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """Normalised tokens of the frames; class token first, if any."""
        return self.temporal(self.spatial(video, train)[1], train)

    def stages(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ _ d"], Float[Array, "b _ 1 1 d"]]:
        """Normalised tokens of the spatial transformer, on their grid, and of the temporal one (see `encode`)."""
        patches, frames = self.spatial(video, train)
        tokens = self.temporal(frames, train)
        tokens = tokens[:, 1:] if self.pooling == "class_token" else tokens
        return patches, tokens[:, :, None, None]

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ 1 1 d"]:
        """Normalised tokens of the temporal transformer, one per frame of tubelets.

        The temporal transformer has no spatial positions; those of the spatial one are returned by `stages`.
        """
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the class token, or the mean of all tokens."""
        tokens = self.tokens(video, train)
        return tokens[:, 0] if self.pooling == "class_token" else tokens.mean(axis=1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


def kinetics(accuracy: float | None = None) -> Card:
    """The card of a model trained on Kinetics-400."""
    reached = f"K400 {accuracy}, 4x3 views" if accuracy else ""
    return Card(
        (0.5,) * 3, (0.5,) * 3, stride=2, crop_ratio=224 / 256, source="google-research/scenic", accuracy=reached
    )


TINY = {"width": 96, "depth": 4, "heads": 6, "patch_size": (2, 8, 8), "num_frames": 8, "image_size": 32}
BASE = {**VIT_SIZES["base"], "num_classes": 400}
LARGE = {**VIT_SIZES["large"], "num_classes": 400}
SELF = {"attention": "factorized_self_attention", "pooling": "mean"}
DOT = {"attention": "factorized_dot_product", "pooling": "mean"}

VARIANTS = MappingProxyType(
    {
        "vivit_tiny_joint": partial(ViViT, **TINY, card=kinetics()),
        "vivit_tiny_factorized_encoder": partial(FactorizedEncoder, **TINY, temporal_depth=2, card=kinetics()),
        "vivit_tiny_factorized_self_attention": partial(ViViT, **TINY, **SELF, card=kinetics()),
        "vivit_tiny_factorized_dot_product": partial(ViViT, **TINY, **DOT, card=kinetics()),
        "vivit_base_16x2_joint": partial(ViViT, **BASE, card=kinetics(79.9)),
        "vivit_base_16x2_factorized_encoder": partial(FactorizedEncoder, **BASE, card=kinetics(78.4)),
        "vivit_base_16x2_factorized_self_attention": partial(ViViT, **BASE, **SELF, card=kinetics()),
        "vivit_base_16x2_factorized_dot_product": partial(ViViT, **BASE, **DOT, card=kinetics()),
        "vivit_large_16x2_joint": partial(ViViT, **LARGE, card=kinetics()),
        "vivit_large_16x2_factorized_encoder": partial(FactorizedEncoder, **LARGE, card=kinetics()),
        "vivit_large_16x2_factorized_encoder_24": partial(
            FactorizedEncoder, **LARGE, temporal_depth=24, card=kinetics(80.3)
        ),
        "vivit_large_16x2_factorized_self_attention": partial(ViViT, **LARGE, **SELF, card=kinetics()),
        "vivit_large_16x2_factorized_dot_product": partial(ViViT, **LARGE, **DOT, card=kinetics()),
    }
)
