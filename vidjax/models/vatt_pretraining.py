"""VATT's pre-training (Akbari et al. 2021, arXiv:2104.11178): towers of video, sound and text, and their common spaces.

Sound is a raw waveform, of which 128 samples are a token. The head maps from fine to coarse: video and sound share a
space, and what the video has there is mapped on to the one that it shares with text. Sound and text are not compared.

Pitfalls, all as in the original: the text's first token has the width of the word embeddings, which were trained by
word2vec and frozen (here they are trained); its MLPs have full layer norms between T5's RMS norms, and GELU. Only the
video's way through the head has batch norms. See `vatt` for more.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import Implementation, within_text
from vidjax.layers.card import Card
from vidjax.layers.normalization import BatchNorm, LayerNorm
from vidjax.layers.tower import ClipsOfVideoTower
from vidjax.layers.transformer import VIT_SIZES, Encoder, Remat
from vidjax.models import t5
from vidjax.models.vatt import CARD, MEDIUM, TINY, XAVIER, Positions, VideoTransformer, blocks, layers_around

Run = Callable[[Float[Array, "b n d"], bool, Bool[Array, "b 1 n"] | None], Float[Array, "b n d"]]
"""A transformer: `(tokens, train, mask) -> tokens`."""


class SoundTower(nn.Module):
    """The tower of waveforms.

    Attributes:
      depth, heads: of its transformer; None for that of a modality-agnostic model.
      outputs: see `VideoTransformer`.
      samples, rate: length and samples per second of the waveforms that it is meant for.
      patch_size: samples of a token.
    """

    width: int
    depth: int | None
    heads: int | None
    outputs: int | None = None
    samples: int = 153_600
    rate: int = 48_000
    patch_size: int = 128
    dropout: float = 0.0
    drop_token: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.samples % self.patch_size:
            raise UserError(f"samples is {self.samples}: it must be a multiple of the patch of {self.patch_size}")
        self.patch_embedding = nn.Dense(self.width, kernel_init=XAVIER, dtype=self.dtype)
        self.position = Positions((("time", self.samples // self.patch_size),), self.dropout)
        if self.depth is not None:
            self.transformer, self.drop = blocks(self), nn.Dropout(self.dropout)
            self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        if self.outputs is not None:
            self.embedding_layer, self.projection = layers_around(self.width, self.outputs, self.dtype)

    def __call__(self, sound: Float[Array, "b s"], train: bool = False, run: Run | None = None) -> Float[Array, "b d"]:
        """The first token.

        Args:
          run: the transformer of a modality-agnostic model.

        Raises:
          UserError: the samples cannot be cut into patches.
        """
        if sound.shape[1] % self.patch_size:
            raise UserError(f"{sound.shape[1]} samples cannot be cut into patches of {self.patch_size}: use a multiple")
        x = self.patch_embedding(einops.rearrange(sound, "b (n p) -> b n p", p=self.patch_size))
        if self.outputs is not None:
            x = exact_gelu(self.embedding_layer(x))
        x = self.position(x, train, self.drop_token if train else 0.0)
        x = (run or self._run)(x, train, None)[:, 0]
        return x if self.outputs is None else exact_gelu(self.projection(x))

    def _run(self, tokens: Float[Array, "b n d"], train: bool, mask: None) -> Float[Array, "b n d"]:
        return self.drop(self.norm(self.transformer(tokens, train)), not train)


class TextBlock(nn.Module):
    """T5's block as VATT has it: GELU, and a full layer norm before the MLP."""

    heads: int
    dropout: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop_path: float,
        train: bool,
        mask: Bool[Array, "b 1 m"],
        bias: Float[Array, "k m m"],
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`; no path is dropped."""
        width = x.shape[-1]
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        dense = partial(nn.Dense, use_bias=False, kernel_init=XAVIER, dtype=self.dtype)
        attention = t5.Attention(self.heads, width // self.heads, self.dtype, name="attention")
        seen = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        x = x + drop(name="dropout1")(attention(seen, None, mask, bias))
        hidden = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        hidden = drop(name="hidden_dropout")(exact_gelu(dense(4 * width, name="fc1")(hidden)))
        return x + drop(name="dropout2")(dense(width, name="fc2")(hidden))


class Words(nn.Module):
    """The text tower of a modality-specific model.

    Attributes:
      context: tokens of a text; id 0 is padding.
      word_width: of the word embeddings.
    """

    width: int = 512
    depth: int = 6
    heads: int = 8
    vocabulary: int = 2**16
    context: int = 16
    word_width: int = 300
    dropout: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.word_embedding = nn.Embed(self.vocabulary, self.word_width, dtype=self.dtype)
        self.token = self.param("token", nn.initializers.truncated_normal(self.word_width**-0.5), (self.word_width,))
        self.embedding_layer = nn.Dense(self.width, use_bias=False, kernel_init=XAVIER, dtype=self.dtype)
        self.position_bias = t5.RelativeBias(self.heads, both_ways=True, limit=64)
        block = partial(TextBlock, self.heads, self.dropout, self.dtype)
        self.transformer = Encoder(block, self.depth, remat=self.remat, scan=self.scan)
        self.norm = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, ids: Int[Array, "b m"], train: bool = False, run: Run | None = None) -> Float[Array, "b d"]:
        """The first token; `run` is not used."""
        words = self.word_embedding(ids)
        first = jnp.broadcast_to(self.token.astype(words.dtype), (len(ids), 1, self.word_width))
        x = exact_gelu(self.embedding_layer(jnp.concatenate([first, words], axis=1)))
        bias = self.position_bias(x.shape[1], 0, x.shape[1])
        x = self.transformer(self.drop(x, not train), train, mask=_mask(ids), bias=bias)
        return self.drop(self.norm(x), not train)[:, 0]


class AgnosticWords(nn.Module):
    """The text's part of a modality-agnostic model; see `Words`, `SoundTower`."""

    width: int
    outputs: int
    vocabulary: int = 2**16
    context: int = 16
    word_width: int = 300
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.word_embedding = nn.Embed(self.vocabulary, self.word_width, dtype=self.dtype)
        self.position = Positions((("words", self.context),), self.dropout)
        self.embedding_layer, self.projection = layers_around(self.width, self.outputs, self.dtype)

    def __call__(self, ids: Int[Array, "b m"], train: bool, run: Run) -> Float[Array, "b d"]:
        """The first token."""
        x = self.position(exact_gelu(self.embedding_layer(self.word_embedding(ids))), train)
        return exact_gelu(self.projection(run(x, train, _mask(ids))[:, 0]))


class Head(nn.Module):
    """From fine to coarse: the video's features to the space of sound, and from there to that of text."""

    sound_width: int = 512
    text_width: int = 256
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        dense = partial(nn.Dense, kernel_init=XAVIER, dtype=self.dtype)
        self.video_head = [dense(self.sound_width, use_bias=False, name=f"video_head_{i}") for i in range(2)]
        self.video_head_norm = [BatchNorm(dtype=self.dtype, name=f"video_head_norm_{i}") for i in range(2)]
        self.coarse_head = dense(self.text_width, use_bias=False)
        self.coarse_head_norm = BatchNorm(dtype=self.dtype)
        self.sound_head, self.text_head = dense(self.sound_width), dense(self.text_width)

    def video(self, features: Float[Array, "b d"], train: bool) -> tuple[Float[Array, "b e"], Float[Array, "b f"]]:
        """The video in the space of sound and in that of text."""
        fine = features
        for i, (dense, norm) in enumerate(zip(self.video_head, self.video_head_norm, strict=True)):
            fine = norm(dense(nn.relu(fine) if i else fine), use_running_average=not train)
        coarse = self.coarse_head_norm(self.coarse_head(nn.relu(fine)), use_running_average=not train)
        return fine, coarse


class Vatt(ClipsOfVideoTower, nn.Module):
    """The three towers and the head.

    Attributes:
      video: the video tower, without classes.
      text: `Words`, or `AgnosticWords` in a modality-agnostic model.
    """

    video: nn.Module
    sound: nn.Module
    text: nn.Module
    fine: int = 512
    coarse: int = 256
    card: Card = CARD
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if (self.sound.depth is None) != isinstance(self.text, AgnosticWords):
            raise UserError("sound and text must either both have a transformer, or both use the video's")
        self.head = Head(self.fine, self.coarse, self.dtype)

    def embed_video(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b f"]]:
        """The video in the space of sound and in that of text, not of unit length."""
        return self.head.video(self.video(video, train), train)

    def hear(self, sound: Float[Array, "b s"], train: bool = False) -> Float[Array, "b d"]:
        """The features of the sound, before the head."""
        return self.sound(sound, train, self._shared())

    def embed_sound(self, sound: Float[Array, "b s"], train: bool = False) -> Float[Array, "b e"]:
        """The sound in the space that it shares with videos, not of unit length."""
        return self.head.sound_head(self.hear(sound, train))

    def embed_text(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b f"]:
        """Texts in the space that they share with videos, not of unit length."""
        return self.head.text_head(self.text(ids, train, self._shared()))

    def _shared(self) -> Run | None:
        return self.video.run if self.sound.depth is None else None

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The video's tokens on their grid, before the head."""
        return self.video.encode(video, train)

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        sound: Float[Array, "b s"],
        ids: Int[Array, "n m"],
        train: bool = False,
    ) -> dict[str, Float[Array, "_ _"]]:
        """Embeddings by name, not of unit length: `video_of_sound` and `sound`, `video_of_text` and `text`."""
        fine, coarse = self.embed_video(video, train)
        heard, read = self.embed_sound(sound, train), self.embed_text(ids, train)
        return {"video_of_sound": fine, "sound": heard, "video_of_text": coarse, "text": read}

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video."""
        sound = jax.ShapeDtypeStruct((1, self.sound.samples), jnp.float32)
        return video, sound, jax.ShapeDtypeStruct((1, self.text.context), jnp.int32)


def _mask(ids: Int[Array, "b m"]) -> Bool[Array, "b 1 n"]:
    """True for the first token and for words that are no padding."""
    return jnp.pad(within_text(ids), ((0, 0), (1, 0)), constant_values=True)[:, None]


DROPPING = {"dropout": 0.1, "drop_token": 0.5}
SOUND = partial(SoundTower, **VIT_SIZES["base"], **DROPPING)
TEXT = partial(Words, dropout=0.1)
TINY_SOUND = {"samples": 4096, "rate": 4096, "drop_token": 0.5}
TINY_TEXT = {"vocabulary": 259, "context": 64, "word_width": 48}  # for bytes


def specific(video: Mapping[str, Any]) -> Vatt:
    """A modality-specific model: the sound tower has base size and the text tower that of T5 small, as published."""
    return Vatt(VideoTransformer(**video, **DROPPING), SOUND(), TEXT())


def agnostic(video: Mapping[str, Any]) -> Vatt:
    """A modality-agnostic model."""
    width, outputs = video["width"], 1024
    sound = SoundTower(width, None, None, outputs, **DROPPING)
    return Vatt(
        VideoTransformer(**video, outputs=outputs, **DROPPING), sound, AgnosticWords(width, outputs, dropout=0.1)
    )


def tiny(outputs: int | None) -> Vatt:
    """Models of rendered videos and bytes."""
    video, width = VideoTransformer(**TINY, outputs=outputs, drop_token=0.5), TINY["width"]
    if outputs is None:
        sound, text = SoundTower(width, 2, 4, **TINY_SOUND), Words(width, 2, 4, **TINY_TEXT)
    else:
        sound, text = SoundTower(width, None, None, outputs, **TINY_SOUND), AgnosticWords(width, outputs, **TINY_TEXT)
    return Vatt(video, sound, text, fine=128, coarse=64)


VARIANTS = MappingProxyType(
    {
        "vatt_tiny_pretrain": partial(tiny, None),
        "vatt_base_pretrain": partial(specific, VIT_SIZES["base"]),
        "vatt_medium_pretrain": partial(specific, MEDIUM),
        "vatt_large_pretrain": partial(specific, VIT_SIZES["large"]),
        "vatt_tiny_agnostic_pretrain": partial(tiny, 128),
        "vatt_medium_agnostic_pretrain": partial(agnostic, MEDIUM),
    }
)
