"""Text-to-video and video-to-text retrieval: at which place what belongs together is found.

For the nearest videos of a query, instead of measures over all of them, see `evaluation.knn.nearest`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.knn import unit

TIE = 1e-6
"""Cosines nearer than this count as equal: in float32 their order is a matter of rounding."""


@dataclass(frozen=True)
class Ranking:
    """One direction of `retrieval`; of equal similarities every order is as likely as any other.

    Attributes:
      queries: how many were asked.
      candidates: among how many each searched.
      r1, r5, r10: share of the queries, between 0 and 1, whose match is the first, among the first five or ten; a
        query with ties counts by the probability of it.
      median_rank, mean_rank: over the queries, from 1.
      ranks: of each query's best match, its expected value where there are ties.
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
    """How well captions find their videos, and videos their captions, by cosine.

    A caption has one video to find. A video with several captions is as good as the best of them: its rank is one more
    than the number of other videos' captions above that. Ties are not decided in anyone's favour: embeddings that are
    all equal give the figures of guessing.

    The similarities are computed on the device in blocks, never all of them; memory beside them is that of the
    embeddings.

    Args:
      video: one row a video.
      text: one row a caption.
      owner: row of the video that each caption belongs to; caption `i` belongs to video `i` when None.
      block: rows and columns of a block.

    Raises:
      UserError: nothing to search, embeddings that differ in width or are not finite, an owner that is no video, or a
        video without a caption.
    """
    count = len(video)
    if count == 0 or len(text) == 0:
        raise UserError(f"there is nothing to retrieve: {count} videos and {len(text)} captions, give both")
    if video.shape[1] != text.shape[1]:
        raise UserError(f"videos have {video.shape[1]} values, captions {text.shape[1]}: use one model for both")
    if not (np.isfinite(video).all() and np.isfinite(text).all()):
        raise UserError("the model gave embeddings that are not finite: its weights are damaged, give others")
    if owner is None and len(text) != count:
        raise UserError(f"{len(text)} captions of {count} videos: say which video each one belongs to")
    owner = np.arange(count) if owner is None else owner
    if owner.min() < 0 or owner.max() >= count:
        raise UserError(f"captions must belong to videos 0..{count - 1}, but run from {owner.min()} to {owner.max()}")
    captions = np.bincount(owner, minlength=count)
    if captions.min() == 0:
        raise UserError(f"video {captions.argmin()} of {count} has no caption to be found by: leave it out")

    video, text = (unit(x.astype(np.float32)) for x in (video, text))
    own = np.empty(len(text), np.float32)
    for start in range(0, len(text), block):
        own[start : start + block] = (text[start : start + block] * video[owner[start : start + block]]).sum(axis=1)
    best = np.full(count, -np.inf, np.float32)
    np.maximum.at(best, owner, own)
    of_text, of_video = _compared(video, text, owner, own, best, block)
    # A video's captions that are as near as its best stand in the same tie.
    matches = np.bincount(owner, weights=own >= best[owner] - TIE, minlength=count).astype(np.int64)
    return Retrieval(
        text_to_video=_ranking(*of_text, np.ones(len(text), np.int64), candidates=count),
        video_to_text=_ranking(*of_video, matches, candidates=len(text)),
    )


def _compared(
    video: Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "m e"],
    owner: Int[np.ndarray, "m"],
    own: Float[np.ndarray, "m"],
    best: Float[np.ndarray, "n"],
    block: int,
) -> tuple[tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]], tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]]:
    """Of each caption, how many other videos are nearer than its own and how many as near; of each video, captions."""
    rows, columns = min(block, len(video)), min(block, len(text))
    texts = [_blocks(x, columns, fill) for x, fill in ((text, 0), (owner, -1), (own, 0))]
    of_text = np.zeros((2, texts[0].shape[0], columns), np.int64)
    of_video = []
    texts = jax.device_put(texts)
    videos = (_blocks(x, rows, fill) for x, fill in ((video, 0), (np.arange(len(video)), -2), (best, 0)))
    for part in zip(*videos, strict=True):
        by_video, by_text = jax.device_get(_count(*part, *texts))
        of_video.append(by_video)
        of_text += by_text
    of_video = np.concatenate(of_video, axis=1)[:, : len(video)].astype(np.int64)
    of_text = of_text.reshape(2, -1)[:, : len(text)]
    return (of_text[0], of_text[1]), (of_video[0], of_video[1])


@jax.jit
def _count(
    video: Float[Array, "r e"],
    index: Int[Array, "r"],
    best: Float[Array, "r"],
    text: Float[Array, "k c e"],
    owner: Int[Array, "k c"],
    own: Float[Array, "k c"],
) -> tuple[Int[Array, "2 r"], Int[Array, "2 k c"]]:
    """Of a block of videos with all blocks of captions: other pairs above and as near as a row's and a column's own."""

    def compare(totals: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        text, owner, own = part
        cosines = jnp.einsum("re,ce->rc", video, text, precision="highest")
        others = (index[:, None] >= 0) & (owner >= 0) & (index[:, None] != owner)  # rows that fill a block are negative

        def counts(match: Float[Array, "#r #c"], axis: int) -> Int[Array, "2 _"]:
            above = (others & (cosines > match + TIE)).sum(axis=axis)
            return jnp.stack([above, (others & (cosines >= match - TIE)).sum(axis=axis) - above])

        return totals + counts(best[:, None], 1), counts(own[None], 0)

    totals, by_text = jax.lax.scan(compare, jnp.zeros((2, len(video)), jnp.int32), (text, owner, own))
    return totals, jnp.moveaxis(by_text, 0, 1)


def _blocks(x: np.ndarray, size: int, fill: int) -> np.ndarray:
    """Cut into blocks of equal size, the last one filled up."""
    lacking = -len(x) % size
    return np.pad(x, [(0, lacking)] + [(0, 0)] * (x.ndim - 1), constant_values=fill).reshape(-1, size, *x.shape[1:])


def _ranking(
    above: Int[np.ndarray, "q"], tied: Int[np.ndarray, "q"], matches: Int[np.ndarray, "q"], candidates: int
) -> Ranking:
    """Measures of queries with so many wrong answers above the best right one, so many beside it, and right ones."""
    # In a random order the wrong ones of a tie fall evenly between the right ones.
    ranks = 1 + above + tied / (matches + 1)
    missed, shares = np.ones(len(above)), {}  # probability that no right one is among the first places
    for place in range(10):
        wrong = np.maximum(tied - (place - above), 0)  # of the tie, and not yet placed
        missed *= np.where(place < above, 1, wrong / (wrong + matches))
        shares[place + 1] = float((1 - missed).mean())
    return Ranking(
        queries=len(ranks),
        candidates=candidates,
        r1=shares[1],
        r5=shares[5],
        r10=shares[10],
        median_rank=float(np.median(ranks)),
        mean_rank=float(ranks.mean()),
        ranks=ranks,
    )
