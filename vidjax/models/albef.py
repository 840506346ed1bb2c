"""ALBEF (Li et al. 2021, arXiv:2107.07651; salesforce/ALBEF): align image and text before fusing them.

A ViT encodes the image and the first half of a BERT the text; both class tokens are projected into a joint embedding
space. The other half of the BERT fuses the text's tokens with the image's by cross-attention, for telling whether the
two match and for predicting masked words. A video is a sequence of images: its embedding is that of the mean of the
frames' class tokens, and the text attends to the tokens of all frames.

Training needs more than the parameters: a momentum copy of them (the moving average of a run, `TrainState.ema`) and
queues of earlier embeddings, which are the collection "queue" of the variables. The losses are in
`objectives.contrastive`, `matching` and `language_modeling`, the training step in `experiments/albef_pretrain.py`.

Pitfalls: the temperature is learned itself, not its logarithm, and divides; pixels are normalised as for CLIP. The
original resizes position tables with PyTorch's cubic interpolation, as our converter does; our model itself resizes
them with timm's. Published position tables of texts have 512 rows, though training used 25 tokens.
"""

from functools import partial
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.tower import ClipsOfVideoTower
from vidjax.layers.transformer import VIT_SIZES
from vidjax.models.text import FusionBert
from vidjax.models.video_text import unit
from vidjax.models.vit import ViT

CARD = Card((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), source="salesforce/ALBEF")
INITIAL_TEMPERATURE = 0.07


class Albef(ClipsOfVideoTower, nn.Module):
    """ALBEF's encoders and heads.

    Attributes:
      video: image tower, applied to each frame.
      text: text encoder, whose last blocks fuse both.
      features: width of the joint embedding space.
      queue_size: number of earlier embeddings of each kind that new ones are compared with in training.
    """

    video: ViT
    text: FusionBert
    features: int = 256
    queue_size: int = 65_536
    card: Card = CARD
    dtype: DTypeLike | None = None

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

    def align(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"], train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b n d"], Float[Array, "b e"], Float[Array, "b m x"]]:
        """Embedding and tokens of each video, then of each text, before they are fused."""
        seen, read = self.video.tokens(video, train), self.text.tokens(ids, train)
        tokens = seen.reshape(len(seen), -1, seen.shape[-1])
        return self._video_feature(seen), tokens, self._text_feature(read), read

    def embed_video(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised video embeddings, in float32."""
        return self._video_feature(self.video.tokens(video, train))

    def embed_text(self, ids: Int[Array, "b m"], train: bool = False) -> Float[Array, "b e"]:
        """L2-normalised text embeddings, in float32."""
        return self._text_feature(self.text.tokens(ids, train))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The image tower's features on the space-time grid."""
        return self.video.encode(video, train)

    def match(
        self,
        read: Float[Array, "b m x"],
        ids: Int[Array, "b m"],
        seen: Float[Array, "b n d"],
        train: bool = False,
    ) -> Float[Array, "b 2"]:
        """Logits of whether a text and a video do not match, and do, from their tokens (see `align`)."""
        return self.match_head(self.text.fuse(read, ids, seen, train)[:, 0])

    def words(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b m v"]:
        """Logits of the words at all places of texts with masked words, in view of a video's tokens."""
        return self.text.words(self.text.fuse(self.text.tokens(ids, train), ids, seen, train))

    def __call__(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "n m"] | None = None, train: bool = False
    ) -> Float[Array, "b e"] | tuple[Float[Array, "b e"], Float[Array, "n e"]]:
        """L2-normalised embeddings of the videos; with `ids`, also those of the texts."""
        if self.is_initializing():  # `init` creates the parameters of all methods
            some = jnp.ones((len(video), 1), jnp.int32)
            embedded, seen, _, read = self.align(video, some, train)
            self.match(read, some, seen, train)
            self.words(some, seen, train)
            return embedded
        embedded = self.embed_video(video, train)
        return embedded if ids is None else (embedded, self.embed_text(ids, train))

    def _video_feature(self, seen: Float[Array, "b f n d"]) -> Float[Array, "b e"]:
        return unit(self.video_projection(seen[:, :, 0].mean(axis=1)))

    def _text_feature(self, read: Float[Array, "b m x"]) -> Float[Array, "b e"]:
        return unit(self.text_projection(read[:, 0]))


def albef(video: dict, text: dict, **fields) -> Albef:
    """Creates a model from the fields of its towers."""
    return Albef(ViT(**video), FusionBert(**text, dropout=0.1), **fields)


TINY_VIDEO = {"width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32}
TINY_TEXT = {"vocabulary": 260, "context": 96, "width": 96, "depth": 4, "heads": 4, "fusion_depth": 2}  # for bytes
BERT_BASE = {"vocabulary": 30522, "context": 512, "width": 768, "depth": 12, "heads": 12, "fusion_depth": 6}

VARIANTS = MappingProxyType(
    {
        "albef_tiny": partial(albef, TINY_VIDEO, TINY_TEXT, features=64, queue_size=1024),
        "albef_base": partial(albef, VIT_SIZES["base"] | {"image_size": 256}, BERT_BASE),
    }
)
