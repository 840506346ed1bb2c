"""BLIP-2 (Li et al. 2023, arXiv:2301.12597; salesforce/LAVIS), InstructBLIP and VisualGLM: images for language models.

A frozen ViT encodes the image, and a Q-Former (`qformer`) reads it with 32 queries. In the first stage, `Blip2`, the
queries learn to be aligned with a text, to match it and to be described. In the second, `Blip2Language`, a linear layer
maps them to embeddings of a frozen language model, in front of a text, which the model continues. The Q-Former of
InstructBLIP (arXiv:2305.06500) also reads the instruction. VisualGLM-6B (THUDM/VisualGLM-6B) is a second stage into a
ChatGLM, with the queries between `<img>` and `</img>`, whose LoRA (`layers.low_rank`) is published with rank 10 and
alpha 1 in the attention of `language/transformer/block_0` and `block_14`. Every frame of a video is seen alone; its
queries follow those of the frame before. In the first stage the queries attend to the tokens of all frames, and so do
they in the second with a video model in place of the ViT (`joint`).

Pitfalls: the similarity of an image and a text is that of the query nearest to the text, and there are neither queues
nor a momentum model. In training the frozen parts are as in evaluation. The ViT is EVA's (arXiv:2211.07636) without its
last block; the norm of its tokens is trained. The places of the queries in the text are ids, the last of the vocabulary
here, whose embeddings are replaced in order.
"""

from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.layers.attention import Place
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.tower import ClipsOfVideoTower
from vidjax.layers.transformer import VIT_SIZES
from vidjax.models.aligned import VideoTokens
from vidjax.models.chatglm import LANGUAGE_VARIANTS as CHATGLM_VARIANTS
from vidjax.models.chatglm import ChatGLM
from vidjax.models.language import LANGUAGE_VARIANTS, LanguageModel
from vidjax.models.qformer import QFormer
from vidjax.models.t5 import LANGUAGE_VARIANTS as T5_VARIANTS
from vidjax.models.t5 import T5
from vidjax.models.video_text import unit
from vidjax.models.vit import ViT

CARD = Card((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), source="salesforce/LAVIS")
INITIAL_TEMPERATURE = 0.07
FROZEN_VIDEO = tuple(f"video/{part}" for part in ("patch_embedding", "class_", "position", "transformer", "tower"))


class Blip2(ClipsOfVideoTower, nn.Module):
    """The first stage.

    Attributes:
      video: image tower, applied to each frame, or a video model.
      features: width of the joint embedding space.
    """

    video: ViT | VideoTokens
    qformer: QFormer
    features: int = 256
    card: Card = CARD
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""

        def linear(features: int) -> nn.Dense:
            bias_init = pytorch_bias(self.qformer.width)
            return nn.Dense(features, kernel_init=pytorch_kernel, bias_init=bias_init, dtype=self.dtype)

        self.video_projection, self.text_projection = linear(self.features), linear(self.features)
        self.match_head = linear(2)
        self.temperature = self.param("temperature", nn.initializers.constant(INITIAL_TEMPERATURE), ())

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Beginnings of the paths of the parameters that are not trained."""
        return FROZEN_VIDEO

    def seen(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """The tokens of a video that the queries attend to."""
        return einops.rearrange(self.video.tokens(video, train), "b t n d -> b (t n) d")

    def align(
        self, seen: Float[Array, "b n d"], ids: Int[Array, "b m"], train: bool = False
    ) -> tuple[Float[Array, "b q e"], Float[Array, "b e"], Float[Array, "b m v"]]:
        """L2-normalised embeddings of each video's queries and of each text, and logits of a caption's next words.

        Args:
          seen: tokens of the videos (see `seen`).
        """
        queries, words = self.qformer.write(seen, ids, train)
        return unit(self.video_projection(queries)), self.embed_text(ids, train), words

    def match(self, seen: Float[Array, "b n d"], ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b 2"]:
        """Logits of whether a text and a video do not match, and do: the mean over the queries."""
        tokens = self.qformer.together(seen, ids, train)
        return self.match_head(tokens[:, : self.qformer.queries]).mean(axis=1)

    def embed_queries(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b q e"]:
        """L2-normalised embeddings of the queries, in float32."""
        return unit(self.video_projection(self.qformer.look(self.seen(video, train), train)))

    def embed_text(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised text embeddings, in float32."""
        return unit(self.text_projection(self.qformer.read(ids, train)[:, 0]))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The image tower's features on the space-time grid."""
        return self.video.encode(video, train)

    def __call__(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "n m"] | None = None, train: bool = False
    ) -> Float[Array, "b q e"] | tuple[Float[Array, "b q e"], Float[Array, "n e"]]:
        """L2-normalised embeddings of the videos' queries; with `ids`, also those of the texts."""
        if self.is_initializing():  # `init` creates the parameters of all methods
            some, seen = jnp.ones((len(video), 1), jnp.int32), self.seen(video, train)
            self.match(seen, some, train)
            if self.qformer.writes:
                return self.align(seen, some, train)[0]
            self.embed_text(some, train)
            return unit(self.video_projection(self.qformer.look(seen, train)))
        embedded = self.embed_queries(video, train)
        return embedded if ids is None else (embedded, self.embed_text(ids, train))


class Blip2Language(ClipsOfVideoTower, nn.Module):
    """The second stage: a language model that reads what the queries see. Also InstructBLIP and VisualGLM.

    Attributes:
      video: image tower, applied to each frame, or, `joint`, a video model.
      qformer: which reads the instruction too if it has a vocabulary (InstructBLIP).
      language: a causal model, whose texts begin with the queries, or one whose encoder reads them.
      joint: whether the queries read the tokens of all frames at once, as in the first stage, instead of each frame.
    """

    video: ViT | VideoTokens
    qformer: QFormer
    language: LanguageModel | T5 | ChatGLM
    card: Card = CARD
    joint: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        bias_init = pytorch_bias(self.qformer.width)
        self.projection = nn.Dense(
            self.language.width, kernel_init=pytorch_kernel, bias_init=bias_init, dtype=self.dtype
        )

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Beginnings of the paths of the parameters that are not trained."""
        return (*FROZEN_VIDEO, "language/")

    @property
    def place_token(self) -> int:
        """The id of the queries' places in a text."""
        return self.language.vocabulary - 1

    def placed(self, ids: Int[Array, "b m"], frames: int, after: int = 0) -> Int[Array, "b s"]:
        """The ids with the places of all queries before them, at the left of padding, or `after` some of them."""
        count = self.qformer.queries * (1 if self.joint else frames)
        places = jnp.full((len(ids), count), self.place_token, ids.dtype)
        return jnp.concatenate([ids[:, :after], places, ids[:, after:]], axis=1)

    def look(
        self, video: Float[Array, "b t h w c"], instruction: Int[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b s d"]:
        """Embeddings of the queries for the language model, of each frame after those of the frame before.

        Args:
          instruction: ids that the Q-Former reads, padded with 0; None without a vocabulary.
          train: of the Q-Former; the frozen towers are as in evaluation.

        Raises:
          UserError: an instruction is missing, or none is read.
        """
        if (instruction is None) != (self.qformer.vocabulary is None):
            wants = "reads no instruction: omit it" if instruction is not None else "reads an instruction: give one"
            raise UserError(f"the Q-Former {wants}")
        frames = 1 if self.joint else video.shape[1]
        tokens = einops.rearrange(self.video.tokens(video), "b (t f) n d -> (b t) (f n) d", t=frames)
        if instruction is None:
            queries = self.qformer.look(tokens, train)
        else:
            repeated = jnp.repeat(instruction, frames, axis=0)
            queries = self.qformer.together(tokens, repeated, train)[:, : self.qformer.queries]
        return self.projection(einops.rearrange(queries, "(b t) q d -> b (t q) d", t=frames))

    def embed(self, ids: Int[Array, "b m"], looked: Float[Array, "b s d"]) -> Float[Array, "b m d"]:
        """Embeddings of a text in which those of the queries (see `look`) are at the places of `place_token`."""
        embedded, at = self.language.embed(ids), ids == self.place_token
        order = jnp.maximum(jnp.cumsum(at, axis=1) - 1, 0)
        seen = jnp.take_along_axis(looked.astype(embedded.dtype), order[..., None], axis=1)
        return jnp.where(at[..., None], seen, embedded)

    def words(
        self,
        ids: Int[Array, "b m"],
        looked: Float[Array, "b s d"],
        valid: Bool[Array, "b m"],
        written: Int[Array, "b r"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b _ v"]:
        """Logits of the word after each token of the text, or, of a T5, of the text that is written.

        Args:
          looked: embeddings of the queries (see `look`).
          valid: false for padding.
          written: ids of the text that a T5 writes, of which the first is 0.
        """
        embedded = self.embed(ids, looked)
        if isinstance(self.language, T5):
            return self.language.words(written, self.language.read(embedded, valid, train), valid, train)
        prompt = self.language.prompt_of(ids) if isinstance(self.language, ChatGLM) else None
        return self.language.words(self.language.tokens(embedded, valid, prompt, train))

    def begin(
        self, ids: Int[Array, "b m"], looked: Float[Array, "b s d"], valid: Bool[Array, "b m"], length: int
    ) -> tuple[Float[Array, "b v"], int]:
        """Reads a prompt, padded at the left; see the `begin` of the language model."""
        return self.language.begin(self.embed(ids, looked), valid, length)

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """See `LanguageModel.extend`."""
        return self.language.extend(words, place)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The image tower's features on the space-time grid."""
        return self.video.encode(video, train)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ v"]:
        """Logits of the word after each query, without a text; of a T5, of the first word only."""
        one = jnp.ones((len(video), 1), jnp.int32)
        looked = self.look(video, None if self.qformer.vocabulary is None else one, train)
        ids = self.placed(one[:, :0], video.shape[1])
        return self.words(ids, looked, jnp.ones(ids.shape, bool), 0 * one, train)


def blip2(video: dict, qformer: dict, **fields) -> Blip2:
    """Creates a model from the fields of its parts."""
    return Blip2(ViT(**video), QFormer(**qformer), **fields)


def language(video: dict, qformer: dict, model: str, **fields) -> Blip2Language:
    """Creates a model from the fields of its parts and the name and fields of a language model."""
    made = {**LANGUAGE_VARIANTS, **T5_VARIANTS, **CHATGLM_VARIANTS}[model]()
    return Blip2Language(ViT(**video), QFormer(**qformer), made.clone(**fields))


EVA = VIT_SIZES["giant"] | {"depth": 39, "patch_size": (1, 14, 14)}
TINY_VIDEO = {"width": 96, "depth": 2, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 4, "image_size": 32}
TINY = {"queries": 8, "context": 96, "width": 96, "depth": 2, "heads": 4, "init_std": 0.1}
WITHOUT_WORDS = {"vocabulary": None, "writes": False}
OPT = {"vocabulary": 50_304}  # with the id of the queries' places

VARIANTS = MappingProxyType(
    {
        "blip2_tiny": partial(blip2, TINY_VIDEO, TINY | {"vocabulary": 260}, features=64),
        "blip2_tiny_language": partial(language, TINY_VIDEO, TINY | WITHOUT_WORDS, "opt_tiny", vocabulary=260),
        "blip2_giant": partial(blip2, EVA, {"dropout": 0.1}),
        "blip2_giant_retrieval": partial(blip2, EVA, {"writes": False}),
        "blip2_opt_2_7b": partial(language, EVA, WITHOUT_WORDS, "opt_2_7b", **OPT),
        "blip2_opt_6_7b": partial(language, EVA, WITHOUT_WORDS, "opt_6_7b", **OPT),
        "blip2_flan_t5_xl": partial(language, EVA, WITHOUT_WORDS, "flan_t5_xl"),
        "visualglm_tiny": partial(language, TINY_VIDEO, TINY | WITHOUT_WORDS, "chatglm_tiny", vocabulary=261),
        "visualglm_6b": partial(language, EVA, WITHOUT_WORDS, "chatglm_6b"),
    }
)
