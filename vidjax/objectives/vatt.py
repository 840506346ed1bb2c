"""VATT's contrast of a clip with its sound or its texts (Akbari et al. 2021, arXiv:2104.11178; google-research/vatt).

Both losses compare every clip with everything heard or read in the global batch. A clip may have several texts, such as
what is said around it, any of which may match it (MIL-NCE, Miech et al. 2020, arXiv:1912.06430). What is missing, such
as the sound of a silent file or the fourth text of a clip with three, is no negative of any clip; a clip without any
has no loss, but is a negative for the sound of others.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

Contrast = Literal["asymmetric", "symmetric"]
MASKED = -1e9  # finite, so that the gradients of rows without a loss are zero instead of nan


def asymmetric_nce(
    video: Float[Array, "b e"],
    other: Float[Array, "b k e"],
    readable: Bool[Array, "b"],
    there: Bool[Array, "b k"],
    temperature: float = 0.07,
) -> Float[Array, ""]:
    """The published loss: one softmax over what the clip may match and over the clips that its own may match.

    Of clip `i` it is `-log(P / (R + C))`, where P is the sum of `exp(cosine / temperature)` over the clip's own `k`
    sounds or texts, R that over those of all clips, and C that of its own with all clips. As in the original, the
    positives are thus in the denominator twice, and a perfect match still costs log 2.

    Args:
      video, other: embeddings of any length; `other` has `k` sounds or texts of each clip.
      readable: false for clips that could not be read.
      there: false for sounds or texts that are missing. The mean is over the readable clips with at least one, as in
        the original, which multiplies that over the batch by its size over their number; 0 without any.
    """
    own, rows, columns = _normalizers(video, other, readable, there, temperature)
    return _mean(jnp.logaddexp(rows, columns) - own, readable & there.any(axis=1))


def symmetric_nce(
    video: Float[Array, "b e"],
    other: Float[Array, "b k e"],
    readable: Bool[Array, "b"],
    there: Bool[Array, "b k"],
    temperature: float = 0.07,
) -> Float[Array, ""]:
    """A softmax for each direction, `-log(P / R) - log(P / C)`; see `asymmetric_nce`."""
    own, rows, columns = _normalizers(video, other, readable, there, temperature)
    return _mean(rows + columns - 2 * own, readable & there.any(axis=1))


def _normalizers(
    video: Float[Array, "b e"],
    other: Float[Array, "b k e"],
    readable: Bool[Array, "b"],
    there: Bool[Array, "b k"],
    temperature: float,
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """The logarithms of P, R and C."""
    cosines = jnp.einsum("ie,jke->ijk", _unit(video), _unit(other), preferred_element_type=jnp.float32)
    logits = jnp.where(there, cosines / temperature, MASKED)
    own = jax.nn.logsumexp(jnp.einsum("iik->ik", logits), axis=1)
    rows = jax.nn.logsumexp(jnp.where(readable[None, :, None], logits, MASKED), axis=(1, 2))
    columns = jax.nn.logsumexp(jnp.where(readable[:, None, None], logits, MASKED), axis=(0, 2))
    return own, rows, columns


def _unit(x: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-12))


def _mean(losses: Float[Array, "b"], counted: Bool[Array, "b"]) -> Float[Array, ""]:
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)
