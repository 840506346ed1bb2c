"""Pairs of captions, of which the first is preferred, as a field of the examples of a source."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from vidjax.data.example import Example, Field, Source
from vidjax.data.text import Tokenizer, tokenize
from vidjax.errors import UserError

PAIRS = "pairs"
"""Name of the field: ids `k 2 m` of the pairs of an example, repeated up to the most that an example has."""


def with_pairs(source: Source, tokenizer: Tokenizer, context: int, required: bool = True) -> Source:
    """The source with pairs of captions; the preferred ones are those of the source.

    The n-th caption is preferred to the n-th text of `Source.rejected`; the shorter of the two lists is repeated.

    Args:
      context: tokens per caption, including start and end.
      required: whether examples must have rejected texts; otherwise a caption may be paired with itself.

    Raises:
      UserError: captions that are not in memory, examples without rejected texts (with their number and first ids), a
        text that equals the preferred one, or one of more tokens than the context.
    """
    if not source.listed:
        raise UserError(f"{source.name}: preferences need captions in memory: list the videos in a .jsonl manifest")
    indices = range(len(source))
    if without := [source.ids[index] for index in indices if not source.rejected(index)] if required else ():
        raise UserError(
            f"{len(without)} of the {len(source)} examples of {source.name} have no rejected caption: "
            f"{', '.join(without[:3])}{', ...' if len(without) > 3 else ''}; give them one in the manifest's column "
            "rejected"
        )
    texts = [_pairs(source.captions(index), source.rejected(index)) for index in indices]
    for index, pairs in zip(indices, texts, strict=True):
        if same := [chosen for chosen, rejected in pairs if chosen == rejected and source.rejected(index)]:
            raise UserError(f"{source.ids[index]}: '{same[0]}' is preferred to itself, change one of the two")
    distinct = {text for pairs in texts for pair in pairs for text in pair}
    if cut := [text for text in sorted(distinct) if tokenize(tokenizer, text, context)[1]]:
        longest = max(cut, key=len)
        count = len(tokenizer.encode(longest))
        raise UserError(
            f"'{longest[:40]}' has {count} tokens, the context {context}: give a longer --context, or cut it"
        )
    count = max(map(len, texts))

    def ids_of(pairs: Sequence[tuple[str, str]]) -> Int[np.ndarray, "k 2 m"]:
        ids = [[tokenize(tokenizer, text, context)[0] for text in pair] for pair in pairs]
        return np.array([ids[number % len(ids)] for number in range(count)])

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        with source.open(index, [name for name in names if name != PAIRS]) as example:
            values = {**example.values, PAIRS: ids_of(texts[index])} if PAIRS in names else example.values
            yield replace(example, values=values)

    fields = {**source.fields, PAIRS: Field("numbers", (count, 2, context), "int32")}
    return replace(source, open=open_example, fields=fields)


def _pairs(captions: Sequence[str], rejected: Sequence[str]) -> list[tuple[str, str]]:
    others = rejected or captions
    count = max(len(captions), len(others))
    return [(captions[number % len(captions)], others[number % len(others)]) for number in range(count)]
