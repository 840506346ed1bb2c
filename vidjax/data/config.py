"""What to train on and how to look at it. Imports no TensorFlow, so that `--help` stays fast."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from vidjax.errors import UserError
from vidjax.fields import check_values, free


def core_count() -> int:
    """Cores that this process may use: a scheduler often gives it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{field} is {value}: it must be {rule}")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training clip, the same for all of its frames."""

    crop: Literal["multi_scale", "random_resized", "center"] = "multi_scale"
    """How the square is cut: multi-scale corner crop, random resized crop, or the centre."""
    flip: bool = False
    """Mirror half of the clips left to right."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation, 0 = off."""
    grey: float = 0.0
    """Probability of a clip without colour."""
    rand_augment_ops: int = 0
    """Number of RandAugment operations a clip, 0 = off."""
    rand_augment_magnitude: float = 7.0
    """Strength of the RandAugment operations, 0 to 10."""
    random_erasing: float = 0.0
    """Probability of erasing one box of a clip."""

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
    """How clips are cut from videos and read."""

    frames: int = 16
    """Frames a clip."""
    size: int = 224
    """Pixels of the square clip given to the model."""
    stride: int = 4
    """File frames between sampled frames (dense sampling)."""
    fps: float | None = None
    """Sample at this many frames a second instead of every stride-th frame (dense sampling)."""
    sampling: Literal["dense", "segments", "uniform"] = "dense"
    """Frames next to each other (dense), one of each equal part (segments), or evenly over the whole."""
    short_side: int | None = None
    """Decode to this many pixels on the shorter side, never enlarging (default: 8/7 of size)."""
    square_pixels: bool = True
    """Stretch pixels that are not square in width, as players do; False leaves frames as files store them."""
    stream: str = "video"
    """The stream of the examples that makes the clips: video, or another field of frames, such as flow."""
    workers: int = free(0)
    """Clips decoded at the same time, 0 = one a core."""
    max_bad_share: float = free(0.2)
    """Stop when more than this share of the source's examples cannot be read."""

    def __post_init__(self) -> None:
        check_values(self, "data.")
        for name in ("frames", "size", "stride"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "1 or more")
        _require(self.fps is None or self.fps > 0, "data.fps", self.fps, "more than 0")
        short_side = self.short_side
        _require(short_side is None or short_side >= 1, "data.short_side", short_side, "1 or more")
        _require(self.workers >= 0, "data.workers", self.workers, "0 (one a core) or more")
        _require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "between 0 and 1")

    @property
    def decode_short_side(self) -> int:
        """Pixels of the shorter side after decoding: room for an eighth of crop jitter unless given."""
        return self.short_side or -(-self.size * 8 // 7)

    @property
    def center_ratio(self) -> float:
        """Share of the shorter side that a central crop keeps: all of it where short_side is size."""
        return min(self.size / self.decode_short_side, 1.0)


@dataclass(frozen=True)
class TrainClipConfig(ClipConfig):
    """Clips that change at random."""

    augment: AugmentConfig = AugmentConfig()
    """Random changes of a training clip."""
    repeats: int = 1
    """Clips made of each video that is read, by augmentations of their own (repeated augmentation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.repeats >= 1, "data.repeats", self.repeats, "1 or more")


@dataclass(frozen=True)
class DataConfig(TrainClipConfig):
    """A source of videos and how its clips are cut, decoded and augmented."""

    source: str = "synthetic:moving_shapes"
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    split: str = "train"
    """Split of a tfds or synthetic source (train, validation; compositions_train, _held_out, directions_held_out)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.source), "data.source", repr(self.source), "a folder, a manifest or KIND:NAME")


@dataclass(frozen=True)
class LabelledDataConfig(TrainClipConfig):
    """Labelled videos to train on and to validate with, and how their clips are cut, decoded and augmented."""

    train: str = "synthetic:moving_shapes"
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    train_split: str = "train"
    """The split of a tfds or synthetic source, or of a Kinetics list that holds several."""
    train_examples: int | None = None
    """Train on so many of the videos only, drawn at random with the run's seed (few labels)."""
    validation: str | None = None
    """Labelled videos to validate with, of the same classes; no validation when not given."""
    validation_split: str = "validation"
    """The split of a tfds or synthetic source, or of a Kinetics list that holds several."""
    validation_examples: int | None = None
    """Validate on so many of the videos only, drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_examples", "validation_examples"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"data.{name}", value, "1 or more")
        _require(bool(self.train), "data.train", repr(self.train), "a folder, a manifest or KIND:NAME")


@dataclass(frozen=True)
class CaptionedDataConfig(DataConfig):
    """Videos with captions to train on and to validate with, and how their clips are cut, decoded and augmented."""

    templates: str | None = None
    """Make captions of class names: actionclip, plain, a file with a template a line, or one template ("a {}")."""
    validation: str | None = None
    """Videos with captions or classes to validate with; no validation when not given."""
    validation_split: str = "validation"
    """The split of a tfds or synthetic source, or of a Kinetics list that holds several."""
    validation_examples: int | None = None
    """Validate on so many of the videos only, drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.validation_examples
        _require(value is None or value >= 2, "data.validation_examples", value, "2 or more")


@dataclass(frozen=True)
class GivenClipConfig:
    """How clips are cut; what is not given is as in training, or as published."""

    frames: int | None = None
    """Frames a clip."""
    size: int | None = None
    """Pixels of the square clip given to the model."""
    stride: int | None = None
    """File frames between sampled frames (dense sampling)."""
    fps: float | None = None
    """Sample at this many frames a second instead of every stride-th frame (dense sampling)."""
    sampling: Literal["dense", "segments", "uniform"] | None = None
    """Frames next to each other (dense), one of each equal part (segments), or evenly over the whole."""
    short_side: int | None = None
    """Decode to this many pixels on the shorter side, never enlarging."""
    square_pixels: bool | None = None
    """Stretch pixels that are not square in width, as players do; False leaves frames as files store them."""
    workers: int = 0
    """Clips decoded at the same time, 0 = one a core."""

    def __post_init__(self) -> None:
        check_values(self, "data.")

    def clips(self, usual: Mapping[str, Any]) -> ClipConfig:
        """What is given here, on top of the fields in `usual`.

        A stride takes the place of frames a second and the other way round; another size keeps the share of the
        picture that is cropped.

        Raises:
          UserError: stride and frames a second are both given.
        """
        given = {field.name: getattr(self, field.name, None) for field in fields(ClipConfig)}
        given = {name: value for name, value in given.items() if value is not None}
        if {"stride", "fps"} <= given.keys():
            raise UserError("data.stride and data.fps both say how far frames are apart: give one of them")
        cut = dict(usual) | ({"fps": None} if "stride" in given else {})
        if "size" in given and "short_side" not in given and cut.get("short_side"):
            cut["short_side"] = round(cut["short_side"] * given["size"] / cut["size"])
        return ClipConfig(**(cut | given))


@dataclass(frozen=True)
class SourceConfig(GivenClipConfig):
    """A source of videos, and how their clips are cut; what is not given is as in training, or as published."""

    source: str = "synthetic:moving_shapes"
    """A folder, LIST or LIST:FOLDER (.csv .jsonl .json .txt), tfds:NAME, tfrecord:PATTERN, synthetic:moving_shapes."""
    split: str = "validation"
    """The split of a tfds or synthetic source, or of a Kinetics list that holds several."""
    max_bad_share: float = 0.2
    """Stop when more than this share of the source's examples cannot be read."""
