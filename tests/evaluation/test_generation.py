"""Beam search finds the best of all texts with enough beams, and equals transformers with any number of them."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from vidjax.evaluation.generation import beam_search

START, END, LENGTH, WORDS = 1, 2, 5, 6


def table(seed: int, rows: int = 1) -> np.ndarray:
    """Logits of the next word by row, number of words so far and last word."""
    return np.random.default_rng(seed).normal(size=(rows, LENGTH, WORDS, WORDS)).astype(np.float32)


@partial(jax.jit, static_argnums=1)
def search(logits, beams):
    rows = len(logits)
    logits = jnp.repeat(logits, beams, axis=0)

    def next_logits(ids, count):
        return logits[jnp.arange(len(ids)), count, ids[jnp.arange(len(ids)), count - 1]]

    return beam_search(next_logits, rows, START, END, LENGTH, beams)


def all_texts(logits: np.ndarray) -> dict[tuple[int, ...], float]:
    """Mean log-likelihood of every text that ends, or has the maximum length."""
    likelihood = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    texts = {}
    for words in product(range(WORDS), repeat=LENGTH - 1):
        end = words.index(END) if END in words else LENGTH - 2
        text = (START, *words[: end + 1])
        scores = [likelihood[i + 1, text[i], text[i + 1]] for i in range(len(text) - 1)]
        texts[text] = np.mean(scores)
    return texts


def test_one_beam_takes_the_likeliest_word_each_time():
    logits = table(0, rows=3)
    ids, _ = search(logits, 1)
    for row, text_ids in zip(logits, np.asarray(ids), strict=True):
        text = [START]
        while len(text) < LENGTH and text[-1] != END:
            text.append(int(row[len(text), text[-1]].argmax()))
        assert text_ids.tolist() == text + [0] * (LENGTH - len(text))


def test_enough_beams_find_the_best_of_all_texts():
    logits = table(1, rows=4)
    ids, scores = search(logits, WORDS ** (LENGTH - 2))
    for row, text_ids, score in zip(logits, np.asarray(ids), scores, strict=True):
        texts = all_texts(row)
        best = max(texts, key=texts.get)
        assert text_ids.tolist() == [*best, *[0] * (LENGTH - len(best))]
        np.testing.assert_allclose(score, texts[best], rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_equals_transformers(beams):
    """A GPT-2 without blocks, whose next word depends on the last one and its position."""
    transformers = peers.transformers()
    import torch

    fields = {"vocab_size": 13, "n_positions": 9, "n_embd": 8, "n_layer": 0, "n_head": 2}
    config = transformers.GPT2Config(**fields, bos_token_id=START, eos_token_id=END, pad_token_id=0)
    peer = transformers.GPT2LMHeadModel(config).eval()
    for seed in range(3):
        draw = np.random.default_rng(seed)
        with torch.no_grad():
            for weight in (peer.transformer.wte.weight, peer.transformer.wpe.weight):
                weight.copy_(torch.from_numpy(draw.normal(size=weight.shape, scale=0.6)))
            embedded = peer.transformer.wpe.weight[:, None] + peer.transformer.wte.weight
            logits = jnp.asarray(peer.lm_head(peer.transformer.ln_f(embedded)).numpy())  # position, last word, word
        settings = {"max_length": 9, "num_beams": beams, "do_sample": False, "attention_mask": torch.ones(1, 1)}
        expected = peer.generate(torch.tensor([[START]]), **settings)[0].numpy()
        find = jax.jit(lambda logits: beam_search(lambda ids, n: logits[n - 1, ids[:, n - 1]], 1, START, END, 9, beams))
        np.testing.assert_array_equal(find(logits)[0][0], np.pad(expected, (0, 9 - len(expected))))
