"""T5 (Raffel et al. 2020, arXiv:1910.10683; google-research/text-to-text-transfer-transformer): reads and writes text.

An encoder reads a text in both directions, and a causal decoder that attends to it writes another. Version 1.1 and
Flan-T5 (arXiv:2210.11416) have a gated MLP and a last layer of their own.

Pitfalls: the norms only scale (RMS norm); no layer has a bias; the scores of attention are not divided by the root of
the head's width, and the heads together need not have the model's width. Positions are biases of the scores, one for
each head and bucket of distances, of which half are of a single distance and the others logarithmic; all layers of a
stack share them, and attention to the encoder has none. The first version's decoder shares the word embeddings with its
last layer, and multiplies its output by the inverse root of the width; later versions do neither. Written texts start
with the padding id, 0. Dropout, of no use to frozen models, is left out, as in the pre-training of version 1.1.
"""

from functools import cache, partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.layers.activations import tanh_gelu
from vidjax.layers.attention import DotProduct, Pair, Place, causal_mask, remember, remember_context, with_beams
from vidjax.layers.transformer import Encoder, Remat

BUCKETS, LIMIT = 32, 128  # distances from the limit on share a bucket


@cache
def bucket_table(both_ways: bool, limit: int = LIMIT) -> np.ndarray:
    """Bucket of a key's distance to the query, from `-limit` to `limit` tokens after it.

    Args:
      both_ways: of an encoder, whose keys after the query have buckets of their own; in a decoder they are masked.
      limit: distances from it on share a bucket.
    """
    distance = np.arange(-limit, limit + 1)
    count = BUCKETS // 2 if both_ways else BUCKETS
    away = np.abs(distance) if both_ways else np.maximum(-distance, 0)
    exact = count // 2
    scale = np.float32((count - exact) / np.log(limit / exact))
    logarithmic = exact + (np.log(np.maximum(away, 1).astype(np.float32) / exact) * scale).astype(int)
    bucket = np.where(away < exact, away, np.minimum(logarithmic, count - 1))
    return bucket + np.where(both_ways & (distance > 0), count, 0)


class RelativeBias(nn.Module):
    """Learned biases of the scores by the distance between query and key."""

    heads: int
    both_ways: bool
    limit: int = LIMIT

    @nn.compact
    def __call__(self, queries: int, place: Place, length: int) -> Float[Array, "k q n"]:
        """Biases of `queries` tokens from `place` on, to keys at the first `length` places."""
        table = self.param("table", nn.initializers.normal(0.05), (BUCKETS, self.heads))
        distance = jnp.arange(length) - (place + jnp.arange(queries)[:, None])
        buckets = jnp.asarray(bucket_table(self.both_ways, self.limit))
        bucket = buckets[jnp.clip(distance, -self.limit, self.limit) + self.limit]
        return einops.rearrange(table[bucket], "q n k -> k q n")


class Attention(nn.Module):
    """Attention without biases and scaling, whose heads have any width; see `layers.attention.Attention`."""

    heads: int
    head_width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q d"],
        context: Float[Array, "b n e"] | None = None,
        mask: Bool[Array, "#b #q s"] | None = None,
        bias: Float[Array, "k q s"] | None = None,
        place: Place | None = None,
    ) -> Float[Array, "b q d"]:
        """The output has the shape of `query`; the arguments are those of `layers.attention.Attention`."""
        width, inner = query.shape[-1], self.heads * self.head_width

        def project(x: Array, name: str, deviation: float) -> Array:
            init = nn.initializers.normal(deviation)
            x = nn.Dense(inner, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)(x)
            return einops.rearrange(x, "b n (k d) -> b n k d", k=self.heads)

        def pair_of(x: Array) -> Pair:
            return project(x, "key", width**-0.5), project(x, "value", width**-0.5)

        queries = project(query, "query", (width * self.head_width) ** -0.5)
        if context is not None:
            keys, values = pair_of(context) if place is None else remember_context(self, lambda: pair_of(context))
        else:
            keys, values = pair_of(query)
            if place is not None:
                keys, values = remember(self, (keys, values), place, mask.shape[-1])
        queries = queries * self.head_width**0.5  # by which `attend` divides
        x = with_beams(DotProduct(name="dot_product"), queries, (keys, values), mask, bias)
        out = nn.initializers.normal(inner**-0.5)
        x = einops.rearrange(x, "b n k d -> b n (k d)")
        return nn.Dense(width, use_bias=False, kernel_init=out, dtype=self.dtype, name="out")(x)


class FeedForward(nn.Module):
    """ReLU between two linear layers, or, `gated`, GELU times another linear layer."""

    hidden: int
    gated: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The output has the shape of `x`."""

        def dense(features: int, inputs: int, name: str) -> nn.Dense:
            init = nn.initializers.normal(inputs**-0.5)
            return nn.Dense(features, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)

        width = x.shape[-1]
        hidden = dense(self.hidden, width, "fc1")(x)
        hidden = tanh_gelu(hidden) * dense(self.hidden, width, "gate")(x) if self.gated else jax.nn.relu(hidden)
        return dense(width, self.hidden, "fc2")(hidden)


class Block(nn.Module):
    """Pre-norm block: self-attention, attention to the context if there is one, MLP."""

    heads: int
    head_width: int
    hidden: int
    gated: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop_path: float | Array,
        train: bool,
        mask: Bool[Array, "#b #q s"],
        bias: Float[Array, "k q s"],
        context: Float[Array, "b n d"] | None = None,
        context_mask: Bool[Array, "b 1 n"] | None = None,
        place: Place | None = None,
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`; nothing is dropped.

        Args:
          context: tokens of the encoder.
        """
        norm = partial(nn.RMSNorm, epsilon=1e-6, dtype=self.dtype)
        attention = partial(Attention, self.heads, self.head_width, dtype=self.dtype)
        x = x + attention(name="attention")(norm(name="norm1")(x), None, mask, bias, place)
        if context is not None:
            seen = norm(name="cross_norm")(x)
            x = x + attention(name="cross_attention")(seen, context, context_mask, place=place)
        return x + FeedForward(self.hidden, self.gated, self.dtype, name="mlp")(norm(name="norm2")(x))


class T5(nn.Module):
    """Encoder and decoder.

    Attributes:
      vocabulary: number of ids.
      depth: number of blocks of each stack.
      head_width: width of a head.
      hidden: width between the layers of the MLP.
      gated: whether the MLP is that of version 1.1.
      tied: whether the last layer is the table of word embeddings, as in the first version.
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    head_width: int
    hidden: int
    gated: bool = True
    tied: bool = False
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        one = nn.initializers.normal(1.0)
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=one, dtype=self.dtype)
        block = partial(Block, self.heads, self.head_width, self.hidden, self.gated, dtype=self.dtype)
        stack = partial(Encoder, block, self.depth, remat=self.remat, scan=self.scan)
        norm = partial(nn.RMSNorm, epsilon=1e-6, dtype=self.dtype)
        self.encoder, self.encoder_bias, self.encoder_norm = stack(), RelativeBias(self.heads, True), norm()
        self.decoder, self.decoder_bias, self.decoder_norm = stack(), RelativeBias(self.heads, False), norm()
        if not self.tied:
            self.word_head = nn.Dense(self.vocabulary, use_bias=False, kernel_init=one, dtype=self.dtype)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the ids of a text that is read and of one that is written."""
        return (jax.ShapeDtypeStruct((1, 8), jnp.int32),) * 2

    def embed(self, ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        """Embeddings of words."""
        return self.token_embedding(ids)

    def read(
        self, embedded: Float[Array, "b n d"], valid: Bool[Array, "b n"], train: bool = False
    ) -> Float[Array, "b n d"]:
        """Normalised tokens of texts that are read.

        Args:
          embedded: embeddings of words, or of anything else of this width (`embed`).
          valid: false for padding.
        """
        count = embedded.shape[1]
        bias = self.encoder_bias(count, 0, count)
        return self.encoder_norm(self.encoder(embedded, train, mask=valid[:, None], bias=bias))

    def words(
        self,
        ids: Int[Array, "b m"],
        read: Float[Array, "b n d"],
        valid: Bool[Array, "b n"],
        train: bool = False,
        place: Place | None = None,
        length: int | None = None,
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token of texts that are written, the first of which is the padding id.

        Args:
          read: tokens of the texts that were read, whose padding is not `valid`.
          place: of the first token, if a text is read in parts.
          length: number of tokens of all parts.
        """
        first, length = 0 if place is None else place, length or ids.shape[1]
        bias = self.decoder_bias(ids.shape[1], first, length)
        mask = causal_mask(ids.shape[1], first, length)[None]
        x = self.decoder(
            self.embed(ids), train, mask=mask, bias=bias, context=read, context_mask=valid[:, None], place=place
        )
        x = self.decoder_norm(x)
        return self.token_embedding.attend(x * self.width**-0.5) if self.tied else self.word_head(x)

    def __call__(
        self,
        ids: Int[Array, "b n"],
        written: Int[Array, "b m"],
        valid: Bool[Array, "b n"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token of the written texts."""
        valid = jnp.ones(ids.shape, bool) if valid is None else valid
        return self.words(written, self.read(self.embed(ids), valid, train), valid, train)

    def begin(
        self, embedded: Float[Array, "b n d"], valid: Bool[Array, "b n"], length: int
    ) -> tuple[Float[Array, "b v"], int]:
        """Reads a text; "cache" and "context" must be mutable.

        Args:
          embedded: see `read`.
          length: maximum number of words that are written.

        Returns:
          The logits of the first word, and its place.
        """
        read = self.read(embedded, valid)
        for name, value in (("read", read), ("valid", valid)):
            self.put_variable("context", name, value)
        self.put_variable("context", "room", jnp.zeros((len(valid), length), bool))  # only its size is used
        start = jnp.zeros((len(valid), 1), jnp.int32)
        return self.words(start, read, valid, place=0, length=length)[:, 0], 1

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """Logits of the word after these, which are at `place`; "cache" must be mutable."""
        read, valid, room = (self.get_variable("context", name) for name in ("read", "valid", "room"))
        return self.words(words[:, None], read, valid, place=place, length=room.shape[1])[:, 0]


FLAN = {"vocabulary": 32128, "head_width": 64}
T5_FIRST = FLAN | {"gated": False, "tied": True}

LANGUAGE_VARIANTS = MappingProxyType(
    {
        "t5_tiny": partial(T5, vocabulary=259, width=96, depth=2, heads=4, head_width=24, hidden=192),  # for bytes
        "t5_small": partial(T5, **T5_FIRST, width=512, depth=6, heads=8, hidden=2048),
        "t5_base": partial(T5, **T5_FIRST, width=768, depth=12, heads=12, hidden=3072),
        "flan_t5_base": partial(T5, **FLAN, width=768, depth=12, heads=12, hidden=2048),
        "flan_t5_xl": partial(T5, **FLAN, width=2048, depth=24, heads=32, hidden=5120),
    }
)
