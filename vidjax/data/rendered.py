"""Sources of the embedded data set, rendered at the requested size when they are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from vidjax.data import brief_shapes, many_shapes, moving_shapes, shape_photos, sounding_shapes, untrimmed_shapes
from vidjax.data.decode import VideoInfo
from vidjax.data.example import LABEL, VIDEO, Example, Field, Source, in_pieces
from vidjax.errors import UserError


def moving_shapes_source(name: str, split: str) -> Source:
    """The embedded data set, rendered at the requested size."""
    splits = (
        *moving_shapes.SPLITS,
        moving_shapes.RANDOM_MOTION,
        *moving_shapes.HASHTAG_SPLITS,
        *moving_shapes.COMPOSITION_SPLITS,
        *moving_shapes.OPEN_SPLITS,
    )
    if split not in splits:
        raise UserError(f"data.split {split} is unknown: {name} has {', '.join(splits)}, choose one of them")
    numbers, class_names = moving_shapes.split_indices(split), moving_shapes.class_names(split)

    def label(index: int) -> int:
        return moving_shapes.label_in(split, numbers[index])

    def captions(index: int) -> tuple[str, ...]:
        if split == moving_shapes.RANDOM_MOTION:
            return moving_shapes.misled(numbers[index])
        if split in moving_shapes.HASHTAG_SPLITS:
            return moving_shapes.hashtags(numbers[index], every=split == "hashtags_validation")
        return moving_shapes.describe(numbers[index])[1]

    def rejected(index: int) -> tuple[str, ...]:
        return moving_shapes.rejected(numbers[index])

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        number = numbers[index]
        streams = {"video": Rendered(number, moving_shapes.render), "flow": Rendered(number, moving_shapes.render_flow)}
        values = {"tracks": moving_shapes.tracks(number)} if "tracks" in names else {}
        yield Example(streams, label(index), captions(index), values)

    ids = [f"moving_shapes/{split}[{index}]" for index in range(len(numbers))]
    fields = {
        "video": VIDEO,
        "label": LABEL,
        "flow": Field("frames", (2,), "uint8", mirrored=(0,)),
        "tracks": Field("tracks", (1, 4)),
    }
    return Source(name, class_names, ids, open_example, label, captions, listed=True, fields=fields, rejected=rejected)


def untrimmed_shapes_source(name: str, split: str) -> Source:
    """The untrimmed videos of the embedded data set, with their segments as start, end and direction."""
    splits = {kind: (kind,) for kind in untrimmed_shapes.SPLITS}
    splits |= {"all": ("train", "validation"), "moments": ("moments_train", "moments_validation")}
    if split not in splits:
        raise UserError(f"data.split {split} is unknown: {name} has {', '.join(splits)}, choose one of them")
    numbered = [pair for kind in splits[split] for pair in enumerate(untrimmed_shapes.SPLITS[kind])]
    kinds = [kind for kind in splits[split] for _ in untrimmed_shapes.SPLITS[kind]]

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        number, frames = numbered[index][1], untrimmed_shapes.NUM_FRAMES[kinds[index]]
        values = {"segments": untrimmed_shapes.segments(number, frames)} if "segments" in names else {}
        streams = {"video": Rendered(number, untrimmed_shapes.render, frames)}
        yield Example(streams, values=values)

    named = [untrimmed_shapes.video_name(kind, row) for kind, (row, _) in zip(kinds, numbered, strict=True)]
    ids = [f"untrimmed_shapes/{each}" for each in named]
    fields = {"video": VIDEO, "label": LABEL, "segments": Field("segments", (16, 3))}
    return Source(name, (), ids, open_example, lambda _: -1, lambda _: (), listed=True, fields=fields)


def many_shapes_source(name: str, split: str) -> Source:
    """The videos of the embedded data set with several shapes, with a track of boxes of each."""
    if split not in many_shapes.SPLITS:
        raise UserError(
            f"data.split {split} is unknown: {name} has {', '.join(many_shapes.SPLITS)}, choose one of them"
        )
    numbers = many_shapes.SPLITS[split]

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        values = {"tracks": many_shapes.tracks(numbers[index])} if "tracks" in names else {}
        yield Example({"video": Rendered(numbers[index], many_shapes.render, many_shapes.NUM_FRAMES)}, values=values)

    ids = [f"many_shapes/{many_shapes.video_name(split, row)}" for row in range(len(numbers))]
    fields = {"video": VIDEO, "label": LABEL, "tracks": Field("tracks", (many_shapes.SHAPES[1], 4))}
    return Source(name, (), ids, open_example, lambda _: -1, lambda _: (), listed=True, fields=fields)


def sounding_shapes_source(name: str, split: str) -> Source:
    """The still videos of the embedded data set, with their sound."""
    if split not in sounding_shapes.SPLITS:
        splits = ", ".join(sounding_shapes.SPLITS)
        raise UserError(f"data.split {split} is unknown: {name} has {splits}, choose one of them")
    numbers, length = sounding_shapes.SPLITS[split], sounding_shapes.NUM_FRAMES

    def label(index: int) -> int:
        return sounding_shapes.label(numbers[index])

    def captions(index: int) -> tuple[str, ...]:
        return sounding_shapes.captions(numbers[index])

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        values = {"sound": sounding_shapes.sound(numbers[index])} if "sound" in names else {}
        streams = {"video": Rendered(numbers[index], sounding_shapes.render, length)}
        yield Example(streams, label(index), captions(index), values)

    ids = [f"sounding_shapes/{split}[{index}]" for index in range(len(numbers))]
    rate = sounding_shapes.SOUND_RATE
    fields = {"video": VIDEO, "label": LABEL, "sound": Field("samples", (rate, 1), rate=rate)}
    return Source(name, sounding_shapes.CLASSES, ids, open_example, label, captions, listed=True, fields=fields)


def brief_shapes_source(name: str, split: str) -> Source:
    """The videos of the embedded data set in which most frames say nothing."""
    if split not in brief_shapes.SPLITS:
        splits = ", ".join(brief_shapes.SPLITS)
        raise UserError(f"data.split {split} is unknown: {name} has {splits}, choose one of them")
    numbers, length = brief_shapes.SPLITS[split], brief_shapes.NUM_FRAMES

    def label(index: int) -> int:
        return brief_shapes.label(numbers[index])

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        yield Example({"video": Rendered(numbers[index], brief_shapes.render, length)}, label(index))

    ids = [f"brief_shapes/{split}[{index}]" for index in range(len(numbers))]
    fields = {"video": VIDEO, "label": LABEL}
    return Source(name, brief_shapes.CLASSES, ids, open_example, label, lambda _: (), listed=True, fields=fields)


def shape_photos_source(name: str, split: str) -> Source:
    """The photos or the clips whose classes are visible in a frame: `synthetic:shape_photos` and `shape_clips`."""
    kind = shape_photos.KINDS[name.rpartition("_")[2]]
    if split not in kind.splits:
        raise UserError(f"data.split {split} is unknown: {name} has {', '.join(kind.splits)}, choose one of them")
    numbers = kind.splits[split]

    def label(index: int) -> int:
        return shape_photos.label(numbers[index])

    @contextmanager
    def open_example(index: int, names: Sequence[str]) -> Iterator[Example]:
        yield Example({"video": Rendered(numbers[index], moving_shapes.render, kind.frames)}, label(index))

    ids = [f"{name.partition(':')[2]}/{split}[{index}]" for index in range(len(numbers))]
    fields = {"video": VIDEO, "label": LABEL}
    return Source(name, shape_photos.CLASSES, ids, open_example, label, lambda _: (), listed=True, fields=fields)


@dataclass(frozen=True)
class Rendered:
    """A stream of a video of the embedded data set, rendered when it is read."""

    number: int
    render: Callable[[int, np.ndarray, int], np.ndarray]
    count: int = moving_shapes.NUM_FRAMES

    @property
    def info(self) -> VideoInfo:
        """See `example.Stream`."""
        return self._info(256)

    def _info(self, size: int) -> VideoInfo:
        rate = moving_shapes.RATE
        return VideoInfo(self.count, rate, size, size, self.count / rate, "rendered")

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[UInt8[np.ndarray, "t h w c"], VideoInfo]:
        """See `example.Stream`; frames are rendered at the requested size."""
        size = short_side or 256
        return self.render(self.number, np.asarray(indices, np.int64), size), self._info(size)

    def iterate(self, indices: np.ndarray, short_side: int | None) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """See `example.Stream`."""
        return in_pieces(self, indices, short_side)
