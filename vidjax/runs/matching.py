"""Telling whether videos and texts match, with an ALBEF or a BLIP: of chosen pairs, and during training."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from vidjax.evaluation.retrieval import Retrieval, nearest_pairs, reranked, retrieval
from vidjax.models.aligned import Aligned
from vidjax.models.blip import Blip
from vidjax.runs.run import Run
from vidjax.runs.validation import Validator
from vidjax.runs.video_text import clip_encoder, in_chunks, similarity_scale, text_encoder, tokenize_all
from vidjax.training.sharding import jit_on_mesh, put_batch
from vidjax.training.state import TrainState

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer

Scorer = Callable[
    [dict, Iterable[dict[str, np.ndarray]], Int[np.ndarray, "n"], Int[np.ndarray, "m t"], Bool[np.ndarray, "n m"]],
    Float[np.ndarray, "n m 2"],
]


def pair_scorer(model: Aligned, mesh: Mesh, chunk: int = 64) -> Scorer:
    """`(variables, batches, indices, ids, wanted) -> logits` of whether the wanted pairs of videos and texts match.

    Videos are read once, in order, and not kept. The batches are those of `batches.evaluation_batches`, of which videos
    that are not among the indices are left out; `indices` are those of the rows of `wanted`. The logits of other pairs
    are NaN. Each device scores `chunk` pairs at a time.
    """

    @partial(jit_on_mesh, mesh=mesh)
    def look(variables: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        seen = model.apply(variables, model.card.preprocess(batch["video"]), method="seen")
        return seen, batch["index"], batch["valid"]

    @partial(jit_on_mesh, mesh=mesh)
    def score(variables: dict, seen: jax.Array, pairs: dict[str, jax.Array]) -> jax.Array:
        logits = model.apply(variables, pairs["ids"], seen[pairs["clip"]], method="match_texts")
        return logits.astype(jnp.float32)

    def score_pairs(variables: dict, batches: Iterable, indices: np.ndarray, ids: np.ndarray, wanted: np.ndarray):
        logits, row_of = np.full((*wanted.shape, 2), np.nan, np.float32), {int(x): row for row, x in enumerate(indices)}
        for batch in batches:
            seen, index, valid = look(variables, put_batch({n: batch[n] for n in ("video", "index", "valid")}, mesh))
            index, valid = jax.device_get((index, valid))
            rows = {clip: row_of[int(index[clip])] for clip in np.flatnonzero(valid) if int(index[clip]) in row_of}
            pairs = [(clip, text) for clip, row in rows.items() for text in np.flatnonzero(wanted[row])]
            if pairs:
                clips, texts = np.array(pairs, np.int32).T
                scored = in_chunks(partial(score, variables, seen), {"clip": clips, "ids": ids[texts]}, mesh, chunk)
                logits[[rows[clip] for clip in clips], texts] = scored
        return logits

    return score_pairs


def rank_again(
    model: Aligned,
    video: Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "m e"],
    owner: Int[np.ndarray, "m"],
    logits: Float[np.ndarray, "n m 2"],
    count: int,
) -> Retrieval:
    """`reranked` by the logit of a match (ALBEF) or by its sum with the cosine (BLIP), as each was published."""
    scores = logits[..., 1] + (video @ text.T if isinstance(model, Blip) else 0)
    return reranked(video, text, owner, scores, count)


def rank_jointly(
    scale: float,
    video: Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "m e"],
    owner: Int[np.ndarray, "m"],
    logits: Float[np.ndarray, "n m 2"],
    count: int,
) -> Retrieval:
    """`reranked` by the log-odds of a match plus the scaled cosine.

    Negatives are drawn with the probabilities that contrast gives to them, so matching learns the ratio of the data to
    these (noise-contrastive estimation; Gutmann and Hyvarinen 2010) and says nothing of what contrast already tells
    apart. The sum is the logarithm of their product.

    Args:
      scale: factor on the cosines that the model has learnt; see `video_text.similarity_scale`.
    """
    return reranked(video, text, owner, logits[..., 1] - logits[..., 0] + scale * (video @ text.T), count)


def match_validator(run: Run, tokenizer: "Tokenizer", examples: int, count: int) -> Validator:
    """How well matching tells pairs of the first validation videos apart, and ranks the `count` nearest of them again.

    `itm_accuracy` is the fraction of right answers for each video with its first caption, and with a caption of another
    video that differs from its own: chance is 0.5. `itc_r1` and `itm_r1` are the mean R@1 of both directions of
    retrieval among these videos, before and after matching (see `rank_jointly`).

    Args:
      examples: number of videos.
    """
    source, model, mesh = run.sources["validation"], run.model, run.mesh
    embed_clips, embed_texts = clip_encoder(model, mesh), text_encoder(model, tokenizer, mesh)
    score_pairs, chosen = pair_scorer(model, mesh), np.arange(min(examples, len(source)))

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params, **state.model_state}
        video, _, index, valid = embed_clips(variables, run.validation_batches(view_counts=(1, 1), indices=chosen))
        video, index = video[valid, 0], index[valid]
        captions = [source.captions(int(i)) for i in index]
        owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
        texts = [text for each in captions for text in each]
        embedded, first = embed_texts(variables, texts), np.unique(owner, return_index=True)[1]
        other = [_other_text(row, captions, first) for row in range(len(captions))]
        rows, others = np.flatnonzero([o is not None for o in other]), [o for o in other if o is not None]
        wanted = nearest_pairs(video, embedded, count)
        wanted[rows, first[rows]] = wanted[rows, others] = True
        ids, _ = tokenize_all(tokenizer, texts, model.text.context)
        logits = score_pairs(variables, run.validation_batches(indices=chosen), index, ids, wanted)
        says_match = logits[..., 1] > logits[..., 0]
        right = np.concatenate([says_match[rows, first[rows]], ~says_match[rows, others]])
        before = retrieval(video, embedded, owner)
        scale = float(similarity_scale(model, state.evaluated_params))
        after = rank_jointly(scale, video, embedded, owner, logits, count)
        recalls = {"itc_r1": before, "itm_r1": after}
        means = {name: (each.text_to_video.r1 + each.video_to_text.r1) / 2 for name, each in recalls.items()}
        return means | {"itm_accuracy": float(right.mean()) if len(right) else 0.0}

    return validate


def _other_text(row: int, captions: Sequence[Sequence[str]], first: Int[np.ndarray, "n"]) -> int | None:
    """The first caption of a video half the source away, or one after it, that is no caption of this video."""
    count = len(captions)
    candidates = ((row + count // 2 + shift) % count for shift in range(count))
    return next((int(first[other]) for other in candidates if captions[other][0] not in captions[row]), None)
