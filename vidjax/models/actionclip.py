"""ActionCLIP (Wang et al. 2021, arXiv:2109.08472; names as in sallymmx/ActionCLIP): CLIP for videos.

CLIP's image tower encodes each frame, and a temporal head aggregates the frame features: the paper's post-network
prompts. The other two kinds of prompt are fields of the image tower (`models.clip.ImageTower`): `joint` (pre-network)
and `shift` (in-network). Video and text are compared as in CLIP (`models.video_text.VideoText`).

The heads `mean`, `lstm`, `transf` and `transf_cls` (the last is not in the paper) and `shift` follow the released code.
Two follow the paper, because the released code does not work:
  conv1d: a depthwise convolution over time. The release interprets `(b, t, c)` as `(b, c, t)` without transposing, so
    that its kernel mixes channels and frames. Weights trained that way cannot be used here, and `convert.actionclip`
    rejects them. The initial kernel is the release's.
  joint: the release uses undefined names.

Pitfalls: every head except `mean` has a table of 77 frame positions, as in the release, but only `transf` uses it; in
the others it counts as parameters and gets no gradient. The layer norms of `transf` have epsilon 1e-12, those of
`transf_cls` 1e-5. `transf` has as many attention heads as the text tower (8 in base, 12 in large), `transf_cls` always
8.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.activations import quick_gelu
from vidjax.layers.attention import Attention
from vidjax.layers.convolution import depthwise_conv3d
from vidjax.layers.embedding import PositionTable
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.recurrent import LSTM
from vidjax.layers.transformer import Block, Encoder, Mlp
from vidjax.models import clip
from vidjax.models.clip import ImageTower
from vidjax.models.video_text import VideoText

NORMAL = nn.initializers.normal(0.02)
TRUNCATED = nn.initializers.truncated_normal(0.02)
# Xavier initialisation of query, key and value as one matrix, as in PyTorch: its fans add up to four times the width.
FUSED = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")

Head = Literal["mean", "conv1d", "lstm", "transf", "transf_cls"]


def frame_positions(head: nn.Module, width: int) -> Float[Array, "n e"]:
    """The table of frame positions of every head except `mean`."""
    return head.param("frame_position", NORMAL, (head.context, width))


class Mean(nn.Module):
    """Mean over the frames."""

    def __call__(self, frames: Float[Array, "b t e"], train: bool = False) -> Float[Array, "b e"]:
        """Returns one feature per clip."""
        return frames.mean(axis=1)


def shift_kernel(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "3 1 1 1 e"]:
    """A kernel that shifts the first quarter of the channels from the previous frame, the last from the next one."""
    quarter = shape[-1] // 4
    kernel = jnp.zeros(shape, dtype).at[0, ..., :quarter].set(1).at[2, ..., shape[-1] - quarter :].set(1)
    return kernel.at[1, ..., quarter : shape[-1] - quarter].set(1)


class Conv1d(nn.Module):
    """Depthwise convolution over time with kernel size 3 and a residual connection, then the mean over the frames.

    Attributes:
      context: size of the table of frame positions, which is unused.
    """

    context: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, frames: Float[Array, "b t e"], train: bool = False) -> Float[Array, "b e"]:
        """A feature for each clip."""
        frame_positions(self, frames.shape[-1])
        kernel = self.param("kernel", shift_kernel, (3, 1, 1, 1, frames.shape[-1]))
        frames, kernel = nn.dtypes.promote_dtype(frames, kernel, dtype=self.dtype)
        moved = depthwise_conv3d(frames[:, :, None, None], kernel)[:, :, 0, 0]
        return (frames + moved).mean(axis=1)


class Lstm(nn.Module):
    """A one-layer LSTM over the frames with a residual connection, then the mean over the frames.

    Attributes:
      context: size of the table of frame positions, which is unused.
    """

    context: int

    @nn.compact
    def __call__(self, frames: Float[Array, "b t e"], train: bool = False) -> Float[Array, "b e"]:
        """A feature for each clip."""
        frame_positions(self, frames.shape[-1])
        lstm = LSTM(frames.shape[-1], name="lstm")
        nn.share_scope(self, lstm)  # its parameters are those of the head
        hidden, _ = lstm(frames)
        return (frames + hidden.astype(frames.dtype)).mean(axis=1)


class Transf(nn.Module):
    """A pre-norm transformer over the frames with a residual connection, then the mean over the frames.

    Attributes:
      context: size of the table of frame positions, which is the maximum number of frames.
    """

    context: int
    depth: int
    heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, frames: Float[Array, "b t e"], train: bool = False) -> Float[Array, "b e"]:
        """A feature for each clip."""
        if frames.shape[1] > self.context:
            raise UserError(
                f"the clip has {frames.shape[1]} frames: the head transf has {self.context} positions, "
                "use at most as many frames"
            )
        position = frame_positions(self, frames.shape[-1])[: frames.shape[1]]
        block = partial(Block, self.heads, epsilon=1e-12, activation=quick_gelu, kernel_init=NORMAL, dtype=self.dtype)
        x = Encoder(block, self.depth, name="transformer")(frames + position.astype(frames.dtype), train)
        return (frames + x).mean(axis=1)


class PostNormBlock(nn.Module):
    """PyTorch's `TransformerEncoderLayer`: attention and an MLP of width 2048 with ReLU, each followed by a norm.

    PyTorch's default dropout of 0.1 is left out.
    """

    heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n e"], drop_path: float | Array = 0.0, train: bool = False
    ) -> Float[Array, "b n e"]:
        """The output has the shape of `x`; the last two arguments are required by `Encoder` and unused."""
        norm = partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        attention = Attention(self.heads, kernel_init=FUSED, out_init=TRUNCATED, dtype=self.dtype, name="attention")
        x = norm(name="norm1")(x + attention(x))
        return norm(name="norm2")(x + Mlp(2048, nn.relu, TRUNCATED, dtype=self.dtype, name="mlp")(x))


class TransfCls(nn.Module):
    """A post-norm transformer over a class token and the frames; returns the class token, without a residual.

    Attributes:
      num_frames: number of learned positions, interpolated linearly for other clips.
      context: size of the table of frame positions, which is unused.
    """

    num_frames: int
    context: int
    depth: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, frames: Float[Array, "b t e"], train: bool = False) -> Float[Array, "b e"]:
        """A feature for each clip."""
        batch, time, width = frames.shape
        frame_positions(self, width)
        token = self.param("class_token", TRUNCATED, (1, 1, width))
        token = token + self.param("class_position", TRUNCATED, (1, 1, width))
        position = PositionTable((self.num_frames,), width, "linear", TRUNCATED, name="position")((time,))
        x = frames + position.astype(frames.dtype)
        x = jnp.concatenate([jnp.tile(token.astype(x.dtype), (batch, 1, 1)), x], axis=1)
        block = partial(PostNormBlock, 8, dtype=self.dtype)
        x = Encoder(block, self.depth, name="transformer")(x, train)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)[:, 0]


class VideoTower(nn.Module):
    """CLIP's image tower on each frame, followed by a temporal head.

    Attributes:
      image: the image tower, whose fields `joint` and `shift` are the other two prompts; with `joint` it returns one
        feature per clip, so that only the head `mean` applies.
      head: see the module docstring.
      head_depth: number of blocks in `transf` and `transf_cls`.
      head_heads: number of attention heads in `transf`.
      head_context: size of the table of frame positions.
    """

    image: ImageTower
    head: Head = "transf"
    head_depth: int = 6
    head_heads: int = 8
    head_context: int = 77

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.head not in get_args(Head):
            raise UserError(f"head is '{self.head}': choose one of {', '.join(get_args(Head))}")
        if self.image.joint and self.head != "mean":
            raise UserError(
                f"head is '{self.head}' with a joint image tower, which returns one feature per clip: choose mean"
            )
        dtype = self.image.dtype
        heads = {
            "mean": Mean,
            "conv1d": partial(Conv1d, self.head_context, dtype=dtype),
            "lstm": partial(Lstm, self.head_context),
            "transf": partial(Transf, self.head_context, self.head_depth, self.head_heads, dtype=dtype),
            "transf_cls": partial(TransfCls, self.image.num_frames, self.head_context, self.head_depth, dtype=dtype),
        }
        self.temporal = heads[self.head]()

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens of the image tower, on their grid; the head does not use them."""
        return self.image.encode(video, train)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """Returns one feature per clip, not normalised."""
        return self.temporal(self.image.frames(video, train), train)

    @property
    def features(self) -> int:
        """Width of the joint video-text embedding space."""
        return self.image.features

    @property
    def num_frames(self) -> int:
        """Number of frames that the variant is meant for."""
        return self.image.num_frames

    @property
    def image_size(self) -> int:
        """Side of a frame in pixels."""
        return self.image.image_size

    @property
    def channels(self) -> int:
        """Channels of a frame."""
        return self.image.channels


def actionclip(start: str, accuracy: str = "", source: str = "sallymmx/ActionCLIP", **head) -> VideoText:
    """A CLIP variant for eight frames, with a temporal head of these fields."""
    pair = clip.VARIANTS[start]()
    card = replace(pair.card, crop_ratio=224 / 256, source=source, accuracy=accuracy)
    return pair.clone(video=VideoTower(pair.video.clone(num_frames=8), **head), card=card)


mmaction2 = partial(actionclip, source="open-mmlab/mmaction2", head_context=8)

VARIANTS = MappingProxyType(
    {
        "actionclip_tiny": partial(actionclip, "clip_tiny", head_depth=2, head_heads=4),
        "actionclip_base_32": partial(actionclip, "clip_base_32", "K400 78.36, 1x1 views"),
        # 81.68 with 16 frames and 82.32 with 32
        "actionclip_base_16": partial(actionclip, "clip_base_16", "K400 81.09, 1x1 views"),
        # For clips of 16 or 32 frames, set num_frames and head_context.
        "actionclip_base_32_mmaction2": partial(mmaction2, "clip_base_32", "K400 77.5, 1x1 views"),
        "actionclip_base_16_mmaction2": partial(mmaction2, "clip_base_16", "K400 81.3, 1x1 views"),
    }
)
