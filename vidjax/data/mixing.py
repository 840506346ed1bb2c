"""Mixes of sources, each with a share of every training batch: `mix:k710.csv=2,ssv2.csv:/videos=1`.

Of every sum-of-weights clips, a source has as many as its weight, evenly spread; so a batch has its share to within a
clip or so, and exactly if the sum of the weights divides the batch size. A source is gone through in its own epochs, in
a different order in each, at the pace that its weight sets.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from vidjax.data.example import Example, Part, Source
from vidjax.data.labels import find_classes
from vidjax.errors import UserError

MOST_SLOTS = 100_000
"""Largest sum of the weights as whole numbers without a common factor."""


def read_mix(name: str) -> dict[str, int]:
    """Parses `mix:SOURCE=WEIGHT,SOURCE=WEIGHT`: the weights by source, as whole numbers in the same proportions.

    Raises:
      UserError: the name does not have this form, names a source twice, or has a weight that is not positive.
    """
    weights: dict[str, Fraction] = {}
    for part in name.removeprefix("mix:").split(","):
        source, _, weight = part.strip().rpartition("=")
        if not source:
            raise UserError(
                f"data.source {name}: '{part}' has no weight, write mix:SOURCE=WEIGHT,SOURCE=WEIGHT (a path in a mix "
                "cannot contain commas)"
            )
        if source in weights:
            raise UserError(f"data.source {name} names {source} twice: give it once, with the sum of the weights")
        try:
            weights[source] = Fraction(weight)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f"data.source {name}: the weight of {source} is '{weight}', not a number") from error
        if weights[source] <= 0:
            raise UserError(
                f"data.source {name}: the weight of {source} is {weight}, it must be above 0: leave out a source that "
                "is not used"
            )
    if len(weights) < 2:
        raise UserError(f"data.source {name} has a single source: give it without mix: and weight, or add others")
    common = math.lcm(*(weight.denominator for weight in weights.values()))
    whole = {source: int(weight * common) for source, weight in weights.items()}
    factor = math.gcd(*whole.values())
    if (total := sum(whole.values()) // factor) > MOST_SLOTS:
        raise UserError(
            f"data.source {name}: its shares are of {total:,} clips, more than {MOST_SLOTS:,}: round the weights"
        )
    return {source: weight // factor for source, weight in whole.items()}


def mix(name: str, sources: Sequence[Source], weights: Collection[int]) -> Source:
    """A source with the examples of all sources, in this order, and the weights that training draws them with.

    Labels are mapped to the classes of the source that has the most. If other sources have classes that this one lacks,
    or none, the mix has no labels. It has the fields that all sources have in common.

    Args:
      weights: positive integers, one for each source.
    """
    columns = zip(sources, weights, strict=True)
    parts = tuple(Part(source.name, len(source), weight, source.class_names) for source, weight in columns)
    notes = [note for source in sources for note in source.notes]
    names = () if (reason := differing_classes(parts)) else max((part.class_names for part in parts), key=len)
    if reason and any(part.class_names for part in parts):
        notes.append(f"{name}: {reason}; the labels are not used")
    labels = []
    for part in parts:
        positions = find_classes(part.class_names, names) if names else [-1] * len(part.class_names)
        labels.append([*positions, -1])  # label -1 indexes the last item
    fields = {
        field: spec
        for field, spec in sources[0].fields.items()
        if all(source.fields.get(field) == spec for source in sources)
    }
    if unshared := sorted({field for source in sources for field in source.fields} - fields.keys()):
        notes.append(f"{name}: {', '.join(unshared)} cannot be used, not all of the sources have the same such field")
    firsts = np.cumsum([0, *(part.count for part in parts)]).tolist()

    def locate(index: int) -> tuple[int, int]:
        """The source of an example, and the index of the example there."""
        position = bisect_right(firsts, index) - 1
        return position, index - firsts[position]

    def label(index: int) -> int:
        position, own = locate(index)
        return labels[position][sources[position].label(own)]

    def captions(index: int) -> tuple[str, ...]:
        position, own = locate(index)
        return sources[position].captions(own)

    def rejected(index: int) -> tuple[str, ...]:
        position, own = locate(index)
        return sources[position].rejected(own)

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        position, own = locate(index)
        with sources[position].open(own, names) as example:
            yield replace(example, label=labels[position][example.label])

    return Source(
        name,
        names,
        [id for source in sources for id in source.ids],
        open_example,
        label,
        captions,
        listed=all(source.listed for source in sources),
        notes=tuple(notes),
        fields=fields,
        parts=parts,
        rejected=rejected,
    )


def differing_classes(parts: Sequence[Part]) -> str | None:
    """How the classes of sources differ, so that their labels cannot be used together; None if they do not."""
    if not parts:
        return None
    most = max(parts, key=lambda part: len(part.class_names))
    for part in parts:
        if not part.class_names:
            return f"{part.name} has no labels"
        positions = find_classes(part.class_names, most.class_names)
        if lacking := [name for name, position in zip(part.class_names, positions, strict=True) if position is None]:
            return f"{part.name} has {len(lacking)} classes that {most.name} lacks, such as '{lacking[0]}'"
    return None


def require_enough(source: Source, clips: int) -> None:
    """Checks that no source in a mix repeats videos within a batch.

    Args:
      clips: videos per batch.

    Raises:
      UserError: a source has fewer videos than its clips of a batch.
    """
    total = sum(part.weight for part in source.parts)
    for part in source.parts:
        if part.count < (own := math.ceil(clips * part.weight / total)):
            raise UserError(
                f"{source.name}: {part.name} has {part.count:,} videos, but its weight gives it {own:,} of the "
                f"{clips:,} of every batch: lower its weight or the batch size"
            )


def slots(weights: Sequence[int]) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "s"]]:
    """Which source each of sum(weights) consecutive clips comes from, and how many of them came from it before.

    Clip j of a source with weight w is due at (j + 1/2) / w, and the clips are in the order in which they are due: in
    any number of consecutive ones, a source has its share to within len(weights) / 2 + 1.
    """
    sources = np.repeat(np.arange(len(weights)), weights)
    before = np.concatenate([np.arange(weight) for weight in weights])
    order = np.argsort((before + 0.5) / np.asarray(weights)[sources], kind="stable")
    return sources[order], before[order]
