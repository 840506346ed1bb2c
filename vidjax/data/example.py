"""Examples as named fields, each with a spec of how it is sampled, padded and augmented together with the clip.

An example has streams of frames (`video`, and others such as `flow`), a label, captions, and values of further fields.
A clip is a selection of frames of one stream, or of several joined along their channels (`video+flow`); `rows` matches
the other fields to its times and to its crop.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from vidjax.data.config import ClipConfig
from vidjax.data.decode import VideoInfo
from vidjax.errors import UserError

PIECE = 256
"""Frames read at a time when a stream is iterated in pieces."""
DTYPES = ("float32", "float16", "int32", "int64", "int16", "uint8", "bool")
Kind = Literal["numbers", "segments", "boxes", "tracks", "frames", "samples"]
ENTRIES = {"segments": "[n, 2 or more]", "boxes": "[n, 4]", "tracks": "[n, 4]", "frames": "[c]", "samples": "[m, c]"}
"""Required shapes by kind; numbers may have any shape."""


@dataclass(frozen=True)
class Field:
    """The spec of a named field."""

    kind: Kind
    """How the field is matched to the clip, see the table in `rows`."""
    shape: tuple[int, ...] = ()
    """Numbers: the shape of the array. Segments: (count, numbers per segment), the first two of which are start and end
    in seconds. Boxes: (count, 4), with x1, y1, x2, y2 as fractions of the frame's width and height. Tracks: (count, 4),
    boxes per frame. Frames: (channels,). Samples: (count, channels)."""
    dtype: str = "float32"
    """The dtype in a batch. Segments, boxes and tracks are float32, frames uint8, or float16 for optical flow."""
    fill: float | None = None
    """Value for padding and missing entries; by default -1 for segments, boxes and tracks, 0 for others."""
    rate: float | None = None
    """Frames or samples per second; None for frames at the rate of the video."""
    mirrored: tuple[int, ...] = ()
    """Channels of frames to invert (255 - v, or -v in float16) when mirroring, such as horizontal optical flow."""
    color: bool = False
    """Whether frames are RGB; colour augmentation and erasing are applied only to these."""

    def __post_init__(self) -> None:
        sides, kind = self.shape, self.kind
        if kind not in get_args(Kind):
            raise UserError(f"kind is '{kind}': choose one of {', '.join(get_args(Kind))}")
        fits = {
            "segments": len(sides) == 2 and sides[-1] >= 2,
            "boxes": len(sides) == 2 and sides[-1] == 4,
            "tracks": len(sides) == 2 and sides[-1] == 4,
            "frames": len(sides) == 1,
            "samples": len(sides) == 2 and self.rate is not None,
        }.get(kind, True)
        if not fits or not all(isinstance(side, int) and side > 0 for side in sides):
            needs = ENTRIES.get(kind, "a list of numbers") + (" with a rate" if kind == "samples" else "")
            raise UserError(f"shape is {list(sides)}: it must be {needs} for {kind}")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is '{self.dtype}': choose one of {', '.join(DTYPES)}")
        if kind == "frames" and self.dtype not in ("uint8", "float16"):
            raise UserError(f"dtype is '{self.dtype}': it must be uint8, or float16 for optical flow in pixels")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"rate is {self.rate}: it must be more than 0")

    @property
    def fill_value(self) -> float:
        """Value for padding and missing entries."""
        return self.fill if self.fill is not None else -1 if self.kind in ("segments", "boxes", "tracks") else 0


VIDEO = Field("frames", (3,), "uint8", color=True)
LABEL = Field("numbers", (), "int32", fill=-1)


def stream_names(name: str) -> tuple[str, ...]:
    """The streams in the name of a field of frames: itself, or those joined along the channels, as in `video+flow`."""
    return tuple(name.split("+"))


def join_specs(name: str, fields: Sequence[Field]) -> Field:
    """The spec of a joined field, given those of its streams, which are cut and mirrored by themselves.

    Raises:
      UserError: a field is not of frames, or is joined with itself; or RGB frames are not the first.
    """
    if len(fields) == 1:
        return fields[0]
    if any(each.kind != "frames" for each in fields) or len(set(stream_names(name))) < len(fields):
        raise UserError(f"{name} cannot be joined: give different streams of frames, such as video+flow")
    if any(later.color and not each.color for each, later in pairwise(fields)):  # models take frames first
        raise UserError(f"{name} has frames behind other streams: name them first, as in video+flow")
    dtype = "float16" if any(each.dtype == "float16" for each in fields) else "uint8"
    return Field("frames", (sum(each.shape[0] for each in fields),), dtype, rate=fields[0].rate)


@runtime_checkable
class Stream(Protocol):
    """Frames of an open example, indexed from the start of the video or of the part that a manifest names."""

    info: VideoInfo
    """Length and rate. The size may differ from that of `read`, since it is known only after decoding a frame."""

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[Num[np.ndarray, "t h w c"], VideoInfo]:
        """Reads frames, and returns them with the info, which has their size before shrinking.

        Args:
          indices: frame indices in any order.
          short_side: shrink the shorter side to this many pixels; smaller frames are not enlarged.
        """
        ...

    def iterate(self, indices: Int[np.ndarray, "n"], short_side: int | None) -> Iterator[Num[np.ndarray, "h w c"]]:
        """Yields the same frames one by one, in bounded memory; `indices` must be increasing."""
        ...


@runtime_checkable
class EncodedStream(Stream, Protocol):
    """A stream of separately encoded images."""

    def encoded(self, indices: Sequence[int] | Int[np.ndarray, "n"], short_side: int | None = None) -> Any:
        """The frames of `read` before decoding: `shape` is (t, h, w, c), and a slice of it decodes only this part."""
        ...


def in_pieces(
    stream: Stream, indices: Int[np.ndarray, "n"], short_side: int | None
) -> Iterator[Num[np.ndarray, "h w c"]]:
    """`Stream.iterate` for streams with fast random access: reads `PIECE` frames at a time."""
    for start in range(0, len(indices), PIECE):
        yield from stream.read(indices[start : start + PIECE], short_side)[0]


@dataclass(frozen=True)
class Example:
    """An open example: its label, captions and values, and streams to read frames from."""

    streams: Mapping[str, Stream]
    label: int = -1
    """Index into the source's class names, -1 for none."""
    captions: tuple[str, ...] = ()
    """Empty for none."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Arrays of further fields that are not frames, or what decodes slices of samples; only those that there are."""


@dataclass(frozen=True)
class Clip:
    """The result of `Source.read`."""

    frames: UInt8[np.ndarray, "t h w c"]
    label: int
    """Index into the source's class names, -1 for none."""
    captions: tuple[str, ...]
    """Empty for none."""
    info: VideoInfo
    """Properties of the video, or of the part of it that the manifest names."""


@dataclass(frozen=True)
class Part:
    """One of the sources in a mix, see `mixing`."""

    name: str
    count: int
    """Number of its examples, which follow those of the parts before it."""
    weight: int
    """Its share of the clips is this weight divided by the sum of all."""
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A sequence of videos."""

    name: str
    class_names: tuple[str, ...]
    """Empty without labels."""
    ids: Sequence[str]
    """Name of each example: its path (with the part of the video, as in `path#t=2.5,7`) or its record."""
    open: Callable[[int, Sequence[str]], AbstractContextManager[Example]]
    """Opens an example with the named further fields: `with open(index, names) as example:`. Raises DecodeError."""
    label: Callable[[int], int]
    """The label of an example, -1 for none, without decoding its video. Raises DecodeError."""
    captions: Callable[[int], tuple[str, ...]]
    """The captions of an example, likewise."""
    listed: bool
    """Whether labels and captions are in memory; otherwise reading one reads the record that contains the video."""
    notes: tuple[str, ...] = ()
    """Notes for the user on files that are left out and columns that are not used, one line each."""
    fields: Mapping[str, Field] = field(default_factory=lambda: {"video": VIDEO, "label": LABEL})
    """The specs of all fields except the captions."""
    parts: tuple[Part, ...] = ()
    """The sources of a mix, each with its share of every training batch; empty for a source of its own."""
    rejected: Callable[[int], tuple[str, ...]] = lambda index: ()
    """Texts to which the captions of an example are preferred, in the same order; in memory, and often none."""
    weights: Float[np.ndarray, "n"] | None = None
    """How often training draws each example, in proportion; None for each of them once an epoch."""

    unit = "videos"  # what reports call the examples

    def __post_init__(self) -> None:
        if not len(self.ids):  # an iterator over epochs would never yield
            raise UserError(f"there are no examples in {self.name}: give another source")

    def __len__(self) -> int:
        return len(self.ids)

    def read(
        self, index: int, indices: Sequence[int] | np.ndarray | None = None, short_side: int | None = None
    ) -> Clip:
        """Reads the frames of an example's video at `indices`, by default all. Raises DecodeError."""
        with self.open(index, ()) as example:
            video = example.streams["video"]
            indices = np.arange(video.info.num_frames) if indices is None else indices
            frames, info = video.read(indices, short_side)
        return Clip(frames, example.label, example.captions, info)

    def specs(self, names: Sequence[str]) -> dict[str, Field]:
        """The specs of the named fields; `video+flow` is the one that joins these streams.

        Raises:
          UserError: the source has no such field, or they cannot be joined.
        """
        parts = {name: stream_names(name) for name in names}
        if unknown := [part for each in parts.values() for part in each if part not in self.fields]:
            shared = " that its sources share" if self.parts else ""
            advice = ", or write flow beside the frames (extract_flow.py)" if unknown[0] == "flow" else ""
            known = f"choose among {', '.join(self.fields)}{advice}"
            raise UserError(f"{self.name} has no field '{unknown[0]}'{shared}: {known}")
        return {name: join_specs(name, [self.fields[part] for part in each]) for name, each in parts.items()}


def field_specs(source: Source, config: ClipConfig, fields: Sequence[str]) -> dict[str, Field]:
    """Specs of the stream that the clips are made from, as `video`, and of the further fields."""
    (video,) = source.specs([config.stream]).values()
    if video.kind != "frames":
        raise UserError(f"data.stream {config.stream} is no field of frames of {source.name}: choose another")
    if {"video", "label"} & set(fields):
        raise UserError("video and label are in every batch: remove them from the fields")
    return {"video": video, **source.specs(fields)}
