"""ALBEF (Li et al. 2021, arXiv:2107.07651; salesforce/ALBEF): align image and text before fusing them.

A ViT encodes the image and the first half of a BERT the text; both class tokens are projected into a joint embedding
space. The other half of the BERT fuses the text's tokens with the image's by cross-attention, for telling whether the
two match and for predicting masked words. A video is a sequence of images: its embedding is that of the mean of the
frames' class tokens, and the text attends to the tokens of all frames.

Training needs a momentum copy of the parameters and queues; see `aligned`, which has what BLIP shares.

Pitfalls: the temperature is learned itself, not its logarithm, and divides; pixels are normalised as for CLIP. The
original resizes position tables with PyTorch's cubic interpolation, as our converter does; our model itself resizes
them with timm's. Published position tables of texts have 512 rows, though training used 25 tokens.
"""

from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidjax.layers.card import Card
from vidjax.layers.transformer import VIT_SIZES
from vidjax.models.aligned import Aligned
from vidjax.models.text import FusionBert
from vidjax.models.vit import ViT

CARD = Card((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), source="salesforce/ALBEF")


class Albef(Aligned):
    """ALBEF's encoders and heads; see `Aligned`. `text` is a text encoder whose last blocks fuse both."""

    text: FusionBert
    card: Card = CARD

    def align(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"], train: bool = False
    ) -> tuple[Float[Array, "b e"], Float[Array, "b n d"], Float[Array, "b e"], Float[Array, "b m x"]]:
        """Embedding and tokens of each video, then of each text, before they are fused."""
        read = self.read(ids, train)
        return *self.look(video, train), self._text_feature(read), read

    def match(
        self,
        read: Float[Array, "b m x"],
        ids: Int[Array, "b m"],
        seen: Float[Array, "b n d"],
        train: bool = False,
    ) -> Float[Array, "b 2"]:
        """Logits of whether a text and a video do not match, and do, from their tokens (see `align`)."""
        return self.match_head(self.text.fuse(read, ids, seen, train)[:, 0])

    def match_texts(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"]) -> Float[Array, "b 2"]:
        """`match` of texts that are read first."""
        return self.match(self.read(ids), ids, seen)

    def words(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b m v"]:
        """Logits of the words at all places of texts with masked words, in view of a video's tokens."""
        return self.text.words(self.text.fuse(self.read(ids, train), ids, seen, train))

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
        return self._embeddings(video, ids, train)


def albef(video: dict, text: dict, **fields) -> Albef:
    """Creates a model from the fields of its towers."""
    return Albef(ViT(**video), FusionBert(**text), **fields)


TINY_VIDEO = {"width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32}
TINY_TEXT = {
    "vocabulary": 260, "context": 96, "width": 96, "depth": 4, "heads": 4, "fusion_depth": 2, "init_std": 0.1,
}  # for bytes  # fmt: skip
BERT_BASE = {
    "vocabulary": 30522, "context": 512, "width": 768, "depth": 12, "heads": 12, "fusion_depth": 6, "dropout": 0.1,
}  # fmt: skip

VARIANTS = MappingProxyType(
    {
        "albef_tiny": partial(albef, TINY_VIDEO, TINY_TEXT, features=64, queue_size=1024),
        "albef_base": partial(albef, VIT_SIZES["base"] | {"image_size": 256}, BERT_BASE),
    }
)
