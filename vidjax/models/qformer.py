"""The Q-Former of BLIP-2 (Li et al. 2023, arXiv:2301.12597; salesforce/LAVIS): learned queries that read an image.

A BERT in which a few learned queries take part as tokens. Queries and words share self-attention, whose mask says who
sees whom; the queries alone attend to the image, in every other block, and have an MLP of their own.

Pitfalls: queries have no position, but pass the norm of the embeddings; positions of words start at 0, after the
queries too. Text that is encoded without queries does not attend to the image at all. For writing, queries see only one
another, so that one pass gives what they see and the words; the original's second pass over their cached keys and
values computes the same.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import Attention, causal_mask, within_text
from vidjax.layers.bert import NORMAL, WordHead
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import Mlp, Remat, run_block


class Block(nn.Module):
    """Post-norm block of queries, words, or both.

    Attributes:
      sees: whether queries attend to the image.
      init_std: see `layers.bert.BertBlock`.
    """

    heads: int
    mlp_ratio: float
    sees: bool
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop_path: float | Array,
        train: bool,
        queries: int,
        mask: Bool[Array, "*#b #q m"],
        context: Float[Array, "b n e"] | None = None,
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`; nothing but `dropout` is dropped.

        Args:
          queries: number of the first tokens that are queries; the others are words.
          context: tokens of the image.
        """
        norm = partial(LayerNorm, epsilon=1e-12, dtype=self.dtype)
        normal = nn.initializers.normal(self.init_std)
        attention = partial(Attention, self.heads, kernel_init=normal, dtype=self.dtype)
        mlp = partial(Mlp, int(x.shape[-1] * self.mlp_ratio), exact_gelu, normal, dtype=self.dtype)
        drop = partial(nn.Dropout(self.dropout, name="dropout"), deterministic=not train)
        x = norm(name="norm1")(x + drop(attention(name="attention")(x, mask=mask)))
        parts, words = [], x[:, queries:]
        if queries:
            seen = x[:, :queries]
            if self.sees:
                seen = norm(name="cross_norm")(seen + drop(attention(name="cross_attention")(seen, context)))
            parts.append(norm(name="query_norm2")(seen + drop(mlp(name="query_mlp")(seen))))
        if words.shape[1]:
            parts.append(norm(name="norm2")(words + drop(mlp(name="mlp")(words))))
        return jnp.concatenate(parts, axis=1)


class QFormer(nn.Module):
    """Queries that read an image, with or without words.

    Attributes:
      queries: number of queries.
      vocabulary: number of ids, of which the last is [DEC]; None without words.
      context: maximum number of words.
      writes: whether it has a head for words.
      every: distance between the blocks that see the image, of which the first is one.
      dropout: rate of the embeddings and of the branches.
      init_std: see `layers.bert.BertBlock`.
      remat: see `Encoder`.
    """

    queries: int = 32
    vocabulary: int | None = 30523
    context: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    writes: bool = True
    every: int = 2
    dropout: float = 0.0
    init_std: float = 0.02
    remat: Remat = "none"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.query = self.param("query", NORMAL, (self.queries, self.width))
        reads = self.vocabulary is not None
        if reads:
            self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=NORMAL, dtype=self.dtype)
            self.position = self.param("position", NORMAL, (self.context, self.width))
        self.embedding_norm = LayerNorm(epsilon=1e-12, dtype=self.dtype)
        self.embedding_dropout = nn.Dropout(self.dropout)
        block = partial(Block, self.heads, self.mlp_ratio, dropout=self.dropout, init_std=self.init_std)
        self.block = [block(i % self.every == 0, dtype=self.dtype) for i in range(self.depth)]
        if reads and self.writes:
            self.word_head = WordHead(dtype=self.dtype)

    def _run(
        self,
        parts: list[Float[Array, "b _ d"]],
        queries: int,
        mask: Bool[Array, "*#b #q m"],
        image: Float[Array, "b n e"] | None,
        train: bool,
    ) -> Float[Array, "b m d"]:
        x = self.embedding_norm(jnp.concatenate(parts, axis=1))
        x = self.embedding_dropout(x, deterministic=not train)
        for block in self.block:
            x = run_block(block, x, 0.0, train, self.remat, queries=queries, mask=mask, context=image)
        return x

    def _queries(self, batch: int) -> Float[Array, "b q d"]:
        return jnp.broadcast_to(self.query, (batch, *self.query.shape))

    def _words(self, ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        embedded = self.token_embedding(ids)
        return embedded + self.position[: ids.shape[1]].astype(embedded.dtype)

    def look(self, image: Float[Array, "b n e"], train: bool = False) -> Float[Array, "b q d"]:
        """What the queries see in the tokens of an image each."""
        return self._run([self._queries(len(image))], self.queries, jnp.ones((1, 1, self.queries), bool), image, train)

    def read(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m d"]:
        """Tokens of texts alone; those of padding, id 0, are meaningless."""
        return self._run([self._words(ids)], 0, within_text(ids)[:, None], None, train)

    def together(
        self, image: Float[Array, "b n e"], ids: Int[Array, "b m"], train: bool = False
    ) -> Float[Array, "b s d"]:
        """Queries, then words, all of which see one another."""
        mask = jnp.pad(within_text(ids), ((0, 0), (self.queries, 0)), constant_values=True)
        return self._run([self._queries(len(ids)), self._words(ids)], self.queries, mask[:, None], image, train)

    def write(
        self, image: Float[Array, "b n e"], ids: Int[Array, "b m"], train: bool = False
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b m v"]]:
        """What the queries see (`look`), and logits of the word after each token of a caption, which sees them.

        Args:
          ids: whose first becomes [DEC].
        """
        ids = ids.at[:, 0].set(self.vocabulary - 1)
        count = self.queries + ids.shape[1]
        mask = causal_mask(count).at[: self.queries, : self.queries].set(True)
        x = self._run([self._queries(len(ids)), self._words(ids)], self.queries, mask, image, train)
        return x[:, : self.queries], self.word_head(x[:, self.queries :], self.token_embedding.embedding)
