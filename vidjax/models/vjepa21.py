"""V-JEPA 2.1's encoders (Mur-Labadia et al. 2026, arXiv:2603.14482; facebookresearch/vjepa2, app/vjepa_2_1).

V-JEPA 2 with four changes: images have a patch embedding of their own, and a learned vector tells them from videos;
channels `2i` and `2i + 1` are rotated by the same angle, so that positions are rotations; rows and columns are
stretched to those of a frame of 256 pixels, whatever the size; and four blocks, a quarter of the depth apart, have a
norm each: their outputs side by side are what its predictor sees and predicts, and the last is the encoder's.

Pitfalls, all as in the original: a clip of a single frame is an image; times are not stretched; ViT-G's third norm
belongs to block 37 rather than 35. Its predictor and its training are not implemented here.
"""

from functools import partial
from math import prod
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

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


def rotation(clip: tuple[int, int, int], head_width: int) -> Rotation:
    """Cosine and sine of the angles of all tokens `(t h w)` of a clip, for heads of this width.

    Args:
      clip: times, rows and columns of tokens.

    Raises:
      UserError: the heads are too narrow to rotate a pair of channels by each of the three positions.
    """
    third = 2 * (head_width // 3 // 2)
    if not third:
        raise UserError(f"heads of {head_width} channels have no thirds to rotate: use fewer heads or a larger width")
    times, rows, columns = clip
    stretched = [np.arange(side) * (TRAINED_SIDE - 1) / max(side - 1, 1) for side in (rows, columns)]
    positions = np.stack(np.meshgrid(np.arange(times), *stretched, indexing="ij"), axis=-1).reshape(-1, 3, 1)
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

    def hierarchy(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n e"]:
        """The normalised outputs of the blocks `levels`, side by side: `e` is their number times the width."""
        check_video(video, self.channels)
        patch, clip = self.sizes(video)
        kinds = ((self.image_embedding, self.image_token), (self.patch_embedding, self.video_token))
        if self.is_initializing():  # also the one that this clip does not need
            for embed, _ in kinds:
                embed(jnp.zeros((1, 1, prod(embed.patch_size) * self.channels)))
        embed, token = kinds[video.shape[1] > 1]
        tokens = embed(patchify(video, patch))
        positions = rotation(clip, self.width // self.heads)
        outputs = self.transformer(tokens + token.astype(tokens.dtype), train, rotation=positions)
        return jnp.concatenate([norm(each) for norm, each in zip(self.norms, outputs, strict=True)], axis=-1)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """Tokens of all patches in `(t h w)` order: the last part of `hierarchy`."""
        return self.hierarchy(video, train)[..., -self.width :]

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


TINY = {"width": 96, "depth": 4, "heads": 4, "levels": (0, 1, 2, 3), "patch_size": (2, 8, 8), "num_frames": 16}
GIANT = {"width": 1408, "depth": 40, "heads": 22, "mlp_ratio": 48 / 11, "levels": (9, 19, 29, 39)}
GIGANTIC = {"width": 1664, "depth": 48, "heads": 26, "mlp_ratio": 64 / 13, "levels": (11, 23, 37, 47)}

VARIANTS = MappingProxyType(
    {
        "vjepa2_1_tiny": partial(VJEPA21, **TINY, image_size=64),
        "vjepa2_1_base": partial(VJEPA21, **VIT_SIZES["base"], levels=(2, 5, 8, 11)),
        "vjepa2_1_large": partial(VJEPA21, **VIT_SIZES["large"], levels=(5, 11, 17, 23)),
        "vjepa2_1_giant": partial(VJEPA21, **GIANT),
        "vjepa2_1_gigantic": partial(VJEPA21, **GIGANTIC),
    }
)
