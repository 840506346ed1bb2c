"""Which frames of a video make a clip: frame counts and random numbers in, frame indices out.

- dense: `frames` frames, one every `stride` file frames (or `1 / fps` seconds), anywhere in the video;
- segments (TSN, Wang et al. 2016): the video in `frames` equal parts, one frame of each;
- uniform: evenly over the whole video, first and last frame included.

A video shorter than the span of a dense clip is read from its first frame, and its last frame is held to the end.
Training draws a random clip; evaluation (`rng=None`) takes the one in the middle.
"""

import numpy as np
from jaxtyping import Float, Int

from vidjax.data.config import ClipConfig
from vidjax.errors import UserError


def dense(num_frames: int, frames: int, step: float | int, offset: float | None = None) -> Int[np.ndarray, "t"]:
    """Frames `step` file frames apart.

    Args:
      num_frames: length of the video.
      frames: length of the clip.
      step: distance of the sampled frames in file frames; the indices of a fractional step are rounded.
      offset: where the clip lies among the possible starts, in [0, 1); None is the middle.
    """
    steps = np.floor(np.arange(frames) * step + 0.5).astype(np.int64)
    starts = max(num_frames - steps[-1], 1)
    start = (starts - 1) // 2 if offset is None else int(offset * starts)
    return np.minimum(start + steps, num_frames - 1)


def segments(num_frames: int, frames: int, offsets: Float[np.ndarray, "t"] | None = None) -> Int[np.ndarray, "t"]:
    """One frame from each of `frames` equal parts: at `offsets` in [0, 1) of the part, or in its middle."""
    offsets = np.full(frames, 0.5) if offsets is None else offsets
    indices = np.floor((np.arange(frames) + offsets) * (num_frames / frames)).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def uniform(num_frames: int, frames: int) -> Int[np.ndarray, "t"]:
    """From the first to the last frame at equal distances; a single frame is the middle one."""
    if frames == 1:
        return np.array([(num_frames - 1) // 2])
    return np.floor(np.linspace(0, num_frames - 1, frames) + 0.5).astype(np.int64)


def sample(config: ClipConfig, num_frames: int, rate: float, rng: np.random.Generator | None) -> Int[np.ndarray, "t"]:
    """Indices of one clip, random with a generator, in the middle without one.

    Args:
      config: frames, sampling, stride and fps are used.
      num_frames: length of the video or of the part of it that may be used.
      rate: file frames a second.
      rng: source of the random numbers; None for the deterministic clip of an evaluation.
    """
    if config.sampling == "dense":
        return dense(num_frames, config.frames, sampling_step(config, rate), None if rng is None else rng.random())
    if config.sampling == "segments":
        return segments(num_frames, config.frames, None if rng is None else rng.random(config.frames))
    return uniform(num_frames, config.frames)


def views(num_frames: int, rate: float, config: ClipConfig, count: int) -> Int[np.ndarray, "v t"]:
    """Indices of `count` clips of one video for a multi-view test; one view is `sample` without a generator.

    Dense clips start at equal distances, the first at the start and the last at the end of the video. Clips of
    segments take frames at equal distances within each segment. Uniform sampling has one view.
    """
    if count < 1:
        raise UserError(f"{count} views were asked for: give 1 or more")
    if count == 1:
        return sample(config, num_frames, rate, None)[None]
    if config.sampling == "dense":
        step = sampling_step(config, rate)
        starts = max(num_frames - frames_spanned(config, rate) + 1, 1)
        # The middle of the k-th start's share of [0, 1), so that rounding down hits exactly that start.
        offsets = (np.floor(np.linspace(0, starts - 1, count) + 0.5) + 0.5) / starts
        return np.stack([dense(num_frames, config.frames, step, offset) for offset in offsets])
    if config.sampling == "segments":
        offsets = (np.arange(count) + 0.5) / count
        return np.stack([segments(num_frames, config.frames, np.full(config.frames, o)) for o in offsets])
    raise UserError("uniform sampling covers the whole video in one view: use segments or dense for more views")


def seconds_covered(config: ClipConfig, num_frames: int, rate: float) -> float:
    """Seconds of the video that a clip speaks for: all of it, or at most `frames` steps of dense sampling."""
    if config.sampling != "dense":
        return num_frames / rate
    return min(config.frames * sampling_step(config, rate), num_frames) / rate


def frame_times(indices: Int[np.ndarray, "v t"], rate: float) -> Float[np.ndarray, "v t"]:
    """Seconds from the start of the video, or of the part of it, at which frames come on screen; nan without a rate."""
    return indices / rate


def frames_at(times: Float[np.ndarray, "v t"], num_frames: int, rate: float) -> Int[np.ndarray, "v t"]:
    """The frames of another stream that are on screen at these times: the last one goes on to stand."""
    # The small number forgives the rounding of seconds.
    return np.clip(np.floor(times * rate + 1e-3).astype(np.int64), 0, num_frames - 1)


def frames_spanned(config: ClipConfig, rate: float) -> int:
    """File frames from a clip's first to its last, both counted, in dense sampling."""
    return int(np.floor((config.frames - 1) * sampling_step(config, rate) + 0.5)) + 1


def sampling_step(config: ClipConfig, rate: float) -> float:
    """File frames from one sampled frame to the next in dense sampling, of a video of `rate` frames a second.

    Raises:
      UserError: the config asks for frames a second, and the rate is not known (nan).
    """
    if config.fps is None:
        return float(config.stride)
    if np.isnan(rate):
        raise UserError("data.fps needs the frame rate, which this source does not store: use data.stride")
    return rate / config.fps
