"""STTS (Wang et al. 2022, arXiv:2111.11591): a video transformer that selects frames, then a region of each frame.

Before some of its blocks or stages, a small network scores frames, of which the best are kept, or places, and each
frame keeps the square region of the highest mean score. In training the selection is differentiable: the tokens are
means over selections of noisy scores, whose noise becomes smaller (`noise` of the call). Shapes are the same in
training and in evaluation.

It wraps a model whose blocks attend to all tokens of a clip on a grid, MViT, as in the paper, or a VideoMAE, or a Video
Swin, as in the paper too, in which it selects before stages. Parameters keep the names of that model's, so that its
weights load; those of the predictors are new.

Pitfalls of the original: a share of places is rounded down to a square, so that 0.863 of 14x14 are 13x13; regions begin
at every `max((rows - side) // 2, 1)` places; scores go from 0 to 1 over the frames or regions of a clip.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isqrt
from types import MappingProxyType, SimpleNamespace
from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.patches import grid, on_grid
from vidjax.layers.selection import FrameSelection, RegionSelection, before_blocks, regions
from vidjax.models import mvit
from vidjax.models.video_swin import VARIANTS as SWINS
from vidjax.models.video_swin import VideoSwin
from vidjax.models.videomae import VideoMAE


class STTS(nn.Module):
    """A model whose frames and regions are selected.

    Attributes:
      model: the model, without `remat` and `scan` unless it is a Video Swin, whose stages have them within.
      frames: number of a block, of a Video Swin of a stage, and share of the frames that enter it; in this order for
        several.
      regions: number of a block or stage, and share of the places of each frame that enter it.
      sigma: standard deviation of the noise at the start of training.
      samples: of the noise.
      class_token: whether a token comes before those of the grid, which is always kept.
    """

    model: nn.Module
    frames: tuple[tuple[int, float], ...] = ((0, 0.625),)
    regions: tuple[tuple[int, float], ...] = ((4, 0.863),)
    sigma: float = 0.1
    samples: int = 500
    class_token: bool = True
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the predictors; all parameters are in one scope."""
        nn.share_scope(self, self.model)
        self.time = [FrameSelection(self.samples, self.dtype) for _ in self.frames]
        self.space = [RegionSelection(self.samples, self.dtype) for _ in self.regions]

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the model is meant for."""
        return self.model.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of these clips."""
        return self.model.image_size

    @property
    def channels(self) -> int:
        """Channels of these clips."""
        return self.model.channels

    @property
    def num_classes(self) -> int | None:
        """Classes of the model's head."""
        return self.model.num_classes

    def _select(
        self, number: int, x: Float[Array, "b t h w d"], sigma: float | Array | None
    ) -> Float[Array, "b _ _ _ d"]:
        """What enters the block or stage of this number of a map."""
        rows, columns = x.shape[2:4]
        x = einops.rearrange(x, "b t h w d -> b t (h w) d")
        for selection, (location, share) in zip(self.time, self.frames, strict=True):
            if location == number:
                x = selection(x, _at_least_one(int(x.shape[1] * share), self.frames), sigma)
        for selection, (location, share) in zip(self.space, self.regions, strict=True):
            if location == number:
                if rows != columns:
                    raise UserError(f"a map of {rows} x {columns} is not square: give square clips, or no regions")
                side = _at_least_one(isqrt(int(rows**2 * share)), self.regions)
                x = selection(x, regions(rows, side), sigma)
                rows = columns = side
        return einops.rearrange(x, "b t (h w) d -> b t h w d", h=rows)

    def _run(
        self, video: Array, train: bool, noise: float | Array, method: str = "__call__"
    ) -> tuple[PyTree[Array], Float[Array, "b _ _ _ d"]]:
        """The output of a method of the model, and the last block's or stage's on what is left of the grid."""
        state = SimpleNamespace(grid=None, output=None)
        sigma = self.sigma * noise if train else None
        has_maps = isinstance(self.model, VideoSwin)
        name, first = ("stage", 0) if has_maps else ("block", int(self.class_token))

        def of_map(stage: nn.Module, number: int, x: Array, settings: dict) -> tuple[Array, dict]:
            return self._select(number, x, sigma), settings

        def of_tokens(
            block: nn.Module, number: int, x: Array, settings: dict[str, Any]
        ) -> tuple[Array, dict[str, Any]]:
            if state.grid is None:
                state.grid = settings.get("grid") or grid(video.shape[1:4], self.model.patch_size)
            kept = self._select(number, on_grid(x[:, first:], state.grid), sigma)
            state.grid = kept.shape[1:4]
            settings |= {"grid": state.grid} if "grid" in settings else {}
            state.grid = mvit.pooled(state.grid, getattr(block, "stride", 1))
            return jnp.concatenate([x[:, :first], einops.rearrange(kept, "b t h w d -> b (t h w) d")], 1), settings

        def remember(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            outputs = call(*args, **kwargs)
            if (context.module.name or "").startswith(f"{name}_") and context.method_name == "__call__":
                state.output = outputs
            return outputs

        change = of_map if has_maps else of_tokens
        with nn.intercept_methods(remember), before_blocks(self.model, change, name):
            outputs = getattr(self.model, method)(video, train=train)
        return outputs, state.output if has_maps else on_grid(state.output[:, first:], state.grid)

    def encode(
        self, video: Float[Array, "b t h w c"], train: bool = False, noise: float | Float[Array, ""] = 1.0
    ) -> Float[Array, "b _ _ _ d"]:
        """The tokens after the last block or stage, not normalised, on what is left of the grid."""
        return self._run(video, train, noise, "embed")[1]

    def embed(
        self, video: Float[Array, "b t h w c"], train: bool = False, noise: float | Float[Array, ""] = 1.0
    ) -> Float[Array, "b d"]:
        """The input of the model's head."""
        return self._run(video, train, noise, "embed")[0]

    def __call__(
        self, video: Float[Array, "b t h w c"], train: bool = False, noise: float | Float[Array, ""] = 1.0
    ) -> PyTree[Float[Array, "b ..."]]:
        """What the model returns, by default logits `b classes`.

        Args:
          noise: factor of `sigma` in training, which the paper lets go from 1 to 0; its PRNG key is `selection`.
        """
        return self._run(video, train, noise)[0]


def _at_least_one(count: int, setting: tuple) -> int:
    if count < 1:
        raise UserError(f"of {setting}, numbers of blocks and shares, nothing is left: give larger shares")
    return count


def around(model: Callable[[], nn.Module], **fields: Any) -> STTS:
    """An STTS of this model."""
    return STTS(model(), **fields)


def mvit_base(frames: float, regions: float, accuracy: float) -> STTS:
    """The MViT-B 16x4 of a row of the original's table, with the shares in its configuration."""
    model = mvit.VARIANTS["mvit_base_16x4"](drop_path=0.2)
    card = replace(model.card, source=SOURCE, accuracy=f"K400 {accuracy}, 5x1 views")
    return STTS(model, frames=((0, frames),), regions=((4, regions),), card=card)


def video_swin_b(frames: float, accuracy: float) -> STTS:
    """The Video Swin-B of a row of the original's table, which selects frames alone."""
    model = SWINS["video_swin_b"](drop_path=0.2)
    card = replace(model.card, source=SOURCE, accuracy=f"K400 {accuracy}, 4x3 views")
    return STTS(model, frames=((0, frames),), regions=(), sigma=0.05, class_token=False, card=card)


SOURCE = "wangjk666/STTS"
TINY = {"width": 96, "depth": 4, "heads": 6, "image_size": 64}
TINY_8 = {"width": 64, "depth": 6, "heads": 4, "patch_size": (2, 8, 8), "num_frames": 8, "image_size": 32}

VARIANTS = MappingProxyType(
    {
        "stts_tiny": partial(
            around, partial(VideoMAE, **TINY), frames=((0, 0.5),), regions=((2, 0.6),), samples=20, class_token=False
        ),
        "stts_tiny_8": partial(
            around, partial(VideoMAE, **TINY_8), frames=((0, 0.5),), regions=((2, 0.6),), samples=20, class_token=False
        ),
        "stts_video_swin_tiny": partial(
            around, SWINS["video_swin_tiny"], frames=((0, 0.5),), regions=((1, 0.6),), samples=20, class_token=False
        ),
        "stts_mvit_base_t09_s09": partial(mvit_base, 0.875, 0.863, 78.1),
        "stts_mvit_base_t08_s09": partial(mvit_base, 0.75, 0.863, 77.9),
        "stts_mvit_base_t06_s09": partial(mvit_base, 0.625, 0.863, 77.5),
        "stts_mvit_base_t05_s07": partial(mvit_base, 0.5, 0.7367, 76.6),
        "stts_mvit_base_t04_s06": partial(mvit_base, 0.375, 0.6174, 75.6),
        "stts_video_swin_b_t09": partial(video_swin_b, 0.875, 81.9),
        "stts_video_swin_b_t08": partial(video_swin_b, 0.75, 81.6),
        "stts_video_swin_b_t06": partial(video_swin_b, 0.625, 81.4),
        "stts_video_swin_b_t05": partial(video_swin_b, 0.5625, 81.1),
        "stts_video_swin_b_t04": partial(video_swin_b, 0.375, 80.7),
    }
)
