"""Beam search finds the best of all texts with enough beams; sampling draws likely words; both equal transformers."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from vidjax.evaluation.generation import beam_search, likely_words, sample

START, END, LENGTH, WORDS = 1, 2, 4, 6


def table(seed: int, rows: int = 1) -> np.ndarray:
    """Logits of the next word by row, number of words so far and last word."""
    return np.random.default_rng(seed).normal(size=(rows, LENGTH, WORDS, WORDS)).astype(np.float32)


def step(words, count, logits):
    """The cache is the table of each text's row."""
    return logits[jnp.arange(len(words)), count + 1, words], logits


@partial(jax.jit, static_argnums=1, static_argnames=("penalty", "shortest"))
def search(logits, beams, penalty=1.0, shortest=0):
    settings = {"length": LENGTH, "end": END, "length_penalty": penalty, "shortest": shortest}
    return beam_search(step, logits[:, 0, START], logits, beams=beams, **settings)


def all_texts(logits: np.ndarray, penalty: float, shortest: int) -> dict[tuple[int, ...], float]:
    """Score of every text that ends, or has the maximum length."""
    likelihood = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    texts = {}
    for words in product(range(WORDS), repeat=LENGTH):
        end = words.index(END) if END in words else LENGTH - 1
        text = words[: end + 1]
        scores = [likelihood[i, ((START, *text)[i]), word] for i, word in enumerate(text)]
        if END not in text[:shortest]:
            texts[text] = np.sum(scores) / len(text) ** penalty
    return texts


def test_one_beam_takes_the_likeliest_word_each_time():
    logits = table(0, rows=3)
    ids, _ = search(logits, 1)
    for row, text_ids in zip(logits, np.asarray(ids), strict=True):
        text = [START]
        while len(text) <= LENGTH and text[-1] != END:
            text.append(int(row[len(text) - 1, text[-1]].argmax()))
        assert text_ids.tolist() == text[1:] + [0] * (LENGTH + 1 - len(text))


@pytest.mark.parametrize(("penalty", "shortest"), [(1.0, 0), (0.0, 2)])
def test_enough_beams_find_the_best_of_all_texts(penalty, shortest):
    logits = table(1, rows=4)
    ids, scores = search(logits, WORDS ** (LENGTH - 1), penalty=penalty, shortest=shortest)
    for row, text_ids, score in zip(logits, np.asarray(ids), scores, strict=True):
        texts = all_texts(row, penalty, shortest)
        best = max(texts, key=texts.get)
        assert text_ids.tolist() == [*best, *[0] * (LENGTH - len(best))]
        np.testing.assert_allclose(score, texts[best], rtol=1e-5)


def test_texts_are_drawn_as_often_as_they_are_likely():
    logits = table(2)
    drawn = jax.jit(lambda logits, key: sample(step, logits[:, 0, START], logits, key, length=LENGTH, end=END))
    many = jnp.asarray(np.repeat(logits, 20_000, axis=0))
    texts, counts = np.unique(np.asarray(drawn(many, jax.random.key(0))), axis=0, return_counts=True)
    expected = all_texts(logits[0], 0.0, 0)
    for text, count in zip(texts.tolist(), counts / len(many), strict=True):
        text = tuple(text[: text.index(END) + 1] if END in text else text)
        assert count == pytest.approx(np.exp(expected[text]), abs=0.01), text


def test_unlikely_words_are_left_out_as_in_transformers():
    peers.transformers()
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(3).normal(size=(4, 30)).astype(np.float32)
    expected = torch.from_numpy(logits)
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(12), TopPLogitsWarper(0.8)):
        expected = warper(None, expected)
    actual = likely_words(jnp.asarray(logits), temperature=0.7, top_k=12, top_p=0.8)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6)
    assert 4 < np.isfinite(actual).sum() < 48
