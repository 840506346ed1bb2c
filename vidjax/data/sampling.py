"""Frame sampling: chooses the frame indices of a clip, given the length of the video.

- dense: frames `stride` frames (or `1 / fps` seconds) apart, starting anywhere in the video;
- segments (TSN, Wang et al. 2016): one frame from each of `frames` equal parts of the video;
- uniform: evenly spaced over the whole video, including the first and the last frame.

If a video is shorter than a dense clip, the clip starts at its first frame and repeats its last frame. Training draws a
random clip; evaluation (`rng=None`) uses the central one.
"""

import numpy as np
from jaxtyping import Float, Int

from vidjax.data.config import ClipConfig
from vidjax.errors import UserError


def dense(num_frames: int, frames: int, step: float | int, offset: float | None = None) -> Int[np.ndarray, "t"]:
    """Indices of frames `step` frames apart.

    Args:
      num_frames: length of the video.
      frames: length of the clip.
      step: distance between sampled frames in frames of the file; with a fractional step the indices are rounded.
      offset: start of the clip in [0, 1), relative to the range of possible starts; None for the central clip.
    """
    steps = np.floor(np.arange(frames) * step + 0.5).astype(np.int64)
    starts = max(num_frames - steps[-1], 1)
    start = (starts - 1) // 2 if offset is None else int(offset * starts)
    return np.minimum(start + steps, num_frames - 1)


def segments(num_frames: int, frames: int, offsets: Float[np.ndarray, "t"] | None = None) -> Int[np.ndarray, "t"]:
    """One frame from each of `frames` equal parts: at `offsets` in [0, 1) within the part, by default in its middle."""
    offsets = np.full(frames, 0.5) if offsets is None else offsets
    indices = np.floor((np.arange(frames) + offsets) * (num_frames / frames)).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def uniform(num_frames: int, frames: int) -> Int[np.ndarray, "t"]:
    """Evenly spaced frames from the first to the last; a single frame is the middle one."""
    if frames == 1:
        return np.array([(num_frames - 1) // 2])
    return np.floor(np.linspace(0, num_frames - 1, frames) + 0.5).astype(np.int64)


def sample(config: ClipConfig, num_frames: int, rate: float, rng: np.random.Generator | None) -> Int[np.ndarray, "t"]:
    """Indices of one clip, random or central.

    Args:
      config: its frames, sampling, stride and fps are used.
      num_frames: length of the video, or of the part that may be used.
      rate: frames per second of the video.
      rng: generator for a random clip; None for the central clip.
    """
    if config.sampling == "dense":
        return dense(num_frames, config.frames, sampling_step(config, rate), None if rng is None else rng.random())
    if config.sampling == "segments":
        return segments(num_frames, config.frames, None if rng is None else rng.random(config.frames))
    return uniform(num_frames, config.frames)


def views(num_frames: int, rate: float, config: ClipConfig, count: int) -> Int[np.ndarray, "v t"]:
    """Indices of `count` clips of one video for multi-view evaluation; a single view is the central clip of `sample`.

    Dense clips are evenly spaced from the start to the end of the video. With segment sampling, the frames of the clips
    are evenly spaced within each segment. Uniform sampling has only one view.
    """
    if count < 1:
        raise UserError(f"the number of views is {count}: it must be 1 or more")
    if count == 1:
        return sample(config, num_frames, rate, None)[None]
    if config.sampling == "dense":
        step = sampling_step(config, rate)
        starts = max(num_frames - frames_spanned(config, rate) + 1, 1)
        # The middle of the interval that `dense` maps to a start, so that rounding down gives exactly that start.
        offsets = (np.floor(np.linspace(0, starts - 1, count) + 0.5) + 0.5) / starts
        return np.stack([dense(num_frames, config.frames, step, offset) for offset in offsets])
    if config.sampling == "segments":
        offsets = (np.arange(count) + 0.5) / count
        return np.stack([segments(num_frames, config.frames, np.full(config.frames, o)) for o in offsets])
    raise UserError("uniform sampling covers the whole video in one view: use segments or dense for more views")


def seconds_covered(config: ClipConfig, num_frames: int, rate: float) -> float:
    """Seconds of the video that a clip represents: with dense sampling at most `frames` steps, otherwise all of it."""
    if config.sampling != "dense":
        return num_frames / rate
    return min(config.frames * sampling_step(config, rate), num_frames) / rate


def frame_times(indices: Int[np.ndarray, "v t"], rate: float) -> Float[np.ndarray, "v t"]:
    """Times of frames in seconds from the start of the video, or of the part of it; nan if the rate is unknown."""
    return indices / rate


def frames_at(times: Float[np.ndarray, "v t"], num_frames: int, rate: float) -> Int[np.ndarray, "v t"]:
    """Indices of the frames of another stream on screen at `times`; its last frame stays on screen."""
    # The tolerance allows for rounded times.
    return np.clip(np.floor(times * rate + 1e-3).astype(np.int64), 0, num_frames - 1)


def frames_spanned(config: ClipConfig, rate: float) -> int:
    """Number of frames of the file from the first to the last frame of a dense clip, inclusive."""
    return int(np.floor((config.frames - 1) * sampling_step(config, rate) + 0.5)) + 1


def sampling_step(config: ClipConfig, rate: float) -> float:
    """Distance between sampled frames in frames of the file, for dense sampling of a video of `rate` frames per second.

    Raises:
      UserError: the config sets fps, and the rate is unknown (nan).
    """
    if config.fps is None:
        return float(config.stride)
    if np.isnan(rate):
        raise UserError("data.fps needs the frame rate, which this source does not contain: use data.stride")
    return rate / config.fps
