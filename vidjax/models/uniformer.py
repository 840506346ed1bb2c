"""UniFormer (Li et al. 2022, arXiv:2201.04676; Sense-X/UniFormer, video_classification).

Of the four stages, the first two are convolutional (local relation aggregators: a learned 5x5x5 depthwise affinity).
The last two attend over all tokens of the clip at once, or in the split variants over time and then over space. Every
block starts with a depthwise convolution as position encoding, so that there is no position table and the parameters
fit any number of frames and any size. Features are maps `b t h w c`; attention flattens them to `(t h w)`.

Pitfalls, all as in the original: layer norms have epsilon 1e-5 after patch embeddings and 1e-6 in blocks; there is no
non-linearity between the three convolutions of a local aggregator; the features end in a batch norm. In a split block,
the input of attention over space includes the output of attention over time, but the residual sum does not: attention
over time affects the output only through queries, keys and values. Drop path there acts on attention over time per
spatial position and on attention over space per frame. Despite their name, the original's `STD` embeddings
(`temporal_overlap`) do not stride in time; no published configuration uses them, not even for Something-Something.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import Attention
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D, pytorch_bias, pytorch_kernel
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import BatchNorm, LayerNorm
from vidjax.layers.patches import check_video
from vidjax.layers.transformer import Block, DropPath, Encoder, Mlp, Remat

CARD = Card((0.45, 0.45, 0.45), (0.225, 0.225, 0.225), stride=4, source="Sense-X/UniFormer")

NORMAL = nn.initializers.normal(0.02)


class LocalBlock(nn.Module):
    """Position encoding, local aggregation and MLP, from depthwise and pointwise convolutions."""

    mlp_ratio: float = 4.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], drop_path: float | Array = 0.0, train: bool = False
    ) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`."""

        def pointwise(x: Array, features: int, name: str) -> Array:  # initialised like a convolution in PyTorch
            bias_init = pytorch_bias(x.shape[-1])
            dense = nn.Dense(features, kernel_init=pytorch_kernel, bias_init=bias_init, dtype=self.dtype, name=name)
            return dense(x)

        width = x.shape[-1]
        branch = DropPath(name="drop_path")
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        x = x + DepthwiseConv3D((3, 3, 3), dtype=self.dtype, name="position")(x)
        local = pointwise(norm(name="norm1")(x), width, "value")
        local = DepthwiseConv3D((5, 5, 5), dtype=self.dtype, name="affinity")(local)
        x = x + branch(pointwise(local, width, "out"), drop_path, train)
        hidden = exact_gelu(pointwise(norm(name="norm2")(x), int(width * self.mlp_ratio), "fc1"))
        return x + branch(pointwise(hidden, width, "fc2"), drop_path, train)


class GlobalBlock(nn.Module):
    """Position encoding, then a transformer block over all tokens of the clip."""

    head_width: int
    mlp_ratio: float = 4.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], drop_path: float | Array = 0.0, train: bool = False
    ) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`."""
        x = x + DepthwiseConv3D((3, 3, 3), dtype=self.dtype, name="position")(x)
        heads = x.shape[-1] // self.head_width
        block = Block(heads, self.mlp_ratio, kernel_init=NORMAL, dtype=self.dtype, name="joint")
        return block(x.reshape(x.shape[0], -1, x.shape[-1]), drop_path, train).reshape(x.shape)


class SplitBlock(nn.Module):
    """Position encoding, attention over time at each position, attention over space in each frame, MLP."""

    head_width: int
    mlp_ratio: float = 4.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], drop_path: float | Array = 0.0, train: bool = False
    ) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`."""
        (b, t, h, w, width), heads = x.shape, x.shape[-1] // self.head_width
        branch = DropPath(name="drop_path")
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        x = x + DepthwiseConv3D((3, 3, 3), dtype=self.dtype, name="position")(x)
        places = einops.rearrange(x, "b t h w c -> (b h w) t c")
        # Attention over time is initialised to zero by its input projections, so that they receive gradients.
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        in_time = Attention(heads, kernel_init=zeros, out_init=ones, dtype=self.dtype, name="temporal_attention")
        places = places + branch(in_time(norm(name="temporal_norm")(places)), drop_path, train)
        frames = einops.rearrange(places, "(b h w) t c -> (b t) (h w) c", b=b, h=h, w=w)
        in_space = Attention(heads, kernel_init=NORMAL, dtype=self.dtype, name="attention")
        frames = branch(in_space(norm(name="norm1")(frames)), drop_path, train)
        x = x + frames.reshape(x.shape)  # the residual excludes the output of attention over time
        mlp = Mlp(int(width * self.mlp_ratio), kernel_init=NORMAL, dtype=self.dtype, name="mlp")
        tokens = norm(name="norm2")(x).reshape(b, t * h * w, width)
        return x + branch(mlp(tokens), drop_path, train).reshape(x.shape)


class UniFormer(nn.Module):
    """The UniFormer classifier: four stages of a patch embedding, a norm and blocks, then a mean and the head.

    Attributes:
      widths, depths: of the four stages.
      head_width: features of one attention head.
      split: attention over time, then over space, instead of over all tokens.
      temporal_overlap: kernels of three frames instead of one in the embeddings after the first (stride 1 in time).
      num_classes: None returns the mean of the last feature map.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on this mean, before the head.
      drop_path: rate of the last block; the rates increase linearly over the blocks of all stages.
      num_frames, image_size: of the clips that the variant is meant for; other sizes also work.
      remat, scan: see `Encoder`.
    """

    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (3, 4, 8, 3)
    head_width: int = 64
    mlp_ratio: float = 4.0
    split: bool = False
    temporal_overlap: bool = False
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        kernel_size, padding = ((3, 2, 2), (1, 0, 0)) if self.temporal_overlap else ((1, 2, 2), (0, 0, 0))
        first = {"kernel_size": (3, 4, 4), "strides": (2, 4, 4), "padding": (1, 0, 0)}
        later = {"kernel_size": kernel_size, "strides": (1, 2, 2), "padding": padding}
        self.patch_embedding = [
            Conv3D(width, use_bias=True, dtype=self.dtype, **(later if i else first))
            for i, width in enumerate(self.widths)
        ]
        self.patch_norm = [LayerNorm(epsilon=1e-5, dtype=self.dtype) for _ in self.widths]
        local_block = partial(LocalBlock, self.mlp_ratio, self.dtype)
        global_block = partial(SplitBlock if self.split else GlobalBlock, self.head_width, self.mlp_ratio, self.dtype)
        rates = np.split(np.linspace(0.0, self.drop_path, sum(self.depths)), np.cumsum(self.depths)[:-1])
        self.stage = [
            Encoder(local_block if i < 2 else global_block, depth, tuple(rates[i].tolist()), self.remat, self.scan)
            for i, depth in enumerate(self.depths)
        ]
        self.norm = BatchNorm(dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each stage: 1/2 of the frames, 1/4 to 1/32 of height and width; the last is normalised."""
        check_video(video, self.channels, least=(1, 32, 32))
        x, maps = video, []
        for embedding, norm, stage in zip(self.patch_embedding, self.patch_norm, self.stage, strict=True):
            x = stage(norm(embedding(x)), train)
            maps.append(x)
        return *maps[:-1], self.norm(x, use_running_average=not train)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`: 1/2 of the frames, 1/32 of height and width."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the mean of the last feature map."""
        return self.encode(video, train).mean(axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


def kinetics(stride: int, accuracy: float) -> Card:
    """The card of a model with published Kinetics-400 weights."""
    accuracy = f"K400 {accuracy}, 4x1 views"
    return replace(CARD, stride=stride, accuracy=accuracy, protocol="slowfast_offset", views="4x1")


TINY = {"widths": (16, 32, 48, 64), "depths": (1, 1, 2, 1), "head_width": 16, "num_frames": 8, "image_size": 64}
SMALL = {"depths": (3, 4, 8, 3), "drop_path": 0.1, "num_classes": 400}
BASE = {"depths": (5, 8, 20, 7), "drop_path": 0.3, "num_classes": 400}

VARIANTS = MappingProxyType(
    {
        "uniformer_tiny": partial(UniFormer, **TINY),
        "uniformer_tiny_split": partial(UniFormer, **TINY, split=True),
        "uniformer_small": partial(UniFormer, **SMALL, card=kinetics(4, 80.8)),
        "uniformer_small_16": partial(UniFormer, **SMALL, card=kinetics(4, 80.8)),  # alias of the previous row
        "uniformer_small_8": partial(UniFormer, **SMALL, num_frames=8, card=kinetics(8, 78.4)),
        "uniformer_small_32": partial(UniFormer, **SMALL, num_frames=32, card=kinetics(4, 82.0)),
        "uniformer_small_split": partial(UniFormer, **SMALL, split=True),
        "uniformer_base": partial(UniFormer, **BASE, card=kinetics(4, 82.0)),
        "uniformer_base_16": partial(UniFormer, **BASE, card=kinetics(4, 82.0)),
        "uniformer_base_8": partial(UniFormer, **BASE, num_frames=8, card=kinetics(8, 79.8)),
        "uniformer_base_32": partial(UniFormer, **BASE, num_frames=32, card=kinetics(4, 82.9)),
        "uniformer_base_split": partial(UniFormer, **BASE, split=True),
    }
)
