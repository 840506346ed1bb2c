"""V-JEPA 2.1 (Mur-Labadia et al. 2026, arXiv:2603.14482; facebookresearch/vjepa2, app/vjepa_2_1).

V-JEPA 2 with five changes: images have a patch embedding of their own, and a learned vector tells them from videos;
channels `2i` and `2i + 1` are rotated by the same angle, so that positions are rotations; rows and columns are
stretched to those of a frame of 256 pixels, whatever the size; four blocks, a quarter of the depth apart, have a norm
each: their outputs side by side are what the predictor sees and predicts, and the last is the encoder's; and the
predictor also predicts the tokens of the context.

Pitfalls, all as in the original: a clip of a single frame is an image; times are not stretched, nor are the positions
of the released predictors; ViT-G's third norm belongs to block 37 rather than 35. The released ViT-B and ViT-L were
distilled from ViT-G: their predictors see the last block only and predict tokens of ViT-G's width
(`_pretrain_distilled`). Trained on their own they see and predict four levels, the default of the public code, here
with a predictor as deep as ViT-g's, as no configuration of theirs is published. The original trains on images in the
same step, with the same encoder; `experiments/jepa_pretrain.py` trains on videos alone.
"""

from functools import partial
from math import prod
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.rotary import Rotation
from vidjax.layers.transformer import VIT_SIZES, Encoder, Remat
from vidjax.models.vjepa import CARD, NORMAL, AttentivePooler, rescaled_block

TRAINED_SIDE = 16
"""Rows and columns to which positions are stretched."""


def rotation(clip: tuple[int, int, int], head_width: int, stretched: bool = True) -> Rotation:
    """Cosine and sine of the angles of all tokens `(t h w)` of a clip, for heads of this width.

    Args:
      clip: times, rows and columns of tokens.
      stretched: whether rows and columns are stretched to `TRAINED_SIDE`.

    Raises:
      UserError: the heads are too narrow to rotate a pair of channels by each of the three positions.
    """
    third = 2 * (head_width // 3 // 2)
    if not third:
        raise UserError(f"heads of {head_width} channels have no thirds to rotate: use fewer heads or a larger width")
    times, rows, columns = clip
    factors = [(TRAINED_SIDE - 1) / max(side - 1, 1) if stretched else 1 for side in (rows, columns)]
    places = (np.arange(times), np.arange(rows) * factors[0], np.arange(columns) * factors[1])
    positions = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3, 1)
    frequencies = 10000.0 ** (-np.arange(third // 2) / (third / 2))
    angles = (positions * np.repeat(frequencies, 2)).reshape(-1, 3 * third).astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


class VJEPA21(nn.Module):
    """The encoder, and the classifier of its tokens: V-JEPA 2's attentive probe.

    Attributes:
      levels: numbers of the blocks with a norm each; the last is the last block.
      num_classes: None returns the mean token.
      head: module applied to the pooled features `b d`; None for a linear layer to the classes, if any.
      pooler_depth: blocks of the attentive pooler, which only a model with a head has.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; other multiples of the patch size also work,
        and images, `b 1 h w c`.
      remat: see `Encoder`; `scan` concerns only the pooler.
      implementation: of attention, see `attend`.
    """

    width: int
    depth: int
    heads: int
    levels: tuple[int, ...]
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (2, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    pooler_depth: int = 3
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 64
    image_size: int = 384
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.levels[-1] != self.depth - 1:
            raise UserError(f"levels end with block {self.levels[-1]}: the last of {self.depth} is {self.depth - 1}")
        embedding = partial(PatchEmbedding, self.width, kernel_init=NORMAL, dtype=self.dtype)
        self.patch_embedding = embedding(self.patch_size)
        self.image_embedding = embedding((1, *self.patch_size[1:]))
        small = nn.initializers.normal(1e-6)
        self.video_token = self.param("video_token", small, (1, 1, self.width))
        self.image_token = self.param("image_token", small, (1, 1, self.width))
        computing = {"implementation": self.implementation, "dtype": self.dtype}
        block = partial(rescaled_block, self.heads, self.mlp_ratio, **computing)
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, returned=tuple(self.levels))
        self.norms = [
            LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{number}") for number in range(len(self.levels))
        ]
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)
        if self.classifier is not None:
            self.head_pooler = AttentivePooler(self.heads, self.pooler_depth, 1e-5, self.remat, self.scan, **computing)

    def sizes(self, video: Float[Array, "b t h w c"]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Size of a patch, in pixels, and the grid of the tokens."""
        patch = (1, *self.patch_size[1:]) if video.shape[1] == 1 else self.patch_size
        return patch, grid(video.shape[1:4], patch)

    def hierarchy(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"] | None = None,
        valid: Bool[Array, "b m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b m e"]:
        """The normalised outputs of the blocks `levels`, side by side: `e` is their number times the width.

        Args:
          kept, valid: see `VJEPA.tokens`.
        """
        check_video(video, self.channels)
        patch, clip = self.sizes(video)
        kinds = ((self.image_embedding, self.image_token), (self.patch_embedding, self.video_token))
        if self.is_initializing():  # also the one that this clip does not need
            for embed, _ in kinds:
                embed(jnp.zeros((1, 1, prod(embed.patch_size) * self.channels)))
        embed, token = kinds[video.shape[1] > 1]
        patches, positions = patchify(video, patch), rotation(clip, self.width // self.heads)
        if kept is not None:  # the others are dropped before the embedding
            patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
            positions = tuple(angles[kept] for angles in positions)
        tokens = embed(patches)
        mask = None if valid is None else valid[:, None]
        outputs = self.transformer(tokens + token.astype(tokens.dtype), train, mask=mask, rotation=positions)
        return jnp.concatenate([norm(each) for norm, each in zip(self.norms, outputs, strict=True)], axis=-1)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """Tokens of all patches in `(t h w)` order: the last part of `hierarchy`."""
        return self.hierarchy(video, train=train)[..., -self.width :]

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Patch tokens on their grid."""
        return on_grid(self.tokens(video, train), self.sizes(video)[1])

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the output of the attentive pooler; without a head, the mean token."""
        tokens = self.tokens(video, train)
        return tokens.mean(axis=1) if self.classifier is None else self.head_pooler(tokens, train)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        return features if self.classifier is None else self.classifier(features)


class Predictor21(nn.Module):
    """Predicts tokens everywhere from the encoder's at some places.

    Attributes:
      levels: number of levels of the encoder, side by side, that it sees; an MLP mixes several.
      outputs: width of the predicted tokens, all levels together.
      mask_tokens: number of learned mask tokens; see `vjepa.Predictor`.
    """

    width: int
    depth: int
    heads: int
    levels: int
    outputs: int
    mask_tokens: int = 8
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "b m e"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        clip: tuple[int, int, int],
        image: bool = False,
        valid: Bool[Array, "b n"] | None = None,
        mask_index: int = 0,
        train: bool = False,
    ) -> tuple[Float[Array, "b r d"], Float[Array, "b m d"]]:
        """The tokens at the indices `predicted` and those at `kept`, from the encoder's at `kept`.

        Args:
          image: whether the clip is an image.
          clip, valid, mask_index: see `vjepa.Predictor`.
        """
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        if self.levels > 1:
            context = nn.gelu(dense(context.shape[-1] // self.levels, name="mixing")(context), approximate=False)
        context = dense(self.width, name="embedding")(context)
        tokens = self.param("mask_tokens", nn.initializers.zeros_init(), (self.mask_tokens, self.width))
        small = nn.initializers.normal(1e-6)
        kinds = [self.param(name, small, (1, 1, self.width)) for name in ("video_token", "image_token")]
        token = tokens[mask_index % self.mask_tokens].astype(context.dtype)
        masked = jnp.broadcast_to(token, (*predicted.shape, self.width))
        x = jnp.concatenate([context, masked], axis=1) + kinds[image].astype(context.dtype)
        indices = jnp.concatenate([kept, predicted], axis=1)
        positions = tuple(angles[indices] for angles in rotation(clip, self.width // self.heads, stretched=False))
        computing = {"implementation": self.implementation, "dtype": self.dtype}
        block = partial(rescaled_block, self.heads, **computing)
        mask = None if valid is None else valid[:, None]
        x = Encoder(block, self.depth, remat=self.remat, scan=self.scan, name="transformer")(
            x, train, mask=mask, rotation=positions
        )
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        seen, asked = jnp.split(x, [kept.shape[1]], axis=1)
        return dense(self.outputs, name="head")(asked), dense(self.outputs, name="context_head")(seen)


class Pretraining21(nn.Module):
    """An encoder of the context, and a predictor of an encoder's levels at all places.

    Attributes:
      predicted_levels: number of the encoder's last levels that the predictor sees.
      target_width: of the predicted tokens, all levels together, if they are not this encoder's but a teacher's.
    """

    width: int
    depth: int
    heads: int
    levels: tuple[int, ...]
    predictor_width: int
    predictor_depth: int
    predictor_heads: int
    predicted_levels: int = 4
    target_width: int | None = None
    mlp_ratio: float = 4.0
    mask_tokens: int = 8
    patch_size: tuple[int, int, int] = (2, 16, 16)
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 64
    image_size: int = 384
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder and the predictor."""
        computing = {name: getattr(self, name) for name in ("remat", "scan", "implementation", "dtype")}
        self.encoder = VJEPA21(
            self.width, self.depth, self.heads, self.levels, self.mlp_ratio, self.patch_size, drop_path=self.drop_path,
            channels=self.channels, **computing,
        )  # fmt: skip
        outputs = self.target_width or self.predicted_levels * self.width
        self.predictor = Predictor21(
            self.predictor_width, self.predictor_depth, self.predictor_heads, self.predicted_levels, outputs,
            self.mask_tokens, **computing,
        )  # fmt: skip

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Encoder tokens of all patches, on their grid."""
        return self.encoder.encode(video, train)

    def hierarchy(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"] | None = None,
        valid: Bool[Array, "b m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b m e"]:
        """The levels that the predictor sees or predicts; see `VJEPA21.hierarchy`."""
        return self.encoder.hierarchy(video, kept, valid, train)[..., -self.predicted_levels * self.width :]

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        valid: Bool[Array, "b n"] | None = None,
        mask_index: int = 0,
        train: bool = False,
    ) -> tuple[Float[Array, "b r d"], Float[Array, "b m d"]]:
        """Predicted levels at the indices `predicted` and at `kept`, given the patches at `kept`.

        Args:
          valid: of the indices `kept`, then of those `predicted`: False for indices that only fill up the shape.
          mask_index: number of the mask token.
        """
        context = self.hierarchy(video, kept, None if valid is None else valid[:, : kept.shape[1]], train)
        clip, image = self.encoder.sizes(video)[1], video.shape[1] == 1
        return self.predictor(context, kept, predicted, clip, image, valid, mask_index, train)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video, with a quarter of its tokens as the context of the others."""
        tokens = prod(grid(video.shape[1:4], self.patch_size))
        kept, predicted = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (tokens // 4, tokens - tokens // 4))
        return video, kept, predicted


TINY = {"width": 96, "depth": 4, "heads": 4, "levels": (0, 1, 2, 3), "patch_size": (2, 8, 8), "num_frames": 16}
GIANT = {"width": 1408, "depth": 40, "heads": 22, "mlp_ratio": 48 / 11, "levels": (9, 19, 29, 39)}
GIGANTIC = {"width": 1664, "depth": 48, "heads": 26, "mlp_ratio": 64 / 13, "levels": (11, 23, 37, 47)}
BASE = {**VIT_SIZES["base"], "levels": (2, 5, 8, 11)}
LARGE = {**VIT_SIZES["large"], "levels": (5, 11, 17, 23)}
PREDICTOR = {"predictor_width": 384, "predictor_depth": 24, "predictor_heads": 12}
DISTILLED = {**PREDICTOR, "predictor_depth": 12, "predicted_levels": 1, "target_width": GIGANTIC["width"]}

VARIANTS = MappingProxyType(
    {
        "vjepa2_1_tiny": partial(VJEPA21, **TINY, image_size=64),
        "vjepa2_1_base": partial(VJEPA21, **BASE),
        "vjepa2_1_large": partial(VJEPA21, **LARGE),
        "vjepa2_1_giant": partial(VJEPA21, **GIANT),
        "vjepa2_1_gigantic": partial(VJEPA21, **GIGANTIC),
        "vjepa2_1_tiny_pretrain": partial(
            Pretraining21, **TINY, image_size=64, predictor_width=48, predictor_depth=2, predictor_heads=4
        ),
        "vjepa2_1_base_pretrain": partial(Pretraining21, **BASE, **PREDICTOR),
        "vjepa2_1_base_pretrain_distilled": partial(Pretraining21, **BASE, **DISTILLED),
        "vjepa2_1_large_pretrain": partial(Pretraining21, **LARGE, **PREDICTOR),
        "vjepa2_1_large_pretrain_distilled": partial(Pretraining21, **LARGE, **DISTILLED),
        "vjepa2_1_giant_pretrain": partial(Pretraining21, **GIANT, **PREDICTOR),
        "vjepa2_1_gigantic_pretrain": partial(Pretraining21, **GIGANTIC, **PREDICTOR),
    }
)
