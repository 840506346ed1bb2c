"""Text towers: CLIP's causal transformer (arXiv:2103.00020; openai/CLIP) and BERT (arXiv:1810.04805).

Both take ids `b m` and return one feature per text, `tower(ids) -> b e`, or its tokens, `tower.tokens(ids) -> b m d`.
Texts are padded with id 0 at the end; features are not normalised. `FusionBert` and `CaptionDecoder` also attend to the
tokens of a video; they are parts of `albef.Albef` and `video_text.VideoText`.

Pitfalls of CLIP: attention is causal, so that padding after the end token has no effect and need not be masked. The
feature is that of the end token: the one with the highest id in OpenAI's code (and in Hugging Face's if `eos_token_id`
is 2; otherwise the first token with this id). The layer norms have epsilon 1e-5. Pitfalls of BERT: norms follow the
residual sum and have epsilon 1e-12; a segment embedding, here always the first, is added to every token.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.activations import ACTIVATIONS, Activation
from vidjax.layers.attention import Place, causal_mask, within_text
from vidjax.layers.bert import NORMAL, BertBlock, BertEmbedding, WordHead
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import Block, Encoder, Remat, run_block, scaled_by_depth


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

    def tokens(self, ids: Int[Array, "b m"], train: bool = False, place: Place | None = None) -> Float[Array, "b m d"]:
        """Normalised tokens, from causal attention.

        Args:
          place: of the first token, if texts are read in parts, of `context` tokens together; see `Attention`.
        """
        check_ids(ids, self.context)
        x, count = self.token_embedding(ids), ids.shape[1]
        if place is None:
            x, mask = x + self.position[:count].astype(x.dtype), causal_mask(count)
        else:
            x = x + jax.lax.dynamic_slice_in_dim(self.position, place, count).astype(x.dtype)
            mask = causal_mask(count, place, self.context)
        return self.norm(self.transformer(x, train, mask=mask, place=place))

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The end token's feature, not normalised."""
        tokens = self.tokens(ids, train)
        end = ids if self.end_token is None else ids == self.end_token
        at_end = jnp.take_along_axis(tokens, end.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return self.projection(at_end)


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
        self.embedding = BertEmbedding(
            self.vocabulary, self.context, self.width, self.types, self.epsilon, dtype=self.dtype
        )
        nn.share_scope(self, self.embedding)  # the embeddings are parameters of this module
        block = partial(BertBlock, self.heads, self.mlp_ratio, self.epsilon, self.activation, dtype=self.dtype)
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan)
        self.projection = nn.Dense(self.features, use_bias=False, kernel_init=NORMAL, dtype=self.dtype)

    def tokens(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m d"]:
        """Normalised tokens; those of padding are meaningless."""
        check_ids(ids, self.context)
        return self.transformer(self.embedding(ids, train), train, mask=within_text(ids)[:, None])

    def __call__(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """The first token's feature, not normalised."""
        return self.projection(self.tokens(ids, train)[:, 0])


class FusionBert(nn.Module):
    """BERT for masked words whose last blocks also attend to a video (ALBEF's text encoder, arXiv:2107.07651).

    The first blocks encode the text alone, and their output is what texts are compared by. Without blocks that attend
    to a video it is BERT itself.

    Attributes:
      vocabulary: number of ids.
      context: maximum number of tokens in a text.
      depth: number of all blocks.
      fusion_depth: number of those, the last ones, that also attend to a video.
      epsilon: of the layer norms.
      dropout: rate of the embeddings and of the branches. The original also drops attention weights, at the same rate.
      init_std: see `layers.bert.BertBlock`.
      remat: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    fusion_depth: int = 0
    mlp_ratio: float = 4.0
    types: int = 2
    epsilon: float = 1e-12
    dropout: float = 0.0
    init_std: float = 0.02
    remat: Remat = "none"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        same = {"epsilon": self.epsilon, "dropout": self.dropout, "dtype": self.dtype}
        self.embedding = BertEmbedding(self.vocabulary, self.context, self.width, self.types, **same)
        nn.share_scope(self, self.embedding)
        block = partial(BertBlock, self.heads, self.mlp_ratio, **same, init_std=self.init_std)
        self.block = [block() for _ in range(self.depth)]
        self.word_head = WordHead(self.epsilon, dtype=self.dtype)

    def tokens(
        self, ids: Int[Array, "b m"], train: bool = False, segments: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b m d"]:
        """Tokens of the texts alone; those of padding are meaningless.

        Args:
          segments: which of two sentences each token belongs to; the first if None.
        """
        check_ids(ids, self.context)
        x, text_depth = self.embedding(ids, train, segments), self.depth - self.fusion_depth
        for block in self.block[:text_depth]:
            x = run_block(block, x, 0.0, train, self.remat, mask=within_text(ids)[:, None])
        return x

    def fuse(
        self,
        tokens: Float[Array, "b m d"],
        ids: Int[Array, "b m"],
        video: Float[Array, "b n e"],
        train: bool = False,
    ) -> Float[Array, "b m d"]:
        """Tokens of the texts in view of a video each.

        Args:
          tokens: those of the texts alone.
          ids: ids of the texts, for their padding.
          video: tokens of the videos, of any width.
        """
        for block in self.block[self.depth - self.fusion_depth :]:
            tokens = run_block(block, tokens, 0.0, train, self.remat, mask=within_text(ids)[:, None], context=video)
        return tokens

    def words(self, tokens: Float[Array, "b m d"]) -> Float[Array, "b m v"]:
        """Logits of the words at all places, from fused tokens."""
        return self.word_head(tokens, self.embedding.token_embedding.embedding)

    def __call__(
        self, ids: Int[Array, "b m"], train: bool = False, segments: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b m v"]:
        """Logits of the words at all places of texts alone, without blocks that attend to a video."""
        return self.words(self.tokens(ids, train, segments))


class CaptionDecoder(nn.Module):
    """Predicts the next words of a caption from the tokens of a causal text tower and those of the video.

    BERT's blocks with a causal mask; every block attends to the video.

    Attributes:
      heads: number of attention heads; must divide the width of the text tower.
      remat, scan: see `Encoder`.
    """

    depth: int
    heads: int
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        self.video_norm = LayerNorm(dtype=self.dtype)  # not all video towers end with a norm
        block = partial(BertBlock, self.heads, dtype=self.dtype)
        self.transformer = Encoder(block, self.depth, remat=self.remat, scan=self.scan)
        self.word_head = WordHead(dtype=self.dtype)

    def fuse(
        self,
        tokens: Float[Array, "b m d"],
        video: Float[Array, "b n e"],
        train: bool = False,
        place: Place | None = None,
        length: int | None = None,
    ) -> Float[Array, "b m d"]:
        """Tokens of captions in view of a video each.

        Args:
          tokens: those of a causal text tower.
          video: tokens of the videos, of any width.
          place: of the first token, if captions are read in parts, of `length` tokens together; see `Attention`.
        """
        mask = causal_mask(tokens.shape[1], 0 if place is None else place, length)
        return self.transformer(tokens, train, mask=mask, context=self.video_norm(video), place=place)

    def words(self, tokens: Float[Array, "b m d"], embeddings: Float[Array, "v d"]) -> Float[Array, "b m v"]:
        """Logits of the word after each fused token.

        Args:
          embeddings: the text tower's, of all words.
        """
        return self.word_head(tokens, embeddings)


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
