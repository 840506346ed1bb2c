"""Vision Transformer for images (Dosovitskiy et al. 2021, arXiv:2010.11929; DeiT, arXiv:2012.12877; names as in timm).

Used to initialise video transformers and as a single-frame baseline: each frame is classified separately, and the
logits of a clip are the mean over its frames.

Pitfalls: the class token has a separate position, which is not resized; the table of the other positions is resized by
antialiased cubic interpolation, as in timm; the classifiers of timm and Hugging Face normalise all tokens before taking
the first; the epsilon of the norms is 1e-6 in timm and configurable in Hugging Face's directories, mostly 1e-12.
"""

from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.layers.adapters import METHODS, Adapter, require_method
from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Block, Encoder, Remat

NORMAL = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """The image classifier, applied to each frame.

    Attributes:
      patch_size: frames, height and width of a patch; one frame for images.
      num_classes: None returns the mean of the frames' class tokens.
      head: module applied to the class tokens of the frames, `b t d`; its outputs are averaged over the frames. None
        for a linear layer to the classes, if any.
      dropout: rate on the class tokens, before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      epsilon: of the layer norms.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`.
      adapter: trained beside frozen weights, see `layers.adapters`; AIM's adds positions of the `num_frames` in time.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 1
    image_size: int = 224
    epsilon: float = 1e-6
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        bias_init = pytorch_bias(self.channels * int(np.prod(self.patch_size)))
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, pytorch_kernel, bias_init, self.dtype)
        self.class_token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        self.class_position = self.param("class_position", NORMAL, (1, 1, self.width))
        image = (self.image_size, self.image_size)
        self.position = PositionTable(grid((1, *image), (1, *self.patch_size[1:]))[1:], self.width, "cubic")
        require_method(self.adapter, self, *METHODS)
        if self.adapter is not None and self.adapter.method == "aim":
            frames = grid((self.num_frames, *image), self.patch_size)[0]
            self.adapter_time = PositionTable((frames,), self.width, "linear", nn.initializers.zeros_init())
        block = partial(
            Block, self.heads, self.mlp_ratio, epsilon=self.epsilon, kernel_init=NORMAL,
            implementation=self.implementation, adapter=self.adapter, dtype=self.dtype,
        )  # fmt: skip
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan, adapter=self.adapter)
        self.norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b f m d"]:
        """Normalised tokens of each frame, class token first."""
        check_video(video, self.channels)
        frames, *image = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        x = einops.rearrange(x, "b (t h w) d -> (b t) h w d", t=frames, h=image[0])
        x = (x + self.position(tuple(image)).astype(x.dtype)).reshape(len(x), -1, self.width)
        token = (self.class_token + self.class_position).astype(x.dtype)
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        if self.adapter is not None and self.adapter.method == "aim":
            x = x + jnp.tile(self.adapter_time((frames,)), (len(video), 1))[:, None].astype(x.dtype)
        x = self.norm(self.transformer(x, train, frames=frames))
        return einops.rearrange(x, "(b t) n d -> b t n d", t=frames)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens on their grid, without the class tokens."""
        tokens = einops.rearrange(self.tokens(video, train)[:, :, 1:], "b t n d -> b (t n) d")
        return on_grid(tokens, grid(video.shape[1:4], self.patch_size))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean of the frames' class tokens; the head is applied to each frame and its outputs are averaged."""
        return self.tokens(video, train)[:, :, 0].mean(axis=1)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Mean output of the head over frames, by default logits `b classes`; without a head, the output of `embed`."""
        if self.classifier is None:
            return self.embed(video, train)
        features = self.head_dropout(self.tokens(video, train)[:, :, 0], deterministic=not train)
        return jax.tree.map(lambda outputs: outputs.mean(axis=1), self.classifier(features))


AUGREG = Card((0.5,) * 3, (0.5,) * 3, source="timm: augreg (Steiner et al. 2021)")
TINY = {"width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32, "card": AUGREG}

VARIANTS = MappingProxyType(
    {
        "vit_tiny": partial(ViT, **TINY),
        "vit_small_16": partial(ViT, **VIT_SIZES["small"], num_classes=1000, card=AUGREG),
        "vit_base_16": partial(ViT, **VIT_SIZES["base"], num_classes=1000, card=AUGREG),
        "vit_base_32": partial(ViT, **VIT_SIZES["base"], patch_size=(1, 32, 32), num_classes=1000, card=AUGREG),
        "vit_large_16": partial(ViT, **VIT_SIZES["large"], num_classes=1000, card=AUGREG),
    }
)
