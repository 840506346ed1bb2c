"""Text-to-video and video-to-text retrieval metrics.

To search for the videos nearest to a query, see `evaluation.knn.nearest`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.knn import unit

TIE = 1e-6
"""Cosines that differ by less count as equal, since rounding decides their order in float32."""


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
) -> Retrieval:
    """Retrieval metrics by cosine similarity, from captions to videos and from videos to captions.

    A caption belongs to one video. A video may have several captions and is ranked by the best of them: its rank is one
    more than the number of captions of other videos with a higher similarity. Ties count as expected values: embeddings
    that are all equal score as guessing does.

    The similarities are computed on the device in blocks, so memory grows with the embeddings and not with their
    product.

    Args:
      video: one row per video.
      text: one row per caption.
      owner: row of the video that each caption belongs to; if None, caption `i` belongs to video `i`.
      block: rows and columns per block.

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
    best = np.full(count, -np.inf, np.float32)
    np.maximum.at(best, owner, own)
    text_counts, video_counts = _compare(video, text, owner, own, best, block)
    # Captions of a video that are as similar as its best one are part of the same tie.
    matches = np.bincount(owner, weights=own >= best[owner] - TIE, minlength=count).astype(np.int64)
    return Retrieval(
        text_to_video=_ranking(*text_counts, np.ones(len(text), np.int64), candidates=count),
        video_to_text=_ranking(*video_counts, matches, candidates=len(text)),
    )


def _compare(
    video: Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "m e"],
    owner: Int[np.ndarray, "m"],
    own: Float[np.ndarray, "m"],
    best: Float[np.ndarray, "n"],
    block: int,
) -> tuple[tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]], tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]]:
    """Counts for each caption the other videos above its own, and those tied with it; for each video, the captions."""
    rows, columns = min(block, len(video)), min(block, len(text))
    texts = [_blocks(x, columns, fill) for x, fill in ((text, 0), (owner, -1), (own, 0))]
    text_counts = np.zeros((2, texts[0].shape[0], columns), np.int64)
    video_counts = []
    texts = jax.device_put(texts)
    videos = (_blocks(x, rows, fill) for x, fill in ((video, 0), (np.arange(len(video)), -2), (best, 0)))
    for part in zip(*videos, strict=True):
        by_video, by_text = jax.device_get(_count(*part, *texts))
        video_counts.append(by_video)
        text_counts += by_text
    video_counts = np.concatenate(video_counts, axis=1)[:, : len(video)].astype(np.int64)
    text_counts = text_counts.reshape(2, -1)[:, : len(text)]
    return (text_counts[0], text_counts[1]), (video_counts[0], video_counts[1])


@jax.jit
def _count(
    video: Float[Array, "r e"],
    index: Int[Array, "r"],
    best: Float[Array, "r"],
    text: Float[Array, "k c e"],
    owner: Int[Array, "k c"],
    own: Float[Array, "k c"],
) -> tuple[Int[Array, "2 r"], Int[Array, "2 k c"]]:
    """Counts the other pairs above the matching pair and those tied with it, for a block of videos and all captions."""

    def compare(totals: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        text, owner, own = part
        cosines = jnp.einsum("re,ce->rc", video, text, precision="highest")
        others = (index[:, None] >= 0) & (owner >= 0) & (index[:, None] != owner)  # padding rows have negative indices

        def counts(match: Float[Array, "#r #c"], axis: int) -> Int[Array, "2 _"]:
            above = (others & (cosines > match + TIE)).sum(axis=axis)
            return jnp.stack([above, (others & (cosines >= match - TIE)).sum(axis=axis) - above])

        return totals + counts(best[:, None], 1), counts(own[None], 0)

    totals, by_text = jax.lax.scan(compare, jnp.zeros((2, len(video)), jnp.int32), (text, owner, own))
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
