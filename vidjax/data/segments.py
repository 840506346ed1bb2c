"""Untrimmed videos with annotated segments: ActivityNet's JSON, and a folder of `.npy` files of features, or videos.

The annotations are `{"database": {NAME: {"subset", "duration", "annotations": [{"segment": [START, END], "label"}]}}}`
with times in seconds, as THUMOS 2014 is distributed too. The features of a video are the file PREFIX NAME.npy, as
published for I3D (THUMOS), TSP and others: `t c`, or `c t` if its first side has the width of the features. A folder
that `experiments/embed.py` wrote also says in `videos.json` which frames each feature is of.

Opening lists the folder and opens a few files, so that 10,000 of them cost seconds; a video is memory-mapped when it is
read, and only the part that a batch needs is copied.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from vidjax.data import untrimmed_shapes
from vidjax.data.config import ClipConfig
from vidjax.data.feature_files import (
    FeatureFile,
    cut_spans,
    described_rate,
    examples,
    list_files,
    open_features,
    probe,
    read_description,
)
from vidjax.errors import UserError
from vidjax.fields import check_values, free

if TYPE_CHECKING:  # imports PyAV
    from vidjax.data.untrimmed_videos import WindowedVideo

SHAPES = "synthetic:untrimmed_shapes"


@dataclass(frozen=True)
class SegmentConfig:
    """Features of untrimmed videos on disk, and their annotated segments."""

    annotations: str = SHAPES
    """A .json file in ActivityNet's form, or synthetic:untrimmed_shapes."""
    features: str | None = None
    """Folder of a .npy file for each video; the demo makes its own."""
    videos: str | None = None
    """The video files instead of features, for an encoder that is trained too: a folder, a list or synthetic:...."""
    size: int = 224
    """Height and width of the encoder's input in pixels, with data.videos."""
    short_side: int | None = None
    """Resize the shorter side of frames to this many pixels before the central crop (default: 8/7 of size)."""
    workers: int = free(0)
    """Number of videos decoded in parallel, 0 = one per core."""
    prefix: str = ""
    """What precedes the video's name in the name of its file, such as v_."""
    train: str = "training"
    """The subset to train on."""
    validation: str | None = "validation"
    """The subset to validate on."""
    fps: float | None = None
    """Frames per second in which stride and frames are counted (default: of each video, in the annotations)."""
    stride: float | None = None
    """Frames from one feature to the next; needed unless embed.py wrote the features."""
    frames: float | None = None
    """Frames that a feature is of; needed unless embed.py wrote the features."""
    resize: bool = False
    """Stretch features linearly to the model's length, as for ActivityNet."""
    one_class: bool = False
    """Find segments of any class, which another classifier may name."""
    ignored: tuple[str, ...] = ()
    """Classes whose segments are neither learned nor counted, such as those that repeat another class's."""
    crop: tuple[float, float] = (0.9, 1.0)
    """A training video that is not too long is cropped to a part between these fractions of its length."""
    least_part: float = 0.5
    """A crop contains at least this part of one segment, and loses segments of which it contains less."""
    max_bad_share: float = free(0.0)
    """Stop if more than this fraction of the annotated videos have no features, or of the files no annotation."""

    repeats = 1

    def __post_init__(self) -> None:
        check_values(self, "data.")
        for name in ("fps", "stride", "frames"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"data.{name} is {value}: it must be above 0")
        if self.videos is not None:
            self._check_videos()
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise UserError(f"data.crop is {low:g} {high:g}: give two fractions of the length, the lesser first")
        for name in ("least_part", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name} is {getattr(self, name)}: it must be between 0 and 1")

    def _check_videos(self) -> None:
        if self.features is not None:
            raise UserError("data.features and data.videos are both given: an encoder is trained on videos, give one")
        if self.resize or self.prefix:
            raise UserError("data.resize and data.prefix are for features: omit them with data.videos")
        for name in ("fps", "stride", "frames"):
            value = getattr(self, name)
            if value is None or (name != "fps" and value != int(value)):
                raise UserError(
                    f"data.{name} is {value}: with data.videos, give the frames sampled per second (--data.fps), those "
                    "of a window (--data.frames) and those from one window to the next (--data.stride)"
                )

    @property
    def clips(self) -> ClipConfig:
        """How the windows of videos are cut."""
        return ClipConfig(int(self.frames or 1), self.size, stride=1, fps=self.fps, short_side=self.short_side)


@dataclass(frozen=True)
class Untrimmed:
    """A video of which there are features.

    Attributes:
      name: its name in the annotations.
      path: its file of features, or of video.
      duration: in seconds.
      fps, stride, frames: of the features, see `SegmentConfig`.
      segments: start and end in seconds.
      labels: positions in the class names.
    """

    name: str
    path: str
    duration: float
    fps: float
    stride: float
    frames: float
    segments: Float[np.ndarray, "m 2"]
    labels: Int[np.ndarray, "m"]


@dataclass(frozen=True)
class SegmentSource:
    """The videos of a subset; what `runs.run.Run` reads of a `Source` has the same names.

    Attributes:
      channels: width of the features; None if there are none yet.
      windows: of each video, in place of features.
    """

    name: str
    class_names: tuple[str, ...]
    videos: Sequence[Untrimmed]
    channels: int | None
    notes: tuple[str, ...] = ()
    windows: Sequence["WindowedVideo"] | None = None

    parts = ()
    listed = True
    unit = "videos"

    def __len__(self) -> int:
        return len(self.videos)

    @cached_property
    def most(self) -> int:
        """The number of segments of the video that has most."""
        return max(len(video.labels) for video in self.videos)

    @property
    def ids(self) -> list[str]:
        """Names of the videos."""
        return [video.name for video in self.videos]

    def label(self, index: int) -> tuple[tuple[float | np.integer, ...], ...]:
        """Segments and labels of a video, by which a run that resumes knows its data."""
        video = self.videos[index]
        return tuple((*segment, label) for segment, label in zip(video.segments.tolist(), video.labels, strict=True))

    def captions(self, _: int) -> tuple[str, ...]:
        """None."""
        return ()

    def read(self, index: int) -> "np.ndarray | WindowedVideo":
        """The features of a video, `t c`, memory-mapped in the type in which they were stored, or its windows.

        Raises UserError.
        """
        return self.windows[index] if self.windows else open_features(self.videos[index].path, self.channels)


def read_annotations(path: str) -> dict[str, dict[str, Any]]:
    """The videos of an ActivityNet file by name.

    Raises:
      UserError: the file does not exist or has another form.
    """
    if path == SHAPES:
        return untrimmed_shapes.annotations()["database"]
    try:
        database = json.loads(Path(path).read_text())["database"]
        for name, entry in database.items():
            numbers = [entry["duration"], *(bound for each in entry["annotations"] for bound in each["segment"])]
            well = all(len(each["segment"]) == 2 and isinstance(each["label"], str) for each in entry["annotations"])
            if not well or not np.isfinite(np.array(numbers, float)).all() or not entry["duration"] > 0:
                raise ValueError(f"of {name}")
            entry["subset"].lower()
    except OSError as error:
        raise UserError(f"data.annotations {path} cannot be read ({error.strerror}): give a .json file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"data.annotations {path} is not in ActivityNet's form ({error}): a database of videos, each with subset, "
            "duration and annotations of a segment [start, end] and a label"
        ) from error
    return database


def order_classes(database: Mapping[str, Any]) -> tuple[str, ...]:
    """All class names of the annotations, in the order of their `label_id` if they have one, else of the alphabet."""
    numbers = {each["label"]: each.get("label_id", 0) for entry in database.values() for each in entry["annotations"]}
    return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))


def open_segments(
    data: SegmentConfig, subset: str, channels: int | None = None, class_names: Sequence[str] | None = None
) -> SegmentSource:
    """Opens the videos of a subset, and checks annotations and features against each other.

    Args:
      channels: width that the features must have; by default that of the first file.
      class_names: the classes that a model knows, by default those of the annotations.

    Raises:
      UserError: with counts and examples: videos without features, files without annotation, times that are no seconds,
        unknown classes, features of another width or stride, or no video at all.
    """
    from vidjax.data.untrimmed_videos import WindowedVideo, open_recordings, probe_videos

    database = read_annotations(data.annotations)
    kinds = Counter(entry["subset"].lower() for entry in database.values())
    entries = {name: entry for name, entry in database.items() if entry["subset"].lower() == subset.lower()}
    if not entries:
        known = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.items())
        raise UserError(f"{data.annotations} has no videos in the subset {subset}: it has {known or 'none'}")
    recordings, numbers = open_recordings(data.videos) if data.videos else (None, {})
    files = {name: recordings.ids[row] for name, row in numbers.items()} if recordings else _list_files(data)
    notes = _missing(data, entries, database, files)
    entries = {name: entry for name, entry in entries.items() if name in files}
    if not entries:
        raise UserError(
            f"{data.videos or data.features} has none of the videos of {subset}: is data.prefix right, and is each "
            "file named as its video in the annotations?"
        )
    names = tuple(class_names or order_classes(database))
    _require_known(entries, names)
    if subset == data.train and not data.one_class:
        learned = {each["label"] for entry in entries.values() for each in entry["annotations"]}
        if unseen := [name for name in names if name not in learned]:
            notes.append(f"{len(unseen):,} of {len(names):,} classes have no segment to train on: {examples(unseen)}")
    written, times = None if recordings else _described(data), {}
    for name, entry in entries.items():
        times[name] = _rates(data, written, name, entry)
    cut, more = _cut_segments(entries)
    notes += more
    labels = {name: -1 if name in data.ignored else 0 if data.one_class else row for row, name in enumerate(names)}
    videos = []
    for name, entry in entries.items():
        rows = [(*segment, labels[label]) for *segment, label in cut[name] if labels[label] >= 0]
        table = np.array(rows, float).reshape(-1, 3)
        duration = float(entry["duration"])
        videos.append(Untrimmed(name, files[name], duration, *times[name], table[:, :2], table[:, 2].astype(int)))
    if not any(len(video.labels) for video in videos):
        raise UserError(f"none of the {len(videos):,} videos of {subset} has a segment: annotate them")
    opened = [FeatureFile(v.name, v.path, v.duration, v.fps, v.stride, v.frames) for v in videos]
    title, classes = f"{data.annotations}, {subset}", ("action",) if data.one_class else names
    if recordings:
        windows = [WindowedVideo(recordings, numbers[v.name], data.clips, int(v.stride)) for v in videos]
        probe_videos(opened, windows)
        return SegmentSource(title, classes, videos, None, tuple(notes), windows)
    channels = channels or open_features(videos[0].path, None).shape[1]
    probe(opened, channels, "--data.stride and --data.fps", data.resize)
    return SegmentSource(title, classes, videos, channels, tuple(notes))


def _list_files(data: SegmentConfig) -> dict[str, str]:
    """The paths of the files of features by the name of the video."""
    if data.features is None:
        raise UserError("no features are given: give --data.features, a folder of .npy files (embed.py writes them)")
    return list_files(data.features, data.prefix)


def _missing(
    data: SegmentConfig, entries: Mapping[str, Any], database: Mapping[str, Any], files: Mapping[str, str]
) -> list[str]:
    """Notes on videos without features, and files without annotation; raises UserError if they are too many."""
    has, what = ("file", "video files") if data.videos else ("features", "files of features")
    pairs = (
        ([name for name in entries if name not in files], len(entries), "annotated videos", has),
        ([name for name in files if name not in database], len(files), what, "annotation"),
    )
    notes = []
    for missing, total, kind, lacks in pairs:
        line = f"{len(missing):,} of the {total:,} {kind} have no {lacks}: {examples(missing)}"
        if len(missing) > data.max_bad_share * total:
            hint = "files have the names in the annotations" if data.videos else "and see data.prefix"
            raise UserError(
                f"{data.videos or data.features}: {line}; add them, or allow such with --data.max_bad_share ({hint})"
            )
        notes += [line] if missing else []
    return notes


def _require_known(entries: Mapping[str, Any], names: Sequence[str]) -> None:
    counts = Counter(each["label"] for entry in entries.values() for each in entry["annotations"])
    if unknown := [name for name in counts if name not in names]:
        raise UserError(
            f"{sum(counts[name] for name in unknown):,} segments are of {len(unknown)} classes that the model does not "
            f"know, such as {examples(unknown)}: rename them to its {len(names)} classes, {examples(names)}"
        )


def _described(data: SegmentConfig) -> dict[str, Any] | None:
    """What embed.py wrote about the folder; None if it did not write it."""
    if (written := read_description(data.features)) is None:
        return None
    for name, value in (("stride", written["stride"]), ("frames", written["window"])):
        if getattr(data, name) not in (None, value):
            raise UserError(
                f"data.{name} is {getattr(data, name):g}, but the features in {data.features} were made with {value}: "
                "omit it, or make others"
            )
    return written


def _rates(
    data: SegmentConfig, written: dict[str, Any] | None, name: str, entry: Mapping[str, Any]
) -> tuple[float, float, float]:
    """Frames per second, stride and frames of a video's features."""
    if written is not None:
        return described_rate(data.features, written, name)
    if data.stride is None or data.frames is None:
        raise UserError(
            f"which frames the features in {data.features} are of is unknown: give --data.stride and --data.frames"
        )
    if (fps := data.fps or entry.get("fps")) is None:
        raise UserError(f"{data.annotations} has no fps of {name}: give --data.fps, in which the stride is counted")
    return float(fps), data.stride, data.frames


def _cut_segments(entries: Mapping[str, Any]) -> tuple[dict[str, list[tuple[float, float, str]]], list[str]]:
    """Segments within the duration of their video, and notes on those that were cut or have no length."""
    rows = [(name, each, entry["duration"]) for name, entry in entries.items() for each in entry["annotations"]]
    spans, notes = cut_spans([(name, *each["segment"], duration) for name, each, duration in rows], "segments")
    cut: dict[str, list[tuple[float, float, str]]] = {name: [] for name in entries}
    for (name, each, _), span in zip(rows, spans, strict=True):
        if span is not None:
            cut[name].append((*span, each["label"]))
    return cut, notes
