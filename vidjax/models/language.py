"""Language models with one stack of blocks: GPT-2 and OPT, read from the left; BERT with its head for masked words.

GPT-2 (Radford et al. 2019; openai/gpt-2) and OPT (Zhang et al. 2022, arXiv:2205.01068; facebookresearch/metaseq) are
pre-norm transformers with learned positions, whose last layer is the table of word embeddings. They differ in the
activation and in where the positions start. The mask makes them causal; a prefix, such as a question, whose tokens see
one another in both directions makes them decoders in GLM's sense (arXiv:2103.10360). BERT is `text.FusionBert`.

Words are written by `begin`, which reads a prompt, and `extend`, which reads a word each time. Keys and values are
kept in the collection "cache", in which rows may be exchanged between the calls, and what does not change in "context".

Pitfalls: OPT's positions start at the third row of their table, and count real tokens only, so that prompts of a batch
are padded at the left. OPT-350M is post-norm with a projected embedding, and is not one of these. Published positions
of GPT-2 start at the first row. The padding id of OPT is 1, GPT-2 has none: padding is told by `valid`.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import ACTIVATIONS, Activation
from vidjax.layers.attention import Place, causal_mask
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import Block, Encoder, Remat
from vidjax.models.text import FusionBert, check_ids


class LanguageModel(nn.Module):
    """GPT-2 or OPT.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens, with those of a prompt.
      offset: rows of the position table before that of the first token (OPT: 2).
      epsilon: of the layer norms.
      init_std: standard deviation of the initial kernels and tables. With the original 0.02 and 96 channels, the
        branches start too small to learn soon what was read before.
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: Activation = "tanh_gelu"
    offset: int = 0
    epsilon: float = 1e-5
    init_std: float = 0.02
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        normal, last = nn.initializers.normal(self.init_std), self.init_std * (2 * self.depth) ** -0.5
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=normal, dtype=self.dtype)
        self.position = self.param("position", normal, (self.context + self.offset, self.width))
        block = partial(
            Block, self.heads, self.mlp_ratio, epsilon=self.epsilon, activation=ACTIVATIONS[self.activation],
            kernel_init=normal, out_init=nn.initializers.normal(last), dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, remat=self.remat, scan=self.scan)
        self.norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)

    def embed(self, ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        """Embeddings of words, without their positions."""
        return self.token_embedding(ids)

    def tokens(
        self,
        embedded: Float[Array, "b m d"],
        valid: Bool[Array, "b n"] | None = None,
        prefix: Bool[Array, "b n"] | None = None,
        train: bool = False,
        place: Place | None = None,
    ) -> Float[Array, "b m d"]:
        """Normalised tokens, from attention to themselves and to the tokens before them.

        Args:
          embedded: embeddings of words, or of anything else of this width (`embed`).
          valid: false for padding, before or after a text.
          prefix: true for tokens that all others see too, those before them included.
          place: of the first token, if a text is read in parts; `valid` and `prefix` are those of all tokens.

        Raises:
          UserError: more tokens than the context.
        """
        count = embedded.shape[1]
        valid = jnp.ones(embedded.shape[:2], bool) if valid is None else valid
        if valid.shape[1] > self.context:
            raise UserError(
                f"prompt and text have {valid.shape[1]} tokens: the language model takes at most {self.context}"
            )
        first = 0 if place is None else place
        mask = causal_mask(count, first, valid.shape[1])
        mask = valid[:, None] & (mask if prefix is None else mask | prefix[:, None])
        positions = jax.lax.dynamic_slice_in_dim(jnp.cumsum(valid, axis=1) - 1, first, count, axis=1)
        x = embedded + self.position[self.offset + jnp.maximum(positions, 0)].astype(embedded.dtype)
        return self.norm(self.transformer(x, train, mask=mask, place=place))

    def words(self, tokens: Float[Array, "b m d"]) -> Float[Array, "b m v"]:
        """Logits of the word after each token."""
        return self.token_embedding.attend(tokens)

    def __call__(
        self,
        ids: Int[Array, "b m"],
        valid: Bool[Array, "b m"] | None = None,
        prefix: Bool[Array, "b m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token; see `tokens`."""
        check_ids(ids, self.context)
        return self.words(self.tokens(self.embed(ids), valid, prefix, train))

    def begin(
        self,
        embedded: Float[Array, "b m d"],
        valid: Bool[Array, "b m"],
        length: int,
        prefix: Bool[Array, "b m"] | None = None,
    ) -> tuple[Float[Array, "b v"], int]:
        """Reads a prompt; "cache" and "context" must be mutable.

        Args:
          embedded: embeddings of the prompt, padded at the left.
          length: maximum number of words that are written.
          prefix: see `tokens`.

        Returns:
          The logits of the first word, and its place.
        """
        room = ((0, 0), (0, length))
        valid = jnp.pad(valid, room, constant_values=True)
        prefix = None if prefix is None else jnp.pad(prefix, room)
        self.put_variable("context", "valid", valid)
        return self.words(self.tokens(embedded, valid, prefix, place=0)[:, -1:])[:, 0], embedded.shape[1]

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """Logits of the word after these, which are at `place`; "cache" must be mutable."""
        valid = self.get_variable("context", "valid")
        return self.words(self.tokens(self.embed(words[:, None]), valid, place=place))[:, 0]


GPT2 = {"vocabulary": 50257, "context": 1024}
OPT = {"vocabulary": 50272, "context": 2048, "activation": "relu", "offset": 2}
TINY = {"vocabulary": 259, "context": 96, "width": 96, "depth": 3, "heads": 4, "init_std": 0.06}  # for bytes

LANGUAGE_VARIANTS = MappingProxyType(
    {
        "gpt2_tiny": partial(LanguageModel, **TINY),
        "opt_tiny": partial(LanguageModel, **TINY, activation="relu", offset=2),
        "gpt2": partial(LanguageModel, **GPT2, width=768, depth=12, heads=12),
        "gpt2_medium": partial(LanguageModel, **GPT2, width=1024, depth=24, heads=16),
        "gpt2_large": partial(LanguageModel, **GPT2, width=1280, depth=36, heads=20),
        "gpt2_xl": partial(LanguageModel, **GPT2, width=1600, depth=48, heads=25),
        "opt_125m": partial(LanguageModel, **OPT, width=768, depth=12, heads=12),
        "opt_2_7b": partial(LanguageModel, **OPT, width=2560, depth=32, heads=32),
        "opt_6_7b": partial(LanguageModel, **OPT, width=4096, depth=32, heads=32),
        "bert_base_mlm": partial(FusionBert, vocabulary=30522, context=512, width=768, depth=12, heads=12),
    }
)
