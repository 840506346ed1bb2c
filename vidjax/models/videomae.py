"""VideoMAE (Tong et al. 2022, arXiv:2203.12602; MCG-NJU/VideoMAE) and VideoMAE V2 (Wang et al. 2023, arXiv:2303.16727).

A plain ViT over tubelets of 2x16x16 pixels. In pre-training, the encoder sees only the visible tokens, and a narrow
decoder predicts the pixels of the masked ones. In V2 the decoder predicts half of all tokens
(`objectives.masking.running_cell`), which makes a model of a billion parameters affordable; the modules are the same.
The small and base models of V2, distilled from its giant one, are published weights of `videomae_small` and `_base`.

Pitfalls, all as in the original: the position table is a fixed sinusoid over the flat index of all `(t h w)` tokens;
keys have no bias; layer norms have epsilon 1e-6 (1e-12 in Hugging Face's configurations); the decoder's input is
`[visible ; masked]` with the corresponding positions, not restored to the original order; the classifier has a norm
after the mean over tokens instead of before. The input is normalised with ImageNet's mean and std; the reconstruction
target is computed from unnormalised pixels (`objectives.reconstruction`).
"""

from dataclasses import replace
from functools import partial
from math import prod
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.layers.adapters import Adapter, require_method
from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding, sinusoid_table
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Between, Block, Encoder, Remat

CARD = Card(stride=4, source="MCG-NJU/VideoMAE", protocol="videomae")


V2 = replace(CARD, source="OpenGVLab/VideoMAEv2")


def reaching(accuracy: float, card: Card = CARD) -> Card:
    """The card of a published classifier."""
    return replace(card, accuracy=f"K400 {accuracy}, 5x3 views", views="5x3")


XAVIER = nn.initializers.xavier_uniform()


class VideoMAE(nn.Module):
    """The encoder, and the classifier fine-tuned from it.

    Attributes:
      num_classes: None returns the mean token.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      final_norm: ends the encoder in a norm over tokens, as in pre-training; fine-tuning has one after the mean.
      dropout: rate on the mean token, before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; other multiples of the patch size also work.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`.
      adapter: trained beside frozen weights, see `layers.adapters`.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (2, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    final_norm: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        require_method(self.adapter, self, "adapter", "adaptformer", "prompt")
        bias_init = pytorch_bias(self.channels * prod(self.patch_size))
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, pytorch_kernel, bias_init, self.dtype)
        # Pre-training uses Xavier initialisation; training a classifier from scratch uses timm's.
        kernel_init = XAVIER if self.final_norm else nn.initializers.normal(0.02)
        block = partial(
            Block, self.heads, self.mlp_ratio, key_bias=False, kernel_init=kernel_init,
            implementation=self.implementation, adapter=self.adapter, dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan, adapter=self.adapter)
        if self.final_norm:
            self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        small = nn.initializers.normal(0.02 * 0.001)  # the original scales its head by 0.001
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=small, dtype=self.dtype)
        if self.classifier is not None:
            self.head_norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
            self.head_dropout = nn.Dropout(self.dropout)

    def tokens(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"] | None = None,
        train: bool = False,
        between: Between | None = None,
    ) -> Float[Array, "b m d"]:
        """Tokens of all patches in `(t h w)` order, or only of the patches at the indices `kept`.

        `between` changes them between two blocks, see `Encoder`.
        """
        check_video(video, self.channels)
        patches = patchify(video, self.patch_size, self.dtype)
        positions = jnp.asarray(sinusoid_table(patches.shape[1], self.width))
        if kept is not None:  # masked patches are dropped before the embedding
            patches, positions = jnp.take_along_axis(patches, kept[..., None], axis=1), positions[kept]
        tokens = self.patch_embedding(patches)
        tokens = self.transformer(tokens + positions.astype(tokens.dtype), train, between)
        return self.norm(tokens) if self.final_norm else tokens

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Patch tokens on their grid."""
        return on_grid(self.tokens(video, train=train), grid(video.shape[1:4], self.patch_size))

    def pool(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Input of the head: the normalised mean token; without a head, the mean token itself."""
        features = tokens.mean(axis=1)
        return features if self.classifier is None else self.head_norm(features)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The output of `pool` for the tokens of a video."""
        return self.pool(self.tokens(video, train=train))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


class Decoder(nn.Module):
    """Predicts the pixels of masked patches from visible tokens and mask tokens.

    Attributes:
      outputs: values per patch, `frames * height * width * channels`.
    """

    width: int
    depth: int
    heads: int
    outputs: int
    mlp_ratio: float = 4.0
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        visible: Float[Array, "b m d"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        positions: Float[Array, "n e"],
        train: bool = False,
    ) -> Float[Array, "b r p"]:
        """Pixels of the patches at the indices `predicted`, from the encoder's tokens at `kept`."""
        visible = nn.Dense(self.width, use_bias=False, kernel_init=XAVIER, dtype=self.dtype, name="embedding")(visible)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        visible = visible + positions[kept].astype(visible.dtype)
        masked = (mask_token + positions[predicted]).astype(visible.dtype)
        block = partial(
            Block, self.heads, self.mlp_ratio, key_bias=False, implementation=self.implementation, dtype=self.dtype
        )
        x = jnp.concatenate([visible, masked], axis=1)
        x = Encoder(block, self.depth, remat=self.remat, scan=self.scan, name="transformer")(x, train)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, kept.shape[1] :])
        return nn.Dense(self.outputs, kernel_init=XAVIER, dtype=self.dtype, name="head")(x)


class Pretraining(nn.Module):
    """Masked autoencoder: an encoder of the visible tokens and a decoder of the predicted ones.

    VideoMAE predicts all masked tokens, VideoMAE V2 only a subset of all tokens (`objectives.masking.running_cell`).

    Attributes:
      encoder_norm: whether the encoder ends in a norm over tokens; transformers omits it in its default configuration
        (`use_mean_pooling`).
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (2, 16, 16)
    encoder_norm: bool = True
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder, as for fine-tuning but with a final norm, and the decoder."""
        self.encoder = VideoMAE(
            self.width, self.depth, self.heads, self.mlp_ratio, self.patch_size,
            final_norm=self.encoder_norm, drop_path=self.drop_path, channels=self.channels,
            remat=self.remat, scan=self.scan, implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        self.decoder = Decoder(
            self.decoder_width, self.decoder_depth, self.decoder_heads, prod(self.patch_size) * self.channels,
            self.mlp_ratio, self.remat, self.scan, self.implementation, self.dtype,
        )  # fmt: skip

    def tokens(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b m d"]:
        """Encoder tokens of all patches in `(t h w)` order, or only of the patches at the indices `kept`."""
        return self.encoder.tokens(video, kept, train)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Encoder tokens of all patches, on their grid."""
        return self.encoder.encode(video, train)

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        train: bool = False,
    ) -> Float[Array, "b r p"]:
        """Predicted patches `(frame row column channel)` at the token indices `predicted`, given those at `kept`."""
        tokens = prod(grid(video.shape[1:4], self.patch_size))
        positions = jnp.asarray(sinusoid_table(tokens, self.decoder_width))
        return self.decoder(self.tokens(video, kept, train), kept, predicted, positions, train)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video, with 90 % of its patches masked in tubes."""
        t, h, w = grid(video.shape[1:4], self.patch_size)
        masked = t * int(0.9 * h * w)
        kept, predicted = (jax.ShapeDtypeStruct((1, count), jnp.int32) for count in (t * h * w - masked, masked))
        return video, kept, predicted


TINY = {"width": 96, "depth": 4, "heads": 6, "image_size": 64}
GIANT = VIT_SIZES["giant"] | {"patch_size": (2, 14, 14)}

VARIANTS = MappingProxyType(
    {
        "videomae_tiny": partial(VideoMAE, **TINY),
        "videomae_small": partial(VideoMAE, **VIT_SIZES["small"], num_classes=400, card=reaching(79.0)),
        "videomae_base": partial(VideoMAE, **VIT_SIZES["base"], num_classes=400, card=reaching(81.5)),
        "videomae_large": partial(VideoMAE, **VIT_SIZES["large"], num_classes=400, card=reaching(85.2)),
        "videomae_huge": partial(VideoMAE, **VIT_SIZES["huge"], num_classes=400, card=reaching(86.6)),
        "videomae_v2_giant": partial(VideoMAE, **GIANT, num_classes=400, card=reaching(88.4, V2)),
        "videomae_tiny_pretrain": partial(Pretraining, **TINY, decoder_width=96, decoder_depth=2, decoder_heads=6),
        "videomae_small_pretrain": partial(
            Pretraining, **VIT_SIZES["small"], decoder_width=192, decoder_depth=4, decoder_heads=3
        ),
        "videomae_base_pretrain": partial(
            Pretraining, **VIT_SIZES["base"], decoder_width=384, decoder_depth=4, decoder_heads=6
        ),
        "videomae_large_pretrain": partial(
            Pretraining, **VIT_SIZES["large"], decoder_width=512, decoder_depth=12, decoder_heads=8
        ),
        "videomae_huge_pretrain": partial(
            Pretraining, **VIT_SIZES["huge"], decoder_width=640, decoder_depth=12, decoder_heads=8
        ),
        "videomae_v2_giant_pretrain": partial(
            Pretraining, **GIANT, decoder_width=512, decoder_depth=4, decoder_heads=8, card=V2
        ),
    }
)
