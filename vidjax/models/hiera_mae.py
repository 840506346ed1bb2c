"""The masked autoencoder of Hiera (`models.hiera`; facebookresearch/hiera).

An encoder of the visible mask units, whose stages are fused, and a decoder of all patches. It pools twice, and is
initialised as masked autoencoders are.
"""

from functools import partial
from math import prod
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.layers import transformer
from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.mask_units import Grid, roll
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import grid, patchify
from vidjax.layers.transformer import Encoder, Remat
from vidjax.models.hiera import (
    BASE,
    BASE_PLUS,
    FRAMES,
    HUGE,
    LARGE,
    NORMAL,
    SMALL,
    TINY,
    TINY_SIZE,
    VIDEO,
    XAVIER,
    Hiera,
    unit_size,
)


class Decoder(nn.Module):
    """Predicts the pixels of all patches from the tokens of the visible units.

    Attributes:
      outputs: values per patch.
      grid: of the patches of the clips that the variant is meant for.
    """

    width: int
    depth: int
    heads: int
    outputs: int
    grid: tuple[int, int, int]
    mlp_ratio: float = 4.0
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b m y x d"], kept: Int[Array, "b m"], units: Grid, train: bool = False
    ) -> Float[Array, "b n p"]:
        """Patches in `(t h w)` order, given the map of each unit at the indices `kept` of the grid `units`."""
        tokens = nn.Dense(self.width, kernel_init=XAVIER, dtype=self.dtype, name="embedding")(tokens)
        mask_token = self.param("mask_token", NORMAL, (1, 1, self.width)).astype(tokens.dtype)
        everything = jnp.tile(mask_token[..., None, None, :], (len(kept), prod(units), *tokens.shape[2:4], 1))
        x = everything.at[jnp.arange(len(kept))[:, None], kept].set(tokens)
        t, h, w = units
        x = einops.rearrange(x, "b (t h w) y x d -> b t (h y) (w x) d", t=t, h=h, w=w)
        x = x + PositionTable(self.grid, self.width, "half_pixel_cubic", NORMAL, name="position")(x.shape[1:4])
        block = partial(
            transformer.Block, self.heads, self.mlp_ratio, implementation=self.implementation, dtype=self.dtype
        )
        x = x.reshape(len(x), -1, self.width).astype(tokens.dtype)
        x = Encoder(block, self.depth, remat=self.remat, scan=self.scan, name="transformer")(x, train)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        return nn.Dense(self.outputs, kernel_init=XAVIER, dtype=self.dtype, name="head")(x)


class Pretraining(nn.Module):
    """Masked autoencoder: an encoder of the visible units, whose stages are fused, and a decoder of all patches.

    A patch is what the encoder has merged into one token, 16x16 pixels of the first frame after two poolings; see
    `objectives.reconstruction.first_frame_targets` and `objectives.masking.hidden_patches` for the loss.

    Attributes:
      depths, width, heads, images, poolings: see `Hiera`.
    """

    depths: tuple[int, ...]
    width: int
    heads: int
    images: bool = False
    poolings: int = 2
    mlp_ratio: float = 4.0
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = VIDEO
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder, one linear map for each stage before a pooling, and the decoder."""
        self.encoder = Hiera(
            self.depths, self.width, self.heads, self.images, self.poolings, self.mlp_ratio, xavier=True,
            drop_path=self.drop_path, channels=self.channels, num_frames=self.num_frames, image_size=self.image_size,
            remat=self.remat, scan=self.scan, implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        final = self.width * 2 ** (len(self.depths) - 1)
        self.fusion = [
            PatchEmbedding(final, (1, 2 ** (self.poolings - i), 2 ** (self.poolings - i)), XAVIER, dtype=self.dtype)
            for i in range(self.poolings)
        ]
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        side = self.image_size // self.patch_side
        frames = self.num_frames // unit_size(self)[0]
        self.decoder = Decoder(
            self.decoder_width, self.decoder_depth, self.decoder_heads, self.patch_side**2 * self.channels,
            (frames, side, side), self.mlp_ratio, self.remat, self.scan, self.implementation, self.dtype,
        )  # fmt: skip

    @property
    def patch_side(self) -> int:
        """Pixels of a side of the patches that the decoder predicts."""
        return 4 * 2**self.poolings

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Encoder tokens of all units on their grid."""
        return self.encoder.encode(video, train)

    def tokens(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"], train: bool = False
    ) -> Float[Array, "b m y x d"]:
        """The fused and normalised stages of the units at the indices `kept`, a map for each."""
        stages = self.encoder.stage_tokens(video, kept, train)
        maps = [roll(tokens[:, :, None, None]) for tokens in (*stages[: self.poolings], stages[-1])]
        fused = maps.pop()
        for fuse, each in zip(self.fusion, maps, strict=True):
            patches = fuse(patchify(each[:, :, None], fuse.patch_size))
            fused = fused + patches.reshape(fused.shape)
        return self.norm(fused)

    def __call__(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"], train: bool = False
    ) -> Float[Array, "b n p"]:
        """Predicted patches `(row column channel)` of the whole grid, given the units at the indices `kept`."""
        return self.decoder(self.tokens(video, kept, train), kept, grid(video.shape[1:4], unit_size(self)), train)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video, with 60 % of an image's or 90 % of a video's units masked."""
        units = prod(grid(video.shape[1:4], unit_size(self)))
        return video, jax.ShapeDtypeStruct((1, max(1, int(units * (0.4 if self.images else 0.1)))), jnp.int32)


DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}

VARIANTS = MappingProxyType(
    {
        "hiera_tiny_mae": partial(Pretraining, **TINY_SIZE, **DECODER),
        "hiera_b_mae": partial(Pretraining, **BASE),
        "hiera_bplus_mae": partial(Pretraining, **BASE_PLUS),
        "hiera_l_mae": partial(Pretraining, **LARGE),
        "hiera_h_mae": partial(Pretraining, **HUGE),
        "hiera_t_image_mae": partial(Pretraining, **TINY, **FRAMES),
        "hiera_s_image_mae": partial(Pretraining, **SMALL, **FRAMES),
        "hiera_b_image_mae": partial(Pretraining, **BASE, **FRAMES),
        "hiera_bplus_image_mae": partial(Pretraining, **BASE_PLUS, **FRAMES),
        "hiera_l_image_mae": partial(Pretraining, **LARGE, **FRAMES),
        "hiera_h_image_mae": partial(Pretraining, **HUGE, **FRAMES),
    }
)
