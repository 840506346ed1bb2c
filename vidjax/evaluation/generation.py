"""Writing texts word by word, each in one compiled loop: beam search, which with one beam is greedy, and sampling.

Both are pure functions for use under `jit` and know no model. They take the logits of the first word, which follow from
a prompt, and a `Step` that gives those of the next word from the last one and a cache of what came before.
`runs.generation` makes both of a model.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Step = Callable[[Int[Array, "b"], Int[Array, ""], PyTree], tuple[Float[Array, "b v"], PyTree]]
"""`(words, count, cache) -> logits, cache`: logits of the words that follow these, before which `count` were written.

Leaves of the cache have a row for each text along their first axis.
"""

NEVER = -1e9  # finite, so that no difference of two is undefined


def beam_search(
    step: Step,
    logits: Float[Array, "b v"],
    cache: PyTree,
    *,
    length: int,
    end: int,
    beams: int = 1,
    length_penalty: float = 1.0,
    shortest: int = 0,
) -> tuple[Int[Array, "b m"], Float[Array, "b"]]:
    """The best text of each row of a batch, by the log-likelihood of its words over a power of their number.

    As in transformers with its defaults: of twice as many continuations as beams those that end a text are set aside,
    if they are among the best, and the others are continued, until none of the row seems to become better than the
    texts set aside. With one beam the likeliest word is taken each time.

    Args:
      step: takes all beams of all rows, those of a row next to one another.
      logits: of the first word of each row.
      cache: rows of the prompts, without beams.
      length: maximum number of words, with the end; a text without an end may be returned at this length.
      end: id of the token that ends a text.
      beams: number of texts that are continued for each row.
      length_penalty: exponent of the number of words; higher values prefer longer texts.
      shortest: minimum number of words before the end.

    Returns:
      The ids, padded with 0 after the end token, and their scores.
    """
    batch, words = logits.shape
    blank = jnp.zeros((batch, beams, length), jnp.int32)
    only_one = jnp.full((batch, beams), NEVER).at[:, 0].set(0.0)  # all beams begin with the same text
    logits, cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), (logits, cache))
    state = (
        jnp.int32(0),
        logits,
        cache,
        blank,
        only_one,
        blank,
        jnp.full((batch, beams), NEVER),
        jnp.ones(batch, bool),
    )

    def is_open(state: tuple) -> Array:
        return (state[0] < length) & state[-1].any()

    def search(state: tuple) -> tuple:
        count, logits, cache, texts, scores, done, done_scores, improves = state
        likelihoods = _without_end(jax.nn.log_softmax(logits.astype(jnp.float32)), end, count < shortest)
        both = (scores[..., None] + likelihoods.reshape(batch, beams, words)).reshape(batch, -1)
        both, places = jax.lax.top_k(both, min(2 * beams, beams * words))
        parents, chosen = places // words, places % words
        texts = jnp.take_along_axis(texts, parents[..., None], axis=1).at[:, :, count].set(chosen)
        ends = chosen == end
        among_best = ends & (jnp.arange(both.shape[1]) < beams) & improves[:, None]
        finished = jnp.where(among_best, both / (count + 1) ** length_penalty, NEVER)
        (done,), done_scores = _best(beams, [[done], [texts]], [done_scores, finished])
        (texts, parents, chosen), scores = _best(beams, [[texts, parents, chosen]], [jnp.where(ends, NEVER, both)])
        improves &= scores[:, 0] / (count + 1) ** length_penalty > done_scores.min(axis=1)

        def go_on() -> tuple[Array, PyTree]:
            rows = (parents + beams * jnp.arange(batch)[:, None]).ravel()
            moved = cache if beams == 1 else jax.tree.map(lambda x: x[rows], cache)
            return step(chosen.ravel(), count, moved)

        logits, cache = jax.lax.cond(count + 1 < length, go_on, lambda: (logits, cache))
        return count + 1, logits, cache, texts, scores, done, done_scores, improves

    count, _, _, texts, scores, done, done_scores, improves = jax.lax.while_loop(is_open, search, state)
    # The texts still open compete only at full length: otherwise none of them could have become better.
    scores = jnp.where(improves[:, None] & (count == length), scores / length**length_penalty, NEVER)
    (done,), done_scores = _best(1, [[done], [texts]], [done_scores, scores])
    return done[:, 0], done_scores[:, 0]


def sample(
    step: Step,
    logits: Float[Array, "b v"],
    cache: PyTree,
    key: Key[Array, ""],
    *,
    length: int,
    end: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    shortest: int = 0,
) -> Int[Array, "b m"]:
    """Draws a text for each row of a batch, word by word; see `likely_words` and `beam_search`.

    Returns:
      The ids, padded with 0 after the end token.
    """
    choose = partial(likely_words, temperature=temperature, top_k=top_k, top_p=top_p)
    state = (jnp.int32(0), logits, cache, jnp.zeros((len(logits), length), jnp.int32), jnp.zeros(len(logits), bool))

    def is_open(state: tuple) -> Array:
        return (state[0] < length) & ~state[-1].all()

    def draw(state: tuple) -> tuple:
        count, logits, cache, texts, has_ended = state
        logits = choose(_without_end(logits.astype(jnp.float32), end, count < shortest))
        words = jax.random.categorical(jax.random.fold_in(key, count), logits).astype(jnp.int32)
        words = jnp.where(has_ended, 0, words)
        logits, cache = step(words, count, cache)
        return count + 1, logits, cache, texts.at[:, count].set(words), has_ended | (words == end)

    return jax.lax.while_loop(is_open, draw, state)[3]


def likely_words(
    logits: Float[Array, "b v"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Array, "b v"]:
    """Logits over the temperature, with those of unlikely words -inf.

    Args:
      temperature: below 1 sharpens the distribution.
      top_k: number of likeliest words that are kept; all if None.
      top_p: of these, the likeliest whose probabilities sum up to this are kept, at least one (nucleus sampling;
        Holtzman et al. 2020, arXiv:1904.09751); all if None.
    """
    logits = logits / temperature
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        order = jnp.argsort(logits, axis=-1, descending=True)
        probability = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept = (before < top_p).at[:, 0].set(True)
        kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def _without_end(logits: Float[Array, "b v"], end: int, is_early: Bool[Array, ""]) -> Float[Array, "b v"]:
    return jnp.where(is_early & (jnp.arange(logits.shape[-1]) == end), -jnp.inf, logits)


def _best(
    count: int, sets: list[list[Array]], scores: list[Float[Array, "b _"]]
) -> tuple[list[Array], Float[Array, "b n"]]:
    """The highest scores of several sets in this order, and what belongs to them, arrays `b _ ...`."""
    scores, places = jax.lax.top_k(jnp.concatenate(scores, axis=1), count)
    joined = [jnp.concatenate(parts, axis=1) for parts in zip(*sets, strict=True)]
    chosen = [jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1) for x in joined]
    return chosen, scores
