"""The student of UMT (Li et al. 2023, arXiv:2303.16058; OpenGVLab/unmasked_teacher), whose encoder is VideoMAE's.

Patches have one frame, so that tokens are those of a CLIP that sees each frame. In pre-training the encoder sees some
of the tokens, and the outputs of its last blocks are mapped to the teacher's features (`objectives.unmasked`).

Pitfalls, both as in the original: the encoder's final norm is applied to the output of each of these blocks, and the
sinusoid of positions is added to them a second time, before the map.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import sinusoid_table
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import grid
from vidjax.layers.transformer import VIT_SIZES, Remat
from vidjax.models.videomae import XAVIER, VideoMAE

CARD = Card(source="OpenGVLab/unmasked_teacher", protocol="videomae")


class Pretraining(nn.Module):
    """The encoder and a map from the output of each of its last blocks to a teacher's features.

    Attributes:
      features: width of the teacher's features; 512 are those of CLIP's ViT-B, 768 those of its ViT-L.
      layers: number of blocks that are matched, counted from the last.
    """

    width: int
    depth: int
    heads: int
    features: int = 512
    layers: int = 6
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder, as for fine-tuning but with a final norm, and the maps."""
        if not 1 <= self.layers <= self.depth:
            raise UserError(f"layers is {self.layers}: the encoder has {self.depth} blocks, use 1 to {self.depth}")
        self.encoder = VideoMAE(
            self.width, self.depth, self.heads, self.mlp_ratio, self.patch_size, final_norm=True,
            drop_path=self.drop_path, channels=self.channels, remat=self.remat, scan=self.scan,
            implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        numbers = range(self.layers)
        self.maps = [nn.Dense(self.features, kernel_init=XAVIER, dtype=self.dtype, name=f"map_{i}") for i in numbers]
        self.norms = [LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{i}") for i in numbers]

    def tokens(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b m d"]:
        """Encoder tokens of all patches in `(t h w)` order, or only of the patches at the indices `kept`."""
        return self.encoder.tokens(video, kept, train)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Encoder tokens of all patches, on their grid."""
        return self.encoder.encode(video, train)

    def __call__(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"], train: bool = False
    ) -> Float[Array, "k b m e"]:
        """The features of the last blocks, the last one's last, at the token indices `kept`; only these are seen."""
        t, h, w = grid(video.shape[1:4], self.patch_size)
        positions, outputs = jnp.asarray(sinusoid_table(t * h * w, self.width))[kept], []
        self.encoder.tokens(video, kept, train, lambda _, x: outputs.append(x) or x)
        matched = [self.encoder.norm(x) for x in outputs[-self.layers :]]
        pairs = zip(self.maps, self.norms, matched, strict=True)
        return jnp.stack([norm(dense(x + positions.astype(x.dtype))) for dense, norm, x in pairs])

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video, with a fifth of each frame's tokens visible."""
        t, h, w = grid(video.shape[1:4], self.patch_size)
        return video, jax.ShapeDtypeStruct((1, t * (h * w - int(0.8 * h * w))), jnp.int32)


TINY = {"width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32}
FRAMES = {"patch_size": (1, 16, 16), "num_frames": 8, "card": CARD}

VARIANTS = MappingProxyType(
    {
        "umt_tiny": partial(VideoMAE, **TINY, card=CARD),
        "umt_base": partial(VideoMAE, **VIT_SIZES["base"], **FRAMES),
        "umt_large": partial(VideoMAE, **VIT_SIZES["large"], **FRAMES),
        "umt_tiny_pretrain": partial(Pretraining, **TINY, features=128, layers=2),
        "umt_base_pretrain": partial(Pretraining, **VIT_SIZES["base"]),
        "umt_large_pretrain": partial(Pretraining, **VIT_SIZES["large"], features=768),
    }
)
