"""Mixup and CutMix of clips with soft labels; label smoothing and cross-entropy are Optax'."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def mix_clips(
    key: Key[Array, ""],
    video: Float[Array, "b t h w c"],
    targets: Float[Array, "b classes"],
    valid: Bool[Array, "b"],
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b classes"]]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of every clip with its mirror place in the batch.

    All clips of a batch are mixed alike, as timm does in its batch mode, with which the published recipes were run. The
    box of CutMix is the same in all frames. A clip whose partner is not valid stays as it is. Where both are on, each
    is used for half of the batches.

    Args:
      video: pixels.
      targets: soft labels.
      valid: false for clips that could not be read or have no label.
      mixup: alpha of mixup's Beta(alpha, alpha); 0 = off.
      cutmix: alpha of CutMix'; 0 = off.
    """
    if mixup <= 0 and cutmix <= 0:
        return video, targets
    switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    kept = jax.random.beta(mixup_key, mixup, mixup) if mixup > 0 else 1.0
    share = jnp.full(video.shape[2:4], kept)  # of a pixel that stays the clip's own
    if cutmix > 0:
        inside = cutmix_box(box_key, 1 - jax.random.beta(cutmix_key, cutmix, cutmix), *video.shape[2:4])
        cut = jax.random.bernoulli(switch_key) if mixup > 0 else True
        share = jnp.where(cut, 1.0 - inside, share)
    # One share of each clip: pixels by place, labels by the mean over places.
    share = jnp.where(valid[::-1, None, None], share, 1.0)  # b h w
    pixels, labels = share[:, None, :, :, None].astype(video.dtype), share.mean(axis=(1, 2))[:, None]
    return video * pixels + video[::-1] * (1 - pixels), targets * labels + targets[::-1] * (1 - labels)


def cutmix_box(key: Key[Array, ""], area: Float[Array, ""], height: int, width: int) -> Bool[Array, "h w"]:
    """A box of this share of the picture around a uniform centre, cut off at the borders; true inside."""

    def interval(key: Array, size: int) -> Bool[Array, "n"]:
        side = jnp.floor(size * jnp.sqrt(area)).astype(jnp.int32)
        start = jax.random.randint(key, (), 0, size) - side // 2
        places = jnp.arange(size)
        return (places >= start) & (places < start + side // 2 * 2)

    rows, columns = jax.random.split(key)
    return interval(rows, height)[:, None] & interval(columns, width)[None, :]
