"""Files of untrimmed videos as sequences of windows of frames, from which an encoder makes features in training.

A window and the distance to the next one are counted in sampled frames, as by `experiments/embed.py`. Only the frames
of the windows that are asked for are decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vidjax.data.config import ClipConfig
from vidjax.data.crop import center_crop
from vidjax.data.embeddings import require_names
from vidjax.data.example import Source
from vidjax.data.feature_files import FeatureFile, evenly, examples
from vidjax.data.sampling import sampling_step
from vidjax.data.segments import SHAPES
from vidjax.data.windows import open_videos, sampled_frames
from vidjax.errors import UserError


@dataclass(frozen=True)
class WindowedVideo:
    """A video as a sequence of windows: its length is their number, and a slice has the frames of some.

    Attributes:
      source: where the video is.
      index: its number there.
      clips: how frames are sampled and cut; `frames` of them are a window.
      hop: sampled frames from one window to the next.
    """

    source: Source
    index: int
    clips: ClipConfig
    hop: int

    def __len__(self) -> int:
        """Number of windows. Raises DecodeError."""
        with self.source.open(self.index, ()) as example:
            info = example.streams["video"].info
        count = len(sampled_frames(info.num_frames, sampling_step(self.clips, info.rate)))
        return len(range(0, count - self.clips.frames + 1, self.hop))

    def __getitem__(self, windows: slice) -> UInt8[np.ndarray, "t h w c"]:
        """The sampled frames of consecutive windows, from the first of the first to the last of the last.

        Raises DecodeError.
        """
        clips, (first, last, _) = self.clips, windows.indices(len(self))
        with self.source.open(self.index, ()) as example:
            stream = example.streams["video"]
            sampled = sampled_frames(stream.info.num_frames, sampling_step(clips, stream.info.rate))
            sampled = sampled[first * self.hop : (last - 1) * self.hop + clips.frames]
            wanted, order = np.unique(sampled, return_inverse=True)
            frames = stream.iterate(wanted, clips.decode_short_side)
            cut = [center_crop(frame[None], clips.size, clips.center_ratio, clips.protocol)[0] for frame in frames]
        return np.stack(cut)[order]


def open_recordings(videos: str) -> tuple[Source, dict[str, int]]:
    """The source of the video files, and their numbers in it by the name of the video, that of its file.

    Args:
      videos: a folder, a list, or synthetic:untrimmed_shapes.

    Raises:
      UserError: the source does not exist, or two files have the same name.
    """
    if ":" not in videos and not Path(videos).exists():
        raise UserError(f"data.videos {videos} does not exist: give the folder of the video files")
    source = open_videos(videos, "all" if videos == SHAPES else "train").source
    require_names(source.ids, "rename one, as in the annotations")
    return source, {Path(name).stem: index for index, name in enumerate(source.ids)}


def probe_videos(files: Sequence[FeatureFile], videos: Sequence[WindowedVideo]) -> None:
    """Opens a few videos; raises UserError if their annotated duration is wrong, or they are shorter than a window."""
    wrong, short = [], []
    probed = evenly(len(files))
    for file, video in ((files[i], videos[i]) for i in probed):
        with video.source.open(video.index, ()) as example:
            seconds = example.streams["video"].info.duration
        if not 0.8 * file.duration - 1 <= seconds <= 1.25 * file.duration + 1:
            wrong.append(f"{file.name} (it lasts {seconds:.1f} s, annotated are {file.duration:.1f} s)")
        elif not len(video):
            short.append(f"{file.name} ({seconds:.1f} s)")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(probed)} videos do not last as long as annotated: {examples(wrong)}; durations are "
            "in seconds: correct them, or give the files that were annotated"
        )
    if short:
        raise UserError(
            f"{len(short)} of {len(probed)} videos are shorter than a window of {videos[0].clips.frames} frames: "
            f"{examples(short)}; give a shorter one with --data.frames or a higher rate with --data.fps, or remove them"
        )
