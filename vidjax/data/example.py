"""Examples as named fields, each with a spec of how it is sampled, padded and augmented together with the clip.

An example has streams of frames (`video`, and others such as `flow`), a label, captions, and values of further fields.
A clip is a selection of frames of one stream. The other fields are matched to its times and to its crop, by kind:

    numbers    unchanged
    segments   clipped to the time span of the clip; segments outside it are dropped
    tracks     interpolated to one box per frame of the clip, then as boxes
    samples    (sound) cut to start at the time of the clip's first frame
    frames     (flow) the frames on screen at the times of the clip's frames, with the same crop
    boxes      transformed to coordinates of the crop and clipped to it; boxes outside it are dropped

Every array has a fixed shape in a batch: longer values are truncated, shorter ones padded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from vidjax.data.config import ClipConfig
from vidjax.data.decode import VideoInfo
from vidjax.data.sampling import frame_times, frames_at
from vidjax.errors import UserError

PIECE = 256
"""Frames read at a time when a stream is iterated in pieces."""
DTYPES = ("float32", "int32", "int64", "int16", "uint8", "bool")
Kind = Literal["numbers", "segments", "boxes", "tracks", "frames", "samples"]
ENTRIES = {"segments": "[n, 2 or more]", "boxes": "[n, 4]", "tracks": "[n, 4]", "frames": "[c]", "samples": "[m, c]"}
"""Required shapes by kind; numbers may have any shape."""


@dataclass(frozen=True)
class Field:
    """The spec of a named field."""

    kind: Kind
    """How the field is matched to the clip, see the table in the module docstring."""
    shape: tuple[int, ...] = ()
    """Numbers: the shape of the array. Segments: (count, numbers per segment), the first two of which are start and end
    in seconds. Boxes: (count, 4), with x1, y1, x2, y2 as fractions of the frame's width and height. Tracks: (count, 4),
    boxes per frame. Frames: (channels,). Samples: (count, channels)."""
    dtype: str = "float32"
    """The dtype in a batch. Segments, boxes and tracks are float32, frames uint8."""
    fill: float | None = None
    """Value for padding and missing entries; by default -1 for segments, boxes and tracks, 0 for others."""
    rate: float | None = None
    """Frames or samples per second; None for frames at the rate of the video."""
    mirrored: tuple[int, ...] = ()
    """Channels of frames to invert (255 - v) when mirroring, such as horizontal optical flow."""
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
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"rate is {self.rate}: it must be more than 0")

    @property
    def fill_value(self) -> float:
        """Value for padding and missing entries."""
        return self.fill if self.fill is not None else -1 if self.kind in ("segments", "boxes", "tracks") else 0


Batch = dict[str, np.ndarray]
"""Arrays by name. Every batch contains

    video   uint8 (b t h w c)
    label   int32 (b,), -1 for none
    valid   bool (b,), False for unreadable examples and for padding rows; their video is black
    index   int32 (b,), index of the example, -1 for padding rows
    times   float32 (b t), times of the frames in seconds from the start of the video, or of the part of it; nan if the
            rate is unknown
    crop    int32 (b 7), top, left, height and width of the crop in the decoded frame, height and width of that frame,
            and 1 if mirrored; all 0 for invalid rows

and, with a tokeniser, `ids` int32 (b m), the tokens of a caption (all 0 for invalid rows), and `truncated` bool (b,),
whether the caption has more than m tokens; and the requested further fields, see `example.Field`."""

Arrays = dict[str, tuple[str, tuple[int, ...], float]]
"""The dtype, shape and fill value of each array of a row."""
BY_TIME = ("segments", "tracks", "samples")
"""Kinds of fields whose values differ between the clips of an example."""

VIDEO = Field("frames", (3,), "uint8", color=True)
LABEL = Field("numbers", (), "int32", fill=-1)


@runtime_checkable
class Stream(Protocol):
    """Frames of an open example, indexed from the start of the video or of the part that a manifest names."""

    info: VideoInfo
    """Length and rate. The size may differ from that of `read`, since it is known only after decoding a frame."""

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None
    ) -> tuple[UInt8[np.ndarray, "t h w c"], VideoInfo]:
        """Reads frames, and returns them with the info, which has their size before shrinking.

        Args:
          indices: frame indices in any order.
          short_side: shrink the shorter side to this many pixels; smaller frames are not enlarged.
        """
        ...

    def iterate(self, indices: Int[np.ndarray, "n"], short_side: int | None) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yields the same frames one by one, in bounded memory; `indices` must be increasing."""
        ...


def in_pieces(
    stream: Stream, indices: Int[np.ndarray, "n"], short_side: int | None
) -> Iterator[UInt8[np.ndarray, "h w c"]]:
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
    values: Mapping[str, Shaped[np.ndarray, "..."]] = field(default_factory=dict)
    """Stored values of further fields that are not frames, without those that the example does not have."""


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
        """The specs of the named fields.

        Raises:
          UserError: the source has no such field.
        """
        if unknown := [name for name in names if name not in self.fields]:
            raise UserError(f"{self.name} has no field '{unknown[0]}': choose among {', '.join(self.fields)}")
        return {name: self.fields[name] for name in names}


def field_specs(source: Source, config: ClipConfig, fields: Sequence[str]) -> dict[str, Field]:
    """Specs of the stream that the clips are made from, as `video`, and of the further fields."""
    (video,) = source.specs([config.stream]).values()
    if video.kind != "frames":
        raise UserError(f"data.stream {config.stream} is no field of frames of {source.name}: choose another")
    if {"video", "label"} & set(fields):
        raise UserError("video and label are in every batch: remove them from the fields")
    return {"video": video, **source.specs(fields)}


def read_clips(
    example: Example, indices: Int[np.ndarray, "v t"], config: ClipConfig, specs: Mapping[str, Field]
) -> dict[str, np.ndarray]:
    """Reads clips of an open example: decoded frames, with the clips in sequence, and fields cut to their times.

    Args:
      example: the example.
      indices: indices of frames of the stream `config.stream`.
      config: config of the clips.
      specs: specs of the fields to read: `video`, which stands for `config.stream`, and further fields.
    """
    stream = example.streams[config.stream]
    times = frame_times(indices, stream.info.rate)
    frames, _ = stream.read(indices.ravel(), config.decode_short_side)
    row = {"video": frames, "times": times.astype(np.float32), "label": np.int32(example.label)}
    for name in specs.keys() - row.keys():
        if specs[name].kind != "frames":
            row[name] = cut_value(specs[name], example.values.get(name), times)
        else:
            other = example.streams[name]
            same = other.info.rate == stream.info.rate or np.isnan(other.info.rate)
            chosen = indices if same else frames_at(times, other.info.num_frames, other.info.rate)
            chosen = np.minimum(chosen, other.info.num_frames - 1)  # flow between frames has one frame fewer
            row[name], _ = other.read(chosen.ravel(), config.decode_short_side)
    return row


def cut_value(
    spec: Field, value: Shaped[np.ndarray, "..."] | None, times: Float[np.ndarray, "v t"]
) -> Shaped[np.ndarray, "..."]:
    """The value of a field other than frames for clips of an example: cut to the clips' times and padded.

    Args:
      spec: spec of the field.
      value: the stored value; None if the example does not have the field.
      times: times of the frames of `v` clips, in seconds.

    Returns:
      An array of the spec's shape for numbers and boxes, (v, *shape) for segments and samples, (v, t, n, 4) for tracks.
    """
    empty = np.zeros((0, {"tracks": 6}.get(spec.kind, spec.shape[-1]))) if len(spec.shape) > 1 else None
    value = empty if value is None else value
    if spec.kind in ("numbers", "boxes"):
        return pad(spec, value)
    if spec.kind == "segments":
        return np.stack([pad(spec, clip_segments(value, clip)) for clip in times])
    if spec.kind == "tracks":
        return np.stack([boxes_at(value, clip, spec.shape[0], spec.fill_value) for clip in times])
    starts = np.floor(np.nan_to_num(times[:, 0]) * spec.rate + 0.5).astype(np.int64)
    return np.stack([pad(spec, value[start : start + spec.shape[0]]) for start in starts])


def pad(spec: Field, value: Shaped[np.ndarray, "..."] | None) -> Shaped[np.ndarray, "..."]:
    """Truncates or pads a value to the spec's shape."""
    padded = np.full(spec.shape, spec.fill_value, spec.dtype)
    if value is not None:
        fitting = tuple(slice(0, min(sides)) for sides in zip(spec.shape, np.shape(value), strict=True))
        padded[fitting] = np.asarray(value)[fitting]
    return padded


def clip_segments(segments: Float[np.ndarray, "n k"], times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "m k"]:
    """The segments that overlap a clip, clipped to it.

    A clip lasts from its first frame to one step after its last, where a step is the mean distance between its frames.
    A clip of one frame has no duration: the segments that contain its time are kept, with that time as start and end.

    Args:
      segments: start and end in seconds, relative to the same origin as `times`, and any further numbers, which are
        copied.
      times: times of the clip's frames, in seconds.
    """
    first, last = times.min(), times.max()
    stop = last + (last - first) / max(len(times) - 1, 1)
    start, end = segments[:, 0], segments[:, 1]
    overlaps = (start < stop) & (end > first) if stop > first else (start <= first) & (end > first)
    clipped = segments[overlaps].copy()
    clipped[:, :2] = clipped[:, :2].clip(first, stop)
    return clipped


def boxes_at(
    tracks: Float[np.ndarray, "m 6"], times: Float[np.ndarray, "t"], count: int, fill: float = -1
) -> Float[np.ndarray, "t n 4"]:
    """The boxes of the tracks 0 to `count` - 1 at `times`, linearly interpolated.

    Args:
      tracks: rows of track number, seconds, x1, y1, x2, y2.
      times: seconds.
      count: number of tracks, n.
      fill: value for times before the first or after the last row of a track.
    """
    boxes = np.full((len(times), count, 4), fill, np.float32)
    for number in range(count):
        track = tracks[tracks[:, 0] == number]
        if len(track):
            track = track[np.argsort(track[:, 1], kind="stable")]
            seconds = track[:, 1]
            inside = (times >= seconds[0] - 1e-4) & (times <= seconds[-1] + 1e-4)  # float32 seconds are rounded
            interpolated = np.stack([np.interp(times, seconds, track[:, side]) for side in range(2, 6)], axis=-1)
            boxes[inside, number] = interpolated[inside]
    return boxes


def boxes_in_crop(
    boxes: Float[np.ndarray, "*b 4"], crop: Int[np.ndarray, "*#b 7"], fill: float = -1
) -> Float[np.ndarray, "*b 4"]:
    """Transforms boxes from coordinates of the frame to those of a crop, and clips them to the crop.

    Boxes outside the crop, and boxes without width or height (missing entries), are set to `fill`.

    Args:
      boxes: x1, y1, x2, y2 as fractions of the frame's width and height.
      crop: as in a batch: top, left, height and width of the crop in pixels of the decoded frame, height and width of
        that frame, and 1 if mirrored.
      fill: value of missing boxes.
    """
    top, left, height, width, frame_height, frame_width, flipped = np.moveaxis(crop.astype(np.float64), -1, 0)
    height, width = np.maximum(height, 1), np.maximum(width, 1)  # the crop of an invalid row is all zeros
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    absent = (x2 <= x1) | (y2 <= y1)
    x1, x2 = (((x * frame_width - left) / width).clip(0, 1) for x in (x1, x2))
    y1, y2 = (((y * frame_height - top) / height).clip(0, 1) for y in (y1, y2))
    x1, x2 = np.where(flipped, 1 - x2, x1), np.where(flipped, 1 - x1, x2)
    absent |= (x2 <= x1) | (y2 <= y1)
    moved = np.stack([x1, y1, x2, y2], axis=-1)
    return np.where(absent[..., None], fill, moved).astype(np.float32)


def row_arrays(specs: Mapping[str, Field], config: ClipConfig, clips: int, crops: int) -> Arrays:
    """The arrays of a row of `clips` clips, with as many views as `crops`."""
    arrays: Arrays = {
        "label": ("int32", (), -1),
        "times": ("float32", (clips, config.frames), 0),
        "crop": ("int32", (crops, 7), 0),
    }
    for name, spec in specs.items():
        shape = spec.shape
        if spec.kind == "frames":
            shape = (crops, config.frames, config.size, config.size, *shape)
        elif spec.kind == "tracks":
            shape = (clips, config.frames, *shape)
        elif spec.kind in BY_TIME:
            shape = (clips, *shape)
        arrays[name] = (spec.dtype, shape, spec.fill_value)
    return arrays


def split_views(batch: Batch, specs: Mapping[str, Field], clips: int) -> tuple[Batch, Batch]:
    """Splits a batch into arrays common to all views and arrays per view, with boxes in coordinates of each crop."""
    crop = batch.pop("crop")
    squares = crop.shape[1] // clips
    per_view = {"crop": crop, "times": np.repeat(batch.pop("times"), squares, axis=1)}
    for name, spec in specs.items():
        if spec.kind == "numbers":
            continue
        per_view[name] = batch.pop(name)
        if spec.kind in BY_TIME:
            per_view[name] = np.repeat(per_view[name], squares, axis=1)  # (b v ...)
        if spec.kind == "boxes":
            per_view[name] = np.repeat(per_view[name][:, None], crop.shape[1], axis=1)
        if spec.kind in ("boxes", "tracks"):
            middle = (1,) * (per_view[name].ndim - 3)  # n, or t and n
            per_view[name] = boxes_in_crop(per_view[name], crop.reshape(*crop.shape[:2], *middle, 7), spec.fill_value)
    return batch, per_view
