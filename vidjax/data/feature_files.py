"""Features of untrimmed videos on disk: a folder with a file for each video, and which frames its features are of.

A file is `t c`, or `c t` if its first side has the width of the features: an `.npy` file, which is memory-mapped, or an
`.npz` file with the array `features`. A folder that `experiments/embed.py` wrote also says in `videos.json` which
frames each feature is of.
"""

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.data.embeddings import VIDEOS
from vidjax.errors import UserError

FAR = 1.5
"""Times the duration; spans that end later are no rounded ones."""
PROBED = 16
"""Files that are opened at the start, evenly over the list."""
SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class FeatureFile:
    """The features of a video.

    Attributes:
      name: of the video.
      path: of the file.
      duration: of the video, in seconds.
      fps: frames per second in which the next two are counted.
      stride: frames from one feature to the next.
      frames: frames that a feature is of.
    """

    name: str
    path: str
    duration: float
    fps: float
    stride: float
    frames: float

    def seconds(self, steps: int) -> float:
        """How long this number of features lasts."""
        return ((steps - 1) * self.stride + self.frames) / self.fps


def examples(names: Sequence[str]) -> str:
    """The first names of a list, for messages."""
    return f"{', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''}"


def evenly(count: int) -> list[int]:
    """`PROBED` numbers of files, evenly over all."""
    return np.unique(np.linspace(0, count - 1, PROBED).astype(int)).tolist()


def list_files(folder: str, prefix: str = "") -> dict[str, str]:
    """The paths of the files of features in a folder by the name of their video, which follows the prefix.

    Raises:
      UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            files = sorted(entry.name for entry in listing if entry.name.endswith(SUFFIXES))
    except OSError as error:
        raise UserError(f"data.features {folder} cannot be listed ({error.strerror}): give a folder") from error
    return {file[len(prefix) : -4]: os.path.join(folder, file) for file in files if file.startswith(prefix)}


def open_features(path: str, channels: int | None) -> np.ndarray:
    """Opens a file of features as `t c`; an `.npy` file is memory-mapped.

    Args:
      channels: width of the features; None takes the second side as the width.

    Raises:
      UserError: the file is damaged, is no array of two sides, or has another width.
    """
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.endswith(".npz"):
            with features as arrays:
                features = arrays["features"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = "it is no file of numbers" if isinstance(error, ValueError) else error  # NumPy's advice is unsafe
        raise UserError(f"{path} cannot be read ({reason}): make its features again, or remove it") from error
    sides = "x".join(map(str, features.shape))
    if features.ndim != 2 or not features.size:
        raise UserError(f"{path} has the shape {sides}: features are an array of time and channels")
    if channels in (None, features.shape[1]):
        return features
    if channels == features.shape[0]:
        return features.T
    raise UserError(f"{path} has the shape {sides}, but the features have {channels} channels: give others, or a model")


def read_description(folder: str) -> dict[str, Any] | None:
    """What embed.py wrote about a folder of features; None if it did not write it."""
    path = Path(folder) / VIDEOS
    return json.loads(path.read_text()) if path.is_file() else None


def described_rate(folder: str, description: dict[str, Any], name: str) -> tuple[float, float, float]:
    """Frames per second, stride and frames of a video's features in a folder that embed.py wrote.

    Raises:
      UserError: the description lacks the video.
    """
    if name not in description["videos"]:
        raise UserError(f"{folder}/{VIDEOS} does not have {name}: add it, or remove its file")
    return description["videos"][name]["fps"], description["stride"], description["window"]


def cut_spans(
    spans: Sequence[tuple[str, float, float, float]], what: str
) -> tuple[list[tuple[float, float] | None], list[str]]:
    """Spans within the duration of their video, and notes on those that were cut or have no length (None).

    Args:
      spans: name, start, end, and the duration of the video.
      what: what messages call them, such as segments.

    Raises:
      UserError: some end far beyond their video, as times in frames would.
    """
    far, early, late, empty, cut = [], [], [], [], []
    for name, start, end, duration in spans:
        if end > FAR * duration:
            far.append(f"{name} ({start:g} to {end:g} of {duration:g} s)")
        if start < 0:
            early.append(name)
        if end > duration:
            late.append(name)
        start, end = max(start, 0), min(end, duration)
        cut.append((start, end) if start < end else None)
        if start >= end:
            empty.append(name)
    if far:
        raise UserError(
            f"{len(far):,} of {len(spans):,} {what} end far beyond their video: {examples(far)}; times are in seconds, "
            "and these look like frames: divide them by the frames per second"
        )
    notes = [f"{len(late):,} of {len(spans):,} {what} end after their video and are cut: {examples(late)}"] * bool(late)
    if early:
        notes.append(f"{len(early):,} of {len(spans):,} {what} start before 0 s and are cut: {examples(early)}")
    if empty:
        notes.append(f"{len(empty):,} of {len(spans):,} {what} have no length and are left out: {examples(empty)}")
    return cut, notes


def misfits(files: Sequence[FeatureFile], channels: int) -> list[str]:
    """The `.npy` files whose header tells neither side of this width, with their shapes; 10,000 take half a second."""
    found = []
    for file in files:
        if file.path.endswith(".npy"):
            try:
                with open(file.path, "rb") as opened:
                    version = np.lib.format.read_magic(opened)
                    header = "1_0" if version == (1, 0) else "2_0"
                    shape = getattr(np.lib.format, f"read_array_header_{header}")(opened)[0]
            except (OSError, ValueError):
                found.append(f"{file.name} (no array)")
                continue
            if len(shape) != 2 or channels not in shape:
                found.append(f"{file.name} ({'x'.join(map(str, shape))})")
    return found


def probe(files: Sequence[FeatureFile], channels: int, remedy: str, resized: bool = False) -> None:
    """Reads a few files, and the shapes of all; raises UserError if their width, length or values are wrong.

    Args:
      remedy: the flags with which another stride is given.
      resized: whether the features were stretched to one length, and last any time.
    """
    wrong, unusable, unread = [], [], []
    probed = [files[i] for i in evenly(len(files))]
    for file in probed:
        try:
            features = open_features(file.path, channels)
        except UserError as error:
            unread.append(str(error))
            continue
        if bad := int((~np.isfinite(features).all(axis=1)).sum()):
            unusable.append(f"{file.name} ({bad:,} of {len(features):,} steps)")
        steps = len(features)
        seconds, slack = file.seconds(steps), (file.stride + file.frames) / file.fps
        if not resized and not 0.8 * file.duration - slack <= seconds <= 1.25 * file.duration + slack:
            wrong.append(f"{file.name} ({steps} features last {seconds:.1f} s, the video {file.duration:.1f} s)")
    if unread:
        raise UserError(f"{len(unread)} of {len(probed)} files that were opened do not fit: {unread[0]}")
    if different := misfits(files, channels):
        raise UserError(
            f"{len(different):,} of {len(files):,} files do not have {channels} channels: {examples(different)}; make "
            "them again, or remove them"
        )
    if unusable:
        raise UserError(
            f"{len(unusable)} of {len(probed)} files have features that are not finite: {examples(unusable)}; make "
            "them again, or remove them"
        )
    if 2 * len(wrong) > len(probed):
        raise UserError(
            f"{len(wrong)} of {len(probed)} files do not last as long as their videos: {examples(wrong)}; the "
            f"features have another stride or rate: give it with {remedy}, or durations are not in seconds"
        )
