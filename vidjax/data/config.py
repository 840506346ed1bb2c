"""Configs of data sources, clips and augmentation. Imports no TensorFlow, so that `--help` stays fast."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from vidjax.errors import UserError
from vidjax.fields import check_values, free

Protocol = Literal[
    "vidjax", "slowfast", "slowfast_offset", "pytorchvideo", "mmaction2", "video_swin", "videomae", "viclip"
]  # fmt: skip
"""Whose rules decide where the clips and crops of a test video lie, see `sampling` and `crop.view_crops`."""


SHAPES = "synthetic:many_shapes"
"""The embedded videos with boxes."""


def core_count() -> int:
    """Number of CPU cores available to this process; a scheduler may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise UserError(f"{field} is {value}: it must be {rule}")


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training clips, the same for all frames of a clip."""

    crop: Literal["multi_scale", "random_resized", "center"] = "multi_scale"
    """Multi-scale corner crop, random resized crop or central crop."""
    flip: bool = False
    """Mirror clips horizontally with probability 0.5."""
    color_jitter: float = 0.0
    """Strength of random changes of brightness, contrast and saturation, 0 = off."""
    grey: float = 0.0
    """Probability of converting a clip to greyscale."""
    rand_augment_ops: int = 0
    """Number of RandAugment operations per clip, 0 = off."""
    rand_augment_magnitude: float = 7.0
    """Strength of the RandAugment operations, 0 to 10."""
    random_erasing: float = 0.0
    """Probability of erasing a box of a clip."""

    @property
    def changes_pixels(self) -> bool:
        """Whether pixels are changed after the crop."""
        return bool(self.color_jitter or self.grey or self.rand_augment_ops or self.random_erasing)

    def __post_init__(self) -> None:
        check_values(self, "augment.")
        for name in ("grey", "random_erasing"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "between 0 and 1")
        _require(self.color_jitter >= 0, "augment.color_jitter", self.color_jitter, "0 or more")
        _require(self.rand_augment_ops >= 0, "augment.rand_augment_ops", self.rand_augment_ops, "0 or more")
        magnitude = self.rand_augment_magnitude
        _require(0 <= magnitude <= 10, "augment.rand_augment_magnitude", magnitude, "between 0 and 10")


@dataclass(frozen=True)
class ClipConfig:
    """How clips are sampled from videos and decoded."""

    frames: int = 16
    """Frames per clip."""
    size: int = 224
    """Height and width of the model's input in pixels."""
    stride: int = 4
    """Distance between sampled frames in frames of the file (dense sampling)."""
    fps: float | None = None
    """Sample this many frames per second instead of every stride-th frame (dense sampling)."""
    sampling: Literal["dense", "segments", "uniform"] = "dense"
    """Frames one stride apart (dense), one frame from each of equal parts (segments), or evenly spaced (uniform)."""
    consecutive: int = 1
    """Frames in a row from each of the equal parts (segments), as networks of optical flow stack them."""
    protocol: Protocol = "vidjax"
    """Whose rules place test clips and crops; those of SlowFast and PyTorchVideo also space training frames."""
    short_side: int | None = None
    """Resize the shorter side to this many pixels after decoding, never enlarging (default: 8/7 of size)."""
    square_pixels: bool = True
    """Stretch non-square pixels in width, as players do; False keeps frames as stored."""
    stream: str = "video"
    """The stream that clips are made from: video, another field of frames such as flow, or both joined: video+flow."""
    workers: int = free(0)
    """Number of clips decoded in parallel, 0 = one per core."""
    max_bad_share: float = free(0.2)
    """Stop when more than this fraction of the examples cannot be read."""

    def __post_init__(self) -> None:
        check_values(self, "data.")
        for name in ("frames", "size", "stride", "consecutive"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "1 or more")
        if self.consecutive > 1 and self.sampling != "segments":
            raise UserError(f"data.consecutive is for --data.sampling segments, not {self.sampling}: omit it")
        parts = f"a multiple of data.consecutive, {self.consecutive}"
        _require(self.frames % self.consecutive == 0, "data.frames", self.frames, parts)
        _require(self.fps is None or self.fps > 0, "data.fps", self.fps, "more than 0")
        short_side = self.short_side
        _require(short_side is None or short_side >= 1, "data.short_side", short_side, "1 or more")
        _require(self.workers >= 0, "data.workers", self.workers, "0 (one per core) or more")
        _require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "between 0 and 1")

    @property
    def decode_short_side(self) -> int:
        """Pixels of the shorter side after decoding: by default 8/7 of size, which leaves room for cropping."""
        return self.short_side or -(-self.size * 8 // 7)

    @property
    def center_ratio(self) -> float:
        """Side of the central crop as a fraction of the shorter side: 1 if short_side equals size."""
        return min(self.size / self.decode_short_side, 1.0)


@dataclass(frozen=True)
class TrainClipConfig(ClipConfig):
    """How training clips are sampled, decoded and augmented."""

    augment: AugmentConfig = AugmentConfig()
    """Random augmentation of training clips."""
    repeats: int = 1
    """Differently augmented clips made from each video that is read (repeated augmentation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.repeats >= 1, "data.repeats", self.repeats, "1 or more")


@dataclass(frozen=True)
class DataConfig(TrainClipConfig):
    """A source of videos, and how its clips are sampled, decoded and augmented."""

    source: str = "synthetic:moving_shapes"
    """Folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:..., mix:A=2,B=1."""
    split: str = "train"
    """Split of a tfds or synthetic source: train, validation, or another that it has (a wrong name lists them)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.source), "data.source", repr(self.source), "a folder, a manifest or KIND:NAME")


@dataclass(frozen=True)
class LabelledSources:
    """Labelled videos for training and validation."""

    train: str = "synthetic:moving_shapes"
    """Folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:..., mix:A=2,B=1."""
    train_split: str = "train"
    """Split of a tfds or synthetic source, or of a Kinetics list that contains several."""
    train_examples: int | None = None
    """Train on this many of the videos only, drawn at random with the run's seed."""
    validation: str | None = None
    """Labelled videos of the same classes for validation (default: no validation)."""
    validation_split: str = "validation"
    """Split of a tfds or synthetic source, or of a Kinetics list that contains several."""
    validation_examples: int | None = None
    """Validate on this many of the videos only, drawn at random."""

    def __post_init__(self) -> None:
        for name in ("train_examples", "validation_examples"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"data.{name}", value, "1 or more")
        _require(bool(self.train), "data.train", repr(self.train), "a folder, a manifest or KIND:NAME")


@dataclass(frozen=True)
class LabelledDataConfig(LabelledSources, TrainClipConfig):
    """Labelled videos for training and validation, and how their clips are sampled, decoded and augmented."""

    def __post_init__(self) -> None:
        TrainClipConfig.__post_init__(self)
        LabelledSources.__post_init__(self)


@dataclass(frozen=True)
class DetectionConfig(TrainClipConfig):
    """Annotated key frames, and how their clips are sampled, decoded and augmented."""

    train: str = SHAPES
    """AVA's .csv of annotated boxes, or synthetic:many_shapes."""
    validation: str | None = None
    """Boxes to validate on (default: no validation)."""
    videos: str | None = None
    """The folder of the video files, named by the ids in the .csv."""
    start: float = 0.0
    """Time stamp at which the files begin, such as 900 for AVA's films cut to minutes 15 to 30."""
    classes: str | None = None
    """AVA's label map (.pbtxt or .csv) of all classes (default: the actions in the training boxes)."""
    evaluated: str | None = None
    """A label map of the classes that count in the mAP, such as AVA's 60 (default: all)."""
    train_excluded: str | None = None
    """A .csv of key frames that are not trained on."""
    validation_excluded: str | None = None
    """A .csv of key frames that are left out of the mAP."""
    proposals: str | None = None
    """A .csv of detected persons to classify in validation (default: the annotated boxes)."""
    least_box_score: float = 0.8
    """Detected persons with a lower score are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("sampling", "dense"), ("protocol", "vidjax"), ("stream", "video")):
            if getattr(self, name) != value:
                raise UserError(f"data.{name} is {getattr(self, name)}: clips lie around key frames, omit it")
        if self.train != SHAPES and self.videos is None:
            raise UserError("where the videos are is unknown: give --data.videos, a folder of files named by their ids")


@dataclass(frozen=True)
class CaptionedDataConfig(DataConfig):
    """Videos with captions for training and validation, and how their clips are sampled, decoded and augmented."""

    templates: str | None = None
    """Make captions from class names: actionclip, plain, a file with one template per line, or a template ("a {}")."""
    validation: str | None = None
    """Videos with captions or classes for validation (default: no validation)."""
    validation_split: str = "validation"
    """Split of a tfds or synthetic source, or of a Kinetics list that contains several."""
    validation_examples: int | None = None
    """Validate on this many of the videos only, drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.validation_examples
        _require(value is None or value >= 2, "data.validation_examples", value, "2 or more")


@dataclass(frozen=True)
class GivenClipConfig:
    """How clips are sampled; options that are not given default to those of training or of the published model."""

    frames: int | None = None
    """Frames per clip."""
    size: int | None = None
    """Height and width of the model's input in pixels."""
    stride: int | None = None
    """Distance between sampled frames in frames of the file (dense sampling)."""
    fps: float | None = None
    """Sample this many frames per second instead of every stride-th frame (dense sampling)."""
    sampling: Literal["dense", "segments", "uniform"] | None = None
    """Frames one stride apart (dense), one frame from each of equal parts (segments), or evenly spaced (uniform)."""
    consecutive: int | None = None
    """Frames in a row from each of the equal parts (segments), as networks of optical flow stack them."""
    protocol: Protocol | None = None
    """Whose rules place test clips and crops; those of SlowFast and PyTorchVideo also space training frames."""
    short_side: int | None = None
    """Resize the shorter side to this many pixels after decoding, never enlarging."""
    square_pixels: bool | None = None
    """Stretch non-square pixels in width, as players do; False keeps frames as stored."""
    workers: int = 0
    """Number of clips decoded in parallel, 0 = one per core."""

    def __post_init__(self) -> None:
        check_values(self, "data.")

    def clips(self, usual: Mapping[str, Any]) -> ClipConfig:
        """The config with the options given here, and the values in `usual` for the others.

        A given stride replaces fps and vice versa, and a given sampling other than segments the consecutive frames;
        with another size the crop covers the same fraction of the frame.

        Raises:
          UserError: both stride and fps are given.
        """
        given = {field.name: getattr(self, field.name, None) for field in fields(ClipConfig)}
        given = {name: value for name, value in given.items() if value is not None}
        if {"stride", "fps"} <= given.keys():
            raise UserError("data.stride and data.fps exclude each other: give one of them")
        cut = dict(usual) | ({"fps": None} if "stride" in given else {})
        if given.get("sampling", "segments") != "segments":
            cut["consecutive"] = 1
        if "size" in given and "short_side" not in given and cut.get("short_side"):
            cut["short_side"] = round(cut["short_side"] * given["size"] / cut["size"])
        return ClipConfig(**(cut | given))


@dataclass(frozen=True)
class SourceConfig(GivenClipConfig):
    """A source of videos, and how its clips are sampled (by default as in training or as published)."""

    source: str = "synthetic:moving_shapes"
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    split: str = "validation"
    """Split of a tfds or synthetic source, or of a Kinetics list that contains several."""
    max_bad_share: float = 0.2
    """Stop when more than this fraction of the examples cannot be read."""


@dataclass(frozen=True)
class LabelledSourceConfig(LabelledSources, GivenClipConfig):
    """Labelled videos, and how their clips are sampled (by default as in the encoder's training or as published)."""

    max_bad_share: float = 0.2
    """Stop when more than this fraction of the examples cannot be read."""

    def __post_init__(self) -> None:
        GivenClipConfig.__post_init__(self)
        LabelledSources.__post_init__(self)
