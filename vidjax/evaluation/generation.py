"""Generating texts word by word: beam search, which with one beam is greedy decoding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEVER = -1e9  # finite, so that no difference of two is undefined


def beam_search(
    next_logits: Callable[[Int[Array, "bk m"], Int[Array, ""]], Float[Array, "bk v"]],
    batch: int,
    start: int,
    end: int,
    length: int,
    beams: int = 1,
) -> tuple[Int[Array, "b m"], Float[Array, "b"]]:
    """The best text of each row of a batch, by the mean log-likelihood of its tokens.

    As in transformers with its defaults: of twice as many continuations as beams those that end a text are set aside,
    if they are among the best, and the others are continued, until none can become better than the texts set aside. A
    pure function for use under `jit`, in one compiled loop.

    Args:
      next_logits: logits of the next token of all beams of all rows, those of a row next to one another, from their ids
        (padded with 0) and the number of tokens so far.
      start: id of the first token.
      end: id of the token that ends a text.
      length: maximum number of tokens, with the first; a text without an end token may be returned at this length.
      beams: number of texts that are continued for each row.

    Returns:
      The ids, padded with 0 after the end token, and their mean log-likelihoods, without the first token.
    """
    first = jnp.zeros((batch, beams, length), jnp.int32).at[:, :, 0].set(start)
    only_one = jnp.full((batch, beams), NEVER).at[:, 0].set(0.0)  # all beams begin with the same text
    state = (jnp.int32(1), first, only_one, first, jnp.full((batch, beams), NEVER))

    def can_improve(state: tuple[Array, ...]) -> Array:
        count, _, scores, _, done_scores = state
        best = scores.max(axis=1) / jnp.maximum(count - 1, 1)
        return (count < length) & (best > done_scores.min(axis=1)).any()

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, texts, scores, done, done_scores = state
        logits = next_logits(texts.reshape(-1, length), count)
        likelihoods = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, -1)
        words = likelihoods.shape[-1]
        both, places = jax.lax.top_k(
            (scores[..., None] + likelihoods).reshape(batch, -1), min(2 * beams, beams * words)
        )
        texts = jnp.take_along_axis(texts, (places // words)[..., None], axis=1).at[:, :, count].set(places % words)
        ends = places % words == end
        among_best = ends & (jnp.arange(both.shape[1]) < beams)
        finished = jnp.where(among_best, both / count, NEVER)
        done, done_scores = _best(beams, [done, texts], [done_scores, finished])
        texts, scores = _best(beams, [texts], [jnp.where(ends, NEVER, both)])
        return count + 1, texts, scores, done, done_scores

    count, texts, scores, done, done_scores = jax.lax.while_loop(can_improve, step, state)
    # The texts still open compete only at full length: otherwise none of them could have become better.
    scores = jnp.where(count == length, scores / (count - 1), NEVER)
    done, done_scores = _best(1, [done, texts], [done_scores, scores])
    return done[:, 0], done_scores[:, 0]


def _best(
    count: int, texts: list[Int[Array, "b _ m"]], scores: list[Float[Array, "b _"]]
) -> tuple[Int[Array, "b n m"], Float[Array, "b n"]]:
    """The texts with the highest scores of several sets, in this order."""
    scores, places = jax.lax.top_k(jnp.concatenate(scores, axis=1), count)
    return jnp.take_along_axis(jnp.concatenate(texts, axis=1), places[..., None], axis=1), scores
