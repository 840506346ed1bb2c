"""BEiT (Bao et al. 2022, arXiv:2106.08254; microsoft/unilm): an image transformer trained to predict masked tokens.

Images are cut into patches for the encoder, and into discrete tokens by another network (`models.dalle`), one for each
patch. Of the masked patches, whose embeddings are replaced by one learned vector, the tokens are predicted. Here, each
frame of a clip is an image.

Pitfalls: there are no absolute positions, but biases of the attention scores that depend on the distance of two patches
in rows and columns, and three more: from the class token to patches, from patches to it, and of itself; all blocks
share them in pre-training, and each has its own in the classifier, which starts with copies; residual branches are
scaled by a learned vector; queries and values have a bias, keys do not; the classifier normalises the mean of the patch
tokens, and no tokens; the epsilon of norms is 1e-6 in the original and 1e-12 in transformers.
"""

from functools import cache, partial
from math import prod
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from vidjax.layers.attention import Attention, Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, resize_table
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, DropPath, Encoder, Mlp, Remat


def within_one(std: float) -> nn.initializers.Initializer:
    """A normal distribution that is cut off at one standard deviation, as in the original."""
    return nn.initializers.truncated_normal(std, lower=-1.0, upper=1.0)


NORMAL, ZEROS = within_one(0.02), nn.initializers.zeros_init()

HALVES = Card((0.5,) * 3, (0.5,) * 3, source="microsoft/unilm")


@cache
def distances(rows: int, columns: int) -> Int[np.ndarray, "n n"]:
    """For each pair of patches, the index of their distance in a flattened table `2 * rows - 1, 2 * columns - 1`."""
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")).reshape(2, -1)
    steps = places[:, :, None] - places[:, None]
    return (steps[0] + rows - 1) * (2 * columns - 1) + steps[1] + columns - 1


class RelativePosition(nn.Module):
    """Biases of attention scores by distance, for a class token and the patches of an image.

    Attributes:
      grid: rows and columns that the table is for; for others it is resized as in transformers.
    """

    grid: tuple[int, int]
    heads: int

    @nn.compact
    def __call__(self, rows: int, columns: int) -> Float[Array, "k n n"]:
        """Biases for the class token and patches on a grid of this size."""
        table = self.param("table", ZEROS, (2 * self.grid[0] - 1, 2 * self.grid[1] - 1, self.heads))
        outer = self.param("class_table", ZEROS, (3, self.heads))
        table = resize_table(table, (2 * rows - 1, 2 * columns - 1), "half_pixel_linear")
        patches = table.reshape(-1, self.heads)[distances(rows, columns)]
        to_patches, to_class, own = outer
        bias = jnp.pad(patches, ((1, 0), (1, 0), (0, 0)))
        bias = bias.at[0, 1:].set(to_patches).at[1:, 0].set(to_class).at[0, 0].set(own)
        return jnp.moveaxis(bias, -1, 0)


class Block(nn.Module):
    """Pre-norm transformer block with relative positions and scaled branches.

    Attributes:
      grid: see `RelativePosition`; None if the blocks share it.
      scale: initial value of the branches' scales.
      out_init: initializer of the last linear layer of each branch.
    """

    heads: int
    mlp_ratio: float
    grid: tuple[int, int] | None
    scale: float
    epsilon: float
    out_init: nn.initializers.Initializer
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop_path: float | Array = 0.0,
        train: bool = False,
        size: tuple[int, int] = (1, 1),
        bias: Float[Array, "k n n"] | None = None,
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`.

        Args:
          size: rows and columns of the image's patches.
          bias: that the blocks share, if they do.
        """
        width, norm = x.shape[-1], partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(
            self.heads, key_bias=False, implementation=self.implementation, kernel_init=NORMAL, out_init=self.out_init,
            dtype=self.dtype, name="attention",
        )  # fmt: skip
        if self.grid is not None:
            bias = RelativePosition(self.grid, self.heads, name="relative_position")(*size)
        mlp = Mlp(int(self.mlp_ratio * width), kernel_init=NORMAL, out_init=self.out_init, dtype=self.dtype, name="mlp")
        scales = [
            self.param(f"{name}_scale", nn.initializers.constant(self.scale), (width,)).astype(x.dtype)
            for name in ("attention", "mlp")
        ]
        branch = DropPath(name="drop_path")
        x = x + branch(scales[0] * attention(norm(name="norm1")(x), bias=bias), drop_path, train)
        return x + branch(scales[1] * mlp(norm(name="norm2")(x)), drop_path, train)


def rescaled_block(*fields, name: str | None = None, **linen) -> Block:
    """A block whose branches start smaller the later it comes, by the root of twice its number, as in the original.

    Args:
      name: ends in the number of the block; a block without a name, in `Encoder.scan`, initialises no parameters.
    """
    number = 1 if name is None else 1 + int(name.rpartition("_")[2])
    return Block(*fields, out_init=within_one(0.02 * (2 * number) ** -0.5), name=name, **linen)


class BEiT(nn.Module):
    """The encoder and image classifier, applied to each frame.

    Attributes:
      patch_size: frames, height and width of a patch; one frame for images.
      shared_positions: whether all blocks have the same relative positions (pre-training), or each its own.
      scale: initial value of the scales of residual branches.
      num_classes: None returns the mean over frames of the normalised mean patch token.
      head: module applied to the normalised mean patch tokens of the frames, `b t d`; its outputs are averaged over the
        frames. None for a linear layer to the classes, if any.
      dropout: rate before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      epsilon: of the layer norms.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    shared_positions: bool = False
    scale: float = 0.1
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.1
    channels: int = 3
    num_frames: int = 1
    image_size: int = 224
    epsilon: float = 1e-6
    card: Card = HALVES
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, NORMAL, dtype=self.dtype)
        self.class_token = self.param("class_token", NORMAL, (1, 1, self.width))
        places = grid((1, self.image_size, self.image_size), (1, *self.patch_size[1:]))[1:]
        if self.shared_positions:
            self.relative_position = RelativePosition(places, self.heads)
        block = partial(
            rescaled_block, self.heads, self.mlp_ratio, None if self.shared_positions else places, self.scale,
            self.epsilon, implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        self.head_norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)

    def tokens(
        self,
        video: Float[Array, "b t h w c"],
        train: bool = False,
        masked: Bool[Array, "b n"] | None = None,
        mask_token: Float[Array, "d"] | None = None,
    ) -> Float[Array, "b f m d"]:
        """Tokens of each frame, class token first.

        Args:
          masked: True for the patches, in `(t h w)` order, whose embedding is replaced.
          mask_token: replaces it.
        """
        check_video(video, self.channels)
        frames, *size = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        if masked is not None:
            x = jnp.where(masked[..., None], mask_token.astype(x.dtype), x)
        x = einops.rearrange(x, "b (t n) d -> (b t) n d", t=frames)
        x = jnp.concatenate([jnp.tile(self.class_token.astype(x.dtype), (len(x), 1, 1)), x], axis=1)
        shared = {"bias": self.relative_position(*size)} if self.shared_positions else {}
        x = self.transformer(x, train, size=tuple(size), **shared)
        return einops.rearrange(x, "(b t) n d -> b t n d", t=frames)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Patch tokens on their grid, without the class tokens."""
        tokens = einops.rearrange(self.tokens(video, train)[:, :, 1:], "b t n d -> b (t n) d")
        return on_grid(tokens, grid(video.shape[1:4], self.patch_size))

    def _pooled(self, video: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b f d"]:
        """The normalised mean patch token of each frame."""
        return self.head_norm(self.tokens(video, train)[:, :, 1:].mean(axis=2))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean over frames of the normalised mean patch token."""
        return self._pooled(video, train).mean(axis=1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Mean output of the head over frames, by default logits `b classes`; without a head, the output of `embed`."""
        features = self._pooled(video, train)
        if self.classifier is None:
            return features.mean(axis=1)
        features = self.head_dropout(features, deterministic=not train)
        return jax.tree.map(lambda outputs: outputs.mean(axis=1), self.classifier(features))


class Pretraining(nn.Module):
    """The encoder with a mask token, and the prediction of the tokens of patches.

    Attributes:
      vocabulary: number of different tokens.
      encoder_norm: whether tokens are normalised twice before the prediction, as in transformers for a configuration
        without `use_mean_pooling`, which the published weights have.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    vocabulary: int = 8192
    encoder_norm: bool = False
    scale: float = 0.1
    drop_path: float = 0.1
    channels: int = 3
    num_frames: int = 1
    image_size: int = 224
    epsilon: float = 1e-6
    card: Card = HALVES
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder, the norms and the linear layer to the tokens."""
        self.encoder = BEiT(
            self.width, self.depth, self.heads, self.mlp_ratio, self.patch_size, shared_positions=True,
            scale=self.scale, drop_path=self.drop_path, channels=self.channels, num_frames=self.num_frames,
            image_size=self.image_size, epsilon=self.epsilon, remat=self.remat, scan=self.scan,
            implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        self.mask_token = self.param("mask_token", NORMAL, (1, 1, self.width))
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        self.norms = [norm(name="norm"), *([norm(name="encoder_norm")] if self.encoder_norm else [])]
        self.token_head = nn.Dense(self.vocabulary, kernel_init=NORMAL, dtype=self.dtype)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """See `BEiT.encode`."""
        return self.encoder.encode(video, train)

    def __call__(
        self, video: Float[Array, "b t h w c"], masked: Bool[Array, "b n"], train: bool = False
    ) -> Float[Array, "b n v"]:
        """Logits of the tokens of all patches in `(t h w)` order, of which those are hidden where `masked` is True."""
        x = self.encoder.tokens(video, train, masked, self.mask_token[0, 0])[:, :, 1:]
        for norm in reversed(self.norms):
            x = norm(x)
        return self.token_head(einops.rearrange(x, "b t n d -> b (t n) d"))

    @property
    def cell_size(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of a place that a mask hides."""
        return self.patch_size

    def predict_images(
        self, images: Float[Array, "b t h w c"], masked: Bool[Array, "b t _ _"], train: bool = False
    ) -> Float[Array, "b t _ _ v"]:
        """The same on the grid of patches."""
        logits = self(images, masked.reshape(len(masked), -1), train)
        return logits.reshape(*masked.shape, -1)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video."""
        patches = prod(grid(video.shape[1:4], self.patch_size))
        return video, jax.ShapeDtypeStruct((video.shape[0], patches), jnp.bool_)


TINY = {"width": 48, "depth": 2, "heads": 3, "patch_size": (1, 8, 8), "num_frames": 4, "image_size": 32}
LARGE = VIT_SIZES["large"] | {"scale": 1e-5}

VARIANTS = MappingProxyType(
    {
        "beit_tiny": partial(BEiT, **TINY),
        "beit_base_16": partial(BEiT, **VIT_SIZES["base"], num_classes=1000),
        "beit_large_16": partial(BEiT, **LARGE, num_classes=1000),
        "beit_tiny_pretrain": partial(Pretraining, **TINY, vocabulary=64),
        "beit_base_16_pretrain": partial(Pretraining, **VIT_SIZES["base"]),
        "beit_large_16_pretrain": partial(Pretraining, **LARGE),
    }
)
