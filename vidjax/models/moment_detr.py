"""Moment-DETR (Lei et al. 2021, arXiv:2107.09609): moments and highlights of a video for a sentence, on features.

A transformer encodes the steps of the video and the words of the sentence together, and decodes learned queries, each
to a moment and whether it is one. The encoder's outputs also rate each step.
"""

from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.layers.attention import DotProduct
from vidjax.layers.card import Card
from vidjax.layers.normalization import LayerNorm

Norm = partial(LayerNorm, epsilon=1e-5)


class Moments(NamedTuple):
    """What the model returns.

    Attributes:
      logits: of each query, for being a moment and for not being one, after each layer of the decoder.
      spans: centre and width of each query's moment, as fractions of the video.
      saliency: rating of each step of the video; those beyond its end mean nothing.
      queries: unit projections of the decoder's outputs, if texts are aligned.
      words: unit projections of the words.
    """

    logits: Float[Array, "layers b q 2"]
    spans: Float[Array, "layers b q 2"]
    saliency: Float[Array, "b t"]
    queries: Float[Array, "layers b q e"] | None = None
    words: Float[Array, "b m e"] | None = None


def sine_positions(valid: Bool[Array, "b t"], width: int) -> Float[Array, "b t d"]:
    """Interleaved sines and cosines of the place in the valid part, which goes from 0 to 2 pi."""
    place = jnp.cumsum(valid, axis=1, dtype=jnp.float32)
    place = place / (place[:, -1:] + 1e-6) * 2 * jnp.pi
    angle = place[..., None] / 10000 ** (2 * (jnp.arange(width) // 2) / width)
    return jnp.where(jnp.arange(width) % 2, jnp.cos(angle), jnp.sin(angle))


class Attention(nn.Module):
    """Multi-head attention whose queries and keys have positions and whose values have none."""

    heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q d"],
        key: Float[Array, "b n d"],
        value: Float[Array, "b n d"],
        valid: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b q d"]:
        """The output has the shape of `query`; keys that are not valid are ignored."""
        width = query.shape[-1]

        def project(x: Array, name: str) -> Array:
            x = nn.Dense(width, dtype=self.dtype, name=name)(x)
            return einops.rearrange(x, "b n (k d) -> b n k d", k=self.heads)

        parts = project(query, "query"), project(key, "key"), project(value, "value")
        mask = None if valid is None else valid[:, None, :]
        x = einops.rearrange(DotProduct(name="dot_product")(*parts, mask), "b n k d -> b n (k d)")
        return nn.Dense(width, dtype=self.dtype, name="out")(x)


class Layer(nn.Module):
    """A layer of the encoder or, with a memory, of the decoder: norms after each branch, or before it."""

    heads: int
    hidden: int
    dropout: float
    pre_norm: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        position: Float[Array, "b n d"],
        valid: Bool[Array, "b n"] | None,
        memory: tuple[Float[Array, "b s d"], Float[Array, "b s d"], Bool[Array, "b s"]] | None = None,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`. A memory is what is attended to, its positions, and which are valid."""

        def drop(x: Array, name: str) -> Array:
            return nn.Dropout(self.dropout, name=name)(x, deterministic=not train)

        def self_attention(x: Array) -> Array:
            return Attention(self.heads, self.dtype, name="attention")(x + position, x + position, x, valid)

        def cross_attention(x: Array) -> Array:
            values, places, usable = memory
            return Attention(self.heads, self.dtype, name="cross_attention")(
                x + position, values + places, values, usable
            )

        def mlp(x: Array) -> Array:
            hidden = drop(nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x)), "hidden_dropout")
            return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)

        branches = [self_attention, mlp] if memory is None else [self_attention, cross_attention, mlp]
        for number, branch in enumerate(branches, start=1):
            norm = Norm(dtype=self.dtype, name=f"norm{number}")
            if self.pre_norm:
                x = x + drop(branch(norm(x)), f"dropout{number}")
            else:
                x = norm(x + drop(branch(x), f"dropout{number}"))
        return x


class MomentDETR(nn.Module):
    """Moments and saliency for a sentence.

    Attributes:
      video_channels: features of a step, with its start and end in the video as the last two.
      text_channels: features of a word.
      queries: number of moments that are predicted.
      embeddings: linear layers of the features before the transformer.
      text_positions: whether words have (learned) positions; their parameters exist in any case, as in the original.
      words: length of their table.
      pre_norm: whether norms come before the branches; the encoder then ends with one.
      align: width of the projections of queries and words for contrastive alignment; None for none.
      input_dropout: of the features.
    """

    video_channels: int = 2818
    text_channels: int = 512
    width: int = 256
    heads: int = 8
    hidden: int = 1024
    layers: tuple[int, int] = (2, 2)
    queries: int = 10
    embeddings: int = 2
    text_positions: bool = False
    words: int = 32
    pre_norm: bool = False
    align: int | None = None
    dropout: float = 0.1
    input_dropout: float = 0.5
    card: Card = Card(source="jayleicn/moment_detr")
    dtype: DTypeLike | None = None

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Features of 75 clips and of the words, and their lengths."""
        video = jax.ShapeDtypeStruct((1, 75, self.video_channels), jnp.float32)
        text = jax.ShapeDtypeStruct((1, self.words, self.text_channels), jnp.float32)
        return video, text, *[jax.ShapeDtypeStruct((1,), jnp.int32)] * 2

    @nn.compact
    def __call__(
        self,
        video: Float[Array, "b t c"],
        text: Float[Array, "b m e"],
        video_lengths: Int[Array, "b"],
        text_lengths: Int[Array, "b"],
        train: bool = False,
    ) -> Moments:
        """Moments of each video for its sentence; features beyond the lengths are ignored."""
        norm, dense = partial(Norm, dtype=self.dtype), partial(nn.Dense, dtype=self.dtype)

        def embed(x: Array, name: str) -> Array:
            for number in range(self.embeddings):
                x = norm(name=f"{name}_norm_{number}")(x)
                x = nn.Dropout(self.input_dropout, name=f"{name}_dropout_{number}")(x, deterministic=not train)
                x = dense(self.width, name=f"{name}_{number}")(x)
                x = nn.relu(x) if number < self.embeddings - 1 else x
            return x

        video, text = embed(video, "video"), embed(text, "text")
        steps, words = video.shape[1], text.shape[1]
        seen = jnp.arange(steps) < video_lengths[:, None]
        said = jnp.arange(words) < text_lengths[:, None]
        table = nn.Embed(self.words, self.width, name="text_position")(jnp.arange(words))
        places = norm(name="text_position_norm")(text + table)
        places = nn.Dropout(self.dropout, name="text_position_dropout")(places, deterministic=not train)
        places = places if self.text_positions else jnp.zeros_like(places)
        position = jnp.concatenate([sine_positions(seen, self.width).astype(video.dtype), places], axis=1)
        valid, x = jnp.concatenate([seen, said], axis=1), jnp.concatenate([video, text], axis=1)
        layer = partial(Layer, self.heads, self.hidden, self.dropout, self.pre_norm, self.dtype)
        for number in range(self.layers[0]):
            x = layer(name=f"encoder_{number}")(x, position, valid, train=train)
        memory = norm(name="encoder_norm")(x) if self.pre_norm else x
        query = self.param("query", nn.initializers.normal(1.0), (self.queries, self.width))
        query = jnp.broadcast_to(query.astype(memory.dtype), (len(video), *query.shape))
        x, decoded = jnp.zeros_like(query), []
        last_norm = norm(name="decoder_norm")
        for number in range(self.layers[1]):
            x = layer(name=f"decoder_{number}")(x, query, None, (memory, position, valid), train)
            decoded.append(last_norm(x))
        decoded = jnp.stack(decoded)
        spans = decoded
        for number in range(3):
            spans = dense(2 if number == 2 else self.width, name=f"span_{number}")(spans)
            spans = nn.relu(spans) if number < 2 else jax.nn.sigmoid(spans)
        saliency = dense(1, name="saliency")(memory[:, :steps])[..., 0]
        outputs = Moments(dense(2, name="classes")(decoded), spans, saliency)
        if self.align is None:
            return outputs
        queries, said = (
            dense(self.align, name="align_query")(decoded),
            dense(self.align, name="align_text")(memory[:, steps:]),
        )
        dense(self.align, name="align_video")(memory[:, :steps])  # unused in the original too
        return outputs._replace(queries=_unit(queries), words=_unit(said))


def _unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


RETRIEVERS = MappingProxyType(
    {
        "moment_detr_slowfast_clip": partial(MomentDETR),
        "moment_detr_clip": partial(MomentDETR, video_channels=514),
        "moment_detr_tiny": partial(
            MomentDETR, video_channels=34, text_channels=32, width=64, heads=4, hidden=128, queries=5, input_dropout=0.1
        ),
    }
)
