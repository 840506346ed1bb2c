"""VideoPrism (Zhao et al. 2024, arXiv:2402.13217; google-deepmind/videoprism): a video encoder, and video with text.

A ViT over the patches of each frame, then a transformer over time at each place (ViViT's model 2, but keeping all
places). It was trained with captions, then by masked distillation; it is meant to be used frozen, with a head over an
attention pooling. The video-text models add joint layers over all tokens, and a text tower.

Pitfalls, all as in the original: scores are capped, `50 tanh(scores / 50)`, before the mask; norms are published as
scale minus one; there is no class token; pixels are in [0, 1], not normalised. The pooling's heads are four times as
wide as those of the blocks, its queries are scaled for each dimension, and a norm follows it. Texts end with their
class token after the padding, have sinusoidal positions `[sine | cosine]` and causal attention, and their MLPs use
ReLU. transformers spaces the sinusoids' frequencies differently: see `TextTower`.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers.activations import ACTIVATIONS
from vidjax.layers.attention import DotProduct, Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Block, Encoder, Remat
from vidjax.models.text import check_ids
from vidjax.models.video_text import VideoText

CARD = Card((0.0,) * 3, (1.0,) * 3, sampling="uniform", source="google-deepmind/videoprism")
CAP = 50.0
INIT = nn.initializers.lecun_normal()


def block(heads: int, mlp_ratio: float, activation: str = "gelu", **fields) -> partial:
    """Creates a block of VideoPrism."""
    return partial(Block, heads, mlp_ratio, activation=ACTIVATIONS[activation], kernel_init=INIT, cap=CAP, **fields)


class AttentionPool(nn.Module):
    """One learned query that attends to all tokens, and a norm.

    Attributes:
      hidden: features of queries, keys and values of all heads.
    """

    heads: int
    hidden: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """The pooled feature, normalised."""
        dense = partial(nn.Dense, kernel_init=INIT, dtype=self.dtype)
        token = self.param("token", INIT, (1, 1, tokens.shape[-1]))
        query = jnp.tile(token.astype(tokens.dtype), (len(tokens), 1, 1))
        query, key, value = (
            einops.rearrange(dense(self.hidden, name=name)(x), "b n (k d) -> b n k d", k=self.heads)
            for name, x in (("query", query), ("key", tokens), ("value", tokens))
        )
        scale = self.param("scale", nn.initializers.zeros_init(), (query.shape[-1],))
        query = query * (jax.nn.softplus(scale) / np.log(2.0)).astype(query.dtype)  # 1 at initialisation
        pooled = DotProduct("xla", name="dot_product")(query, key, value)
        pooled = dense(tokens.shape[-1], name="out")(einops.rearrange(pooled, "b n k d -> b (n k d)"))
        return LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(pooled)


class VideoPrism(nn.Module):
    """The encoder, and a classifier of its pooled tokens.

    Attributes:
      depth, temporal_depth: blocks over the patches of each frame, and over the times of each place.
      num_classes: None returns the mean token; the published encoders have no head.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on the pooled features, before the head.
      drop_path: rate of the last block over time; the rates increase linearly over all blocks.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`; not `cudnn`, which takes no cap.
    """

    width: int
    depth: int
    heads: int
    temporal_depth: int = 4
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 18, 18)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 288
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        frames, *image = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        make = block(self.heads, self.mlp_ratio, implementation=self.implementation, dtype=self.dtype)
        rates = np.linspace(0.0, self.drop_path, self.depth + self.temporal_depth).tolist()
        stack = {"remat": self.remat, "scan": self.scan}
        zeros = nn.initializers.zeros_init()
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, INIT, zeros, self.dtype)
        self.position = PositionTable(tuple(image), self.width, "antialiased_linear", nn.initializers.normal(0.02))
        self.spatial_transformer = Encoder(make, self.depth, rates[: self.depth], **stack)
        self.spatial_norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.temporal_position = PositionTable(
            (frames,), self.width, "antialiased_linear", nn.initializers.normal(0.02)
        )
        self.temporal_transformer = Encoder(make, self.temporal_depth, rates[self.depth :], **stack)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=INIT, dtype=self.dtype)
        if self.classifier is not None:
            self.head_pool = AttentionPool(self.heads, int(self.width * self.mlp_ratio), self.dtype)
            self.head_dropout = nn.Dropout(self.dropout)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised tokens on their grid."""
        check_video(video, self.channels)
        t, h, w = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        x = einops.rearrange(x, "b (t h w) d -> (b t) h w d", t=t, h=h, w=w)
        x = (x + self.position((h, w)).astype(x.dtype)).reshape(len(x), h * w, self.width)
        x = self.spatial_norm(self.spatial_transformer(x, train))
        x = einops.rearrange(x, "(b t) n d -> (b n) t d", t=t)
        x = x + self.temporal_position((t,)).astype(x.dtype)
        x = self.norm(self.temporal_transformer(x, train))
        return einops.rearrange(x, "(b h w) t d -> b t h w d", h=h, w=w)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the pooled tokens; without a head, the mean token."""
        tokens = self.encode(video, train).reshape(len(video), -1, self.width)
        return tokens.mean(axis=1) if self.classifier is None else self.head_pool(tokens)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


class VideoTower(nn.Module):
    """The encoder, joint layers over all its tokens, and the pooling: the video tower of the video-text models.

    Attributes:
      joint_depth: joint layers.
      others: see `VideoPrism`.
    """

    width: int
    depth: int
    heads: int
    temporal_depth: int = 4
    joint_depth: int = 2
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 18, 18)
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 288
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        fields = {"remat": self.remat, "scan": self.scan}
        self.encoder = VideoPrism(
            self.width, self.depth, self.heads, self.temporal_depth, self.mlp_ratio, self.patch_size,
            drop_path=self.drop_path, channels=self.channels, num_frames=self.num_frames, image_size=self.image_size,
            implementation=self.implementation, dtype=self.dtype, **fields,
        )  # fmt: skip
        make = block(self.heads, self.mlp_ratio, implementation=self.implementation, dtype=self.dtype)
        self.joint_transformer = Encoder(make, self.joint_depth, self.drop_path, **fields)
        self.head_pool = AttentionPool(self.heads, int(self.width * self.mlp_ratio), self.dtype)

    @property
    def features(self) -> int:
        """Width of the joint embedding space."""
        return self.width

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Tokens on their grid, after the joint layers."""
        tokens = self.encoder.encode(video, train)
        joint = self.joint_transformer(tokens.reshape(len(tokens), -1, self.width), train)
        return joint.reshape(tokens.shape)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """The video's feature, not of unit length."""
        return self.head_pool(self.encode(video, train).reshape(len(video), -1, self.width))


def sinusoids(length: int, width: int, frequencies: Literal["original", "transformers"]) -> np.ndarray:
    """Positions `[sine | cosine]`; see `TextTower`."""
    count = width // 2
    steps = max(count - 1, 1) if frequencies == "original" else count
    angle = np.arange(length)[:, None] * np.exp(-np.log(10000.0) / steps * np.arange(count))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class TextTower(nn.Module):
    """The text tower. Texts are padded with id 0 at the end; the class token follows the padding, which is masked.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens in a text, without the class token.
      frequencies: of the sinusoidal positions: from 1 to 1/10000 both included (original), or without the last
        (transformers).
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    frequencies: Literal["original", "transformers"] = "original"
    drop_path: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.width % 2:
            raise UserError(f"width {self.width} of the text tower is odd, but half of it are sines: use an even width")
        normal = nn.initializers.normal(self.width**-0.5)
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=normal, dtype=self.dtype)
        self.class_token = self.param("class_token", normal, (1, 1, self.width))
        make = block(self.heads, self.mlp_ratio, "relu", dtype=self.dtype)
        self.transformer = Encoder(make, self.depth, self.drop_path, self.remat, self.scan)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)

    @property
    def features(self) -> int:
        """Width of the joint embedding space."""
        return self.width

    def _all_tokens(self, ids: Int[Array, "b m"], train: bool) -> Float[Array, "b n d"]:
        """Normalised tokens, the class token last."""
        check_ids(ids, self.context)
        x = self.token_embedding(ids) * self.width**0.5
        x = x + jnp.asarray(sinusoids(ids.shape[1], self.width, self.frequencies), x.dtype)
        token = (self.class_token * self.width**0.5).astype(x.dtype)
        x = jnp.concatenate([x, jnp.tile(token, (len(x), 1, 1))], axis=1)
        seen = jnp.pad(ids != 0, ((0, 0), (0, 1)), constant_values=True)
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        return self.norm(self.transformer(x, train, mask=causal & seen[:, None]))

    def tokens(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m d"]:
        """Normalised tokens of the words, from causal attention; those of padding are meaningless."""
        return self._all_tokens(ids, train)[:, :-1]

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The class token's feature, not of unit length."""
        return self._all_tokens(ids, train)[:, -1]


def video_text(video: partial, text: partial, accuracy: str = "") -> VideoText:
    """Creates a pair of towers."""
    return VideoText(video(), text(), replace(CARD, accuracy=accuracy))


TINY = {
    "width": 48, "depth": 2, "heads": 4, "temporal_depth": 1, "patch_size": (1, 8, 8), "num_frames": 4,
    "image_size": 32,
}  # fmt: skip
BASE, LARGE = VIT_SIZES["base"], VIT_SIZES["large"] | {"num_frames": 8}
TEXT = {"vocabulary": 32000, "context": 64, "depth": 12}

VARIANTS = MappingProxyType(
    {
        "videoprism_tiny": partial(VideoPrism, **TINY),
        "videoprism_base": partial(VideoPrism, **BASE),
        "videoprism_large": partial(VideoPrism, **LARGE),
        "videoprism_tiny_lvt": partial(
            video_text,
            partial(VideoTower, **TINY, joint_depth=1),
            partial(TextTower, vocabulary=259, context=96, width=48, depth=2, heads=4),
        ),
        "videoprism_lvt_base": partial(
            video_text, partial(VideoTower, **BASE), partial(TextTower, **TEXT, width=768, heads=12),
            "K400 69.2, zero-shot",
        ),
        "videoprism_lvt_large": partial(
            video_text, partial(VideoTower, **LARGE), partial(TextTower, **TEXT, width=1024, heads=16),
            "K400 72.4, zero-shot",
        ),
    }
)  # fmt: skip
