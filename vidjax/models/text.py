"""Text towers: CLIP's causal transformer (arXiv:2103.00020; openai/CLIP) and BERT (arXiv:1810.04805).

Both take ids `b m` and return one feature per text, `tower(ids) -> b e`, or its tokens, `tower.tokens(ids) -> b m d`.
Texts are padded with id 0 at the end; features are not normalised.

Pitfalls of CLIP: attention is causal, so that padding after the end token has no effect and need not be masked. The
feature is that of the end token: the one with the highest id in OpenAI's code (and in Hugging Face's if `eos_token_id`
is 2; otherwise the first token with this id). The layer norms have epsilon 1e-5. Pitfalls of BERT: norms follow the
residual sum and have epsilon 1e-12; a segment embedding, here always the first, is added to every token.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import ACTIVATIONS, Activation
from vidjax.layers.attention import Attention
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import Block, DropPath, Encoder, Mlp, Remat, scaled_by_depth

NORMAL = nn.initializers.normal(0.02)


def check_ids(ids: Int[Array, "b m"], context: int) -> None:
    """Checks that the ids are a batch of texts that fit the tower's context.

    Raises:
      UserError: a wrong shape, dtype or length.
    """
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(
            f"the ids have shape {ids.shape} and dtype {ids.dtype}: the tower takes integers (batch, tokens)"
        )
    if not 1 <= ids.shape[1] <= context:
        raise UserError(f"the texts have {ids.shape[1]} tokens: the text tower takes 1 to {context}")


class TextTower(nn.Module):
    """CLIP's text tower.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens in a text.
      features: width of the joint embedding space.
      end_token: id of the end token, whose first occurrence gives the feature; None for the highest id of each text.
      drop_path: rate of the last block.
      epsilon: of the layer norms.
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    features: int
    mlp_ratio: float = 4.0
    end_token: int | None = None
    activation: Activation = "quick_gelu"
    drop_path: float = 0.0
    epsilon: float = 1e-5
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=NORMAL, dtype=self.dtype)
        self.position = self.param("position", nn.initializers.normal(0.01), (self.context, self.width))
        block = partial(
            Block, self.heads, self.mlp_ratio, epsilon=self.epsilon, activation=ACTIVATIONS[self.activation],
            dtype=self.dtype, **scaled_by_depth(self.width, self.depth),
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        self.norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        normal = nn.initializers.normal(self.width**-0.5)
        self.projection = nn.Dense(self.features, use_bias=False, kernel_init=normal, dtype=self.dtype)

    def tokens(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m d"]:
        """Normalised tokens, from causal attention."""
        check_ids(ids, self.context)
        x = self.token_embedding(ids)
        x = x + self.position[: ids.shape[1]].astype(x.dtype)
        causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        return self.norm(self.transformer(x, train, mask=causal))

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The end token's feature, not normalised."""
        tokens = self.tokens(ids, train)
        end = ids if self.end_token is None else ids == self.end_token
        at_end = jnp.take_along_axis(tokens, end.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return self.projection(at_end)


class BertBlock(nn.Module):
    """Post-norm block: attention, then MLP, each followed by a residual sum and a norm."""

    heads: int
    mlp_ratio: float
    epsilon: float
    activation: Activation
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b m d"], drop_path: float, train: bool, mask: Bool[Array, "b 1 m"]
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(self.heads, kernel_init=NORMAL, dtype=self.dtype, name="attention")
        hidden = int(x.shape[-1] * self.mlp_ratio)
        mlp = Mlp(hidden, ACTIVATIONS[self.activation], NORMAL, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")
        x = norm(name="norm1")(x + branch(attention(x, mask=mask), drop_path, train))
        return norm(name="norm2")(x + branch(mlp(x), drop_path, train))


class Bert(nn.Module):
    """BERT without its pooler; attention is bidirectional, with padding (id 0) masked.

    The feature is the projected first token.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens in a text.
      features: width of the joint embedding space.
      types: number of segment embeddings; all tokens use the first.
      drop_path: rate of the last block.
      epsilon: of the layer norms.
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    features: int
    mlp_ratio: float = 4.0
    types: int = 2
    activation: Activation = "gelu"
    drop_path: float = 0.0
    epsilon: float = 1e-12
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=NORMAL, dtype=self.dtype)
        self.position = self.param("position", NORMAL, (self.context, self.width))
        self.type = self.param("type", NORMAL, (self.types, self.width))
        self.embedding_norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        block = partial(
            BertBlock, self.heads, self.mlp_ratio, self.epsilon, activation=self.activation, dtype=self.dtype
        )
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        self.projection = nn.Dense(self.features, use_bias=False, kernel_init=NORMAL, dtype=self.dtype)

    def tokens(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m d"]:
        """Normalised tokens; those of padding are meaningless."""
        check_ids(ids, self.context)
        x = self.token_embedding(ids)
        x = x + (self.position[: ids.shape[1]] + self.type[0]).astype(x.dtype)
        return self.transformer(self.embedding_norm(x), train, mask=(ids != 0)[:, None])

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The first token's feature, not normalised."""
        return self.projection(self.tokens(ids, train)[:, 0])


TINY = {"vocabulary": 259, "context": 96, "width": 96, "depth": 3, "heads": 4, "features": 128}  # for bytes
CLIP = {"vocabulary": 49408, "context": 77, "depth": 12}

TEXT_VARIANTS = MappingProxyType(
    {
        "text_tiny": partial(TextTower, **TINY),
        "clip_base": partial(TextTower, **CLIP, width=512, heads=8, features=512),
        "clip_large": partial(TextTower, **CLIP, width=768, heads=12, features=768),
        "bert_tiny": partial(Bert, **TINY),
        "bert_base": partial(Bert, vocabulary=30522, context=512, width=768, depth=12, heads=12, features=512),
    }
)
