"""DALL-E's discrete VAE of images (Ramesh et al. 2021, arXiv:2102.12092; openai/DALL-E): tokens for BEiT and BEVT.

The encoder gives one of the vocabulary's tokens for each 8x8 pixels of a frame, the decoder pixels for tokens. Frames
are independent.

Pitfalls: pixels are scaled to [0.1, 0.9] and not normalised, which the card does; a block's residual branch is divided
by the square of the number of all blocks; convolutions are padded with zeros; for each channel, the decoder gives the
mean of a logit-Laplace distribution and the logarithm of its scale, first all means; BEiT and BEVT give the encoder
images of half of the size, so that its tokens lie on the grid of patches of 16 pixels.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D
from vidjax.layers.patches import check_video, grid

SIDE = 8  # of a token, in pixels
GROUPS = 4
# DALL-E's pixels are in [0.1, 0.9], as the logit of 0 and 1 is infinite.
CARD = Card((-0.125,) * 3, (1.25,) * 3, source="openai/DALL-E")

KERNEL, ZEROS = nn.initializers.variance_scaling(1.0, "fan_in", "normal"), nn.initializers.zeros_init()


def convolution(features: int, side: int, dtype: DTypeLike | None, name: str) -> Conv3D:
    """A convolution of each frame."""
    return Conv3D(features, (1, side, side), use_bias=True, kernel_init=KERNEL, bias_init=ZEROS, dtype=dtype, name=name)


class Block(nn.Module):
    """Four convolutions on a residual branch.

    Attributes:
      sides: of their kernels.
      gain: factor of the branch.
    """

    width: int
    sides: tuple[int, int, int, int]
    gain: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """A map of the block's width."""
        shortcut = x if x.shape[-1] == self.width else convolution(self.width, 1, self.dtype, "shortcut")(x)
        for number, side in enumerate(self.sides, start=1):
            width = self.width if number == len(self.sides) else self.width // 4
            x = convolution(width, side, self.dtype, f"conv_{number}")(nn.relu(x))
        return shortcut + self.gain * x


class Encoder(nn.Module):
    """The encoder: a convolution, four groups of blocks with a maximum over 2x2 places between them, and the logits.

    Attributes:
      width: of the first group; each group is twice as wide as the one before.
      depth: blocks of a group.
      vocabulary: number of different tokens.
      num_frames, image_size: of the clips that the variant is meant for; others also work.
    """

    width: int = 256
    depth: int = 2
    vocabulary: int = 8192
    channels: int = 3
    num_frames: int = 1
    image_size: int = 112
    card: Card = CARD
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.input = convolution(self.width, 7, self.dtype, "input")
        gain = 1 / (GROUPS * self.depth) ** 2
        self.groups = [
            [
                Block(self.width * 2**group, (3, 3, 3, 1), gain, self.dtype, name=f"group_{group}_block_{i}")
                for i in range(self.depth)
            ]
            for group in range(GROUPS)
        ]
        self.output = convolution(self.vocabulary, 1, self.dtype, "output")

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The map of the last group."""
        check_video(video, self.channels)
        grid(video.shape[1:4], (1, SIDE, SIDE))
        x = self.input(video)
        for number, blocks in enumerate(self.groups):
            x = nn.max_pool(x, (1, 2, 2), (1, 2, 2)) if number else x
            for block in blocks:
                x = block(x)
        return x

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean of the last map."""
        return self.encode(video, train).mean(axis=(1, 2, 3))

    def tokens(self, video: Float[Array, "b t h w c"]) -> Int[Array, "b t _ _"]:
        """The most likely token of each place."""
        return self(video).argmax(axis=-1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ v"]:
        """Logits of the tokens at each place, in float32."""
        return self.output(nn.relu(self.encode(video, train))).astype(jnp.float32)


class Decoder(nn.Module):
    """The decoder: a table of the tokens, four groups of blocks with places repeated 2x2 between them, and pixels.

    Attributes:
      width: of the last group; each group is half as wide as the one before.
      table_width: width of the table.
      depth, vocabulary, num_frames, image_size: see `Encoder`.
    """

    width: int = 256
    table_width: int = 128
    depth: int = 2
    vocabulary: int = 8192
    channels: int = 3
    num_frames: int = 1
    image_size: int = 112
    card: Card = CARD
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "b t h w v"], train: bool = False) -> Float[Array, "b t _ _ p"]:
        """Means of the channels, then logarithms of their scales, in float32; see `pixels`.

        Args:
          tokens: probabilities of the tokens at each place, one-hot for tokens.
        """
        x = convolution(self.table_width, 1, self.dtype, "input")(tokens)
        gain = 1 / (GROUPS * self.depth) ** 2
        for group in range(GROUPS):
            x = x.repeat(2, axis=2).repeat(2, axis=3) if group else x
            for i in range(self.depth):
                width = self.width * 2 ** (GROUPS - 1 - group)
                x = Block(width, (1, 3, 3, 3), gain, self.dtype, name=f"group_{group}_block_{i}")(x)
        return convolution(2 * self.channels, 1, self.dtype, "output")(nn.relu(x)).astype(jnp.float32)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video."""
        b, t, h, w, _ = video.shape
        return (jax.ShapeDtypeStruct((b, t, h // SIDE, w // SIDE, self.vocabulary), video.dtype),)


def pixels(statistics: Float[Array, "*b p"]) -> Float[Array, "*b c"]:
    """Pixels in [0, 1] from what the decoder returns: the sigmoid of the means, scaled back."""
    means = nn.sigmoid(statistics[..., : statistics.shape[-1] // 2])
    return jnp.clip((means - 0.1) / 0.8, 0.0, 1.0)


class Autoencoder(nn.Module):
    """Both, to be trained together; see `objectives.tokens` for the loss."""

    width: int = 256
    table_width: int = 128
    depth: int = 2
    vocabulary: int = 8192
    channels: int = 3
    num_frames: int = 1
    image_size: int = 256
    card: Card = CARD
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder and the decoder."""
        shared = (self.depth, self.vocabulary, self.channels, self.num_frames, self.image_size, self.card, self.dtype)
        self.encoder = Encoder(self.width, *shared)
        self.decoder = Decoder(self.width, self.table_width, *shared)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """See `Encoder.encode`."""
        return self.encoder.encode(video, train)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """See `Encoder.embed`."""
        return self.encoder.embed(video, train)

    def logits(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ v"]:
        """Logits of the tokens at each place."""
        return self.encoder(video)

    def tokens(self, video: Float[Array, "b t h w c"]) -> Int[Array, "b t _ _"]:
        """The most likely token of each place."""
        return self.encoder.tokens(video)

    def decode(self, tokens: Float[Array, "b t h w v"]) -> Float[Array, "b t _ _ p"]:
        """See `Decoder`."""
        return self.decoder(tokens)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t h w p"]:
        """What the decoder returns for the most likely tokens."""
        return self.decode(jax.nn.one_hot(self.tokens(video), self.vocabulary))


TINY = {"width": 16, "depth": 1, "vocabulary": 64, "image_size": 32}

VARIANTS = MappingProxyType(
    {
        "dalle_tiny": partial(Autoencoder, **TINY, table_width=16),
        "dalle_small": partial(Autoencoder, width=64, depth=1, vocabulary=1024),  # for one's own videos
        "dalle_encoder": Encoder,
        "dalle_decoder": Decoder,
        "dalle": Autoencoder,
    }
)
