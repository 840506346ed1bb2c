"""BLIP (Li et al. 2022, arXiv:2201.12086; salesforce/BLIP): one text model that aligns, matches and writes.

A ViT encodes the image. The text model is a BERT whose blocks are used in three ways: alone, for a text's embedding;
with cross-attention to the image, for telling whether the two match; and with causal self-attention besides, for
writing. The encoder and the decoder share everything except self-attention and its norm. A video is a sequence of
images, as in `albef`: its embedding is that of the mean of the frames' class tokens, and texts attend to all tokens.

Training needs a momentum copy of the parameters and queues; see `aligned`, which has what ALBEF shares.

Pitfalls: the first token tells the use: the tokeniser's [CLS] alone, [ENC] for matching and [DEC] for writing, the last
two of the vocabulary. Matching encodes the ids again, from the first block; ALBEF continues from tokens of the text.
There are no segment embeddings. The norms of the image have epsilon 1e-6 in the original, 1e-5 in transformers, whose
default of 8 text heads is not that of the released weights, 12. Captions start with "a picture of". The decoder of
answers shares nothing with the encoder of questions. In transformers, [ENC] is not put before texts.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import Attention, Place, causal_mask, within_text
from vidjax.layers.bert import BertEmbedding, WordHead
from vidjax.layers.card import Card
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.tower import ClipsOfVideoTower
from vidjax.layers.transformer import VIT_SIZES, DropPath, Mlp, Remat, run_block
from vidjax.models.aligned import Aligned
from vidjax.models.text import check_ids
from vidjax.models.vit import ViT

CARD = Card((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), source="salesforce/BLIP")


class Block(nn.Module):
    """BERT's block with a second self-attention, for writing."""

    heads: int
    mlp_ratio: float = 4.0
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
        writing: bool = False,
        place: Place | None = None,
    ) -> Float[Array, "b m d"]:
        """The output has the shape of `x`; see `layers.bert.BertBlock`.

        Args:
          writing: use the decoder's self-attention.
        """
        norm = partial(LayerNorm, epsilon=1e-12, dtype=self.dtype)
        normal = nn.initializers.normal(self.init_std)
        attention = partial(Attention, self.heads, kernel_init=normal, dtype=self.dtype)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), exact_gelu, normal, dtype=self.dtype, name="mlp")
        dropout = nn.Dropout(self.dropout, deterministic=not train, name="dropout")
        drop, part = DropPath(name="drop_path"), "decoder_" if writing else ""

        def branch(output: Array) -> Array:
            return drop(dropout(output), drop_path, train)

        x = norm(name=f"{part}norm1")(x + branch(attention(name=f"{part}attention")(x, mask=mask, place=place)))
        if context is not None:
            seen = attention(name="cross_attention")(x, context, place=place)
            x = norm(name="cross_norm")(x + branch(seen))
        return norm(name="norm2")(x + branch(mlp(x)))


class Text(nn.Module):
    """The text model; parameters that a use does not need are not created if the model is initialised without it.

    Attributes:
      vocabulary: number of ids, of which the last two are [DEC] and [ENC].
      context: maximum number of tokens in a text.
      dropout: rate of the embeddings and of the branches.
      init_std: see `layers.bert.BertBlock`.
      remat: see `Encoder`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    init_std: float = 0.02
    remat: Remat = "none"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        dropped = {"dropout": self.dropout, "dtype": self.dtype}
        self.embedding = BertEmbedding(self.vocabulary, self.context, self.width, types=0, **dropped)
        nn.share_scope(self, self.embedding)
        block = partial(Block, self.heads, self.mlp_ratio, **dropped, init_std=self.init_std)
        self.block = [block() for _ in range(self.depth)]
        self.word_head = WordHead(dtype=self.dtype)

    def tokens(
        self, ids: Int[Array, "b m"], seen: Float[Array, "b n e"] | None = None, train: bool = False
    ) -> Float[Array, "b m d"]:
        """Tokens of texts alone, or in view of the tokens of a video each; those of padding are meaningless."""
        check_ids(ids, self.context)
        x = self.embedding(ids, train)
        for block in self.block:
            x = run_block(block, x, 0.0, train, self.remat, mask=within_text(ids)[:, None], context=seen)
        return x

    def written(
        self,
        ids: Int[Array, "b m"],
        seen: Float[Array, "b n e"],
        train: bool = False,
        place: Place | None = None,
        length: int | None = None,
    ) -> Float[Array, "b m d"]:
        """Tokens of captions, each in view of those before it and of the tokens of a video.

        Args:
          place: of the first token, if captions are read in parts, of `length` tokens together; see `Attention`.
        """
        check_ids(ids, self.context)
        first = 0 if place is None else place
        mask, x = causal_mask(ids.shape[1], first, length), self.embedding(ids, train, place=first)
        for block in self.block:
            x = run_block(
                block, x, 0.0, train, self.remat, mask=mask, context=seen, writing=True, place=place
            )  # fmt: skip
        return x

    def words(
        self,
        ids: Int[Array, "b m"],
        seen: Float[Array, "b n e"],
        train: bool = False,
        place: Place | None = None,
        length: int | None = None,
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token of captions; see `written`."""
        x = self.written(ids, seen, train, place, length)
        return self.word_head(x, self.embedding.token_embedding.embedding)

    def begin(self, seen: Float[Array, "b n e"], ids: Int[Array, "b m"], length: int) -> tuple[Array, int]:
        """Logits `b v` of the word after a prompt, and its place; "cache" and "context" must be mutable.

        Args:
          seen: tokens of the videos.
          ids: of the prompts, which all have this length and whose first token becomes [DEC].
          length: maximum number of words that are written.
        """
        check_ids(ids, self.context - length)
        self.put_variable("context", "seen", seen)
        self.put_variable(
            "context", "room", jnp.zeros((len(ids), ids.shape[1] + length), bool)
        )  # only its size is used
        return self.words(self.started(ids), seen, place=0, length=ids.shape[1] + length)[:, -1], ids.shape[1]

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """Logits of the word after these, which are at `place`; "cache" must be mutable."""
        seen, room = (self.get_variable("context", name) for name in ("seen", "room"))
        return self.words(words[:, None], seen, place=place, length=room.shape[1])[:, 0]

    def started(self, ids: Int[Array, "b m"], writing: bool = True) -> Int[Array, "b m"]:
        """The ids with [DEC] as the first token, or, not writing, with [ENC]."""
        return ids.at[:, 0].set(self.vocabulary - (2 if writing else 1))


class Blip(Aligned):
    """BLIP for pre-training and retrieval; see `Aligned`.

    Attributes:
      writes: whether it has the decoder, as in pre-training.
    """

    text: Text
    queue_size: int = 57_600
    card: Card = CARD
    writes: bool = True

    def align(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"], train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b n d"], Float[Array, "b e"]]:
        """Embedding and tokens of each video, and the embedding of each text."""
        return *self.look(video, train), self.embed_text(ids, train)

    def match(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b 2"]:
        """Logits of whether a text and a video do not match, and do; `seen` are the video's tokens (see `align`)."""
        return self.match_head(self.text.tokens(self.text.started(ids, writing=False), seen, train)[:, 0])

    def match_texts(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"]) -> Float[Array, "b 2"]:
        """`match`, under the name that it has for ALBEF's texts."""
        return self.match(ids, seen)

    def words(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b m v"]:
        """Logits of the word after each token of captions, in view of a video's tokens."""
        return self.text.words(self.text.started(ids), seen, train)

    def begin(self, seen: Float[Array, "b n d"], ids: Int[Array, "b m"], length: int) -> tuple[Array, int]:
        """See `Text.begin`."""
        return self.text.begin(seen, ids, length)

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """See `Text.extend`."""
        return self.text.extend(words, place)

    def __call__(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "n m"] | None = None, train: bool = False
    ) -> Float[Array, "b e"] | tuple[Float[Array, "b e"], Float[Array, "n e"]]:
        """L2-normalised embeddings of the videos; with `ids`, also those of the texts."""
        if self.is_initializing():  # `init` creates the parameters of all methods
            some = jnp.ones((len(video), 1), jnp.int32)
            embedded, seen, _ = self.align(video, some, train)
            self.match(some, seen, train)
            if self.writes:
                self.words(some, seen, train)
            return embedded
        return self._embeddings(video, ids, train)


class Captioner(ClipsOfVideoTower, nn.Module):
    """BLIP's decoder alone, for captions.

    Attributes:
      video: image tower, applied to each frame.
    """

    video: ViT
    text: Text
    card: Card = CARD

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The image tower's features on the space-time grid."""
        return self.video.encode(video, train)

    def seen(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """The tokens of a video that captions attend to."""
        tokens = self.video.tokens(video, train)
        return tokens.reshape(len(tokens), -1, tokens.shape[-1])

    def begin(self, seen: Float[Array, "b n d"], ids: Int[Array, "b m"], length: int) -> tuple[Array, int]:
        """See `Text.begin`."""
        return self.text.begin(seen, ids, length)

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """See `Text.extend`."""
        return self.text.extend(words, place)

    def __call__(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token of a caption, of which [DEC] is the first and by default the only one."""
        ids = jnp.ones((len(video), 1), jnp.int32) if ids is None else ids
        return self.text.words(self.text.started(ids), self.seen(video, train), train)


class Answerer(ClipsOfVideoTower, nn.Module):
    """BLIP for questions: the encoder reads a question in view of the video, and a decoder of its own what it has read.

    Questions of a batch have the same length: the decoder attends to all of their tokens.

    Attributes:
      video: image tower, applied to each frame.
      text: encoder of questions.
      decoder: writes answers.
    """

    video: ViT
    text: Text
    decoder: Text
    card: Card = CARD

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The image tower's features on the space-time grid."""
        return self.video.encode(video, train)

    def read(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"], train: bool = False
    ) -> Float[Array, "b m d"]:
        """Tokens of questions, whose first id becomes [ENC], in view of a video each."""
        tokens = self.video.tokens(video, train)
        seen = tokens.reshape(len(tokens), -1, tokens.shape[-1])
        return self.text.tokens(self.text.started(ids, writing=False), seen, train)

    def begin(self, read: Float[Array, "b n d"], ids: Int[Array, "b m"], length: int) -> tuple[Array, int]:
        """See `Text.begin`; `read` are the tokens of the questions."""
        return self.decoder.begin(read, ids, length)

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """See `Text.extend`."""
        return self.decoder.extend(words, place)

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        ids: Int[Array, "b m"] | None = None,
        answers: Int[Array, "b a"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b a v"]:
        """Logits of the word after each token of an answer, of which [DEC] is the first and by default the only one.

        Args:
          ids: of the questions.
        """
        one = jnp.ones((len(video), 1), jnp.int32)
        read = self.read(video, one if ids is None else ids, train)
        return self.decoder.words(self.decoder.started(one if answers is None else answers), read, train)


def blip(video: dict, text: dict, **fields) -> Blip:
    """Creates a model from the fields of its towers."""
    return Blip(ViT(**video), Text(**text), **fields)


def captioner(video: dict, text: dict, **fields) -> Captioner:
    """Creates a model from the fields of its towers."""
    return Captioner(ViT(**video), Text(**text), **fields)


def answerer(video: dict, text: dict, **fields) -> Answerer:
    """Creates a model from the fields of its towers; the encoder and the decoder have the same."""
    return Answerer(ViT(**video), Text(**text), Text(**text), **fields)


TINY_VIDEO = {"width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32}
TINY_TEXT = {"vocabulary": 261, "context": 96, "width": 96, "depth": 2, "heads": 4, "init_std": 0.1}  # for bytes
BERT_BASE = {"vocabulary": 30524, "context": 512, "width": 768, "depth": 12, "heads": 12, "dropout": 0.1}
BASE, LARGE = (VIT_SIZES[size] | {"image_size": 384} for size in ("base", "large"))

VARIANTS = MappingProxyType(
    {
        "blip_tiny": partial(blip, TINY_VIDEO, TINY_TEXT, features=64, queue_size=1024),
        "blip_tiny_retrieval": partial(blip, TINY_VIDEO, TINY_TEXT, features=64, queue_size=1024, writes=False),
        "blip_tiny_caption": partial(captioner, TINY_VIDEO, TINY_TEXT),
        "blip_tiny_vqa": partial(answerer, TINY_VIDEO, TINY_TEXT),
        "blip_base": partial(blip, BASE | {"image_size": 224}, BERT_BASE),
        "blip_base_retrieval": partial(blip, BASE, BERT_BASE, writes=False),
        "blip_base_caption": partial(captioner, BASE, BERT_BASE),
        "blip_base_vqa": partial(answerer, BASE, BERT_BASE),
        "blip_large": partial(blip, LARGE | {"image_size": 224}, BERT_BASE),
        "blip_large_retrieval": partial(blip, LARGE, BERT_BASE, writes=False),
        "blip_large_caption": partial(captioner, LARGE, BERT_BASE),
    }
)
