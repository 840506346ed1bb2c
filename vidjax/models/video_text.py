"""Video-text models: a video and a text tower with a joint embedding space, for contrastive training and zero-shot use.

Any video model can be the video tower: `clip.ImageTower` and `actionclip.VideoTower` directly, others inside
`Projected`. With a decoder on top of a causal text tower the model also describes videos, as in the first stage of
InternVideo (Wang et al. 2022, arXiv:2212.03191) and in CoCa (arXiv:2205.01917).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import log
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.attention import Place
from vidjax.layers.card import Card
from vidjax.layers.tower import ClipsOfTower, ClipsOfVideoTower

INITIAL_SCALE = log(1 / 0.07)  # CLIP's


def unit(x: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    """L2-normalises the last axis, in float32; a row of zeros is unchanged and has a zero gradient."""
    x = x.astype(jnp.float32)
    squared = (x**2).sum(axis=-1, keepdims=True)
    return x * jnp.where(squared > 0, 1 / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def once(x: Array) -> AbstractContextManager[None]:
    """Context manager in which a method that is called with `x` again returns its first result.

    `embed` and `encode` of a family begin with the same method. Both then cost one pass, forwards and backwards, and
    agree in their random choices:

        with once(video):
            embedding, tokens = tower(video, train=train), tower.encode(video, train=train)
    """
    results: dict[tuple, Any] = {}

    def remember(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if not args or args[0] is not x:
            return call(*args, **kwargs)
        settings = (*args[1:], *kwargs.values())  # of a name that is passed by position in one call and not in another
        key = (context.module.path, context.method_name, *settings)
        if key not in results:
            results[key] = call(*args, **kwargs)
        return results[key]

    return nn.intercept_methods(remember)


class Projected(ClipsOfTower, nn.Module):
    """A video model without classes, followed by a linear projection into the joint embedding space.

    Attributes:
      tower: a model with `num_classes=None`.
      features: width of the joint embedding space.
    """

    tower: nn.Module
    features: int
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.tower.num_classes is not None:
            raise UserError(f"the video tower has {self.tower.num_classes} classes: create it with num_classes=None")
        self.projection = nn.Dense(
            self.features, use_bias=False, kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype
        )

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Beginnings of the paths of the parameters that are not trained: those that the tower freezes."""
        return tuple(f"tower/{part}" for part in getattr(self.tower, "frozen_parts", ()))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The tower's features on the space-time grid, before the projection."""
        return self.tower.encode(video, train=train)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """The video's feature, not normalised."""
        return self.projection(self.tower(video, train=train))


class VideoText(ClipsOfVideoTower, nn.Module):
    """A video tower and a text tower, with a learned temperature for their similarities.

    Attributes:
      video: maps videos `b t h w c` to `b e`; has `num_frames`, `image_size`, `channels` and `encode`.
      text: maps ids `b m` to `b e`; has `context` and `tokens`.
      bias: initial value of a learned bias of the similarities (SigLIP: -10); None for no bias (CLIP).
      decoder: predicts the words of captions (`text.CaptionDecoder`); needs a causal text tower. None for no captions.
    """

    video: nn.Module
    text: nn.Module
    card: Card = Card()
    bias: float | None = None
    decoder: nn.Module | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.video.features != self.text.features:
            raise UserError(
                f"the video tower has {self.video.features} features and the text tower {self.text.features}: "
                "give both the same number"
            )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(INITIAL_SCALE), ())
        if self.bias is not None:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.bias), ())

    def embed_video(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised video embeddings, in float32."""
        return unit(self.video(video, train=train))

    def embed_text(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised text embeddings, in float32."""
        return unit(self.text(ids, train=train))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The video tower's features on the space-time grid, before the projection."""
        return self.video.encode(video, train=train)

    def align(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"], train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b n d"], Float[Array, "b e"], Float[Array, "b m x"]]:
        """Embedding and tokens of each video, then of each text; each tower runs once."""
        with once(video):
            embedded, seen = self.embed_video(video, train), self.seen(video, train)
        with once(ids):
            return embedded, seen, self.embed_text(ids, train), self.text.tokens(ids, train)

    def seen(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """The tokens of a video that captions attend to: `encode` without the grid."""
        tokens = self.encode(video, train)
        return tokens.reshape(len(tokens), -1, tokens.shape[-1])

    def words(
        self, read: Float[Array, "b m x"], seen: Float[Array, "b n d"], train: bool = False
    ) -> Float[Array, "b m v"]:
        """Logits of the word after each token of a caption, from the text tower's tokens and those of the video."""
        return self.decoder.words(self.decoder.fuse(read, seen, train), self.text.token_embedding.embedding)

    def begin(
        self, seen: Float[Array, "b n d"], ids: Int[Array, "b m"], length: int
    ) -> tuple[Float[Array, "b v"], int]:
        """Reads the beginning of captions, such as the start token; "cache" and "context" must be mutable.

        Args:
          length: maximum number of words that are written; there is room for those of the text tower's context.

        Returns:
          The logits of the next word, and its place.
        """
        if ids.shape[1] + length > self.text.context:
            raise UserError(f"{ids.shape[1]} tokens and {length} more: the text tower takes {self.text.context}")
        self.put_variable("context", "seen", seen)
        return self._next_word(ids, 0), ids.shape[1]

    def extend(self, words: Int[Array, "b"], place: Place) -> Float[Array, "b v"]:
        """Logits of the word after these, which are at `place`; "cache" must be mutable."""
        return self._next_word(words[:, None], place)

    def _next_word(self, ids: Int[Array, "b m"], place: Place) -> Float[Array, "b v"]:
        read, seen = self.text.tokens(ids, place=place), self.get_variable("context", "seen")
        fused = self.decoder.fuse(read, seen, place=place, length=self.text.context)
        return self.decoder.words(fused[:, -1:], self.text.token_embedding.embedding)[:, 0]

    def logits(self, video: Float[Array, "v e"], text: Float[Array, "n e"]) -> Float[Array, "v n"]:
        """Scaled similarities of normalised embeddings, plus the bias, if any."""
        similarities = jnp.exp(self.logit_scale) * (video @ text.T)
        return similarities if self.bias is None else similarities + self.logit_bias

    def __call__(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "n m"] | None = None, train: bool = False
    ) -> Float[Array, "b e"] | tuple[Float[Array, "b e"], Float[Array, "n e"]]:
        """L2-normalised embeddings of the videos; with `ids`, also those of the texts."""
        if ids is None and self.is_initializing():  # `init` without ids also creates the text tower and the decoder
            self.text(jnp.zeros((1, self.text.context), jnp.int32))
            if self.decoder is not None:
                with once(video):
                    read = self.text.tokens(jnp.zeros((len(video), 1), jnp.int32))
                    self.words(read, self.seen(video, train))
                    return self.embed_video(video, train)
        embedded = self.embed_video(video, train)
        return embedded if ids is None else (embedded, self.embed_text(ids, train))
