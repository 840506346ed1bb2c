"""Video Swin (Liu et al. 2021, arXiv:2106.13230; SwinTransformer/Video-Swin-Transformer).

A hierarchy of transformer blocks that attend within windows of the space-time grid. Every second block shifts the
windows by half their size, so that information crosses their borders, and adds a learned bias to the scores of each
pair of tokens, which depends on their distance in time, height and width. Between stages, 2x2 neighbours in space are
merged into one token of twice the width; time is reduced by the patches alone.

Pitfalls, all as in the original, in mmaction2 and in torchvision: a map that windows do not divide is padded at the far
end of each axis, after the norm, and the padding is attended to (only the halves that a shift brings together are
separated, here exactly and there by -100 added to the scores). Along an axis that is not longer than the window, the
window is the axis and is not shifted. Such a clipped window takes the first rows and columns of the whole window's
biases. If only time is clipped, these are the biases of its distances; if height or width is, as in the last stage at
less than 224 pixels, they belong to other distances, the same ones at each call: published weights lose accuracy at
such sizes, while training from scratch learns them as they are.
"""

from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers.attention import Attention, Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import DropPath, Encoder, Mlp, Remat

NORMAL = nn.initializers.normal(0.02)
MAP, WINDOWS = "b (t i) (h j) (w k) ...", "b (t h w) (i j k) ..."

Size = tuple[int, int, int]  # in time, height and width


def clip_window(window: Size, shift: Size, sides: Size, image: bool = False) -> tuple[Size, Size]:
    """The window and its shift on a map with these sides; an axis that the window covers is not shifted.

    Args:
      image: whether an axis as long as the window is shifted all the same, see `Block`.
    """
    axes = zip(shift, window, sides, strict=True)
    shift = tuple(0 if side < length or (side == length and not image) else cells for cells, length, side in axes)
    return tuple(map(min, window, sides)), shift


def pad_to_multiple(x: Float[Array, "b t h w c"], of: Size) -> Float[Array, "b _ _ _ c"]:
    """Appends zeros to time, height and width."""
    pads = [(0, -side % length) for side, length in zip(x.shape[1:4], of, strict=True)]
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def to_windows(x: Float[Array, "b t h w c"], window: Size, shift: Size) -> Float[Array, "b m n c"]:
    """The `m` windows of `n` tokens; window 0 begins `shift` cells into the map, which continues at its start."""
    x = jnp.roll(x, [-cells for cells in shift], (1, 2, 3)) if any(shift) else x
    return einops.rearrange(x, f"{MAP} -> {WINDOWS}", **dict(zip("ijk", window, strict=True)))


def from_windows(x: Float[Array, "b m n c"], window: Size, shift: Size, sides: Size) -> Float[Array, "b t h w c"]:
    """Inverse of `to_windows` for a map with these sides."""
    counts = {axis: side // length for axis, side, length in zip("thw", sides, window, strict=True)}
    x = einops.rearrange(x, f"{WINDOWS} -> {MAP}", **dict(zip("ijk", window, strict=True)), **counts)
    return jnp.roll(x, shift, (1, 2, 3)) if any(shift) else x


@cache
def regions(window: Size, shift: Size, sides: Size) -> Int[np.ndarray, "m n"]:
    """For the tokens of each shifted window, a number of the part of the map that they come from.

    A window at the end of an axis holds cells of the map's end and, behind them, of its start.
    """
    after_the_end = [np.arange(side) >= side - cells for side, cells in zip(sides, shift, strict=True)]
    parts = np.stack(np.meshgrid(*after_the_end, indexing="ij"), axis=-1) @ np.array([4, 2, 1])
    return einops.rearrange(parts[None], f"{MAP} -> {WINDOWS}", **dict(zip("ijk", window, strict=True)))[0]


@cache
def distances(window: Size) -> Int[np.ndarray, "n n"]:
    """For each pair of tokens of a window, the index of their distance in a flattened table `2 * window - 1`."""
    places = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(3, -1)
    steps = places[:, :, None] - places[:, None] + np.array(window)[:, None, None] - 1
    return np.ravel_multi_index(tuple(steps), [2 * length - 1 for length in window])


class Block(nn.Module):
    """Pre-norm transformer block with attention within windows.

    Attributes:
      window: frames, height and width of a window, in tokens.
      shifted: whether the windows are shifted by half their size.
      implementation: of attention, see `attend`.
    """

    heads: int
    window: Size
    shifted: bool
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], drop_path: float | Array = 0.0, train: bool = False, image: bool = False
    ) -> Float[Array, "b t h w c"]:
        """The output has the shape of `x`.

        Args:
          image: whether it is a map of images (BEVT), whose windows are shifted even if one covers the map, and where
            blocks that are not shifted separate the same tokens of a window as those that are.
        """
        (t, h, w), width = x.shape[1:4], x.shape[-1]
        norm = partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        branch = DropPath(name="drop_path")
        window, half = clip_window(self.window, tuple(length // 2 for length in self.window), (t, h, w), image)
        shift = half if self.shifted else (0, 0, 0)

        padded = pad_to_multiple(norm(name="norm1")(x), window)
        sides = padded.shape[1:4]
        mask = None
        if any(half) and (self.shifted or image):
            parts = jnp.asarray(regions(window, half, sides))
            mask = parts[:, :, None] == parts[:, None]
        table = self.param("relative_position", NORMAL, (*(2 * length - 1 for length in self.window), self.heads))
        tokens = np.prod(window)  # of a clipped window; as in the original, see the module docstring
        bias = table.reshape(-1, self.heads)[distances(self.window)[:tokens, :tokens]]
        attention = Attention(
            self.heads, implementation=self.implementation, kernel_init=NORMAL, dtype=self.dtype, name="attention"
        )
        out = attention(to_windows(padded, window, shift), mask=mask, bias=jnp.moveaxis(bias, -1, 0))
        x = x + branch(from_windows(out, window, shift, sides)[:, :t, :h, :w], drop_path, train)
        mlp = Mlp(4 * width, kernel_init=NORMAL, dtype=self.dtype, name="mlp")
        return x + branch(mlp(norm(name="norm2")(x)), drop_path, train)


class Merging(nn.Module):
    """Merges 2x2 neighbouring tokens into one of twice the width; odd sides are padded."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ d"]:
        """A map of half the height and width."""
        width = x.shape[-1]
        x = einops.rearrange(pad_to_multiple(x, (1, 2, 2)), "b t (h i) (w j) c -> b t h w (j i c)", i=2, j=2)
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return nn.Dense(2 * width, use_bias=False, kernel_init=NORMAL, dtype=self.dtype, name="reduction")(x)


class VideoSwin(nn.Module):
    """The Video Swin classifier: a patch embedding, stages of blocks with merging between them, a mean and the head.

    Attributes:
      width: of the first stage; each stage is twice as wide as the one before.
      depths, heads: of each stage.
      window: frames, height and width of a window, in tokens.
      num_classes: None returns the mean of the last feature map.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on this mean, before the head.
      drop_path: rate of the last block; the rates increase linearly over the blocks of all stages.
      num_frames, image_size: of the clips that the variant is meant for; other sizes also work.
      remat, scan: see `Encoder`.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: Size = (8, 7, 7)
    patch_size: Size = (2, 4, 4)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    drop_path: float = 0.1
    channels: int = 3
    num_frames: int = 32
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if len(self.depths) != len(self.heads):
            raise UserError(
                f"there are {len(self.depths)} depths and {len(self.heads)} heads: give one of each for every stage"
            )
        if min(self.window) < 1:
            raise UserError(f"window is {self.window}: it needs at least one token in time, height and width")
        bias_init = pytorch_bias(self.channels * int(np.prod(self.patch_size)))
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, pytorch_kernel, bias_init, self.dtype)
        self.patch_embedding_norm = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        rates = np.split(np.linspace(0.0, self.drop_path, sum(self.depths)), np.cumsum(self.depths)[:-1])
        stages = []
        for heads, depth, ramp in zip(self.heads, self.depths, rates, strict=True):
            block = partial(Block, heads, self.window, implementation=self.implementation, dtype=self.dtype)
            alternating = (partial(block, shifted=False), partial(block, shifted=True))
            stages.append(Encoder(alternating, depth, tuple(ramp.tolist()), self.remat, self.scan))
        self.stage = stages
        self.merging = [Merging(self.dtype) for _ in self.depths[1:]]
        self.norm = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(
            self.head, self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )

    def patches(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ d"]:
        """The normalised patches, which the first stage takes."""
        check_video(video, self.channels)
        video = pad_to_multiple(video, self.patch_size)
        patches = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        return self.patch_embedding_norm(on_grid(patches, grid(video.shape[1:4], self.patch_size)))

    def maps(
        self, patches: Float[Array, "b t h w d"], train: bool = False, image: bool = False
    ) -> list[Float[Array, "b _ _ _ _"]]:
        """The feature map of each stage, given the patches of clips, or of images (see `Block`); none is normalised."""
        maps = [self.stage[0](patches, train, image=image)]
        for merging, stage in zip(self.merging, self.stage[1:], strict=True):
            maps.append(stage(merging(maps[-1]), train, image=image))
        return maps

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The feature map of each stage: 1/2 of the frames, 1/4 to 1/32 of height and width; the last is normalised."""
        *maps, last = self.maps(self.patches(video), train)
        return *maps, self.norm(last)

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


SOURCE = "SwinTransformer/Video-Swin-Transformer"


def kinetics(accuracy: str) -> Card:
    """The card of a model trained on every second frame, tested on 4 clips and 3 crops of the short side's size."""
    return Card(stride=2, source=SOURCE, accuracy=f"{accuracy}, 4x3 views", protocol="video_swin", views="4x3")


TINY = {
    "width": 16, "depths": (2, 2), "heads": (2, 4), "window": (2, 3, 3), "dropout": 0.0, "drop_path": 0.0,
    "num_frames": 8, "image_size": 32, "card": Card(source=SOURCE),
}  # fmt: skip
T = {"num_classes": 400}
S = {"depths": (2, 2, 18, 2), "num_classes": 400}
B = {"width": 128, "heads": (4, 8, 16, 32), "drop_path": 0.3, **S}
L = {"width": 192, "heads": (6, 12, 24, 48), "drop_path": 0.4, **S}

VARIANTS = MappingProxyType(
    {
        "video_swin_tiny": partial(VideoSwin, **TINY),  # for tests; Swin-T of the paper is video_swin_t
        "video_swin_t": partial(VideoSwin, **T, card=kinetics("K400 78.8")),
        "video_swin_s": partial(VideoSwin, **S, card=kinetics("K400 80.6")),
        "video_swin_b": partial(VideoSwin, **B, card=kinetics("K400 80.6")),
        "video_swin_b_16": partial(  # windows of 16 x 7 x 7, for Something-Something
            VideoSwin, **B | {"num_classes": 174, "drop_path": 0.4}, window=(16, 7, 7),
            card=replace(kinetics("SSv2 69.6"), accuracy="SSv2 69.6, 1x3 views", sampling="segments", views="1x3"),
        ),
        "video_swin_l": partial(
            VideoSwin, **L,
            card=replace(kinetics("K400 83.46"), source="open-mmlab/mmaction2", crop_ratio=1.0, protocol="mmaction2"),
        ),
    }
)  # fmt: skip
