"""Contrastive losses between video and text embeddings.

The losses take unit embeddings of the global batch, where row `i` of `video` matches row `i` of `text`, and return a
float32 scalar. Under jit the batch may be sharded over devices along its leading axis (over a mesh of Auto axes, as
`training.sharding.make_mesh` makes): every row is compared with the captions of all devices, and the gradients equal
those of a single device.

The similarities form a batch by batch matrix. With `chunk` they are computed that many columns at a time, and again in
the backward pass, so that a device stores its rows of one chunk instead of the whole matrix:

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

    The cross-entropy of identifying each clip's caption among those of the batch, and each caption's clip, averaged
    over both directions and the valid rows. All other pairs are negatives, even if another clip has the same caption:
    where captions repeat, as class names do, use `multi_positive_kl`.

    Args:
      video, text: unit embeddings.
      scale: factor on the cosines, the inverse temperature (see `clamp_scale`).
      valid: false for clips that could not be read; they are excluded as rows and as columns.
      chunk: columns computed at a time; all if None.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    video, text, valid = _prepare(video, text, valid)
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

    Every pair of a clip and a caption is a binary classification of whether they match: `-log sigmoid(z logit)` with
    z = 1 on the diagonal and -1 elsewhere, summed over the captions and averaged over the valid clips.

    Args:
      video, text: unit embeddings.
      scale: factor on the cosines; initialised to 10 in the paper.
      bias: added to the logits; initialised to -10 in the paper, since nearly all pairs are negatives.
      valid: false for clips that could not be read; they are excluded as rows and as columns.
      chunk: columns computed at a time; all if None.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    video, text, valid = _prepare(video, text, valid)
    positions = jnp.arange(len(video))

    def block(columns: dict[str, Array]) -> tuple[Sums, Sums]:
        logits = scale * _cosines(video, columns["text"]) + bias
        z = jnp.where(positions[:, None] == columns["position"], 1, -1)
        pairs = valid[:, None] & columns["valid"]
        return {"loss": jnp.where(pairs, jax.nn.softplus(-z * logits), 0).sum(axis=1)}, {}

    rows, _ = _by_columns(
        block,
        lambda a, b: {"loss": a["loss"] + b["loss"]},
        {"loss": jnp.zeros(len(video))},
        {"text": text, "valid": valid, "position": positions},
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

    The Kullback-Leibler divergence between a target and the softmax of the logits, averaged over the valid rows and
    both directions. With `gt` 1 where labels are equal and 0 elsewhere, the target of a row is softmax(10 gt), as in
    the released code (utils/KLLoss.py), or gt divided by its sum, as in section 3.2 of the paper. They differ: for 4096
    clips with one positive each, the released target gives the positive a probability of 0.84, the paper's 1.

    Args:
      video, text: unit embeddings.
      scale: factor on the cosines.
      labels: class of each clip; only their equality matters.
      normalized: use the paper's target instead of the released code's.
      valid: false for clips that could not be read or have no label; they are excluded as rows and as columns.
      chunk: columns computed at a time; all if None.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    video, text, valid = _prepare(video, text, valid)
    rows, columns = _softmaxes(video, text, scale, valid, labels, chunk)
    # A row of the target has only two distinct values, so its product with the logits needs two sums and no matrix. The
    # target is symmetric: rows and columns share it.
    count, positives = valid.sum(), jnp.maximum(rows["positives"], 1)
    high, low = (0.0, -jnp.inf) if normalized else (10.0, 0.0)
    total = jnp.logaddexp(high + jnp.log(positives), low + jnp.log(jnp.maximum(count - positives, 1e-30)))
    log_positive, log_negative = high - total, low - total
    positive, negative = jnp.exp(log_positive), jnp.exp(log_negative)
    entropy = positives * positive * log_positive
    if not normalized:
        entropy += (count - positives) * negative * log_negative
    embeddings = jnp.where(valid[:, None], video, 0), jnp.where(valid[:, None], text, 0)
    losses = []
    for sums, own, others in ((rows, *embeddings), (columns, *embeddings[::-1])):
        logit_sum = scale * (own * others.sum(axis=0)).sum(axis=-1)
        expected = negative * logit_sum + (positive - negative) * sums["matched"]
        losses.append(entropy + sums["normaliser"] - expected)
    return _mean(sum(losses) / 2, valid)


def clamp_scale(log_scale: Float[Array, ""], maximum: float = 100.0) -> Float[Array, ""]:
    """The factor on the cosines from its learnt logarithm, at most `maximum` (100 in CLIP).

    CLIP clamps the parameter itself after every step. Here the parameter is not modified; above the bound only
    gradients that lower it pass, so it neither grows further nor gets stuck there, as it would with `jnp.minimum`.
    """
    return jnp.exp(_bounded(log_scale, jnp.float32(-jnp.inf), jnp.log(jnp.float32(maximum))))


def clamp_temperature(temperature: Float[Array, ""], minimum: float = 0.001, maximum: float = 0.5) -> Float[Array, ""]:
    """The divisor of the cosines from a parameter that is learned itself, between ALBEF's bounds.

    ALBEF clamps the parameter itself before every step; see `clamp_scale` for the gradient here.
    """
    return _bounded(temperature, jnp.float32(minimum), jnp.float32(maximum))


@jax.custom_vjp
def _bounded(value: Float[Array, ""], minimum: Float[Array, ""], maximum: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.clip(value, minimum, maximum)


def _bounded_backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    value, minimum, maximum = saved
    inwards = jnp.where(value < minimum, gradient < 0, jnp.where(value < maximum, True, gradient > 0))
    return jnp.where(inwards, gradient, 0), jnp.zeros_like(minimum), jnp.zeros_like(maximum)


_bounded.defvjp(lambda *bounds: (_bounded(*bounds), bounds), _bounded_backward)


def momentum_info_nce(
    query: Float[Array, "b e"],
    momentum_query: Float[Array, "b e"],
    keys: Float[Array, "b e"],
    queue: Float[Array, "q e"],
    temperature: Float[Array, ""] | float,
    alpha: Float[Array, ""] | float,
    valid: Bool[Array, "b"],
) -> tuple[Float[Array, ""], Float[Array, "b b"]]:
    """InfoNCE against the keys of a momentum model, with soft targets of that model (ALBEF, arXiv:2107.07651, eq. 6).

    One direction: with the embeddings of videos as queries, keys are those of texts, and the other way round. Gradients
    reach the queries and the temperature of their similarities only.

    Args:
      query: unit embeddings of the trained model.
      momentum_query: those of the momentum model for the same inputs.
      keys: the momentum model's embeddings of the other kind; row `i` matches row `i` of the queries.
      queue: earlier keys, none of which match.
      temperature: divides the cosines (see `clamp_temperature`).
      alpha: weight of the momentum model's softmax in the target; that of the matching key is `1 - alpha`.
      valid: false for clips that could not be read; they are excluded as queries and as keys.

    Returns:
      The mean cross-entropy of the valid queries, and the logits of the batch's own keys.
    """
    keys = jax.lax.stop_gradient(jnp.concatenate([keys, queue]).astype(jnp.float32))
    allowed = jnp.concatenate([valid, jnp.ones(len(queue), bool)])
    logits = _cosines(query.astype(jnp.float32), keys) / temperature
    soft = jnp.where(allowed, _cosines(momentum_query.astype(jnp.float32), keys) / temperature, -jnp.inf)
    target = alpha * jax.nn.softmax(soft) + (1 - alpha) * jnp.eye(*logits.shape)
    log_likelihood = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))
    losses = -(jax.lax.stop_gradient(target) * jnp.where(allowed, log_likelihood, 0)).sum(axis=1)
    return _mean(losses, valid), logits[:, : len(query)]


def query_info_nce(
    queries: Float[Array, "b q e"],
    text: Float[Array, "b e"],
    temperature: Float[Array, ""] | float,
    valid: Bool[Array, "b"],
    smoothing: float = 0.1,
) -> tuple[Float[Array, ""], Float[Array, "b b"]]:
    """InfoNCE of texts and of images with several embeddings, the nearest of which counts (BLIP-2, arXiv:2301.12597).

    Args:
      queries: unit embeddings of each image's queries.
      text: unit embeddings.
      temperature: divides the cosines.
      valid: false for clips that could not be read; they are excluded as rows and as columns.
      smoothing: part of the target that all columns share evenly.

    Returns:
      The mean of both directions over the valid rows, and the logits of images (rows) and texts.
    """
    cosines = jnp.einsum("bqe,ce->bcq", queries.astype(jnp.float32), text.astype(jnp.float32), precision="highest")
    logits = cosines.max(axis=-1) / temperature
    target = (1 - smoothing) * jnp.eye(len(valid)) + smoothing * valid / jnp.maximum(valid.sum(), 1)
    losses = []
    for rows in (logits, logits.T):
        log_likelihood = jax.nn.log_softmax(jnp.where(valid, rows, -jnp.inf))
        losses.append(-(target * jnp.where(valid, log_likelihood, 0)).sum(axis=1))
    return _mean(sum(losses) / 2, valid), logits


def enqueue(
    queue: Float[Array, "q e"], position: Int[Array, ""], rows: Float[Array, "b e"], valid: Bool[Array, "b"]
) -> Float[Array, "q e"]:
    """The queue with its oldest rows, from `position` on, replaced by these; the next position is `b` rows later.

    Rows of clips that could not be read leave those of the queue in place.

    Raises:
      UserError: the batch does not divide the queue.
    """
    if len(queue) % len(rows):
        raise UserError(
            f"a queue of {len(queue)} is not divided by a batch of {len(rows)}: choose a multiple of the batch"
        )
    oldest = jax.lax.dynamic_slice_in_dim(queue, position, len(rows))
    rows = jnp.where(valid[:, None], rows.astype(queue.dtype), oldest)
    return jax.lax.dynamic_update_slice_in_dim(queue, rows, position, axis=0)


def _prepare(
    video: Float[Array, "b e"], text: Float[Array, "b e"], valid: Bool[Array, "b"] | None
) -> tuple[Float[Array, "b e"], Float[Array, "b e"], Bool[Array, "b"]]:
    valid = jnp.ones(len(video), bool) if valid is None else valid
    return video.astype(jnp.float32), text.astype(jnp.float32), valid


def _cosines(video: Float[Array, "b e"], text: Float[Array, "c e"]) -> Float[Array, "b c"]:
    # At default precision accelerators round the factors to 8 or 10 bits: errors of 0.1 and more in logits of 100.
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
    """Statistics of the softmax over each row of the logits, and over each column.

    These are the logarithm of its denominator (`normaliser`) and, with labels, the number of positives and the sum of
    their logits (`positives`, `matched`). The values of invalid rows and columns are meaningless.
    """

    def block(columns: dict[str, Array]) -> tuple[Sums, Sums]:
        logits = scale * _cosines(video, columns["text"])
        pairs = valid[:, None] & columns["valid"]
        masked = jnp.where(pairs, logits, -jnp.inf)
        sums_by_axis = [{"normaliser": jax.nn.logsumexp(masked, axis=axis)} for axis in (1, 0)]
        if labels is not None:
            equal = pairs & (labels[:, None] == columns["label"])
            for axis, sums in zip((1, 0), sums_by_axis, strict=True):
                sums["positives"] = equal.sum(axis=axis, dtype=jnp.float32)
                sums["matched"] = jnp.where(equal, logits, 0).sum(axis=axis)
        return sums_by_axis[0], sums_by_axis[1]

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
    """Applies `block` to the columns in chunks; joins its sums over rows and concatenates those over columns."""
    if chunk is None:
        return block(columns)
    size = len(start[next(iter(start))])
    if chunk < 1 or size % chunk:
        raise UserError(f"chunk size {chunk} does not divide the batch of {size}: choose a divisor")

    # A chunk takes columns at regular intervals rather than neighbours: if the batch is sharded over devices, each of
    # them then contributes equally to every chunk, and none has to store the captions of all.
    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(chunk, -1, *x.shape[1:]), 1, 0)

    @partial(jax.checkpoint, prevent_cse=False)  # not needed within scan, and it would prevent fusion
    def step(carry: Sums, part: PyTree) -> tuple[Sums, Sums]:
        rows, own = block(part)
        return join(carry, rows), own

    rows, own = jax.lax.scan(step, start, jax.tree.map(split, columns))
    return rows, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(size), own)
