"""Predicting words: masked ones from both sides (BERT; ALBEF), or each from those before it (captions; prefixes).

Ids are those of `data.text.tokenize`: a start token, words, an end token, then padding with id 0. Within a text 0 may
be a word, as in CLIP's vocabulary, where it is "!".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def within_text(ids: Int[Array, "b m"]) -> Bool[Array, "b m"]:
    """False for padding: the zeros at the end of each text."""
    return jax.lax.cummax((ids != 0).astype(jnp.int32), axis=1, reverse=True) > 0


def mask_words(
    key: Key[Array, ""], ids: Int[Array, "b m"], mask_token: int, vocabulary: int, ratio: float = 0.15
) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """Masks words as BERT does: of those chosen, 80 % become the mask token, 10 % a random one, 10 % stay.

    The start token and padding are never chosen; the end token may be, as in ALBEF.

    Args:
      vocabulary: random tokens are drawn from as many ids.
      ratio: probability of choosing a word.

    Returns:
      The masked ids, and which tokens were chosen.
    """
    keys = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(keys[0], ratio, ids.shape) & within_text(ids)
    chosen = chosen.at[:, 0].set(False)
    fate = jax.random.uniform(keys[1], ids.shape)
    random = jax.random.randint(keys[2], ids.shape, 0, vocabulary)
    replaced = jnp.where(fate < 0.8, mask_token, jnp.where(fate < 0.9, random, ids))
    return jnp.where(chosen, replaced, ids), chosen


def masked_word_loss(
    logits: Float[Array, "b m v"],
    momentum_logits: Float[Array, "b m v"],
    ids: Int[Array, "b m"],
    chosen: Bool[Array, "b m"],
    alpha: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Cross-entropy of the masked words with soft targets of a momentum model (ALBEF, arXiv:2107.07651, eq. 7).

    Args:
      momentum_logits: of the momentum model, for the same masked texts.
      ids: the words before they were masked.
      chosen: the places that count; the loss is their mean.
      alpha: weight of the momentum model's softmax in the target; that of the word is `1 - alpha`.
    """
    log_likelihood = jax.nn.log_softmax(logits.astype(jnp.float32))
    soft = jax.lax.stop_gradient(jax.nn.softmax(momentum_logits.astype(jnp.float32)))
    losses = -(1 - alpha) * _of_words(log_likelihood, ids) - alpha * (soft * log_likelihood).sum(axis=-1)
    return _mean(losses, chosen)


def caption_loss(
    logits: Float[Array, "b m v"],
    ids: Int[Array, "b m"],
    valid: Bool[Array, "b"] | Bool[Array, "b m"],
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of every word and the end token of the valid captions, each from the tokens before it.

    Args:
      logits: those at place `i` predict token `i + 1`; the last ones are not used.
      valid: false for captions, or tokens such as those of a prompt, that are not counted; padding never is.
      smoothing: part of the target that all words share evenly (BLIP: 0.1).
    """
    log_likelihood = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    losses = -(1 - smoothing) * _of_words(log_likelihood, ids[:, 1:]) - smoothing * log_likelihood.mean(axis=-1)
    counted = valid[:, None] if valid.ndim == 1 else valid[:, 1:]
    return _mean(losses, counted & within_text(ids)[:, 1:])


def cut_texts(
    key: Key[Array, ""], ids: Int[Array, "b m"], start: int, end: int
) -> tuple[Int[Array, "b m"], Int[Array, "b n"]]:
    """Cuts each text at random into a prefix that is read and the rest that is written (prefix language modelling).

    With the same probability every number of words, from none to all but one, is read (BLIP-2, arXiv:2301.12597, for
    T5, whose texts (arXiv:1910.10683) are read with an end token and written after the padding id, 0).

    Args:
      start: number of tokens that the tokeniser puts before a text: the prefix keeps them.
      end: id of the end token, which both parts have.

    Returns:
      The ids of the prefixes, and of the rests after an id 0, both padded with 0.
    """
    words = within_text(ids).sum(axis=1) - start - 1
    cut = start + jnp.floor(jax.random.uniform(key, words.shape) * words).astype(jnp.int32)[:, None]
    place = jnp.arange(ids.shape[1])
    read = jnp.where(place < cut, ids, jnp.where(place == cut, end, 0))
    rest = jnp.take_along_axis(ids, cut + place, axis=1, mode="fill", fill_value=0)
    return read, jnp.pad(rest, ((0, 0), (1, 0)))


def _of_words(log_likelihood: Float[Array, "b m v"], ids: Int[Array, "b m"]) -> Float[Array, "b m"]:
    return jnp.take_along_axis(log_likelihood, ids[..., None], axis=-1)[..., 0]


def _mean(losses: Float[Array, "b m"], counted: Bool[Array, "b m"]) -> Float[Array, ""]:
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)
