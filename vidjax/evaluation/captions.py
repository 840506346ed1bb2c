"""Scores of captions against references: BLEU, ROUGE-L and CIDEr-D, as coco-caption computes them.

Sentences are split into words at spaces. coco-caption applies the tokeniser of the Penn Treebank before, a Java
program; `plain_words` is near to it for plain sentences. Each caption is compared with the references of its own
example; the document frequencies of CIDEr-D are those of the references given here, so that its scores depend on the
data set.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import exp, log
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vidjax.errors import UserError

ORDERS = 4
"""Longest n-grams."""
SMALL, TINY = 1e-9, 1e-15
"""What coco-caption adds to counts, so that products of precisions are never zero."""
Grams = Counter[tuple[str, ...]]


class CaptionScores(NamedTuple):
    """Scores of all captions and of each; higher is better.

    Attributes:
      bleu: BLEU-1 to BLEU-4 of the corpus (Papineni et al. 2002).
      bleu_each: those of each caption alone.
      rouge_l: mean of `rouge_l_each`, F-measures with beta 1.2 of the longest common subsequence (Lin 2004).
      cider: mean of `cider_each`, CIDEr-D from 0 to 10 (Vedantam et al. 2015).
    """

    bleu: Float[np.ndarray, "4"]
    bleu_each: Float[np.ndarray, "n 4"]
    rouge_l: float
    rouge_l_each: Float[np.ndarray, "n"]
    cider: float
    cider_each: Float[np.ndarray, "n"]


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores captions of `n` examples, each with one or more references.

    Raises:
      UserError: no captions, another number of references, or an example without one.
    """
    if not captions or len(captions) != len(references):
        raise UserError(f"{len(captions)} captions and {len(references)} lists of references: give one for each")
    if empty := [i for i, each in enumerate(references) if not each]:
        raise UserError(f"{len(empty)} captions have no reference, the first is number {empty[0]}")
    words = [caption.split() for caption in captions]
    known = [[reference.split() for reference in each] for each in references]
    bleu, bleu_each = _bleu(words, known)
    rouge = np.array([_rouge_l(*pair) for pair in zip(words, known, strict=True)])
    cider = _cider(words, known)
    return CaptionScores(bleu, bleu_each, float(rouge.mean()), rouge, float(cider.mean()), cider)


def plain_words(caption: str) -> str:
    """The caption in lower case without punctuation, with one space between words."""
    return " ".join(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", caption.lower()))


def _grams(words: Sequence[str], order: int) -> Grams:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def _bleu(
    captions: Sequence[list[str]], references: Sequence[list[list[str]]]
) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "n 4"]]:
    rows = []  # right and all n-grams by order, the length, and the nearest length of a reference (the shorter of two)
    for words, known in zip(captions, references, strict=True):
        right = []
        for order in range(1, ORDERS + 1):
            most: Grams = Counter()
            for reference in known:
                most |= _grams(reference, order)
            right.append((_grams(words, order) & most).total())
        made = [max(len(words) - k, 0) for k in range(ORDERS)]
        nearest = min((abs(len(reference) - len(words)), len(reference)) for reference in known)[1]
        rows.append([*right, *made, len(words), nearest])
    counts = np.array(rows, float)
    return _bleu_of(counts.sum(axis=0)), np.stack([_bleu_of(row) for row in counts])


def _bleu_of(counts: Float[np.ndarray, "10"]) -> Float[np.ndarray, "4"]:
    precision = (counts[:ORDERS] + TINY) / (counts[ORDERS : 2 * ORDERS] + SMALL)
    ratio = (counts[-2] + TINY) / (counts[-1] + SMALL)
    brevity = exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return np.cumprod(precision) ** (1 / np.arange(1, ORDERS + 1)) * brevity


def _rouge_l(words: list[str], references: list[list[str]], beta: float = 1.2) -> float:
    common = np.array([_longest_common(words, reference) for reference in references], float)
    precision = (common / max(len(words), 1)).max()
    recall = (common / np.maximum([len(reference) for reference in references], 1)).max()
    if not precision or not recall:
        return 0.0
    return float((1 + beta**2) * precision * recall / (recall + beta**2 * precision))


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for i, each in enumerate(other, start=1):
            before, row[i] = row[i], before + 1 if word == each else max(row[i], row[i - 1])
    return row[-1]


def _cider(
    captions: Sequence[list[str]], references: Sequence[list[list[str]]], sigma: float = 6.0
) -> Float[np.ndarray, "n"]:
    orders = range(1, ORDERS + 1)
    seen: Grams = Counter()  # in how many examples an n-gram is
    for known in references:
        seen.update({gram for reference in known for order in orders for gram in _grams(reference, order)})

    def weigh(words: list[str]) -> list[dict]:
        rare = log(len(references))
        return [
            {gram: count * (rare - log(max(seen[gram], 1))) for gram, count in _grams(words, order).items()}
            for order in orders
        ]

    scores = []
    for words, known in zip(captions, references, strict=True):
        own, score = weigh(words), 0.0
        for reference in known:
            # coco-caption's length is the number of bigrams.
            apart = max(len(words) - 1, 0) - max(len(reference) - 1, 0)
            alike = [_cosine(*pair) for pair in zip(own, weigh(reference), strict=True)]
            score += np.mean(alike) * exp(-(apart**2) / (2 * sigma**2))
        scores.append(10 * score / len(known))
    return np.array(scores)


def _cosine(caption: dict, reference: dict) -> float:
    """The clipped product of two weightings, over their norms."""
    product = sum(min(value, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, value in caption.items())
    norms = _norm(caption.values()) * _norm(reference.values())
    return product / norms if norms else product


def _norm(values: Iterable[float]) -> float:
    return sum(value**2 for value in values) ** 0.5
