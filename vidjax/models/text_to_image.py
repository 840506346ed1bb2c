"""DALL-E's transformer (Ramesh et al. 2021, arXiv:2102.12092): the discrete tokens of an image after those of a text.

A decoder reads a text and then the tokens of a discrete VAE (`dalle`), line by line, and gives the logits of the next
one. A place after the end of a text has a padding embedding of its own, which is seen like a word. Positions of words
are learned, and rows and columns of image tokens.

Difference: all image tokens see all those before them, where the original's layers see a row, a column or a 3x3
neighbourhood. Its weights were never published.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import ACTIVATIONS
from vidjax.layers.attention import Place, causal_mask, within_text
from vidjax.layers.bert import NORMAL
from vidjax.layers.card import Card
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import Block, Encoder, Remat


class TextToImage(nn.Module):
    """The decoder.

    Attributes:
      vocabulary: number of ids of words; 0 is padding at the end of a text.
      context: number of places for words.
      tokens: number of different image tokens.
      side: rows and columns of image tokens.
      remat, scan: see `Encoder`.
    """

    vocabulary: int = 16384
    context: int = 256
    tokens: int = 8192
    side: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    remat: Remat = "none"
    scan: bool = False
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        embed = partial(nn.Embed, features=self.width, embedding_init=NORMAL, dtype=self.dtype)
        self.word_embedding, self.token_embedding = embed(self.vocabulary), embed(self.tokens)
        for name, rows in (("padding", self.context), ("position", self.context), ("row", self.side)):
            setattr(self, name, self.param(name, NORMAL, (rows, self.width)))
        self.column = self.param("column", NORMAL, (self.side, self.width))
        block = partial(
            Block, self.heads, self.mlp_ratio, epsilon=1e-5, activation=ACTIVATIONS["tanh_gelu"], kernel_init=NORMAL,
            out_init=nn.initializers.normal(0.02 * (2 * self.depth) ** -0.5), dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, remat=self.remat, scan=self.scan)
        self.norm = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        head = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        self.word_head, self.token_head = head(self.vocabulary), head(self.tokens)

    def _text(self, ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        if ids.shape[1] != self.context:
            raise UserError(f"the texts have {ids.shape[1]} tokens, padding included: the model takes {self.context}")
        words = self.word_embedding(ids)
        words = jnp.where(within_text(ids)[..., None], words, self.padding.astype(words.dtype))
        return words + self.position.astype(words.dtype)

    def _image(self, tokens: Int[Array, "b n"], first: Place = 0) -> Float[Array, "b n d"]:
        """Embeddings of image tokens, the first of which has this place in the image."""
        place = first + jnp.arange(tokens.shape[1])
        embedded = self.token_embedding(tokens)
        return embedded + (self.row[place // self.side] + self.column[place % self.side]).astype(embedded.dtype)

    def __call__(
        self, ids: Int[Array, "b m"], tokens: Int[Array, "b n"], train: bool = False
    ) -> tuple[Float[Array, "b k v"], Float[Array, "b n t"]]:
        """Logits of the words after the first, and of all image tokens, in float32.

        Args:
          ids: words, with 0 after the end of a text; within it 0 is a word.
          tokens: the image's, line by line.

        Raises:
          UserError: another number of words than the context, or of tokens than `side ** 2`.
        """
        if tokens.shape[1] != self.side**2:
            raise UserError(f"the images have {tokens.shape[1]} tokens: the model takes {self.side}x{self.side}")
        x = jnp.concatenate([self._text(ids), self._image(tokens[:, :-1])], axis=1)
        x = self.norm(self.transformer(x, train, mask=causal_mask(x.shape[1])[None]))
        words, image = x[:, : self.context - 1], x[:, self.context - 1 :]
        return self.word_head(words).astype(jnp.float32), self.token_head(image).astype(jnp.float32)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of a text and of an image's tokens."""
        return tuple(jax.ShapeDtypeStruct((1, count), jnp.int32) for count in (self.context, self.side**2))

    def _read(self, x: Float[Array, "b n d"], place: Place) -> Float[Array, "b t"]:
        mask = causal_mask(x.shape[1], place, self.context + self.side**2)[None]
        last = self.norm(self.transformer(x, mask=mask, place=place))[:, -1]
        return self.token_head(last).astype(jnp.float32)

    def begin(self, ids: Int[Array, "b m"]) -> tuple[Float[Array, "b t"], int]:
        """Reads texts, as in `__call__`: logits of the first image token, and its place; "cache" must be mutable."""
        return self._read(self._text(ids), 0), self.context

    def extend(self, tokens: Int[Array, "b"], place: Place) -> Float[Array, "b t"]:
        """Logits of the image token after these, which are at `place`; "cache" must be mutable."""
        return self._read(self._image(tokens[:, None], place - self.context), place)


LANGUAGE_VARIANTS = MappingProxyType(
    {
        "dalle_gpt_tiny": partial(
            TextToImage, vocabulary=259, context=80, tokens=64, side=4, width=96, depth=3, heads=4
        ),
        "dalle_gpt_small": partial(TextToImage, width=384, depth=12, heads=6),
        "dalle_gpt_base": TextToImage,
        "dalle_gpt_12b": partial(TextToImage, width=3968, depth=64, heads=62),  # that of the paper
    }
)
