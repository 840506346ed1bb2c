"""Latent prediction (JEPA): targets, loss, and how diverse the targets and the predictions are."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from vidjax.objectives.multi_block import Mask, smallest_loss

DIVERSITY = ("target_rank", "target_std", "prediction_rank", "prediction_std")
"""Metrics of `predict` that show a collapse."""
COLLAPSED = 0.1
"""Targets with less than this share of the diversity of an untrained encoder's are nearly the same everywhere."""

Weigh = Callable[[Mask], Float[Array, "b m"]]
"""The weights of the loss at the context's tokens (V-JEPA 2.1), by the mask."""


def normalize_tokens(tokens: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Layer norm without parameters and with epsilon 1e-5, in float32: targets from the tokens of an encoder."""
    tokens = tokens.astype(jnp.float32)
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)


def latent_loss(
    predicted: Float[Array, "b r d"],
    target: Float[Array, "b r d"],
    valid: Bool[Array, "b r"] | None = None,
    weights: Float[Array, "b r"] | None = None,
) -> Float[Array, "b"]:
    """Mean absolute difference of each clip over its tokens and their values, in float32 (V-JEPA, equation 2).

    Args:
      target: see `normalize_tokens`.
      valid: False for tokens that do not count; all count if None.
      weights: factors of the tokens' differences, by whose sum the mean is not divided; 1 if None.

    Example:
      >>> targets = normalize_tokens(teacher.apply(frozen, video, method="tokens"))
      >>> targets = jnp.take_along_axis(targets, mask.predicted[..., None], axis=1)
      >>> loss = latent_loss(model.apply(variables, video, mask.kept, mask.predicted), targets).mean()
    """
    error = jnp.abs(predicted.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    error = error if weights is None else error * weights
    if valid is None:
        return error.mean(axis=1)
    return jnp.where(valid, error, 0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)


def rank_me(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """RankMe (Garrido et al. 2023, arXiv:2210.02885): the exponential of the entropy of the singular values.

    From 1, when all rows are multiples of one, to `min(n, d)`. Singular values below a thousandth of the largest, which
    float32 cannot tell from 0 in a Gram matrix, count as 0.
    """
    rows, columns = features.shape
    features = features.astype(jnp.float32)
    gram = features @ features.T if rows <= columns else features.T @ features
    squares = jnp.linalg.eigvalsh(gram)
    values = jnp.sqrt(jnp.where(squares > 1e-6 * squares[-1], squares, 0))
    fractions = values / jnp.maximum(values.sum(), 1e-12)
    return jnp.exp(-(fractions * jnp.log(jnp.maximum(fractions, 1e-12))).sum())


def diversity(
    name: str, tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None, most: int = 256
) -> dict[str, Float[Array, ""]]:
    """RankMe and mean standard deviation over a sample of the tokens of a batch, evenly from all clips and places.

    Args:
      name: first word of the metrics, `NAME_rank` and `NAME_std`.
      valid: True for the first tokens of each clip, which are the sample's; all if None.
      most: size of the sample.
    """
    clips = tokens[:most]
    each = min(max(most // len(clips), 1), tokens.shape[1])
    count = jnp.full(len(clips), tokens.shape[1]) if valid is None else valid[:most].sum(axis=1)
    places = jnp.arange(each) * count[:, None] // each
    sample = jnp.take_along_axis(clips, places[..., None], axis=1).reshape(-1, tokens.shape[-1]).astype(jnp.float32)
    return {f"{name}_rank": rank_me(sample), f"{name}_std": sample.std(axis=0).mean()}


def has_collapsed(seen: Mapping[str, float], untrained: Mapping[str, float]) -> bool:
    """Whether the targets have lost nearly all of their diversity, in std or in dimensions.

    Args:
      seen, untrained: `target_rank` and `target_std` of an encoder and of the same encoder before training, on the same
        clips: even that encoder's tokens differ little if the clips do.
    """
    std = seen["target_std"] < COLLAPSED * untrained["target_std"]
    return std or seen["target_rank"] - 1 < COLLAPSED * (untrained["target_rank"] - 1)


def predict_behind(
    apply: Callable[..., PyTree[Array]],
    video: Float[Array, "b t h w c"],
    targets: Float[Array, "b n d"],
    mask: Mask,
    weigh: Weigh | None = None,
) -> tuple[Float[Array, "b"], dict[str, Float[Array, ""]]]:
    """The loss of each clip behind one mask, and the diversity of its predictions; see `predict`."""
    outputs = apply(video, mask.kept, mask.predicted, mask.valid)
    predicted, context = (outputs, None) if weigh is None else outputs
    seen, asked = jnp.split(mask.valid, [mask.kept.shape[1]], axis=1)

    def target(indices: Array) -> Array:
        return jnp.take_along_axis(targets, indices[..., None], axis=1)

    loss = latent_loss(predicted, target(mask.predicted), asked)
    if weigh is not None:
        loss += latent_loss(context, target(mask.kept), seen, weigh(mask))
    return loss, diversity("prediction", jax.lax.stop_gradient(predicted), asked)


def predict(
    apply: Callable[..., PyTree[Array]],
    video: Float[Array, "b t h w c"],
    targets: Float[Array, "b n d"],
    masks: Sequence[Mask],
    weigh: Weigh | None = None,
) -> tuple[Float[Array, "b"], dict[str, Float[Array, ""]]]:
    """The loss of each clip, the mean over its masks, and the diversity of targets and predictions (`DIVERSITY`).

    Args:
      apply: predicts tokens `b r d` from a video and the indices `kept`, `predicted` and `valid` of a mask.
      targets: of all tokens, encoded once for all masks.
      weigh: if given, `apply` predicts the context's tokens `b m d` too, and their loss is added with these weights.
    """
    losses, seen = zip(*(predict_behind(apply, video, targets, mask, weigh) for mask in masks), strict=True)
    return jnp.stack(losses).mean(axis=0), diversity("target", targets) | seen[0]


def training_loss(
    apply: Callable[..., PyTree[Array]],
    variables: PyTree,
    video: Float[Array, "b t h w c"],
    targets: Float[Array, "b n d"],
    masks: Sequence[Mask],
    shapes: Sequence[tuple[tuple[int, int], ...]],
    mean: Callable[[Float[Array, "b"]], Float[Array, ""]],
    weigh: Weigh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean of the losses of `predict`, each mask at the smallest size that holds it, and the standard deviations.

    Args:
      apply: as in `predict`, with the variables, by which the loss can be differentiated, first.
      shapes: sizes of each mask, see `multi_block.smallest_loss`.
      mean: over clips.
      weigh: as in `predict`.
    """

    def behind(variables: PyTree, mask: Mask) -> tuple[Float[Array, ""], Float[Array, ""]]:
        losses, seen = predict_behind(partial(apply, variables), video, targets, mask, weigh)
        return mean(losses), seen["prediction_std"]  # the ranks, observed only, take long

    pairs = zip(masks, shapes, strict=True)
    losses, spread = zip(*(smallest_loss(behind, variables, *pair) for pair in pairs), strict=True)
    return jnp.stack(losses).mean(), {
        "target_std": diversity("target", targets)["target_std"],
        "prediction_std": jax.lax.stop_gradient(spread[0]),
    }
