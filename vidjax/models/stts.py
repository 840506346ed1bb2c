"""STTS (Wang et al. 2022, arXiv:2111.11591): a video transformer that selects frames, then a region of each frame.

Before some of its blocks, a small network scores frames, of which the best are kept, or places, and each frame keeps
the square region of the highest mean score. In training the selection is differentiable: the tokens are means over
selections of noisy scores, whose noise becomes smaller (`noise` of the call). Shapes are the same in training and in
evaluation.

It wraps a model whose blocks attend to all tokens of a clip on a grid: MViT, as in the paper, or a VideoMAE. Parameters
keep the names of that model's, so that its weights load; those of the predictors are new.

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
from vidjax.models.videomae import VideoMAE


class STTS(nn.Module):
    """A model whose frames and regions are selected.

    Attributes:
      model: the model, without `remat` and `scan`.
      frames: number of a block, and share of the frames that enter it; in this order for several.
      regions: number of a block, and share of the places of each frame that enter it.
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

    def _run(
        self, video: Array, train: bool, noise: float | Array, method: str = "__call__"
    ) -> tuple[PyTree[Array], Float[Array, "b _ _ _ d"]]:
        """The output of a method of the model, and the tokens after its last block on what is left of the grid."""
        state = SimpleNamespace(grid=None, tokens=None)
        sigma = self.sigma * noise if train else None

        def change(block: nn.Module, number: int, x: Array, settings: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
            if state.grid is None:
                state.grid = settings.get("grid") or grid(video.shape[1:4], self.model.patch_size)
            first, x = x[:, : int(self.class_token)], on_grid(x[:, int(self.class_token) :], state.grid)
            x = einops.rearrange(x, "b t h w d -> b t (h w) d")
            for selection, (location, share) in zip(self.time, self.frames, strict=True):
                if location == number:
                    x = selection(x, _at_least_one(int(x.shape[1] * share), self.frames), sigma)
            for selection, (location, share) in zip(self.space, self.regions, strict=True):
                if location == number:
                    _, rows, columns = state.grid
                    if rows != columns:
                        raise UserError(f"a map of {rows} x {columns} is not square: give square clips, or no regions")
                    side = _at_least_one(isqrt(int(rows**2 * share)), self.regions)
                    x = selection(x, regions(rows, side), sigma)
                    state.grid = (x.shape[1], side, side)
            state.grid = (x.shape[1], *state.grid[1:])
            settings |= {"grid": state.grid} if "grid" in settings else {}
            state.grid = mvit.pooled(state.grid, getattr(block, "stride", 1))
            return jnp.concatenate([first, einops.rearrange(x, "b t n d -> b (t n) d")], axis=1), settings

        def remember(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            outputs = call(*args, **kwargs)
            if (context.module.name or "").startswith("block_") and context.method_name == "__call__":
                state.tokens = outputs
            return outputs

        with nn.intercept_methods(remember), before_blocks(self.model, change):
            outputs = getattr(self.model, method)(video, train=train)
        return outputs, on_grid(state.tokens[:, int(self.class_token) :], state.grid)

    def encode(
        self, video: Float[Array, "b t h w c"], train: bool = False, noise: float | Float[Array, ""] = 1.0
    ) -> Float[Array, "b _ _ _ d"]:
        """The tokens after the last block, not normalised, on what is left of the grid."""
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


def published(frames: float, regions: float, accuracy: float) -> STTS:
    """The MViT-B 16x4 of a row of the original's table, with the shares in its configuration."""
    model = mvit.VARIANTS["mvit_base_16x4"](drop_path=0.2)
    card = replace(model.card, source="wangjk666/STTS", accuracy=f"K400 {accuracy}, 5x1 views")
    return STTS(model, frames=((0, frames),), regions=((4, regions),), card=card)


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
        "stts_mvit_base_t09_s09": partial(published, 0.875, 0.863, 78.1),
        "stts_mvit_base_t08_s09": partial(published, 0.75, 0.863, 77.9),
        "stts_mvit_base_t06_s09": partial(published, 0.625, 0.863, 77.5),
        "stts_mvit_base_t05_s07": partial(published, 0.5, 0.7367, 76.6),
        "stts_mvit_base_t04_s06": partial(published, 0.375, 0.6174, 75.6),
    }
)
