"""ChatGLM-6B (THUDM/ChatGLM-6B): a GLM (arXiv:2103.10360) that reads a prompt in both directions and then writes.

All tokens of the prompt see one another; what is written sees the prompt and what was written before it. The prompt
ends with [gMASK], which stands for the text to be written, and that text begins with a start token. Positions are two
numbers: the place in the prompt, which for all of the text is that of [gMASK], and the place in the text, 0 in the
prompt. Each turns one half of the channels of every head. Blocks are those of GLM-130B (arXiv:2210.02414).

Pitfalls: what is added to a branch is its normalised input, times the root of twice the depth (DeepNorm,
arXiv:2203.00555), and not what came into the block. Words have no position embedding, and the last layer is the table
of word embeddings: the release stores it twice, and transformers ties both when it loads them, so that there are
6,173,286,400 parameters. The release pairs channels `i` and `i + d/4` of a head for rotations, this module `2i` and
`2i + 1`: the converter reorders queries and keys. It also divides the queries by the number of the layer and multiplies
the scores by it, against overflow in half precision, and computes angles in half precision. Both are left out here.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import tanh_gelu
from vidjax.layers.attention import Attention, Place, causal_mask
from vidjax.layers.bert import NORMAL
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.rotary import Rotation
from vidjax.layers.transformer import Encoder, Mlp, Remat


class Block(nn.Module):
    """Attention and MLP, whose normalised inputs, times `alpha`, are added to their outputs.

    Attributes:
      alpha: root of twice the number of blocks.
    """

    heads: int
    mlp_ratio: float
    alpha: float
    epsilon: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop_path: float | Array,
        train: bool,
        mask: Bool[Array, "b #m n"],
        rotation: Rotation,
        place: Place | None = None,
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`; nothing is dropped. See `layers.attention.Attention`."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(self.heads, kernel_init=NORMAL, dtype=self.dtype, name="attention")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), tanh_gelu, NORMAL, dtype=self.dtype, name="mlp")
        x = norm(name="norm1")(x)
        x = self.alpha * x + attention(x, mask=mask, rotation=rotation, place=place)
        x = norm(name="norm2")(x)
        return self.alpha * x + mlp(x)


class ChatGLM(nn.Module):
    """A prompt that is read in both directions, and the text after it.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens, with those of a prompt.
      mask_token: id of [gMASK], the last token of a prompt.
      start_token: id of the first token of the text.
      end_token: id of its last token.
      epsilon: of the layer norms.
      remat, scan: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    mask_token: int
    start_token: int
    end_token: int
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.token_embedding = nn.Embed(self.vocabulary, self.width, embedding_init=NORMAL, dtype=self.dtype)
        alpha = (2 * self.depth) ** 0.5
        block = partial(Block, self.heads, self.mlp_ratio, alpha, self.epsilon, self.dtype)
        self.transformer = Encoder(block, self.depth, remat=self.remat, scan=self.scan)
        self.norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)

    def embed(self, ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        """Embeddings of words."""
        return self.token_embedding(ids)

    def prompt_of(self, ids: Int[Array, "b m"]) -> Bool[Array, "b m"]:
        """True for the tokens before the start token."""
        return jnp.cumsum(ids == self.start_token, axis=1) == 0

    def rotation(self, valid: Bool[Array, "b n"], prompt: Bool[Array, "b n"]) -> Rotation:
        """Cosine and sine of the angles of all tokens: half of a head's channels by each of the two positions.

        Raises:
          UserError: the channels of a head cannot be paired.
        """
        pairs, rest = divmod(self.width, 4 * self.heads)
        if rest:
            raise UserError(
                f"width {self.width} cannot be split into {self.heads} heads with two halves of pairs of channels: use "
                "a multiple of four times the heads"
            )
        count, length = jnp.cumsum(valid, axis=1), (valid & prompt).sum(axis=1, keepdims=True)
        positions = jnp.stack([jnp.clip(count, 1, jnp.maximum(length, 1)) - 1, jnp.maximum(count - length, 0)], axis=-1)
        frequencies = np.repeat(10000.0 ** (-np.arange(pairs) / pairs), 2).astype(np.float32)
        angles = (positions[..., None].astype(jnp.float32) * frequencies).reshape(*valid.shape, 4 * pairs)
        return jnp.cos(angles), jnp.sin(angles)

    def tokens(
        self,
        embedded: Float[Array, "b m d"],
        valid: Bool[Array, "b n"],
        prompt: Bool[Array, "b n"],
        train: bool = False,
        place: Place | None = None,
    ) -> Float[Array, "b m d"]:
        """Normalised tokens.

        Args:
          embedded: embeddings of words, or of anything else of this width (`embed`).
          valid: false for padding, before or after a text.
          prompt: true for the tokens of the prompt, of which the last is [gMASK].
          place: of the first token, if a text is read in parts; `valid` and `prompt` are those of all tokens.

        Raises:
          UserError: more tokens than the context.
        """
        (count, length), first = (embedded.shape[1], valid.shape[1]), 0 if place is None else place
        if length > self.context:
            raise UserError(f"prompt and text have {length} tokens: the language model takes at most {self.context}")
        mask = valid[:, None] & (causal_mask(count, first, length) | prompt[:, None])
        cosine, sine = (
            jax.lax.dynamic_slice_in_dim(angles, first, count, axis=1) for angles in self.rotation(valid, prompt)
        )
        return self.norm(self.transformer(embedded, train, mask=mask, rotation=(cosine, sine), place=place))

    def words(self, tokens: Float[Array, "b m d"]) -> Float[Array, "b m v"]:
        """Logits of the word after each token."""
        return self.token_embedding.attend(tokens)

    def __call__(
        self, ids: Int[Array, "b m"], valid: Bool[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token; the prompt ends before the start token. See `tokens`."""
        valid = jnp.ones(ids.shape, bool) if valid is None else valid
        return self.words(self.tokens(self.embed(ids), valid, self.prompt_of(ids), train))

    def begin(
        self, embedded: Float[Array, "b m d"], valid: Bool[Array, "b m"], length: int
    ) -> tuple[Float[Array, "b v"], int]:
        """Reads a prompt and the start token; "cache" and "context" must be mutable.

        Args:
          embedded: embeddings of the prompt, padded at the left, and of the start token, which is the last.
          length: maximum number of words that are written.

        Returns:
          The logits of the first word, and its place.
        """
        count = embedded.shape[1]
        valid = jnp.pad(valid, ((0, 0), (0, length)), constant_values=True)
        prompt = jnp.broadcast_to(jnp.arange(valid.shape[1]) < count - 1, valid.shape)
        for name, value in (("valid", valid), ("prompt", prompt)):
            self.put_variable("context", name, value)
        return self.words(self.tokens(embedded, valid, prompt, place=0)[:, -1:])[:, 0], count

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """Logits of the word after these, which are at `place`; "cache" must be mutable."""
        valid, prompt = (self.get_variable("context", name) for name in ("valid", "prompt"))
        return self.words(self.tokens(self.embed(words[:, None]), valid, prompt, place=place))[:, 0]


LANGUAGE_VARIANTS = MappingProxyType(
    {
        "chatglm_tiny": partial(  # for bytes
            ChatGLM, vocabulary=260, context=96, width=96, depth=3, heads=4, mask_token=259, start_token=257,
            end_token=258,
        ),
        "chatglm_6b": partial(
            ChatGLM, vocabulary=130_528, context=2048, width=4096, depth=28, heads=32, mask_token=130_001,
            start_token=130_004, end_token=130_005,
        ),
    }
)  # fmt: skip
