"""VideoMAE (Tong et al. 2022, arXiv:2203.12602; MCG-NJU/VideoMAE) and the decoder masking of VideoMAE v2.

A plain ViT over tubelets of 2x16x16 pixels. In pre-training the encoder sees only the tokens that a mask kept, and a
narrow decoder predicts the pixels of the others.

Traps, all as in the original: the position table is one sinusoid over the running index of all `(t h w)` tokens and no
parameter; keys have no bias; layer-norm epsilon is 1e-6 (Hugging Face's configurations say 1e-12); the decoder reads
`[visible ; masked]`, each with its own positions, and is never put back in order; the classifier has no norm before its
mean over tokens but one after. Pixels come normalised (ImageNet mean and deviation), the target is made from
un-normalised ones (`objectives.reconstruction`).
"""

from functools import partial
from math import prod
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding, sinusoid_table
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Block, Encoder, Remat

CARD = Card(stride=4, source="MCG-NJU/VideoMAE")


def reaching(accuracy: float) -> Card:
    """The card of a published classifier."""
    return Card(stride=4, source=CARD.source, accuracy=f"K400 {accuracy}, 5x3 views")


XAVIER = nn.initializers.xavier_uniform()


class VideoMAE(nn.Module):
    """The encoder, and the classifier fine-tuned from it.

    Attributes:
      num_classes: None makes it an encoder, whose call returns its mean token.
      head: takes the feature `b d` to whatever its task wants; None for a linear map to the classes, if there are any.
      final_norm: pre-training's encoder ends in a norm over tokens, fine-tuning's in one after their mean.
      dropout: of the mean token before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; any other that patches fit goes as well.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`.
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
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Attributes here name the parameters."""
        bias_init = pytorch_bias(self.channels * prod(self.patch_size))
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, pytorch_kernel, bias_init, self.dtype)
        # Pre-training starts from Xavier's kernels, fine-tuning from scratch from timm's.
        kernel_init = XAVIER if self.final_norm else nn.initializers.normal(0.02)
        block = partial(
            Block, self.heads, self.mlp_ratio, key_bias=False, kernel_init=kernel_init,
            implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        if self.final_norm:
            self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        small = nn.initializers.normal(0.02 * 0.001)  # the original scales its head by 0.001
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=small, dtype=self.dtype)
        if self.classifier is not None:
            self.head_norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
            self.head_dropout = nn.Dropout(self.dropout)

    def tokens(
        self, video: Float[Array, "b t h w c"], kept: Int[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b m d"]:
        """Tokens in a row: of all patches in `(t h w)` order, or only of those at the indices `kept`."""
        check_video(video, self.channels)
        patches = patchify(video, self.patch_size)
        positions = jnp.asarray(sinusoid_table(patches.shape[1], self.width))
        if kept is not None:  # masked patches are dropped before anything is computed of them
            patches, positions = jnp.take_along_axis(patches, kept[..., None], axis=1), positions[kept]
        tokens = self.patch_embedding(patches)
        tokens = self.transformer(tokens + positions.astype(tokens.dtype), train)
        return self.norm(tokens) if self.final_norm else tokens

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Tokens of all patches, on their grid."""
        return on_grid(self.tokens(video, train=train), grid(video.shape[1:4], self.patch_size))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """What the head sees: the mean token, normed; the mean token as it is where there is no head."""
        features = self.tokens(video, train=train).mean(axis=1)
        return features if self.classifier is None else self.head_norm(features)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head gives, by default logits `b classes`; without a head what `embed` gives."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


class Decoder(nn.Module):
    """Reads visible and mask tokens, predicts the pixels of the masked patches.

    Attributes:
      outputs: values of one patch, `frames * height * width * channels`.
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
        """Pixels of the patches at `predicted`, from the encoder's tokens of those at `kept`."""
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
    """Masked autoencoder: the encoder over the kept tokens, the decoder for the predicted ones.

    VideoMAE predicts every masked token; VideoMAE v2 asks the decoder for a part of all tokens only
    (`objectives.masking.running_cell`).

    Attributes:
      encoder_norm: the encoder ends in a norm over tokens; transformers leaves it out with its default configuration
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
        """The encoder is the one that fine-tuning uses, with the norm that pre-training puts at its end."""
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
        """Tokens of the encoder in a row: of all patches in `(t h w)` order, or only of those at the indices `kept`."""
        return self.encoder.tokens(video, kept, train)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The encoder's tokens of all patches, on their grid."""
        return self.encoder.encode(video, train)

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        train: bool = False,
    ) -> Float[Array, "b r p"]:
        """Patches `(frame row column channel)` at the token indices `predicted`, as seen from those at `kept`."""
        tokens = prod(grid(video.shape[1:4], self.patch_size))
        positions = jnp.asarray(sinusoid_table(tokens, self.decoder_width))
        return self.decoder(self.tokens(video, kept, train), kept, predicted, positions, train)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of this video, with 90 % of its patches masked in tubes."""
        t, h, w = grid(video.shape[1:4], self.patch_size)
        masked = t * int(0.9 * h * w)
        kept, predicted = (jax.ShapeDtypeStruct((1, count), jnp.int32) for count in (t * h * w - masked, masked))
        return video, kept, predicted


TINY = {"width": 96, "depth": 4, "heads": 6, "image_size": 64}

VARIANTS = MappingProxyType(
    {
        "videomae_tiny": partial(VideoMAE, **TINY),
        "videomae_small": partial(VideoMAE, **VIT_SIZES["small"], num_classes=400, card=reaching(79.0)),
        "videomae_base": partial(VideoMAE, **VIT_SIZES["base"], num_classes=400, card=reaching(81.5)),
        "videomae_large": partial(VideoMAE, **VIT_SIZES["large"], num_classes=400, card=reaching(85.2)),
        "videomae_huge": partial(VideoMAE, **VIT_SIZES["huge"], num_classes=400, card=reaching(86.6)),
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
    }
)
