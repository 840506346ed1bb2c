"""Targets, mixup and CutMix for clips with soft labels, evidential loss. For smoothing and cross-entropy use Optax."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

EVIDENCE = 10.0
"""Bound of the logits whose exponential is the evidence of a class (Cogito2012/DEAR, `exp_evidence`)."""


def targets_of(batch: Mapping[str, Array], classes: int) -> Float[Array, "b classes"]:
    """The targets of the clips of a batch: one-hot, or, if it has `hashtags`, 1 / k for each of the k of a clip.

    With such targets, the softmax cross-entropy of hashtags was better than a logistic loss of each (Mahajan et al.
    2018, arXiv:1805.00932).

    Args:
      batch: with `label` (b,), and maybe `hashtags` (b n), which are padded by -1.

    Example:
      >>> targets_of({"hashtags": jnp.array([[2, 0], [1, -1]])}, 3)  # [[0.5, 0, 0.5], [0, 1, 0]]
    """
    if "hashtags" not in batch:
        return jax.nn.one_hot(batch["label"], classes)
    named = jax.nn.one_hot(batch["hashtags"], classes).sum(axis=1)  # of -1 it is zero
    return named / jnp.maximum(named.sum(axis=1, keepdims=True), 1)


def evidential(logits: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Float[Array, "b"]:
    """Evidential loss of each clip: the negative logarithm of the likelihood of its label under Dirichlet evidence.

    The exponential of a logit is the evidence of its class, and one more the class's parameter alpha of a Dirichlet
    distribution; the loss is `sum_k y_k (log sum(alpha) - log alpha_k)` (Sensoy et al. 2018, arXiv:1806.01768, equation
    3). Deep evidential action recognition (Bao et al. 2021, arXiv:2107.10161) and InternVideo's open-set experiments
    minimise it; the latter alone, without a calibration term. A clip without evidence of any class is uncertain, see
    `evaluation.open_set`.

    Args:
      targets: labels, one-hot or soft.
    """
    alpha = 1 + jnp.exp(jnp.clip(logits, -EVIDENCE, EVIDENCE))
    return (targets * (jnp.log(alpha.sum(axis=-1, keepdims=True)) - jnp.log(alpha))).sum(axis=-1)


def mix_clips(
    key: Key[Array, ""],
    video: Float[Array, "b t h w c"],
    targets: Float[Array, "b classes"],
    valid: Bool[Array, "b"],
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b classes"]]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each clip `i` with clip `b - 1 - i` of the batch.

    One mixing factor and one box are drawn per batch, as in timm's batch mode, which the published recipes use. The
    CutMix box is the same in all frames. A clip whose partner is not valid stays unchanged. If both are enabled, each
    is applied to half of the batches.

    Args:
      video: pixels.
      targets: soft labels.
      valid: false for clips that could not be read or have no label.
      mixup: alpha of mixup's Beta(alpha, alpha); 0 disables it.
      cutmix: alpha of CutMix's Beta(alpha, alpha); 0 disables it.

    Returns:
      The mixed video and soft labels.
    """
    if mixup <= 0 and cutmix <= 0:
        return video, targets
    switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    factor = jax.random.beta(mixup_key, mixup, mixup) if mixup > 0 else 1.0
    weight = jnp.full(video.shape[2:4], factor)  # of the clip's own pixels, the rest is its partner's
    if cutmix > 0:
        inside = cutmix_box(box_key, 1 - jax.random.beta(cutmix_key, cutmix, cutmix), *video.shape[2:4])
        cut = jax.random.bernoulli(switch_key) if mixup > 0 else True
        weight = jnp.where(cut, 1.0 - inside, weight)
    # Pixels are weighted by position, labels by the mean over positions.
    weight = jnp.where(valid[::-1, None, None], weight, 1.0)  # b h w
    pixels, labels = weight[:, None, :, :, None].astype(video.dtype), weight.mean(axis=(1, 2))[:, None]
    return video * pixels + video[::-1] * (1 - pixels), targets * labels + targets[::-1] * (1 - labels)


def cutmix_box(key: Key[Array, ""], area: Float[Array, ""], height: int, width: int) -> Bool[Array, "h w"]:
    """A box with fraction `area` of the frame around a uniformly drawn centre, clipped at the borders; true inside."""

    def interval(key: Array, size: int) -> Bool[Array, "n"]:
        side = jnp.floor(size * jnp.sqrt(area)).astype(jnp.int32)
        start = jax.random.randint(key, (), 0, size) - side // 2
        positions = jnp.arange(size)
        return (positions >= start) & (positions < start + side // 2 * 2)

    rows, columns = jax.random.split(key)
    return interval(rows, height)[:, None] & interval(columns, width)[None, :]
