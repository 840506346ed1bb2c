"""Masked words and captions: what is masked how often, and the losses as defined."""

import jax
import jax.numpy as jnp
import numpy as np

from vidjax.objectives.language_modeling import caption_loss, cut_texts, mask_words, masked_word_loss

IDS = np.array([[90, 3, 0, 5, 91, 0], [90, 6, 91, 0, 0, 0]], np.int32)
LOGITS, COPY = np.random.default_rng(0).normal(size=(2, 2, 6, 92)).astype(np.float32)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_of_the_chosen_words_four_fifths_are_masked_and_a_tenth_is_random():
    many = np.tile(IDS[:1], (20_000, 1))
    masked, chosen = (np.asarray(each) for each in jax.jit(mask_words, static_argnums=(2, 3, 4))(
        jax.random.key(0), jnp.asarray(many), 99, 80, 0.3
    ))  # fmt: skip
    np.testing.assert_array_equal(masked[~chosen], many[~chosen])
    assert not chosen[:, [0, 5]].any()  # the start and padding; the end token is a word like others
    np.testing.assert_allclose(chosen[:, 1:5].mean(axis=0), 0.3, atol=0.02)
    fractions = [(masked == 99)[chosen].mean(), (masked == many)[chosen].mean()]
    np.testing.assert_allclose(fractions, [0.8, 0.1 + 0.1 * 3 / 4 / 80], atol=0.01)  # ids to 79, or the end token
    random = masked[chosen & (masked != 99) & (masked != many)]
    assert random.min() == 0 and random.max() == 79


def test_masked_words_are_compared_with_the_words_and_with_the_momentum_model():
    chosen = np.array([[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]], bool)
    target = 0.3 * np.exp(log_softmax(COPY)) + 0.7 * np.eye(92)[IDS]
    expected = -(target * log_softmax(LOGITS)).sum(axis=-1)[chosen].mean()
    loss = masked_word_loss(*(jnp.asarray(each) for each in (LOGITS, COPY, IDS, chosen)), 0.3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_every_word_and_the_end_token_of_valid_captions_are_predicted():
    likelihood = log_softmax(LOGITS)
    words = [likelihood[0, i, IDS[0, i + 1]] for i in range(4)]
    loss = caption_loss(jnp.asarray(LOGITS), jnp.asarray(IDS), jnp.array([True, False]))
    np.testing.assert_allclose(loss, -np.mean(words), rtol=1e-5)
    of_tokens = np.arange(6)[None] < np.array([[5], [0]])  # the same, and of smoothed words
    smoothed = -np.mean(0.9 * np.array(words) + 0.1 * likelihood[0, :4].mean(axis=-1))
    loss = caption_loss(jnp.asarray(LOGITS), jnp.asarray(IDS), jnp.asarray(of_tokens), 0.1)
    np.testing.assert_allclose(loss, smoothed, rtol=1e-5)
    words += [likelihood[1, i, IDS[1, i + 1]] for i in range(2)]
    loss = caption_loss(jnp.asarray(LOGITS), jnp.asarray(IDS), jnp.array([True, True]))
    np.testing.assert_allclose(loss, -np.mean(words), rtol=1e-5)


def test_a_text_is_cut_into_a_prefix_that_is_read_and_the_rest_that_is_written():
    ids, counts = jnp.asarray([[90, 3, 0, 5, 91, 0], [90, 6, 91, 0, 0, 0]]), {}  # the first 0 is a word
    parts = {  # by the number of words that are read
        0: ([90, 91, 0, 0, 0, 0], [0, 3, 0, 5, 91, 0, 0]),
        1: ([90, 3, 91, 0, 0, 0], [0, 0, 5, 91, 0, 0, 0]),
        2: ([90, 3, 0, 91, 0, 0], [0, 5, 91, 0, 0, 0, 0]),
    }
    cut = jax.jit(lambda keys: jax.vmap(lambda key: cut_texts(key, ids, 1, 91))(keys))
    for read, written in zip(*cut(jax.random.split(jax.random.key(0), 300)), strict=True):
        count = int(np.argmax(read[0] == 91)) - 1
        np.testing.assert_array_equal(read[0], parts[count][0])
        np.testing.assert_array_equal(written[0], parts[count][1])
        np.testing.assert_array_equal(read[1], [90, 91, 0, 0, 0, 0])  # one word is written
        np.testing.assert_array_equal(written[1], [0, 6, 91, 0, 0, 0, 0])
        counts[count] = counts.get(count, 0) + 1
    assert min(counts[count] for count in parts) > 70
    read, written = cut_texts(jax.random.key(0), jnp.asarray([[6, 1]]), 0, 1)  # T5's texts have no start
    np.testing.assert_array_equal(jnp.concatenate([read, written], axis=1), [[1, 0, 0, 6, 1]])
