"""Parts of BERT (Devlin et al. 2018, arXiv:1810.04805): embeddings, post-norm blocks and the head for words.

Encoders and decoders of text, with or without attention to a video, are made of the same blocks: the mask says which
tokens a token sees, and a block that is called with a context also attends to it.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.layers.activations import ACTIVATIONS, Activation, exact_gelu
from vidjax.layers.attention import Attention, Place
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import DropPath, Mlp

NORMAL = nn.initializers.normal(0.02)


class BertEmbedding(nn.Module):
    """The sum of word, learned position and segment embedding, normalised.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens in a text.
      types: number of segment embeddings; 0 for none (BLIP).
      dropout: rate after the norm.
    """

    vocabulary: int
    context: int
    width: int
    types: int = 2
    epsilon: float = 1e-12
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=NORMAL, dtype=self.dtype)
        self.position = self.param("position", NORMAL, (self.context, self.width))
        if self.types:
            self.type = self.param("type", NORMAL, (self.types, self.width))
        self.embedding_norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.embedding_dropout = nn.Dropout(self.dropout)

    def __call__(
        self,
        ids: Int[Array, "b m"],
        train: bool = False,
        segments: Int[Array, "b m"] | None = None,
        place: Place = 0,
    ) -> Float[Array, "b m d"]:
        """Embedded tokens.

        Args:
          segments: of each token; the first if None.
          place: position of the first token.
        """
        x = self.token_embedding(ids)
        added = jax.lax.dynamic_slice_in_dim(self.position, place, ids.shape[1])
        if self.types:
            added = added + (self.type[0] if segments is None else self.type[segments])
        return self.embedding_dropout(self.embedding_norm(x + added.astype(x.dtype)), deterministic=not train)


class BertBlock(nn.Module):
    """Post-norm block: self-attention, attention to the context if there is one, MLP; each with a sum and a norm.

    Attributes:
      dropout: rate of the branches' outputs.
      init_std: standard deviation of the initial kernels. BERT's suits its 768 channels: with 96, the branches start
        so small that the first tokens of all texts are alike.
    """

    heads: int
    mlp_ratio: float = 4.0
    epsilon: float = 1e-12
    activation: Activation = "gelu"
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop_path: float | Array,
        train: bool,
        mask: Bool[Array, "*#b #q s"],
        context: Float[Array, "b n e"] | None = None,
        place: Place | None = None,
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`.

        Args:
          mask: True where a token may attend to another token of the text.
          context: tokens of a video, all of which every token of the text attends to.
          place: of the first token, if a text is read in parts; see `Attention`.
        """
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        normal = nn.initializers.normal(self.init_std)
        attention = partial(Attention, self.heads, kernel_init=normal, dtype=self.dtype)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), ACTIVATIONS[self.activation], normal, dtype=self.dtype, name="mlp")
        dropout = nn.Dropout(self.dropout, deterministic=not train, name="dropout")
        drop = DropPath(name="drop_path")

        def branch(output: Array) -> Array:
            return drop(dropout(output), drop_path, train)

        x = norm(name="norm1")(x + branch(attention(name="attention")(x, mask=mask, place=place)))
        if context is not None:
            seen = attention(name="cross_attention")(x, context, place=place)
            x = norm(name="cross_norm")(x + branch(seen))
        return norm(name="norm2")(x + branch(mlp(x)))


class WordHead(nn.Module):
    """Logits of the vocabulary: a linear layer, GELU and a norm, then similarities with the embeddings of the words."""

    epsilon: float = 1e-12
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "b m d"], words: Float[Array, "v d"]) -> Float[Array, "b m v"]:
        """Logits of each token.

        Args:
          words: the table of word embeddings, with which the head shares its last layer.
        """
        x = nn.Dense(tokens.shape[-1], kernel_init=NORMAL, dtype=self.dtype, name="dense")(tokens)
        x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(exact_gelu(x))
        bias = self.param("bias", nn.initializers.zeros_init(), (len(words),))
        x, words, bias = nn.dtypes.promote_dtype(x, words, bias, dtype=self.dtype)
        return jnp.einsum("bmd,vd->bmv", x, words) + bias
