"""Text-to-video and video-to-text retrieval metrics.

To search for the videos nearest to a query, see `evaluation.knn.nearest`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.knn import unit

TIE = 1e-6
"""Cosines that differ by less count as equal, since rounding decides their order in float32."""
LARGEST = 80.0
"""Largest exponent of a float32: greater scores than this need no exact value, as they are above any match."""


@dataclass(frozen=True)
class Ranking:
    """Metrics of one direction of retrieval. Ties are treated as ordered at random.

    Attributes:
      queries: number of queries.
      candidates: number of candidates per query.
      r1, r5, r10: recall at 1, 5 and 10: the fraction of queries with a match among the first candidates. A query with
        ties counts by its probability.
      median_rank, mean_rank: over the queries; the best rank is 1.
      ranks: expected rank of the best match of each query.
    """

    queries: int
    candidates: int
    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    ranks: Float[np.ndarray, "q"]


@dataclass(frozen=True)
class Retrieval:
    """Both directions."""

    text_to_video: Ranking
    video_to_text: Ranking


def retrieval(
    video: Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "m _"],
    owner: Int[np.ndarray, "m"] | None = None,
    block: int = 1024,
    dual_softmax: float | None = None,
) -> Retrieval:
    """Retrieval metrics by cosine similarity, from captions to videos and from videos to captions.

    A caption belongs to one video. A video may have several captions and is ranked by the best of them: its rank is one
    more than the number of captions of other videos with a higher similarity. Ties count as expected values: embeddings
    that are all equal score as guessing does.

    With `dual_softmax`, candidates are ranked by their cosine times its softmax over all queries, so that one that
    resembles every query is not the first for all of them (Cheng et al. 2021, arXiv:2109.04290; InternVideo's tables).
    A rank then depends on the other queries, so state it with the numbers. Difference: if videos have several captions,
    InternVideo's code takes the softmax over captions in both directions.

    The similarities are computed on the device in blocks, so memory grows with the embeddings and not with their
    product.

    Args:
      video: one row per video.
      text: one row per caption.
      owner: row of the video that each caption belongs to; if None, caption `i` belongs to video `i`.
      block: rows and columns per block.
      dual_softmax: factor on the cosines before the softmax: the scale that the model has learnt, at most 100, in
        InternVideo's code, and 1 in ViCLIP's; None ranks by the cosines alone.

    Raises:
      UserError: no videos or captions, embeddings that differ in width or are not finite, an owner that is not a video,
        or a video without a caption.
    """
    count = len(video)
    if count == 0 or len(text) == 0:
        raise UserError(
            f"cannot evaluate retrieval of {count} videos and {len(text)} captions: give at least one of each"
        )
    if video.shape[1] != text.shape[1]:
        raise UserError(
            f"videos have width {video.shape[1]}, captions {text.shape[1]}: compute both with the same model"
        )
    if not (np.isfinite(video).all() and np.isfinite(text).all()):
        raise UserError("the model's embeddings are not finite: use other weights, these seem to be damaged")
    if owner is None and len(text) != count:
        raise UserError(f"got {len(text)} captions and {count} videos: pass `owner`, the video of each caption")
    owner = np.arange(count) if owner is None else owner
    if owner.min() < 0 or owner.max() >= count:
        raise UserError(f"owners must be in 0..{count - 1}, but range from {owner.min()} to {owner.max()}")
    captions = np.bincount(owner, minlength=count)
    if captions.min() == 0:
        raise UserError(f"video {captions.argmin()} of {count} has no caption: leave it out")

    video, text = (unit(x.astype(np.float32)) for x in (video, text))
    own = np.empty(len(text), np.float32)
    for start in range(0, len(text), block):
        own[start : start + block] = (text[start : start + block] * video[owner[start : start + block]]).sum(axis=1)
    scale, sums = 0.0, (np.zeros(count), np.zeros(len(text)))
    if dual_softmax is not None:
        scale, sums = dual_softmax, _log_sums(video, text, dual_softmax, block)
    over_text, over_video = scale * own - sums[0][owner], scale * own - sums[1]
    best = np.lexsort((own * np.exp(over_video), owner))[captions.cumsum() - 1]  # caption of each video
    text_counts, video_counts = _compare(
        Side(video, np.arange(count), own[best], over_video[best], sums[0]),
        Side(text, owner, own, over_text, sums[1]),
        dual_softmax,
        block,
    )
    # Captions of a video that are as similar as its best one are part of the same tie.
    match = own[best][owner]
    scores = own * np.exp(np.minimum(over_video - over_video[best][owner], LARGEST))
    tied = scores >= match - TIE * (1 + scale * np.abs(match))
    matches = np.bincount(owner, weights=tied, minlength=count).astype(np.int64)
    return Retrieval(
        text_to_video=_ranking(*text_counts, np.ones(len(text), np.int64), candidates=count),
        video_to_text=_ranking(*video_counts, matches, candidates=len(text)),
    )


def nearest_pairs(
    video: Float[np.ndarray, "n e"], text: Float[np.ndarray, "m e"], count: int
) -> Bool[np.ndarray, "n m"]:
    """The pairs to score for `reranked`: of each caption with its nearest videos, and each video with its captions.

    Args:
      video, text: unit embeddings.
      count: number of nearest ones of each.
    """
    cosines = video @ text.T
    return _nearest(cosines, count) | _nearest(cosines.T, count).T


def reranked(
    video: Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "m e"],
    owner: Int[np.ndarray, "m"],
    scores: Float[np.ndarray, "n m"],
    count: int,
) -> Retrieval:
    """`retrieval` whose nearest candidates are ordered again by other scores, such as those of matching (ALBEF; BLIP).

    The `count` candidates of each query with the highest cosines come first, by their scores; the others follow by
    their cosines. All pairs are in memory.

    Args:
      video, text: unit embeddings.
      owner: row of the video that each caption belongs to.
      scores: of the pairs of `nearest_pairs`; the others are not read.
    """
    cosines = video @ text.T

    def order_again(cosines: np.ndarray, scores: np.ndarray) -> np.ndarray:
        nearest = _nearest(cosines, count)
        above_all = 3.0 - scores[nearest].min()  # of the cosines
        return np.where(nearest, scores + above_all, cosines)

    return _ranked(order_again(cosines, scores), order_again(cosines.T, scores.T).T, owner)


def ranked(scores: Float[np.ndarray, "n m"], owner: Int[np.ndarray, "m"]) -> Retrieval:
    """`retrieval` by given scores of videos (rows) and captions, such as the best cosine of several embeddings.

    Args:
      owner: row of the video that each caption belongs to.
    """
    return _ranked(scores, scores, owner)


def _ranked(to_text: Float[np.ndarray, "n m"], to_video: Float[np.ndarray, "n m"], owner: np.ndarray) -> Retrieval:
    """The metrics of scores that may differ between the directions."""
    match = owner == np.arange(len(to_text))[:, None]

    def rank(final: np.ndarray, match: np.ndarray) -> Ranking:
        best = np.where(match, final, -np.inf).max(axis=1, keepdims=True)
        above = (~match & (final > best + TIE)).sum(axis=1)
        tied = (~match & (final >= best - TIE)).sum(axis=1) - above
        return _ranking(above, tied, (match & (final >= best - TIE)).sum(axis=1), candidates=match.shape[1])

    return Retrieval(text_to_video=rank(to_video.T, match.T), video_to_text=rank(to_text, match))


def _nearest(cosines: Float[np.ndarray, "q c"], count: int) -> Bool[np.ndarray, "q c"]:
    chosen = np.zeros(cosines.shape, bool)
    np.put_along_axis(chosen, np.argsort(-cosines, axis=1, kind="stable")[:, :count], values=True, axis=1)
    return chosen


class Side(NamedTuple):
    """The videos or the captions: as queries with their best match, and as candidates."""

    embeddings: Float[Array, "*n e"] | Float[np.ndarray, "*n e"]
    video: Int[Array, "*n"] | Int[np.ndarray, "*n"]
    """Number of the video, or of the caption's video; negative for padding."""
    match: Float[Array, "*n"] | Float[np.ndarray, "*n"]
    """Cosine of the best match of the query."""
    weight: Float[Array, "*n"] | Float[np.ndarray, "*n"]
    """Logarithm of the softmax by which it is multiplied."""
    log_sum: Float[Array, "*n"] | Float[np.ndarray, "*n"]
    """Logarithm of the candidate's denominator in the softmax over queries."""


def _log_sums(
    video: Float[np.ndarray, "n e"], text: Float[np.ndarray, "m e"], scale: float, block: int
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    """Logarithms of the sums of exp(scale * cosine) over the captions for each video, and over the videos."""
    size = min(block, len(text))
    texts = jax.device_put((_blocks(text, size, 0), _blocks(np.ones(len(text), bool), size, False)))
    video_sums, text_sums = [], np.full(len(text), -np.inf)
    for start in range(0, len(video), block):
        by_video, by_text = jax.device_get(_log_sum(video[start : start + block], *texts, scale))
        video_sums.append(by_video)
        text_sums = np.logaddexp(text_sums, by_text.ravel()[: len(text)])
    return np.concatenate(video_sums).astype(np.float64), text_sums


@jax.jit
def _log_sum(
    video: Float[Array, "r e"], text: Float[Array, "k c e"], valid: Bool[Array, "k c"], scale: Float[Array, ""] | float
) -> tuple[Float[Array, "r"], Float[Array, "k c"]]:
    """The same for a block of videos and all captions: over the captions, and over the videos of the block."""

    def add(totals: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        text, valid = part
        logits = scale * jnp.einsum("re,ce->rc", video, text, precision="highest")
        over_text = jax.nn.logsumexp(jnp.where(valid, logits, -jnp.inf), axis=1)
        return jnp.logaddexp(totals, over_text), jax.nn.logsumexp(logits, axis=0)

    return jax.lax.scan(add, jnp.full(len(video), -jnp.inf), (text, valid))


def _compare(
    videos: Side, texts: Side, scale: float | None, block: int
) -> tuple[tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]], tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]]:
    """Counts for each caption the other videos above its own, and those tied with it; for each video, the captions."""
    count, length = len(videos.video), len(texts.video)
    rows, columns = min(block, count), min(block, length)
    videos, texts = (
        Side(*(_blocks(x, size, fill) for x, fill in zip(side, Side(0, fill, 0, 0, 0), strict=True)))
        for side, size, fill in ((videos, rows, -2), (texts, columns, -1))
    )
    text_counts = np.zeros((2, *texts.video.shape), np.int64)
    video_counts = []
    texts = jax.device_put(texts)
    for part in zip(*videos, strict=True):
        by_video, by_text = jax.device_get(_count(Side(*part), texts, scale))
        video_counts.append(by_video)
        text_counts += by_text
    video_counts = np.concatenate(video_counts, axis=1)[:, :count].astype(np.int64)
    text_counts = text_counts.reshape(2, -1)[:, :length]
    return (text_counts[0], text_counts[1]), (video_counts[0], video_counts[1])


@jax.jit
def _count(
    video: Side, texts: Side, scale: Float[Array, ""] | float | None
) -> tuple[Int[Array, "2 r"], Int[Array, "2 k c"]]:
    """Counts the other pairs above the matching pair and those tied with it, for a block of videos and all captions."""

    def compare(totals: Array, text: Side) -> tuple[Array, Array]:
        cosines = jnp.einsum("re,ce->rc", video.embeddings, text.embeddings, precision="highest")
        # Padding rows have negative numbers.
        others = (video.video[:, None] >= 0) & (text.video >= 0) & (video.video[:, None] != text.video)

        def counts(match: Array, weight: Array, log_sum: Array, axis: int) -> Int[Array, "2 _"]:
            scores, margin = cosines, TIE
            if scale is not None:  # scores and match are divided by the match's softmax, as both may underflow
                scores = cosines * jnp.exp(jnp.minimum(scale * cosines - log_sum - weight, LARGEST))
                margin = TIE * (1 + scale * jnp.abs(match))  # the score of the match, if its cosine differed by TIE
            above = (others & (scores > match + margin)).sum(axis=axis)
            return jnp.stack([above, (others & (scores >= match - margin)).sum(axis=axis) - above])

        by_video = counts(video.match[:, None], video.weight[:, None], text.log_sum, axis=1)
        return totals + by_video, counts(text.match, text.weight, video.log_sum[:, None], axis=0)

    totals, by_text = jax.lax.scan(compare, jnp.zeros((2, len(video.video)), jnp.int32), texts)
    return totals, jnp.moveaxis(by_text, 0, 1)


def _blocks(x: np.ndarray, size: int, fill: int) -> np.ndarray:
    """Splits an array into blocks of `size` rows, the last one padded with `fill`."""
    padding = -len(x) % size
    return np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), constant_values=fill).reshape(-1, size, *x.shape[1:])


def _ranking(
    above: Int[np.ndarray, "q"], tied: Int[np.ndarray, "q"], matches: Int[np.ndarray, "q"], candidates: int
) -> Ranking:
    """Metrics from, per query, the wrong candidates above the best match, those tied with it, and the tied matches."""
    # In a random order, the wrong candidates of a tie are spread evenly between the matches.
    ranks = 1 + above + tied / (matches + 1)
    missed, recall = np.ones(len(above)), {}  # probability that no match is among the first candidates
    for position in range(10):
        wrong = np.maximum(tied - (position - above), 0)  # remaining in the tie
        missed *= np.where(position < above, 1, wrong / (wrong + matches))
        recall[position + 1] = float((1 - missed).mean())
    return Ranking(
        queries=len(ranks),
        candidates=candidates,
        r1=recall[1],
        r5=recall[5],
        r10=recall[10],
        median_rank=float(np.median(ranks)),
        mean_rank=float(ranks.mean()),
        ranks=ranks,
    )
