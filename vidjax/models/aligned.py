"""What ALBEF and BLIP share: towers for video and text with a joint embedding space, a head for matching, and queues.

Training needs more than the parameters: a momentum copy of them (the moving average of a run, `TrainState.ema`) and
queues of earlier embeddings, which are the collection "queue" of the variables. The losses are in
`objectives.contrastive`, `matching` and `language_modeling`, the training step in `runs.vision_language`.
"""

from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.tower import ClipsOfTower, ClipsOfVideoTower
from vidjax.models.video_text import unit
from vidjax.models.vit import ViT

Joining = Literal["concatenated", "averaged", "pooled"]
INITIAL_TEMPERATURE = 0.07


class VideoTokens(ClipsOfTower, nn.Module):
    """A video model without classes in place of an image tower: its normalised tokens, frame by frame.

    The first token of each frame (or tube) is the mean of the others, as most video models have no class token there.

    Attributes:
      tower: a model with `num_classes=None`, of which `encode` is used.
      width: channels of its tokens.
    """

    tower: nn.Module
    width: int
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.tower.num_classes is not None:
            raise UserError(f"the video tower has {self.tower.num_classes} classes: create it with num_classes=None")
        self.norm = LayerNorm(dtype=self.dtype)  # not all video towers end with a norm

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Beginnings of the paths of the parameters that are not trained: those that the tower freezes."""
        return tuple(f"tower/{part}" for part in getattr(self.tower, "frozen_parts", ()))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The tower's features on the space-time grid."""
        return self.tower.encode(video, train=train)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b f m d"]:
        """Normalised tokens of each frame of the grid, their mean first."""
        tokens = self.norm(einops.rearrange(self.encode(video, train), "b t y x d -> b t (y x) d"))
        return jnp.concatenate([tokens.mean(axis=2, keepdims=True), tokens], axis=2)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean of all tokens."""
        return self.tokens(video, train)[:, :, 0].mean(axis=1)


class Aligned(ClipsOfVideoTower, nn.Module):
    """The towers and heads; a family adds how a text is read in view of a video.

    Attributes:
      video: image tower, applied to each frame, or a video model.
      text: text encoder, whose `tokens` of a text begin with the one that its embedding is made of.
      features: width of the joint embedding space.
      queue_size: number of earlier embeddings of each kind that new ones are compared with in training.
      frame_tokens: what texts attend to: the tokens of all frames (BLIP, section 5.5), their mean over the frames, or
        the mean token of each frame.
    """

    video: ViT | VideoTokens
    text: nn.Module
    features: int = 256
    queue_size: int = 65_536
    card: Card = Card()
    dtype: DTypeLike | None = None
    frame_tokens: Joining = "concatenated"

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""

        def linear(inputs: int, features: int) -> nn.Dense:
            return nn.Dense(features, kernel_init=pytorch_kernel, bias_init=pytorch_bias(inputs), dtype=self.dtype)

        self.video_projection = linear(self.video.width, self.features)
        self.text_projection = linear(self.text.width, self.features)
        self.match_head = linear(self.text.width, 2)
        self.temperature = self.param("temperature", nn.initializers.constant(INITIAL_TEMPERATURE), ())
        if self.is_initializing():  # random unit vectors; no method reads them, but the training step does
            shape = (self.queue_size, self.features)
            for name in ("video_keys", "text_keys"):
                self.variable("queue", name, lambda: unit(jax.random.normal(self.make_rng("params"), shape)))
            self.variable("queue", "position", lambda: jnp.zeros((), jnp.int32))

    def look(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b n d"]]:
        """L2-normalised embedding of each video, in float32, and the tokens that texts attend to."""
        tokens = self.video.tokens(video, train)
        embedded = unit(self.video_projection(tokens[:, :, 0].mean(axis=1)))
        if self.frame_tokens == "averaged":
            return embedded, tokens.mean(axis=1)
        if self.frame_tokens == "pooled":
            return embedded, tokens.mean(axis=2)
        return embedded, einops.rearrange(tokens, "b t n d -> b (t n) d")

    def seen(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """The tokens of a video that texts attend to."""
        return self.look(video, train)[1]

    def embed_video(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised video embeddings, in float32."""
        return self.look(video, train)[0]

    def read(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b m x"]:
        """Tokens of texts alone."""
        return self.text.tokens(ids, train=train)

    def embed_text(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised text embeddings, in float32."""
        return self._text_feature(self.read(ids, train))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The video tower's features on the space-time grid."""
        return self.video.encode(video, train)

    def _text_feature(self, read: Float[Array, "b m x"]) -> Float[Array, "b e"]:
        return unit(self.text_projection(read[:, 0]))

    def _embeddings(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "n m"] | None, train: bool
    ) -> Float[Array, "b e"] | tuple[Float[Array, "b e"], Float[Array, "n e"]]:
        embedded = self.embed_video(video, train)
        return embedded if ids is None else (embedded, self.embed_text(ids, train))
