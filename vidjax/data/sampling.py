"""Frame sampling: chooses the frame indices of a clip, given the length of the video.

- dense: frames `stride` frames (or `1 / fps` seconds) apart, starting anywhere in the video;
- segments (TSN, Wang et al. 2016): one frame from each of `frames` equal parts of the video, or `consecutive` frames
  from each of fewer parts; a video with fewer frames than parts repeats some;
- uniform: evenly spaced over the whole video, including the first and the last frame.

If a video is shorter than a dense clip, the clip starts at its first frame and repeats its last frame (in a test by the
rules of mmaction2 or Video Swin it begins again). Training draws a random clip; evaluation (`rng=None`) uses the
central one, or several.

Published code differs in where the clips of a test lie and in how their frames are rounded. The config's `protocol`
chooses whose rules hold (training clips follow it only in the spacing of frames, see `STRETCHED`):

- vidjax: dense clips are evenly spaced from the start to the end of the video, and so are the frames of several clips
  within each segment;
- slowfast (SlowFast, TimeSformer, X3D): clip i of n starts at i/n of the possible starts, so that the first one begins
  with the video and none ends with it. The frames of a clip are not a stride apart, but spread over `frames * stride`
  frames including the last, and rounded down: 8 frames 8 apart are 0, 9, ..., 63;
- slowfast_offset (MViT, UniFormer; `USE_OFFSET_SAMPLING`): such clips, a whole number of frames apart;
- pytorchvideo (its `ConstantClipsPerVideoSampler`): such clips from the start to the end of the video;
- mmaction2 (its `SampleFrames`): as ours, but starts are rounded to even, and a short video begins again at its end;
- video_swin (mmaction2 before 1.0): the middles of n equal parts of the possible starts;
- videomae: among the frames a stride apart from the first frame on, clips from the start to the end;
- viclip: uniform frames are a whole number of frames apart, from the first one on, and do not reach the last one.
"""

import numpy as np
from jaxtyping import Float, Int

from vidjax.data.config import ClipConfig, Protocol
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


def starts(num_frames: int, consecutive: int) -> int:
    """The number of frames at which so many consecutive frames may start; 1 if the video is shorter."""
    return max(num_frames - consecutive + 1, 1)


def in_a_row(first: Int[np.ndarray, "*v n"], consecutive: int) -> Int[np.ndarray, "*v t"]:
    """Each frame and those after it, `consecutive` in all; they may lie beyond the video."""
    rows = first[..., None] + np.arange(consecutive)
    return rows.reshape(*first.shape[:-1], -1)


def uniform(num_frames: int, frames: int) -> Int[np.ndarray, "t"]:
    """Evenly spaced frames from the first to the last; a single frame is the middle one."""
    if frames == 1:
        return np.array([(num_frames - 1) // 2])
    return np.floor(np.linspace(0, num_frames - 1, frames) + 0.5).astype(np.int64)


def strided(num_frames: int, frames: int) -> Int[np.ndarray, "t"]:
    """Frames as far apart as fit into the video, a whole number, from the first one on (ViCLIP's `frames2tensor`)."""
    return np.minimum(np.arange(frames) * max(num_frames // frames, 1), num_frames - 1)


def stretched(num_frames: int, frames: int, first: float, last: float) -> Int[np.ndarray, "t"]:
    """Frames evenly spaced from `first` to `last`, both included, and rounded down."""
    return np.clip(np.linspace(first, last, frames), 0, num_frames - 1).astype(np.int64)


def sample(config: ClipConfig, num_frames: int, rate: float, rng: np.random.Generator | None) -> Int[np.ndarray, "t"]:
    """Indices of one clip, random or central.

    Args:
      config: its frames, sampling, stride, fps and protocol are used.
      num_frames: length of the video, or of the part that may be used.
      rate: frames per second of the video.
      rng: generator for a random clip; None for the single clip of `views`, which most protocols place in the centre.
    """
    if rng is None or config.sampling == "uniform":  # which is not random
        return views(num_frames, rate, config, 1)[0]
    if config.sampling == "segments":
        parts = config.frames // config.consecutive
        first = segments(starts(num_frames, config.consecutive), parts, rng.random(parts))
        return np.minimum(in_a_row(first, config.consecutive), num_frames - 1)
    step = sampling_step(config, rate)
    if config.protocol in STRETCHED:
        start = rng.random() * max(num_frames - config.frames * step, 0)
        return stretched(num_frames, config.frames, start, start + config.frames * step - 1)
    return dense(num_frames, config.frames, step, rng.random())


def views(num_frames: int, rate: float, config: ClipConfig, count: int) -> Int[np.ndarray, "v t"]:
    """Indices of `count` clips of one video for multi-view evaluation, by the rules of `config.protocol`.

    Uniform sampling has only one view.
    """
    if count < 1:
        raise UserError(f"the number of views is {count}: it must be 1 or more")
    if config.sampling == "segments":
        return segment_views(num_frames, config.frames, count, config.protocol, config.consecutive)
    if config.sampling == "dense":
        return dense_views(num_frames, config.frames, sampling_step(config, rate), count, config.protocol)
    if count > 1:
        raise UserError("uniform sampling covers the whole video in one view: use segments or dense for more views")
    if config.protocol in STRETCHED and config.frames > 1:
        return stretched(num_frames, config.frames, 0, num_frames - 1)[None]
    spaced = strided if config.protocol == "viclip" else uniform
    return spaced(num_frames, config.frames)[None]


STRETCHED = ("slowfast", "slowfast_offset", "pytorchvideo")
"""Protocols in which a dense clip of `frames * step` frames includes its last frame; spread frames are rounded down."""


def dense_views(num_frames: int, frames: int, step: float, count: int, protocol: Protocol) -> Int[np.ndarray, "v t"]:
    """Indices of `count` dense clips: each protocol's starts, and the frames from there.

    Args:
      num_frames: length of the video.
      frames: length of a clip.
      step: distance between sampled frames in frames of the file.
      count: number of clips, v.
      protocol: see the module.
    """
    clip, gaps = np.arange(count), max(count - 1, 1)
    steps = np.floor(np.arange(frames) * step + 0.5).astype(np.int64)
    if protocol in STRETCHED:
        span = frames * step
        free = max(num_frames - span, 0)
        if protocol == "slowfast":
            first = free * clip / count
        elif protocol == "slowfast_offset":
            first = clip * np.floor(free / gaps) if count > 1 else np.floor([free / 2])
        else:
            first = free * clip / gaps
        last = first + span - 1
        if protocol == "pytorchvideo":  # frames with times in the clip, of which a short video has fewer
            first, last = np.ceil(first - 1e-6), np.minimum(np.ceil(last - 1e-6), num_frames - 1)
        return np.stack([stretched(num_frames, frames, *ends) for ends in zip(first, last, strict=True)])
    if protocol == "video_swin":
        starts = np.floor((clip + 0.5) * max(num_frames - frames * step + 1, 0) / count)
        return (starts.astype(np.int64)[:, None] + steps) % num_frames
    if protocol == "videomae" and count > 1:
        grid = np.floor(np.arange(np.ceil(num_frames / step)) * step + 0.5).astype(np.int64)
        starts = np.floor(clip * max(len(grid) - frames, 0) / gaps).astype(np.int64)
        return grid[np.minimum(starts[:, None] + np.arange(frames), len(grid) - 1)]
    free = max(num_frames - 1 - steps[-1], 0)
    if count == 1:
        starts = np.array([free // 2])
    elif protocol == "mmaction2":
        starts = np.round(clip * (free / gaps)).astype(np.int64)
    else:
        starts = np.floor(np.linspace(0, free, count) + 0.5).astype(np.int64)
    indices = starts[:, None] + steps
    return indices % num_frames if protocol == "mmaction2" else np.minimum(indices, num_frames - 1)


def segment_views(
    num_frames: int, frames: int, count: int, protocol: Protocol, consecutive: int = 1
) -> Int[np.ndarray, "v t"]:
    """Indices of `count` clips of one frame from each of `frames` equal parts of the video.

    - slowfast, slowfast_offset, pytorchvideo, video_swin: parts of the video up to its last frame, with rounded bounds;
      in each of them the middle of these bounds (SlowFast on Something-Something), or for several clips evenly spaced
      frames, counted from the first bound. For one clip slowfast_offset counts too (UniFormer and UniFormerV2);
    - mmaction2, videomae: the middle of each part, and in the second of two clips its first frame (TSM, VideoMAE).

    Of `consecutive` frames the first lies by these rules among the frames at which they may start (TSN and TSM of
    optical flow), except for one clip of mmaction2, which spreads them evenly from the first of these frames to the
    last and rounds to even (since its version 1.0).
    """
    parts, places = frames // consecutive, starts(num_frames, consecutive)
    if protocol in (*STRETCHED, "video_swin"):
        length = (places - 1) / parts
        bounds = np.round(length * np.arange(parts + 1)).astype(np.int64)
        within = np.floor(length / (count + 1) * (np.arange(count) + 1)).astype(np.int64)
        middles = ((bounds[:-1] + bounds[1:]) // 2)[None]
        first = middles if count == 1 and protocol != "slowfast_offset" else bounds[:-1] + within[:, None]
    elif protocol == "mmaction2" and count == 1 and consecutive > 1:
        gap = (places - 1) / max(parts - 1, 1)
        first = np.round(gap * np.arange(parts) if parts > 1 else [gap // 2]).astype(np.int64)[None]
    else:
        from_start = count == 2 and protocol in ("mmaction2", "videomae")
        offsets = (0.5, 0.0) if from_start else (np.arange(count) + 0.5) / count
        first = np.stack([segments(places, parts, np.full(parts, offset)) for offset in offsets])
    indices = in_a_row(first, consecutive)
    return indices % num_frames if protocol == "mmaction2" else np.minimum(indices, num_frames - 1)


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
