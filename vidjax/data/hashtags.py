"""Hashtags in captions as labels, several of a video, drawn by the square root of their frequency.

Videos of the web come with hashtags, `riding a wave #surfing #beach`, labels that need no annotators (Ghadiyaram et al.
2019, arXiv:1905.00561, of videos; Mahajan et al. 2018, arXiv:1805.00932, of images). Few of them are on most videos.
With square-root sampling, a video is drawn in proportion to the inverse square root of the number of videos with its
hashtag: one that is a hundred times as frequent as another is seen ten times as often.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from vidjax.data.container import DecodeError
from vidjax.data.example import Example, Field, Source
from vidjax.data.labels import list_counts, read_class_names
from vidjax.data.sources import subset
from vidjax.errors import UserError

ALL = "all"
WORD = re.compile(r"\w*[^\W\d_]\w*")
"""A hashtag without its #: letters, digits and underscores, with at least one letter."""
HASHTAG = re.compile(rf"(?<!\w)#({WORD.pattern})")
LINK = re.compile(r"(?:\w+://|www\.|(?<![\w#.-])[\w-]+(?:\.[\w-]+)+/)[^\s<>()\[\]（）「」]*")
"""What a browser would open, up to white space or a bracket; what follows # in it is a part of a page."""


def find_hashtags(captions: Sequence[str]) -> tuple[str, ...]:
    """The hashtags in the captions of a video, each once, without # and in lower case, in their order.

    A # within a link is none.
    """
    texts = (LINK.sub(" ", caption) for caption in captions)
    return tuple(dict.fromkeys(tag.casefold() for text in texts for tag in HASHTAG.findall(text)))


def read_hashtags(name: str) -> tuple[str, ...] | None:
    """The hashtags that count, without # and in lower case; None for all.

    Args:
      name: `all`, or a JSON file, a list of names with or without #.

    Raises:
      UserError: the file cannot be read, or a name in it is not a hashtag or is there twice.
    """
    if name == ALL:
        return None
    names = tuple(each.removeprefix("#").casefold() for each in read_class_names(name))
    if wrong := [each for each in names if not WORD.fullmatch(each)]:
        raise UserError(f"{name} has {wrong[0]!r}, which is no hashtag: write it as one word, with a letter")
    if twice := [each for each, count in Counter(names).items() if count > 1]:
        raise UserError(f"{name} has #{twice[0]} twice: capitals do not count, remove one")
    return names


def with_hashtags(source: Source, names: Sequence[str] | None = None) -> Source:
    """Labels a source by the hashtags in its captions.

    Its classes are the hashtags. Examples have a field `hashtags`, their classes padded by -1, and the first of these
    as their label; training draws them by `square_root_weights`. Examples without any are left out. Notes count these,
    and the hashtags that are not among `names`. The captions of a source that is not listed are read, one by one.

    Args:
      names: the hashtags that count, as `read_hashtags` returns them; by default all, in alphabetical order.

    Raises:
      UserError: no example has one of them, there are fewer than two, or the source is a mix, whose weights say how
        often its videos are drawn.
    """
    if source.parts:
        raise UserError(f"{source.name} is a mix, and hashtags are of one source: merge the lists, or omit --hashtags")
    found, unreadable = [], 0
    for index in range(len(source)):
        try:
            found.append(find_hashtags(source.captions(index)))
        except DecodeError:
            found.append(())
            unreadable += 1
    names = tuple(sorted({tag for tags in found for tag in tags})) if names is None else tuple(names)
    positions = {name: position for position, name in enumerate(names)}
    numbers = [[positions[tag] for tag in tags if tag in positions] for tags in found]
    kept = [index for index, each in enumerate(numbers) if each]
    if not kept:
        given = f"one of the {len(names):,} hashtags that count, such as #{names[0]}" if names else "a hashtag"
        raise UserError(f"no caption of {source.name} has {given}: write them into the captions, as in '#surfing'")
    if len(names) < 2:
        raise UserError(f"{source.name} has the single hashtag #{names[0]}: learning needs two or more")
    labels = [numbers[index] for index in kept]
    few = subset(source, kept)

    @contextmanager
    def open_example(index: int, fields: Sequence[str]) -> Iterator[Example]:
        with few.open(index, fields) as example:
            values = {**example.values, "hashtags": np.array(labels[index], np.int32)}
            yield replace(example, label=labels[index][0], values=values)

    others = Counter(tag for tags in found for tag in tags if tag not in positions)
    return replace(
        few,
        class_names=names,
        open=open_example,
        label=lambda index: labels[index][0],
        notes=(*source.notes, *_notes(source, names, labels, others, unreadable)),
        fields={**source.fields, "hashtags": Field("numbers", (max(map(len, labels)),), "int32", fill=-1)},
        weights=square_root_weights(labels),
    )


def _notes(
    source: Source,
    names: Sequence[str],
    labels: Sequence[Sequence[int]],
    others: Counter[str],
    unreadable: int,
) -> Iterator[str]:
    counts = np.bincount(np.concatenate(labels), minlength=len(names))
    most, least = int(counts.argmax()), int(counts.argmin())
    yield (
        f"{source.name}: {len(names):,} hashtags, {counts.sum() / len(labels):.2g} of a video; the most frequent is "
        f"#{names[most]} of {counts[most]:,}, the rarest #{names[least]} of {counts[least]:,}"
    )
    if others:
        shown = list_counts({f"#{name}": count for name, count in others.items()})
        yield f"{source.name}: {len(others):,} other hashtags do not count ({shown})"
    if missing := len(source) - len(labels):
        damaged = f"; {unreadable:,} of them cannot be read" if unreadable else ""
        yield f"{source.name}: {missing:,} of {len(source):,} videos have no hashtag that counts, left out{damaged}"


def square_root_weights(labels: Sequence[Sequence[int]]) -> Float[np.ndarray, "n"]:
    """How often to draw each video: by the inverse square root of the number of videos with its rarest hashtag.

    If each video has one, a hashtag of f videos is drawn in proportion to the square root of f. Of several hashtags the
    rarest decides, which would have the video drawn most often.

    Args:
      labels: the classes of each video, at least one.
    """
    counts = np.bincount(np.concatenate(labels))
    return np.array([counts[each].min() for each in labels]) ** -0.5
