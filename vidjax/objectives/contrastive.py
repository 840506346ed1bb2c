"""Losses that bring the embeddings of a video and of its caption together and those of others apart.

They take unit embeddings of the global batch, row `i` of `video` and of `text` belonging together, and give one number,
in float32. Under jit the batch may be split over devices along its leading axis (over a mesh of Auto axes, as of
`training.sharding.make_mesh`): every row is compared with the captions of all devices, and the gradients are those of
one device.

The similarities are a matrix of batch by batch. With `chunk` they are computed so many columns at a time, and again
when the gradient is taken, so that a device holds its rows of one chunk and never of the whole matrix:

    loss = info_nce(video, text, clamp_scale(params["logit_scale"]), valid=batch["valid"], chunk=512)
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vidjax.errors import UserError

Sums = dict[str, Float[Array, "_"]]


def info_nce(
    video: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""] | float,
    valid: Bool[Array, "b"] | None = None,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """Symmetric InfoNCE (CLIP; Radford et al. 2021, arXiv:2103.00020, figure 3).

    The cross-entropy of finding each clip's caption among those of the batch, and each caption's clip, averaged over
    both directions and the valid rows. Everything off the diagonal is a negative, also the caption of another clip that
    says the same: where captions repeat, as class names do, use `multi_positive_kl`.

    Args:
      video, text: unit embeddings.
      scale: what cosines are multiplied by, one over the temperature (`clamp_scale`).
      valid: false for clips that could not be read; they are out as rows and as columns.
      chunk: columns at a time; all when None.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    video, text, valid = _prepared(video, text, valid)
    rows, columns = _softmaxes(video, text, scale, valid, None, chunk)
    matched = scale * (video * text).sum(axis=-1)
    return _mean((rows["normaliser"] + columns["normaliser"]) / 2 - matched, valid)


def sigmoid(
    video: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    valid: Bool[Array, "b"] | None = None,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """Pairwise sigmoid loss (SigLIP; Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    Every pair of a clip and a caption is a question of its own, whether they belong together: `-log sigmoid(z logit)`
    with z = 1 on the diagonal and -1 elsewhere, summed over the captions and averaged over the valid clips.

    Args:
      video, text: unit embeddings.
      scale: what cosines are multiplied by; the paper starts at 10.
      bias: added to the logits; the paper starts at -10, as nearly all pairs are negative.
      valid: false for clips that could not be read; they are out as rows and as columns.
      chunk: columns at a time; all when None.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    video, text, valid = _prepared(video, text, valid)
    places = jnp.arange(len(video))

    def block(columns: dict[str, Array]) -> tuple[Sums, Sums]:
        logits = scale * _cosines(video, columns["text"]) + bias
        sign = jnp.where(places[:, None] == columns["place"], 1, -1)
        pairs = valid[:, None] & columns["valid"]
        return {"loss": jnp.where(pairs, jax.nn.softplus(-sign * logits), 0).sum(axis=1)}, {}

    rows, _ = _by_columns(
        block,
        lambda a, b: {"loss": a["loss"] + b["loss"]},
        {"loss": jnp.zeros(len(video))},
        {"text": text, "valid": valid, "place": places},
        chunk,
    )
    return _mean(rows["loss"], valid)


def multi_positive_kl(
    video: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""] | float,
    labels: Int[Array, "b"],
    normalized: bool = False,
    valid: Bool[Array, "b"] | None = None,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """ActionCLIP's loss (Wang et al. 2021, arXiv:2109.08472): every clip of a caption's class is a positive.

    The Kullback-Leibler divergence of the softmax of the logits from a target over the valid rows, averaged over these
    and both directions. With `gt` 1 where labels are equal and 0 elsewhere, the target is softmax(10 gt) of each row,
    as in the released code (utils/KLLoss.py), or gt divided by its sum, as in the paper's section 3.2. They differ: of
    4096 clips with one positive each, the released target gives this 0.84, the paper's 1.

    Args:
      video, text: unit embeddings.
      scale: what cosines are multiplied by.
      labels: classes; only whether they are equal counts.
      normalized: the paper's target instead of the released one.
      valid: false for clips that could not be read or have no label; they are out as rows and as columns.
      chunk: columns at a time; all when None.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    video, text, valid = _prepared(video, text, valid)
    rows, columns = _softmaxes(video, text, scale, valid, labels, chunk)
    # A row of the target has two values, so that its product with the logits is one of two sums. The target is the
    # same matrix in both directions.
    count, positives = valid.sum(), jnp.maximum(rows["positives"], 1)
    high, low = (0.0, -jnp.inf) if normalized else (10.0, 0.0)
    whole = jnp.logaddexp(high + jnp.log(positives), low + jnp.log(jnp.maximum(count - positives, 1e-30)))
    log_positive, log_negative = high - whole, low - whole
    positive, negative = jnp.exp(log_positive), jnp.exp(log_negative)
    entropy = positives * positive * log_positive
    if not normalized:
        entropy += (count - positives) * negative * log_negative
    held = jnp.where(valid[:, None], video, 0), jnp.where(valid[:, None], text, 0)
    losses = []
    for found, own, others in ((rows, *held), (columns, *held[::-1])):
        everything = scale * (own * others.sum(axis=0)).sum(axis=-1)
        expected = negative * everything + (positive - negative) * found["matched"]
        losses.append(entropy + found["normaliser"] - expected)
    return _mean(sum(losses) / 2, valid)


def clamp_scale(log_scale: Float[Array, ""], maximum: float = 100.0) -> Float[Array, ""]:
    """The multiplier of cosines from its logarithm, which is what is learnt, at most `maximum` (CLIP's is 100).

    CLIP cuts the parameter itself after every step. Here it stays whole, and at the bound only a gradient that would
    lower it comes through: it neither runs away above the bound nor is stuck there, as with a plain minimum.
    """
    return jnp.exp(_bounded(log_scale, jnp.log(jnp.float32(maximum))))


@jax.custom_vjp
def _bounded(value: Float[Array, ""], most: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.minimum(value, most)


def _bounded_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    value, most = saved
    return jnp.where((value < most) | (gradient > 0), gradient, 0), jnp.zeros_like(most)


_bounded.defvjp(lambda value, most: (_bounded(value, most), (value, most)), _bounded_backward)


def _prepared(
    video: Float[Array, "b e"], text: Float[Array, "b e"], valid: Bool[Array, "b"] | None
) -> tuple[Float[Array, "b e"], Float[Array, "b e"], Bool[Array, "b"]]:
    valid = jnp.ones(len(video), bool) if valid is None else valid
    return video.astype(jnp.float32), text.astype(jnp.float32), valid


def _cosines(video: Float[Array, "b e"], text: Float[Array, "c e"]) -> Float[Array, "b c"]:
    # Accelerators would round the factors to 8 or 10 bits: errors of 0.1 and more in logits of 100.
    return jnp.einsum("be,ce->bc", video, text, precision="highest")


def _mean(loss: Float[Array, "b"], valid: Bool[Array, "b"]) -> Float[Array, ""]:
    return jnp.where(valid, loss, 0).sum() / jnp.maximum(valid.sum(), 1)


def _softmaxes(
    video: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""] | float,
    valid: Bool[Array, "b"],
    labels: Int[Array, "b"] | None,
    chunk: int | None,
) -> tuple[Sums, Sums]:
    """What the softmax of each row of the logits needs, and of each column.

    The logarithm of its denominator (`normaliser`) and, with labels, how many positives there are and the sum of their
    logits (`positives`, `matched`). What invalid rows and columns get means nothing.
    """

    def block(columns: dict[str, Array]) -> tuple[Sums, Sums]:
        logits = scale * _cosines(video, columns["text"])
        pairs = valid[:, None] & columns["valid"]
        held = jnp.where(pairs, logits, -jnp.inf)
        found = [{"normaliser": jax.nn.logsumexp(held, axis=axis)} for axis in (1, 0)]
        if labels is not None:
            equal = pairs & (labels[:, None] == columns["label"])
            for axis, sums in zip((1, 0), found, strict=True):
                sums["positives"] = equal.sum(axis=axis, dtype=jnp.float32)
                sums["matched"] = jnp.where(equal, logits, 0).sum(axis=axis)
        return found[0], found[1]

    def join(a: Sums, b: Sums) -> Sums:
        return {name: (jnp.logaddexp if name == "normaliser" else jnp.add)(a[name], b[name]) for name in a}

    columns, start = {"text": text, "valid": valid}, {"normaliser": jnp.full(len(video), -jnp.inf)}
    if labels is not None:
        columns["label"] = labels
        start |= {"positives": jnp.zeros(len(video)), "matched": jnp.zeros(len(video))}
    return _by_columns(block, join, start, columns, chunk)


def _by_columns(
    block: Callable[[PyTree], tuple[Sums, Sums]],
    join: Callable[[Sums, Sums], Sums],
    start: Sums,
    columns: PyTree,
    chunk: int | None,
) -> tuple[Sums, Sums]:
    """`block` of all columns, so many at a time: what it says of all rows, joined, and of each column."""
    if chunk is None:
        return block(columns)
    size = len(start[next(iter(start))])
    if chunk < 1 or size % chunk:
        raise UserError(f"chunks of {chunk} do not divide a batch of {size}: choose a divisor of it")

    # Not neighbours but every so-manieth column make a chunk: of a batch that is split over devices each then gives its
    # share of every chunk, and none has to hold the captions of all.
    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(chunk, -1, *x.shape[1:]), 1, 0)

    @partial(jax.checkpoint, prevent_cse=False)  # within scan, its default would only forbid fusion
    def step(carry: Sums, part: PyTree) -> tuple[Sums, Sums]:
        rows, own = block(part)
        return join(carry, rows), own

    rows, own = jax.lax.scan(step, start, jax.tree.map(split, columns))
    return rows, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(size), own)
