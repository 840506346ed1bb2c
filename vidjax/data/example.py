"""What an example is: named fields, each with a spec of how it is cut, padded and augmented with the clip.

An example has streams of frames (`video`, and others such as `flow`), a label, captions, and values of further fields.
A clip is some frames of a stream; the other fields follow it, first through its times, then through its crop:

    numbers    stay as they are
    segments   are clipped to the seconds of the clip; those outside it are dropped
    tracks     give a box for each frame of the clip
    samples    (sound) are cut out from the time of the clip's first frame on
    frames     (flow) are those on screen at the times of the clip's frames, cut by the same crop
    boxes      and the boxes of tracks are moved into the crop; those outside it are dropped

Every array has a fixed shape in a batch: of what is longer the first entries are kept, what is shorter is filled up.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from vidjax.data.decode import VideoInfo
from vidjax.errors import UserError

FIELDS_FILE = "fields.json"
"""The specs of the further fields of a manifest or of TFRecords, in a file beside them."""
PIECE = 256
"""Frames that are read at a time where a stream is iterated in pieces."""
DTYPES = ("float32", "int32", "int64", "int16", "uint8", "bool")
Kind = Literal["numbers", "segments", "boxes", "tracks", "frames", "samples"]
ENTRIES = {"segments": "[n, 2 or more]", "boxes": "[n, 4]", "tracks": "[n, 4]", "frames": "[c]", "samples": "[m, c]"}
"""The shapes of the kinds that do not have any shape."""


@dataclass(frozen=True)
class Field:
    """What a named field is."""

    kind: Kind
    """How it goes with the clip, see the table above."""
    shape: tuple[int, ...] = ()
    """Numbers: of the array. Segments: so many of so many numbers, of which the first two are start and end in seconds.
    Boxes: so many of (x1, y1, x2, y2), fractions of the frame's width and height. Tracks: likewise, so many in each
    frame. Frames: the channels. Samples: so many of so many channels."""
    dtype: str = "float32"
    """In a batch. Segments, boxes and tracks are float32, frames uint8."""
    fill: float | None = None
    """Stands where there is nothing; by default -1 for segments, boxes and tracks, 0 for others."""
    rate: float | None = None
    """Frames or samples a second; None for frames: as many as the video has."""
    mirrored: tuple[int, ...] = ()
    """Channels of frames that change sign in a mirror image, 255 - v for v: the horizontal one of optical flow."""
    color: bool = False
    """Whether frames are RGB, so that changes of colour and erasing are for them; others are only cut and mirrored."""

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
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"rate is {self.rate}: it must be more than 0")

    @property
    def filling(self) -> float:
        """What stands where there is nothing."""
        return self.fill if self.fill is not None else -1 if self.kind in ("segments", "boxes", "tracks") else 0


VIDEO = Field("frames", (3,), "uint8", color=True)
LABEL = Field("numbers", (), "int32", fill=-1)


@runtime_checkable
class Stream(Protocol):
    """Frames of an open example, counted from 0 at the start of the video or of the part of it."""

    info: VideoInfo
    """Length and rate; the size may be another than `read` gives, as a frame has to be decoded to know it."""

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[UInt8[np.ndarray, "t h w c"], VideoInfo]:
        """The frames at `indices`, shrunk to `short_side` unless smaller, and the info with the size before that."""
        ...

    def iterate(self, indices: Int[np.ndarray, "n"], short_side: int | None) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """The same frames one after the other, in bounded memory; `indices` ascend."""
        ...


def in_pieces(
    stream: Stream, indices: Int[np.ndarray, "n"], short_side: int | None
) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    """`Stream.iterate` for streams that can be entered anywhere: many frames are read at a time."""
    for start in range(0, len(indices), PIECE):
        yield from stream.read(indices[start : start + PIECE], short_side)[0]


@dataclass(frozen=True)
class Example:
    """An open example: what is known of it, and streams to read frames from."""

    streams: Mapping[str, Stream]
    label: int = -1
    """Position in the source's class names, -1 for none."""
    captions: tuple[str, ...] = ()
    """Empty for none."""
    values: Mapping[str, Shaped[np.ndarray, "..."]] = field(default_factory=dict)
    """Of the further fields that are no frames, as they are stored; a field that the example lacks is not in it."""


@dataclass(frozen=True)
class Clip:
    """What `Source.read` gives."""

    frames: UInt8[np.ndarray, "t h w c"]
    label: int
    """Position in the source's class names, -1 for none."""
    captions: tuple[str, ...]
    """Empty for none."""
    info: VideoInfo
    """Of the whole video, or of the part of it that the manifest names."""


@dataclass(frozen=True)
class Source:
    """A sequence of videos."""

    name: str
    class_names: tuple[str, ...]
    """Empty without labels."""
    ids: Sequence[str]
    """What each example is called: its path (with the part of it, as in `path#t=2.5,7`), or its record."""
    open: Callable[[int, Sequence[str]], AbstractContextManager[Example]]
    """`with open(index, names) as example:` with the further fields of these names. Raises DecodeError."""
    label: Callable[[int], int]
    """The label of an example, -1 for none, without decoding its video. Raises DecodeError."""
    captions: Callable[[int], tuple[str, ...]]
    """The captions of an example, likewise."""
    listed: bool
    """Whether labels and captions are at hand; else they are stored with the video, and a look costs its reading."""
    notes: tuple[str, ...] = ()
    """What was left out or is not used when it was opened, a line each, to be printed for the user."""
    fields: Mapping[str, Field] = field(default_factory=lambda: {"video": VIDEO, "label": LABEL})
    """The specs of all fields but the captions."""

    def __post_init__(self) -> None:
        if not len(self.ids):  # an epoch of it would have no end
            raise UserError(f"there are no examples in {self.name}: give another source")

    def __len__(self) -> int:
        return len(self.ids)

    def read(
        self, index: int, indices: Sequence[int] | np.ndarray | None = None, short_side: int | None = None
    ) -> Clip:
        """Frames of an example's video, all of them where `indices` is None. Raises DecodeError."""
        with self.open(index, ()) as example:
            video = example.streams["video"]
            indices = np.arange(video.info.num_frames) if indices is None else indices
            frames, info = video.read(indices, short_side)
        return Clip(frames, example.label, example.captions, info)

    def specs(self, names: Sequence[str]) -> dict[str, Field]:
        """The specs of some fields.

        Raises:
          UserError: the source has no such field.
        """
        if unknown := [name for name in names if name not in self.fields]:
            raise UserError(f"{self.name} has no field '{unknown[0]}': choose among {', '.join(self.fields)}")
        return {name: self.fields[name] for name in names}


def read_specs(folder: Path) -> dict[str, Field]:
    """The further fields that the folder's fields.json describes; none without one.

    Raises:
      UserError: it is not JSON, or a spec in it is wrong.
    """
    path = folder / FIELDS_FILE
    return parse_specs(path, path.read_bytes()) if path.is_file() else {}


def parse_specs(path: Path | str, content: bytes) -> dict[str, Field]:
    """The specs in a fields.json, `{"boxes": {"kind": "boxes", "shape": [8, 4]}, ...}`.

    Raises:
      UserError: it is not JSON, or a spec in it is wrong.
    """
    try:
        specs = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): write an object of names and specs") from error
    if not isinstance(specs, dict):
        raise UserError(f"{path} must be an object of names and specs")
    found = {}
    for name, spec in specs.items():
        known = Field.__dataclass_fields__
        if not isinstance(spec, dict) or "kind" not in spec or set(spec) - set(known):
            raise UserError(f"{path}: '{name}' must be an object of a kind and any of {', '.join(list(known)[1:])}")
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
        try:
            found[name] = Field(**({"dtype": "uint8"} if spec["kind"] == "frames" else {}) | lists)
        except (UserError, TypeError) as error:
            raise UserError(f"{path}: of '{name}', {error}") from error
    return found


def write_specs(specs: Mapping[str, Field]) -> str:
    """The content of a fields.json, the inverse of `parse_specs`."""
    return json.dumps({name: vars(spec) for name, spec in specs.items()}, indent=1) + "\n"


def check_value(spec: Field, value: Any) -> Shaped[np.ndarray, "..."]:
    """The value of a field as an array.

    Raises:
      ValueError: it is no array of the kind that the spec says.
    """
    array = np.asarray(value, np.float32 if spec.kind in ("segments", "boxes", "tracks") else spec.dtype)
    width = {"segments": spec.shape[-1], "boxes": 4, "tracks": 6}.get(spec.kind) if spec.shape else None
    if width is not None:
        array = array.reshape(0, width) if not array.size else array
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"it must be a list of lists of {width} numbers")
    if spec.kind == "numbers" and (array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]):
        raise ValueError(f"it must be of shape {list(spec.shape)}")
    return array


def cut_value(
    spec: Field, value: Shaped[np.ndarray, "..."] | None, times: Float[np.ndarray, "v t"]
) -> Shaped[np.ndarray, "..."]:
    """A field that is no frames, as clips of an example have it: padded, and cut by the clips' times.

    Args:
      spec: of the field.
      value: as stored; None where the example lacks the field.
      times: of the frames of `v` clips, in seconds.

    Returns:
      numbers and boxes: their shape; segments and samples: `v` and their shape; tracks: (v, t, n, 4).
    """
    empty = np.zeros((0, {"tracks": 6}.get(spec.kind, spec.shape[-1]))) if len(spec.shape) > 1 else None
    value = empty if value is None else value
    if spec.kind in ("numbers", "boxes"):
        return pad(spec, value)
    if spec.kind == "segments":
        return np.stack([pad(spec, clip_segments(value, clip)) for clip in times])
    if spec.kind == "tracks":
        return np.stack([boxes_at(value, clip, spec.shape[0], spec.filling) for clip in times])
    starts = np.floor(np.nan_to_num(times[:, 0]) * spec.rate + 0.5).astype(np.int64)
    return np.stack([pad(spec, value[start : start + spec.shape[0]]) for start in starts])


def pad(spec: Field, value: Shaped[np.ndarray, "..."] | None) -> Shaped[np.ndarray, "..."]:
    """The first entries of a value, filled up to the spec's shape."""
    padded = np.full(spec.shape, spec.filling, spec.dtype)
    if value is not None:
        fitting = tuple(slice(0, min(sides)) for sides in zip(spec.shape, np.shape(value), strict=True))
        padded[fitting] = np.asarray(value)[fitting]
    return padded


def clip_segments(segments: Float[np.ndarray, "n k"], times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "m k"]:
    """The segments that a clip sees, clipped to it; the others are dropped.

    A clip lasts from its first frame to one step after its last, a step being the mean distance of its frames. One
    frame is a moment: the segments are kept, as that moment, that begin by then and end later.

    Args:
      segments: start and end in seconds, on the clock of `times`, and any further numbers, which stay.
      times: of the clip's frames, in seconds.
    """
    first, last = times.min(), times.max()
    stop = last + (last - first) / max(len(times) - 1, 1)
    start, end = segments[:, 0], segments[:, 1]
    seen = (start < stop) & (end > first) if stop > first else (start <= first) & (end > first)
    clipped = segments[seen].copy()
    clipped[:, :2] = clipped[:, :2].clip(first, stop)
    return clipped


def boxes_at(
    tracks: Float[np.ndarray, "m 6"], times: Float[np.ndarray, "t"], count: int, fill: float = -1
) -> Float[np.ndarray, "t n 4"]:
    """The boxes of the tracks 0 to `count` - 1 at some times, by linear interpolation; `fill` before and after them.

    Args:
      tracks: rows of the track's number, seconds, x1, y1, x2, y2.
      times: seconds.
      count: n.
      fill: stands where a track has no box.
    """
    boxes = np.full((len(times), count, 4), fill, np.float32)
    for number in range(count):
        track = tracks[tracks[:, 0] == number]
        if len(track):
            track = track[np.argsort(track[:, 1], kind="stable")]
            seconds = track[:, 1]
            inside = (times >= seconds[0] - 1e-4) & (times <= seconds[-1] + 1e-4)  # float32 seconds are rounded
            found = np.stack([np.interp(times, seconds, track[:, side]) for side in range(2, 6)], axis=-1)
            boxes[inside, number] = found[inside]
    return boxes


def boxes_in_crop(
    boxes: Float[np.ndarray, "*b 4"], crop: Int[np.ndarray, "*#b 7"], fill: float = -1
) -> Float[np.ndarray, "*b 4"]:
    """Boxes of a frame as boxes of the square that was cut from it, clipped to it.

    Those of which no area is left become `fill`, as are those that were absent before (no width or height).

    Args:
      boxes: x1, y1, x2, y2 in fractions of the frame's width and height.
      crop: as in a batch: top, left, height and width of the square in pixels of the decoded frame, the height and
        width of that frame, and 1 if it was mirrored.
      fill: stands for boxes that are not there.
    """
    top, left, height, width, frame_height, frame_width, flipped = np.moveaxis(crop.astype(np.float64), -1, 0)
    height, width = np.maximum(height, 1), np.maximum(width, 1)  # rows that are not valid have no crop
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    absent = (x2 <= x1) | (y2 <= y1)
    x1, x2 = (((x * frame_width - left) / width).clip(0, 1) for x in (x1, x2))
    y1, y2 = (((y * frame_height - top) / height).clip(0, 1) for y in (y1, y2))
    x1, x2 = np.where(flipped, 1 - x2, x1), np.where(flipped, 1 - x1, x2)
    absent |= (x2 <= x1) | (y2 <= y1)
    moved = np.stack([x1, y1, x2, y2], axis=-1)
    return np.where(absent[..., None], fill, moved).astype(np.float32)
