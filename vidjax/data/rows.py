"""Rows of a batch: the clips of an open example, with its fields matched to their times and crops.

A field is matched to a clip by its kind:

    numbers    unchanged
    segments   clipped to the time span of the clip; segments outside it are dropped
    tracks     interpolated to one box per frame of the clip, then as boxes
    samples    (sound) cut to start at the time of the clip's first frame; with `NAME_valid`, whether at least half of
               them are there
    frames     (flow) the frames on screen at the times of the clip's frames, with the same crop; of streams joined by
               their names, as `video+flow`, along the channels
    boxes      transformed to coordinates of the crop and clipped to it; boxes outside it are dropped

Every array has a fixed shape in a batch: longer values are truncated, shorter ones padded.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from vidjax.data.config import ClipConfig
from vidjax.data.crop import cut_region, cut_views
from vidjax.data.example import EncodedStream, Example, Field, Stream, stream_names
from vidjax.data.flow import from_bytes
from vidjax.data.sampling import frame_times, frames_at

Batch = dict[str, np.ndarray]
"""Arrays by name. Every batch contains

    video   uint8 (b t h w c); float16 for optical flow that is stored so, in pixels, and for frames joined with it
    label   int32 (b,), -1 for none
    valid   bool (b,), False for unreadable examples and for padding rows; their video is black
    index   int32 (b,), index of the example, -1 for padding rows
    times   float32 (b t), times of the frames in seconds from the start of the video, or of the part of it; nan if the
            rate is unknown
    crop    int32 (b 7), top, left, height and width of the crop in the decoded frame, height and width of that frame,
            and 1 if mirrored; all 0 for invalid rows

and, with a tokeniser, `ids` int32 (b m), the tokens of a caption (all 0 for invalid rows), and `truncated` bool (b,),
whether the caption has more than m tokens, both with an axis of captions if several are asked for; and the requested
further fields, see `example.Field`."""

Arrays = dict[str, tuple[str, tuple[int, ...], float]]
"""The dtype, shape and fill value of each array of a row."""
BY_TIME = ("segments", "tracks", "samples")
"""Kinds of fields whose values differ between the clips of an example."""


def stored_names(config: ClipConfig, fields: Iterable[str] = ()) -> list[str]:
    """The fields to open of an example: each once, the stream first whose frames `config` counts."""
    return list(dict.fromkeys(part for name in (config.stream, *fields) for part in stream_names(name)))


def read_clips(
    example: Example, indices: Int[np.ndarray, "v t"], config: ClipConfig, specs: Mapping[str, Field]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads clips of an open example: fields cut to their times, and frames, with the clips in sequence.

    Frames that are stored as images are still encoded (`images.EncodedFrames`), as only their crops are decoded.

    Args:
      example: the example.
      indices: indices of frames of the first stream in `config.stream`.
      config: config of the clips.
      specs: specs of the fields to read: `video`, which stands for `config.stream`, and further fields.

    Returns:
      The arrays of the row without those of frames, and the frames of each stream, the first one first; `join_streams`
      makes the row's arrays of their crops.
    """
    names = stored_names(config, [name for name, spec in specs.items() if spec.kind == "frames" and name != "video"])
    first = example.streams[names[0]].info
    times = frame_times(indices, first.rate)
    row = {"times": times.astype(np.float32), "label": np.int32(example.label)}
    for name, spec in specs.items():
        if spec.kind == "samples":
            row[name], row[f"{name}_valid"] = cut_samples(spec, example.values.get(name), times)
        elif spec.kind != "frames":
            row[name] = cut_value(spec, example.values.get(name), times)
    streams = {}
    for name in names:
        info = example.streams[name].info
        same = info.rate == first.rate or np.isnan(info.rate)
        chosen = indices if same else frames_at(times, info.num_frames, info.rate)
        chosen = np.minimum(chosen, info.num_frames - 1)  # flow between frames has one frame fewer
        streams[name] = _frames(example.streams[name], chosen, config)
    return row, streams


def join_streams(
    cuts: Mapping[str, Num[np.ndarray, "v t h w _"]], config: ClipConfig, specs: Mapping[str, Field]
) -> dict[str, Num[np.ndarray, "v t h w _"]]:
    """The arrays of frames in a row, from the crops of each stream of `read_clips`."""
    row = {}
    for name in (name for name, spec in specs.items() if spec.kind == "frames"):
        row[name] = join([cuts[part] for part in stream_names(config.stream if name == "video" else name)])
    return row


def join(parts: Sequence[Num[np.ndarray, "*t h w _"]]) -> Num[np.ndarray, "*t h w _"]:
    """Frames of several streams along the channels; bytes beside float16 get the scale of their values."""
    if len({part.dtype for part in parts}) > 1:
        parts = [part if part.dtype == np.float16 else from_bytes(part).astype(np.float16) for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _frames(stream: Stream, indices: Int[np.ndarray, "v t"], config: ClipConfig) -> Any:
    if isinstance(stream, EncodedStream):
        return stream.encoded(indices.ravel(), config.decode_short_side)
    return stream.read(indices.ravel(), config.decode_short_side)[0]


def cut_streams(
    streams: Mapping[str, Any],
    crops: Int[np.ndarray, "k 7"],
    config: ClipConfig,
    stored: Mapping[str, Field],
    specs: Mapping[str, Field],
) -> dict[str, Num[np.ndarray, "v t s s _"]]:
    """The arrays of frames in a row of evaluation: all crops of each clip.

    Args:
      streams: the frames of each stream, see `read_clips`.
      crops: see `crop`.
      stored: specs of the streams.
      specs: specs of the row's fields.
    """
    cuts = {}
    for name, frames in streams.items():
        region = cut_region(frames, crops)
        cuts[name] = cut_views(*region, config.frames, config.size, stored[name].mirrored)
    return join_streams(cuts, config, specs)


def cut_value(
    spec: Field, value: Shaped[np.ndarray, "..."] | None, times: Float[np.ndarray, "v t"]
) -> Shaped[np.ndarray, "..."]:
    """The value of a field other than frames and samples for clips of an example: cut to their times and padded.

    Args:
      spec: spec of the field.
      value: the stored value; None if the example does not have the field.
      times: times of the frames of `v` clips, in seconds.

    Returns:
      An array of the spec's shape for numbers and boxes, (v, *shape) for segments, (v, t, n, 4) for tracks.
    """
    empty = np.zeros((0, {"tracks": 6}.get(spec.kind, spec.shape[-1]))) if len(spec.shape) > 1 else None
    value = empty if value is None else value
    if spec.kind in ("numbers", "boxes"):
        return pad(spec, value)
    if spec.kind == "segments":
        return np.stack([pad(spec, clip_segments(value, clip)) for clip in times])
    return np.stack([boxes_at(value, clip, spec.shape[0], spec.fill_value) for clip in times])


def cut_samples(
    spec: Field, value: Any, times: Float[np.ndarray, "v t"]
) -> tuple[Shaped[np.ndarray, "v m c"], Bool[np.ndarray, "v"]]:
    """Samples from the time of each clip's first frame on, padded, and whether at least half of them are there.

    Args:
      spec: spec of the field.
      value: the stored samples (n c), or what decodes a slice of them (`sound.Sound`); None without any.
      times: times of the frames of `v` clips, in seconds.
    """
    value = np.zeros((0, spec.shape[1])) if value is None else value
    starts = np.floor(np.nan_to_num(times[:, 0]) * spec.rate + 0.5).astype(np.int64).tolist()
    cut = [value[start : start + spec.shape[0]] for start in starts]
    return np.stack([pad(spec, each) for each in cut]), np.array([2 * len(each) >= spec.shape[0] for each in cut])


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
        if spec.kind == "samples":
            arrays[f"{name}_valid"] = ("bool", (clips,), False)
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
        if spec.kind == "samples":
            per_view[f"{name}_valid"] = np.repeat(batch.pop(f"{name}_valid"), squares, axis=1)
        if spec.kind == "boxes":
            per_view[name] = np.repeat(per_view[name][:, None], crop.shape[1], axis=1)
        if spec.kind in ("boxes", "tracks"):
            middle = (1,) * (per_view[name].ndim - 3)  # n, or t and n
            per_view[name] = boxes_in_crop(per_view[name], crop.reshape(*crop.shape[:2], *middle, 7), spec.fill_value)
    return batch, per_view
