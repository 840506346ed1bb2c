"""InternVideo (Wang et al. 2022, arXiv:2212.03191): its encoder trained with texts, its cross-model interaction (stage
3), and its retrieval transformer.

`internvideo_base_16` and `internvideo_large_14` are the video and text towers of stage 1: CLIP, with UniFormerV2 as its
video tower. CLIP's last norm and projection follow UniFormerV2's video token, so that the pair starts as CLIP on the
mean of the frames' class tokens.

`CrossModel` joins two classifiers of the same classes: a masked autoencoder (VideoMAE) and an encoder that was trained
by contrast with texts (UniFormerV2 in the paper; here any transformer of the library). After chosen blocks of the
masked encoder, its tokens attend to the tokens of the contrastive encoder at the same relative depth; at the end the
feature of the contrastive encoder attends to the tokens of the masked one. Each of these attentions, and the MLP after
it, is behind a tanh gate that starts at zero, so that at first each encoder computes what it does alone. The logits are
a learned linear combination of those of both classifiers.

The official repository has no code for this stage, only an average of stored scores. The paper trains the new parts and
both classifiers on frozen encoders (and the queries of UniFormerV2's global blocks, which stay frozen here: their
gradient would pass through most of an encoder). Neither it nor the code says at which depths the encoders attend to one
another, how the gates are shared, or with which weights the scores start; here every attention and every MLP has a
gate of its own, and both scores start with one half.

Pitfall: the encoders may expect other means and stds; a video comes in normalised by the joint model's card.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.layers.activations import quick_gelu
from vidjax.layers.attention import Attention
from vidjax.layers.card import Card
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import grid, on_grid
from vidjax.layers.tower import ClipsOfTower
from vidjax.layers.transformer import Block, Encoder, Mlp
from vidjax.models import clip, uniformerv2
from vidjax.models.text import TEXT_VARIANTS
from vidjax.models.video_text import Projected, VideoText

NORMAL = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros_init()


def heads_of(width: int) -> int:
    """The largest number of heads of 64 or more features each."""
    return next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)


class GatedAttention(nn.Module):
    """Cross-attention to the tokens of another model, then an MLP, each behind a tanh gate that starts at zero."""

    mlp_ratio: float = 4.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m e"]) -> Float[Array, "b n d"]:
        """The output has the shape of `x`."""
        width = x.shape[-1]
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        attention = Attention(heads_of(width), kernel_init=NORMAL, dtype=self.dtype, name="attention")
        mlp = Mlp(int(width * self.mlp_ratio), kernel_init=NORMAL, dtype=self.dtype, name="mlp")

        def gate(name: str) -> Float[Array, ""]:
            return jnp.tanh(self.param(name, ZEROS, ())).astype(x.dtype)

        attended = attention(norm(name="norm1")(x), norm(name="norm_context")(context))
        x = x + gate("attention_gate") * attended
        return x + gate("mlp_gate") * mlp(norm(name="norm2")(x))


def embed_with_tokens(
    encoder: nn.Module, video: Float[Array, "b t h w c"], train: bool = False
) -> tuple[Float[Array, "b d"], list[Float[Array, "b _ e"]]]:
    """What the encoder's head sees, and the tokens after each block: of its longest stack, all frames in one sequence.

    Raises:
      UserError: it has no blocks.
    """
    stacks: dict[tuple, list] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        out, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and re.fullmatch(r"block_\d+", module.name or ""):
            stacks.setdefault(module.path[:-1], []).append(out.reshape(len(video), -1, out.shape[-1]))
        return out

    with nn.intercept_methods(record):
        feature = encoder.embed(video, train)
    if not stacks:
        raise UserError(
            f"the contrastive encoder is a {type(encoder).__name__}, which has no blocks: use a transformer"
        )
    return feature, max(stacks.values(), key=len)


class TowerClassifier(ClipsOfTower, nn.Module):
    """A linear classifier of the features of a tower without classes, such as the video tower of a video-text model.

    Attributes:
      tower: maps videos `b t h w c` to `b e`; has `num_frames`, `image_size`, `channels` and `encode`.
    """

    tower: nn.Module
    num_classes: int
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the head."""
        self.classifier = nn.Dense(self.num_classes, kernel_init=ZEROS, dtype=self.dtype, name="head")

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The tower's features on the space-time grid."""
        return self.tower.encode(video, train=train)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """The tower's feature, the input of the head."""
        return self.tower(video, train=train)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b classes"]:
        """Logits."""
        return self.classifier(self.embed(video, train))


class CrossModel(nn.Module):
    """Two classifiers of the same clips and classes that attend to one another; see the module docstring.

    Attributes:
      masked: a `videomae.VideoMAE` with classes.
      contrastive: a classifier with transformer blocks, or a `TowerClassifier`. Its patches may have another size.
      depths: numbers of blocks of the masked encoder after which its tokens attend to the contrastive encoder, from 1.
      card: of the joint model. Pixels are normalised by it, and for either encoder again by its own card.
    """

    masked: nn.Module
    contrastive: nn.Module
    depths: tuple[int, ...]
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.check()
        attention = partial(GatedAttention, dtype=self.dtype)
        self.inward = {str(depth): attention() for depth in self.depths}
        self.outward = attention()
        self.score_weights = self.param("score_weights", nn.initializers.constant(0.5), (2,))

    def check(self) -> None:
        """Raises `UserError` if the two classifiers cannot be joined."""
        if not hasattr(type(self.masked), "pool"):  # VideoMAE, whose tokens can be changed between blocks
            raise UserError(f"the masked encoder is a {type(self.masked).__name__}: give a classifier of videomae_*")
        for name, field, flag in (("frames", "num_frames", "frames"), ("pixels a side", "image_size", "size")):
            one, other = getattr(self.masked, field), getattr(self.contrastive, field)
            if one != other:
                raise UserError(
                    f"the masked encoder takes clips of {one} {name}, the contrastive one of {other}, but both see the "
                    f"same clip: fine-tune one of them again with the other's --data.{flag}"
                )
        classes = [encoder.num_classes for encoder in (self.masked, self.contrastive)]
        if None in classes or classes[0] != classes[1]:
            raise UserError(
                f"the masked encoder has {classes[0]} classes, the contrastive one {classes[1]}: fine-tune both on the "
                "same classes first"
            )
        if not self.depths or len(set(self.depths)) < len(self.depths):
            raise UserError(f"depths is {self.depths}: give one block of the masked encoder or more, each once")
        if wrong := [depth for depth in self.depths if not 1 <= depth <= self.masked.depth]:
            raise UserError(
                f"depths: there is no block {wrong[0]} in the masked encoder, which has {self.masked.depth}: choose "
                f"from 1 to {self.masked.depth}"
            )
        tower = getattr(self.contrastive, "tower", self.contrastive)
        if getattr(tower, "remat", "none") != "none" or getattr(tower, "scan", False):
            raise UserError("the contrastive encoder's tokens are read between its blocks: omit its remat and scan")

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the encoders are meant for."""
        return self.masked.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of these clips."""
        return self.masked.image_size

    @property
    def channels(self) -> int:
        """Channels of these clips."""
        return self.masked.channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.masked.num_classes

    def interact(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b e"]]:
        """Tokens of the masked encoder in `(t h w)` order, and the feature of the contrastive one."""
        pixels = video * jnp.asarray(self.card.std, video.dtype) + jnp.asarray(self.card.mean, video.dtype)
        feature, layers = embed_with_tokens(self.contrastive, self.contrastive.card.normalize(pixels), train)

        def attend(block: int, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
            depth = block + 1
            if depth not in self.depths:
                return x
            same = max(round(depth / self.masked.depth * len(layers)), 1) - 1
            return self.inward[str(depth)](x, layers[same])

        tokens = self.masked.tokens(self.masked.card.normalize(pixels), train=train, between=attend)
        return tokens, self.outward(feature[:, None], tokens)[:, 0]

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Tokens of the masked encoder on their grid."""
        return on_grid(self.interact(video, train)[0], grid(video.shape[1:4], self.masked.patch_size))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _"]:
        """What both heads see, one after the other: the pooled tokens of the masked encoder, the other's feature."""
        tokens, feature = self.interact(video, train)
        return jnp.concatenate([self.masked.pool(tokens), feature], axis=-1)

    def scores(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b classes"], Float[Array, "b classes"]]:
        """Logits of the masked and of the contrastive classifier."""
        tokens, feature = self.interact(video, train)
        return self.masked.classifier(self.masked.pool(tokens)), self.contrastive.classifier(feature)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b classes"]:
        """Logits: the learned linear combination of the two scores, in float32."""
        masked, contrastive = (score.astype(jnp.float32) for score in self.scores(video, train))
        return self.score_weights[0] * masked + self.score_weights[1] * contrastive


class CrossEncoder(nn.Module):
    """`CrossModel` of InternVideo's video-text retrieval (as in CLIP4Clip): tokens of a text and a video in a sequence.

    The norms have epsilon 1e-12.

    Attributes:
      positions: maximum number of tokens.
    """

    width: int = 512
    depth: int = 4
    heads: int = 8
    positions: int = 128
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None, train: bool = False
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b d"]]:
        """Hidden states of all tokens, and a summary computed from the first one.

        Args:
          mask: True for tokens that may be attended to.

        Raises:
          UserError: more tokens than positions.
        """
        count = tokens.shape[1]
        if count > self.positions:
            raise UserError(f"{count} tokens are more than the {self.positions} positions: use at most as many")
        position = self.param("position", NORMAL, (self.positions, self.width))[:count]
        norm = partial(LayerNorm, epsilon=1e-12, dtype=self.dtype)
        block = partial(Block, self.heads, epsilon=1e-12, activation=quick_gelu, kernel_init=NORMAL, dtype=self.dtype)
        x = tokens + position.astype(tokens.dtype)
        x = Encoder(block, self.depth, name="transformer")(x, train, mask=None if mask is None else mask[:, None])
        pool = nn.Dense(self.width, kernel_init=NORMAL, dtype=self.dtype, name="pool")
        return x, quick_gelu(pool(norm(name="norm")(x)[:, 0]))


# As `load_video` of the released code: frames from the first to the last, rounded down; the centre of 256 pixels.
CARD = replace(
    clip.CARD, source="OpenGVLab/InternVideo", sampling="uniform", protocol="slowfast", crop_ratio=224 / 256
)  # fmt: skip


def pair(video: str, text: str) -> VideoText:
    """The towers of stage 1 (`VideoIntern` in the code): without dropout in the global blocks, pixels as for CLIP."""
    tower = uniformerv2.VARIANTS[video](num_classes=None, dropout=0.0, card=CARD)
    text_tower = TEXT_VARIANTS[text]()
    return VideoText(Projected(tower, text_tower.features), text_tower, CARD)


VARIANTS = MappingProxyType(
    {
        "internvideo_tiny": partial(pair, "uniformerv2_tiny", "text_tiny"),
        "internvideo_base_16": partial(pair, "uniformerv2_base_16", "clip_base"),
        "internvideo_large_14": partial(pair, "uniformerv2_large_14", "clip_large"),
    }
)
