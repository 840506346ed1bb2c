"""Computation where it matters: scores of tokens, attention to tokens that are kept, and differentiable selection.

A model is not written for it: `before_blocks` changes the tokens between its blocks (`models.dynamicvit`,
`models.stts`).
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.kernels.chunked_attention import scores_of
from vidjax.layers.activations import exact_gelu
from vidjax.layers.normalization import LayerNorm

NORMAL = nn.initializers.normal(0.02)
Change = Callable[[nn.Module, int, Array, dict[str, Any]], tuple[Array, dict[str, Any]]]


def before_blocks(model: nn.Module, change: Change, name: str = "block") -> AbstractContextManager[None]:
    """Context manager in which `change(block, i, tokens, settings)` gives what the block of number `i` is called with.

    Args:
      model: whose blocks have the names `block_0`, `block_1`, ..., as in all our transformers.
      change: its settings are the keyword arguments of the block, such as `grid`. It may call modules.
      name: of other modules than blocks, such as `stage`.

    Raises:
      UserError: the model runs its blocks in a loop or recomputes them, within which no other module can be called.
    """
    if name == "block" and (getattr(model, "scan", False) or getattr(model, "remat", "none") != "none"):
        raise UserError("tokens cannot be selected between blocks that are scanned or recomputed: omit scan and remat")

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        number = re.fullmatch(rf"{name}_(\d+)", context.module.name or "")
        if number is None or context.method_name != "__call__":
            return call(*args, **kwargs)
        tokens, *others = args
        tokens, kwargs = change(context.module, int(number[1]), tokens, kwargs)
        return call(tokens, *others, **kwargs)

    return nn.intercept_methods(intercept)


def shares_of_kept(kept: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Weights of a mean over the tokens of each clip that are kept; equal for all of them if none is.

    In training a draw can drop every token of a clip.
    """
    total = kept.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1.0), 1 / kept.shape[1])


class ScorePredictor(nn.Module):
    """Scores of tokens from their own features and the mean of all (Rao et al. 2021, arXiv:2106.02034, equation 3-5).

    Attributes:
      outputs: scores of each token.
    """

    outputs: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], kept: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b n outputs"]:
        """The scores, in float32; the mean is that of the tokens that are kept, by default of all."""
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        x = exact_gelu(dense(width, name="fc0")(LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)))
        own, common = x[..., : width // 2], x[..., width // 2 :]
        if kept is None:
            common = common.mean(axis=1, keepdims=True)
        else:
            common = jnp.einsum("bn,bnd->bd", shares_of_kept(kept).astype(x.dtype), common)[:, None]
        x = jnp.concatenate([own, jnp.broadcast_to(common, own.shape[:2] + common.shape[-1:])], axis=-1)
        x = exact_gelu(dense(width // 2, name="fc1")(x))
        x = exact_gelu(dense(width // 4, name="fc2")(x))
        return dense(self.outputs, name="fc3")(x).astype(jnp.float32)


def attend_to_kept(
    query: Float[Array, "*b n k d"],
    key: Float[Array, "*b n k d"],
    value: Float[Array, "*b n k d"],
    kept: Float[Array, "*b n"],
) -> Float[Array, "*b n k d"]:
    """Self-attention to the tokens that are kept (weight 1) and to oneself; differentiable in the weights.

    With weights of 0 and 1, tokens that are kept get what they get without the others (DynamicViT, equation 11).
    """
    query, key, value = (jnp.swapaxes(x, -2, -3) for x in (query, key, value))
    scores = scores_of(query, key)
    seen = kept[..., None, None, :]
    seen = seen + (1 - seen) * jnp.eye(kept.shape[-1])
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))) * seen
    small = 1e-6  # for stability, as in the original
    weights = (weights + small / kept.shape[-1]) / (weights.sum(axis=-1, keepdims=True) + small)
    return jnp.swapaxes(weights.astype(value.dtype) @ value, -2, -3)


def attend_to_used(
    query: Float[Array, "*b n k d"],
    key: Float[Array, "*b n k d"],
    value: Float[Array, "*b n k d"],
    used: Float[Array, "*b n"],
) -> Float[Array, "*b n k d"]:
    """Self-attention among the tokens that are used; others attend to themselves (AdaViT).

    There is no gradient to `used`.
    """
    query, key, value = (jnp.swapaxes(x, -2, -3) for x in (query, key, value))
    seen = (used[..., None, :, None] * used[..., None, None, :] > 0) | jnp.eye(used.shape[-1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(seen, scores_of(query, key), -jnp.inf))
    return jnp.swapaxes(weights.astype(value.dtype) @ value, -2, -3)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def perturbed_top_k(
    scores: Float[Array, "b n"], noise: Float[Array, "b s n"], sigma: float | Float[Array, ""], k: int
) -> Float[Array, "b k n"]:
    """Indicators of the k highest scores, rising by index: their mean under noise (Cordonnier et al. 2021).

    Args:
      noise: standard normal samples.
      sigma: their standard deviation; with 0 the indicators are one-hot and have no gradient.
    """
    return jax.nn.one_hot(_top_k(scores[:, None] + sigma * noise, k), scores.shape[-1]).mean(axis=1)


def _top_k(scores: Float[Array, "*b n"], k: int) -> Int[Array, "*b k"]:
    """Indices of the k highest scores, rising."""
    return jnp.sort(jax.lax.top_k(scores, k)[1], axis=-1)


def _perturbed_forward(scores: Array, noise: Array, sigma: float | Array, k: int) -> tuple[Array, tuple]:
    indices = _top_k(scores[:, None] + sigma * noise, k)
    return jax.nn.one_hot(indices, scores.shape[-1]).mean(axis=1), (indices, noise, sigma)


def _perturbed_backward(k: int, saved: tuple, gradient: Float[Array, "b k n"]) -> tuple:
    indices, noise, sigma = saved
    expected = jnp.einsum("bskn,bsn->bkn", jax.nn.one_hot(indices, noise.shape[-1]), noise) / noise.shape[1]
    scale = jnp.where(jnp.asarray(sigma) > 1e-20, 1 / jnp.maximum(sigma, 1e-20), 0.0)
    return (gradient * expected).sum(axis=1) * scale, jnp.zeros_like(noise), jnp.zeros_like(jnp.asarray(sigma, float))


perturbed_top_k.defvjp(_perturbed_forward, _perturbed_backward)


def normalize_scores(scores: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Scores scaled to go from 0 to 1."""
    low, high = scores.min(axis=-1, keepdims=True), scores.max(axis=-1, keepdims=True)
    return (scores - low) / (high - low + 1e-5)


class FrameSelection(nn.Module):
    """The frames with the highest scores, in the order of time (Wang et al. 2022, arXiv:2111.11591, section 3.2).

    Attributes:
      samples: of the noise in training, whose PRNG key is `selection`.
    """

    samples: int = 500
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the predictor."""
        self.predictor = ScorePredictor(1, self.dtype)

    def scores(self, x: Float[Array, "b t n d"]) -> Float[Array, "b t"]:
        """From 0 to 1, by the mean and the maximum of each frame's tokens."""
        pooled = jnp.concatenate([x.mean(axis=2), x.max(axis=2)], axis=-1)
        return normalize_scores(self.predictor(pooled)[..., 0])

    def __call__(
        self, x: Float[Array, "b t n d"], count: int, sigma: float | Float[Array, ""] | None = None
    ) -> Float[Array, "b _ n d"]:
        """The tokens of `count` frames; with `sigma`, in training, their means over selections under noise."""
        scores = self.scores(x)
        if sigma is None:
            return jnp.take_along_axis(x, _top_k(scores, count)[..., None, None], axis=1)
        noise = jax.random.normal(self.make_rng("selection"), (len(x), self.samples, x.shape[1]))
        chosen = perturbed_top_k(scores, noise, sigma, count)
        return jnp.einsum("bkt,btnd->bknd", chosen.astype(x.dtype), x)


def regions(rows: int, side: int, stride: int | None = None) -> Int[np.ndarray, "a s"]:
    """The places of each square region of a square frame, row by row, as indices into the frame's places.

    Args:
      rows: of the frame.
      side: of a region.
      stride: between regions; by default such that they begin at about three places of a row, as in the original.
    """
    starts = np.arange(0, rows - side + 1, stride or max((rows - side) // 2, 1))
    lines = starts[:, None] + np.arange(side)
    cells = lines[:, None, :, None] * rows + lines[None, :, None]  # row and column of the region, of the place
    return cells.reshape(len(starts) ** 2, -1)


class RegionSelection(nn.Module):
    """The square region of each frame with the highest mean score (the same paper, section 3.3).

    Attributes:
      samples: see `FrameSelection`.
    """

    samples: int = 500
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the predictor."""
        self.predictor = ScorePredictor(1, self.dtype)

    def scores(self, x: Float[Array, "b t n d"], places: Int[np.ndarray, "a s"]) -> Float[Array, "b t a"]:
        """From 0 to 1, of the regions of each frame."""
        scores = self.predictor(einops.rearrange(x, "b t n d -> (b t) n d"))[:, places, 0]
        return normalize_scores(scores.mean(axis=-1)).reshape(*x.shape[:2], -1)

    def __call__(
        self, x: Float[Array, "b t n d"], places: Int[np.ndarray, "a s"], sigma: float | Float[Array, ""] | None = None
    ) -> Float[Array, "b t s d"]:
        """The tokens of one of the `regions` of each frame; with `sigma`, their means over selections under noise."""
        scores = self.scores(x, places)
        if sigma is None:
            return jnp.take_along_axis(x, jnp.asarray(places)[scores.argmax(axis=-1)][..., None], axis=2)
        folded = scores.reshape(-1, scores.shape[-1])
        noise = jax.random.normal(self.make_rng("selection"), (len(folded), self.samples, folded.shape[-1]))
        chosen = perturbed_top_k(folded, noise, sigma, 1).reshape(scores.shape)
        return jnp.einsum("bta,btasd->btsd", chosen.astype(x.dtype), x[:, :, places])
