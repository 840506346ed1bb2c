"""Text towers: CLIP's causal transformer (arXiv:2103.00020; openai/CLIP) and BERT (arXiv:1810.04805).

Both take ids `b m` and give one feature of a text, `tower(ids) -> b e`, or the tokens before it,
`tower.tokens(ids) -> b m d`. Padding is id 0 at the end; features are not normalised.

Traps of CLIP: a token sees those before it alone, so that what stands after the end token has no say and need not be
masked; the feature is that of the end token, which OpenAI finds as the highest id of the text (Hugging Face as well
where `eos_token_id` is 2, otherwise as the first of that id); layer-norm epsilon is 1e-5. Traps of BERT: norms come
after the residual sum, their epsilon is 1e-12; every token has the embedding of its segment, here the first, added.
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
    """Refuses what is no batch of texts, or longer than the positions that the tower has.

    Raises:
      UserError: with the shape found and the shape wanted.
    """
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(
            f"ids of shape {ids.shape} and {ids.dtype} were given: the tower takes integers (batch, tokens)"
        )
    if not 1 <= ids.shape[1] <= context:
        raise UserError(f"texts of {ids.shape[1]} tokens were given: the text tower takes 1 to {context}")


class TextTower(nn.Module):
    """CLIP's text tower.

    Attributes:
      vocabulary: number of ids.
      context: most tokens of a text.
      features: width of the space shared with videos.
      end_token: the id whose first place gives the feature; None for the place of the highest id.
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
        """Attributes here name the parameters."""
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
        """Normed tokens, each knowing those before it."""
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
    """Post-norm block: attention, then MLP, each summed with its input and normed."""

    heads: int
    mlp_ratio: float
    epsilon: float
    activation: Activation
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b m d"], drop_path: float, train: bool, mask: Bool[Array, "b 1 m"]
    ) -> Float[Array, "b m d"]:
        """Same shape as `x`."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(self.heads, kernel_init=NORMAL, dtype=self.dtype, name="attention")
        hidden = int(x.shape[-1] * self.mlp_ratio)
        mlp = Mlp(hidden, ACTIVATIONS[self.activation], NORMAL, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")
        x = norm(name="norm1")(x + branch(attention(x, mask=mask), drop_path, train))
        return norm(name="norm2")(x + branch(mlp(x), drop_path, train))


class Bert(nn.Module):
    """BERT without its pooler: each token sees all of the text, padding (id 0) is seen by none.

    The feature is the first token's, projected.

    Attributes:
      vocabulary: number of ids.
      context: most tokens of a text.
      features: width of the space shared with videos.
      types: kinds of segment that the table has; all tokens are of the first.
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
        """Attributes here name the parameters."""
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
        """Normed tokens, each knowing all that are no padding; those of padding mean nothing."""
        check_ids(ids, self.context)
        x = self.token_embedding(ids)
        x = x + (self.position[: ids.shape[1]] + self.type[0]).astype(x.dtype)
        return self.transformer(self.embedding_norm(x), train, mask=(ids != 0)[:, None])

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The first token's feature, not normalised."""
        return self.projection(self.tokens(ids, train)[:, 0])


TINY = {"vocabulary": 259, "context": 96, "width": 96, "depth": 3, "heads": 4, "features": 128}  # of bytes
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
