"""When each frame of a video is on screen, without decoding it.

Headers lie in ways that change frames: they count what an edit list hides, the first fragment alone, or packets that
were dropped, and average rates are made of decoding times. So the packets are asked: their timestamps, sorted, are the
frames. Only an MP4 or MOV whose index already says the same (one step between all samples, nothing hidden, no
fragments, an end that agrees) is spared that pass, and an AVI with a whole index.
"""

import math
import os
import struct
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Float, Int

from vidjax.data.container import as_fraction, open_video
from vidjax.data.packets import Packets

NONE = np.iinfo(np.int64).min
"""A packet without this timestamp."""
RESETS = {"mpegts", "mpeg", "flv"}
"""Containers of streams, whose timestamps may start again or jump where the sender did."""
LONGEST_PAUSE = 10
"""Seconds: a longer distance between frames of such a stream is a jump of its clock and no pause, as in ffmpeg."""
REORDERED = 17
"""Packets after which a frame is shown at the latest, by H.264 and its kin."""
STILLS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}
"""Codecs of covers."""
MOST_FRAMES = 10**7
"""A video with fewer frames and as long as that, four days at 30 a second, has a damaged timestamp."""


class Timeline(NamedTuple):
    """The frames of a video in the order of presentation, which is the order of positions; times in ticks."""

    num_frames: int
    """Frames at the nominal rate, from the first to the last one."""
    rate: Fraction
    """Frames a second, pauses and dropped frames left out."""
    shown: Float[np.ndarray, "n"]
    """When each frame comes on screen, without the jumps of a stream's clock."""
    step: float
    """From one frame to the next at the nominal rate."""
    constant: bool
    """All frames are where the nominal rate puts them."""
    packets: Packets | None
    """Which packet is which frame, and where to jump; None where only decoding from the start tells, by turns."""
    scanned: bool
    """Whether all packets had to be read."""

    def at(self, indices: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """The position of the frame on screen at `indices` frames of the nominal rate after the first one."""
        return indices if self.constant else self.on_screen(indices * self.step)

    def on_screen(self, times: Float[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """The position of the frame on screen at `times` after the first one."""
        return np.searchsorted(self.shown, times + _slack(self.step), "right") - 1


def measure(path: str, stream: av.VideoStream, trust_index: bool = True) -> Timeline:
    """The timeline of an opened video, made once for many clips of a file; may leave the file at its end.

    Args:
      path: of the file.
      stream: of it.
      trust_index: false where the index was found to be wrong, and all packets are to be read.

    Raises:
      ValueError: the video has no frames.
    """
    known: dict[bool, Timeline] = {}
    if "://" not in path:  # what lies there may change unseen
        status = os.stat(path)
        known = _remembered(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    if trust_index not in known:  # both are kept, so that a file is as long as it was at first
        by_index = (_from_index(path, stream) or _from_avi_index(path, stream)) if trust_index else None
        known[trust_index] = by_index or _from_packets(path, stream)
    return known[trust_index]


@lru_cache(maxsize=256)
def _remembered(path: str, size: int, modified: int) -> dict[bool, Timeline]:
    """A place for the timelines of a file, by whether its index is trusted."""
    return {}


def _from_index(path: str, stream: av.VideoStream) -> Timeline | None:
    """The timeline of an MP4 whose index shows a constant rate; None if it does not, or does not know all."""
    if "mp4" not in stream.container.format.name or stream.start_time is None or not stream.duration:
        return None
    entries = [(e.timestamp, e.size, e.pos, e.is_keyframe, e.is_discard) for e in stream.index_entries]
    if len(entries) < 2 or _has_fragments(path):
        return None
    order, sizes, places, keyframe, hidden = np.array(entries, np.int64).T
    step = int(order[1] - order[0])
    even = step > 0 and (np.diff(order) == step).all() and abs(stream.duration - len(order) * step) <= step / 2
    if not even or hidden.any() or not keyframe[0]:
        return None
    stamps = stream.start_time + step * np.arange(len(order))
    if stream.codec_context.has_b_frames and not _ends_as(stream, order, stamps):
        return None
    keys = np.flatnonzero(keyframe)
    packets = Packets(sizes, places, "dts", order, keys, keys, grid=(int(stream.start_time), step))
    return _timeline(stream, np.diff(stamps), np.zeros(len(stamps) - 1, bool), packets, scanned=False)


def _from_avi_index(path: str, stream: av.VideoStream) -> Timeline | None:
    """The timeline of an AVI whose index is whole and leaves no doubt of when frames are shown; else None."""
    if stream.container.format.name != "avi":
        return None
    entries = [(e.timestamp, e.size, e.pos, e.is_keyframe) for e in stream.index_entries]
    if not entries or entries[-1][0] + 1 != stream.frames or not entries[0][3]:
        return None
    dts, sizes, places, keyframe = np.array(entries, np.int64).T
    if not sizes.all() or (np.diff(dts) <= 0).any():
        return None
    places = places + 8  # the head of a chunk
    if stream.codec_context.has_b_frames:
        return _by_delay(path, stream, _Read(dts, dts, sizes, places, keyframe, np.zeros_like(dts)), scanned=False)
    if (np.diff(dts) != 1).any():
        return None
    keys = np.flatnonzero(keyframe)
    packets = Packets(sizes, places, "dts", dts, keys, keys, ranks=np.arange(len(dts)))
    return _timeline(stream, np.diff(dts), np.zeros(len(dts) - 1, bool), packets, scanned=False)


def _ends_as(stream: av.VideoStream, order: Int[np.ndarray, "n"], stamps: Int[np.ndarray, "n"]) -> bool:
    """Whether the last packets bear the last stamps: where frames are reordered, the index has no time of theirs.

    True also of a file that is cut off before them, which tells when a frame is asked for that is lost.
    """
    tail = order[-REORDERED:]
    stream.container.seek(int(tail[0]), stream=stream, any_frame=True)
    last = [packet.pts for packet in stream.container.demux(stream) if packet.size]
    stream.container.seek(int(order[0]), stream=stream)
    return len(last) < len(tail) or (set(last) <= set(stamps[-2 * REORDERED :].tolist()) and stamps[-1] in last)


def _has_fragments(path: str) -> bool:
    """Whether a file has a part that its first header does not list; True if that cannot be seen."""
    try:
        with open(path, "rb") as file:
            size, position = os.fstat(file.fileno()).st_size, 0
            while position + 8 <= size:  # a box: its length in bytes, its kind, its content
                file.seek(position)
                header = file.read(16)
                length, kind = struct.unpack(">I4s", header[:8])
                if kind == b"moof":
                    return True
                if length == 1:
                    length = int.from_bytes(header[8:], "big")
                position += max(length, 8) if length else size
    except OSError:
        return True
    return False


class _Read(NamedTuple):
    """What the packets say, in the order of decoding."""

    pts: Int[np.ndarray, "p"]
    dts: Int[np.ndarray, "p"]
    sizes: Int[np.ndarray, "p"]
    places: Int[np.ndarray, "p"]
    keyframe: Int[np.ndarray, "p"]
    hidden: Int[np.ndarray, "p"]
    """By an edit list."""


def _from_packets(path: str, stream: av.VideoStream) -> Timeline:
    rows = [
        (
            NONE if packet.pts is None else packet.pts,
            NONE if packet.dts is None else packet.dts,
            packet.size,
            -1 if packet.pos is None else packet.pos,
            packet.is_keyframe,
            packet.is_discard,
        )
        for packet in stream.container.demux(stream)
        if packet.size
    ]
    read = _Read(*np.array(rows, np.int64).reshape(-1, 6).T)
    _, which, count = np.unique(read.places, return_inverse=True, return_counts=True)
    read = read._replace(places=np.where(count[which] > 1, -1, read.places))  # shared ones tell nothing
    shown = read.hidden == 0
    pts, dts = read.pts[shown], read.dts[shown]
    if not len(pts):
        raise ValueError("its video has no frames" + (" that are shown" if rows else ""))
    name, context = stream.container.format.name, stream.codec_context
    if len(pts) == 1 and context.name in STILLS and stream.container.streams.audio:
        raise ValueError("it holds no video, only a cover picture")
    within = (read.pts > pts.min()) & (read.pts < pts.max()) & ~shown
    if context.has_b_frames and within.any():
        return _from_frames(path, stream)
    if (pts == NONE).any() or name == "mpegvideo" or _made_up(path, stream, pts, dts):
        told = name != "mpegvideo" and (dts != NONE).all() and (np.diff(dts) > 0).all()
        return (told and _by_delay(path, stream, read, scanned=True)) or _by_turns(stream, len(pts))
    return _by_times(path, stream, read, shown)


def _by_times(path: str, stream: av.VideoStream, read: _Read, shown: Bool[np.ndarray, "p"]) -> Timeline:
    """The timeline of frames whose packets bear their times."""
    pts, name = read.pts[shown], stream.container.format.name
    parts = _between_resets(stream, pts, read.dts[shown])
    in_order = [np.argsort(part, kind="stable") for part in parts]
    stamps = np.concatenate([part[order] for part, order in zip(parts, in_order, strict=True)])
    ends = np.cumsum([len(part) for part in parts])
    unknown = np.zeros(len(stamps) - 1, bool)
    unknown[ends[:-1] - 1] = True
    if name == "mpeg":  # the last frame of a part that was cut off is stamped as if others came before it
        for end in ends[:-1]:
            unknown[max(end - 3, 0) : end] = True
    if (np.diff(stamps)[~unknown] == 0).any():
        return _by_turns(stream, len(stamps), np.diff(stamps), unknown)
    # Of packets that were cut out of a stream the first ones may give no frame.
    lost = 0
    if not read.keyframe[0] or pts[0] > stamps[0]:
        first = _first_frame(path).pts
        lost = 0 if first is None else int(np.searchsorted(stamps[: ends[0]], first))
    ranks = np.full(len(shown), -1)
    ranks[shown] = np.concatenate(
        [start + np.argsort(order) for start, order in zip(np.append(0, ends), in_order, strict=False)]
    )
    stamps, unknown = stamps[lost:], unknown[lost:]
    order_by: Literal["pts", "dts"] = "pts" if (read.dts == NONE).any() else "dts"
    order = read.pts if order_by == "pts" else read.dts
    keys = np.flatnonzero(read.keyframe)
    if (
        len(parts) > 1
        or (order == NONE).any()
        or len(np.unique(order)) < len(order)
        or stream.codec_context.name == "apng"
    ):
        keys = keys[:0]  # where to jump is not clear; APNG's keyframes are none
    firsts = np.searchsorted(stamps, read.pts[keys]) if len(keys) else keys
    packets = Packets(read.sizes, read.places, order_by, order, keys, firsts, ranks=np.maximum(ranks - lost, -1))
    return _timeline(stream, np.diff(stamps), unknown, packets, scanned=True)


def _by_turns(
    stream: av.VideoStream,
    count: int,
    steps: Int[np.ndarray, "m"] | None = None,
    unknown: Bool[np.ndarray, "m"] | None = None,
) -> Timeline:
    """The timeline of frames of which only the order is known, or some of which share a timestamp."""
    if steps is not None and stream.container.format.name != "mpeg":
        return _timeline(stream, steps, unknown, None, scanned=True)
    # FFmpeg gives one time to several small frames in a pack of a program stream, and leaves a gap behind them.
    rate = _nominal_rate(stream, np.zeros(0, np.int64) if steps is None else steps[~unknown])
    step = float(1 / (rate * as_fraction(stream.time_base)))
    return Timeline(count, rate, step * np.arange(count), step, constant=True, packets=None, scanned=True)


def _from_frames(path: str, stream: av.VideoStream) -> Timeline:
    """The timeline by decoding everything, for an edit list of several parts.

    Where such parts meet, FFmpeg gives reordered frames timestamps that overlap; the frames come in the right order.
    """
    with open_video(path) as again:
        steps = np.diff([frame.pts for frame in again.container.decode(again)])
    return _timeline(stream, steps, steps <= 0, None, scanned=True)


def _made_up(path: str, stream: av.VideoStream, pts: Int[np.ndarray, "n"], dts: Int[np.ndarray, "n"]) -> bool:
    """Whether timestamps are FFmpeg's own, and wrong, as frames are reordered.

    AVI and WMV store decoding times alone, and so does an MP4 without composition offsets.
    """
    if not stream.codec_context.has_b_frames:
        return False
    return stream.container.format.name in ("avi", "asf") or (bool((pts == dts).all()) and _is_shuffled(path))


def _is_shuffled(path: str) -> bool:
    """Whether the first frames do not come in the order of their timestamps."""
    with open_video(path) as stream:
        stamps = [frame.pts for frame in islice(stream.container.decode(stream), 2 * REORDERED)]
    return None in stamps or stamps != sorted(stamps)


def _by_delay(path: str, stream: av.VideoStream, read: _Read, scanned: bool) -> Timeline | None:
    """The timeline of frames that leave the decoder some packets after their own; None if it does not say when."""
    first, dts = _first_frame(path).dts, read.dts
    delay = int(np.searchsorted(dts, NONE if first is None else first))
    if delay == len(dts) or dts[delay] != first or read.hidden.any():
        return None
    step = max(round(1 / (_header_rates(stream)[-1] * as_fraction(stream.time_base))), 1)
    steps = np.append(np.diff(dts[delay:]), np.full(delay, step))
    keys = np.flatnonzero(read.keyframe)
    keys = keys[keys < len(dts) - delay]  # the last frames leave when all packets are in, and do not say when
    packets = Packets(read.sizes, read.places, "dts", dts, keys, keys, delay=delay)
    return _timeline(stream, steps, np.zeros(len(steps), bool), packets, scanned)


def _between_resets(
    stream: av.VideoStream, pts: Int[np.ndarray, "n"], dts: Int[np.ndarray, "n"]
) -> list[Int[np.ndarray, "m"]]:
    """Timestamps in the order of decoding, cut where the clock of a stream starts again."""
    if stream.container.format.name not in RESETS or (dts == NONE).any():
        return [pts]
    steps = np.diff(dts)
    begun, small = [0], 5 * np.median(np.abs(steps)) if len(steps) else 0
    for back in np.flatnonzero(steps < 0) + 1:
        if dts[back] <= dts[begun[-1]] or dts[back - 1] - dts[back] > small:  # else a slip of FFmpeg's within a pack
            begun.append(int(back))
    return np.split(pts, begun[1:])


def _first_frame(path: str) -> av.VideoFrame:
    with open_video(path) as stream:
        for frame in stream.container.decode(stream):
            return frame
    raise ValueError("none of its frames can be decoded")


def _timeline(
    stream: av.VideoStream,
    steps: Int[np.ndarray, "m"],
    unknown: Bool[np.ndarray, "m"],
    packets: Packets | None,
    scanned: bool,
) -> Timeline:
    """A timeline of the steps from frame to frame; those that are not known are as usual."""
    if stream.container.format.name in RESETS:
        unknown = unknown | (steps > LONGEST_PAUSE / as_fraction(stream.time_base))
    rate = _nominal_rate(stream, steps[~unknown])
    step = float(1 / (rate * as_fraction(stream.time_base)))
    shown = np.cumsum(np.append(0.0, np.where(unknown, step, steps)))
    late = np.abs(shown - step * np.arange(len(shown))).max()
    constant = bool(late <= max(_slack(step), step / 10))  # cameras jitter
    # Elsewhere as many as it takes to see the last frame.
    count = len(shown) if constant else math.ceil((float(shown[-1]) - _slack(step)) / step) + 1
    if count > MOST_FRAMES > len(shown):
        raise ValueError(
            f"its timestamps are damaged: its {len(shown)} frames would last for {float(count / rate):.3g} s"
        )
    return Timeline(count, rate, shown, step, constant, packets, scanned)


def _slack(step: float) -> float:
    """Ticks by which a timestamp may be late for its rounding: Matroska has milliseconds, others one tick a frame."""
    return min(0.99, 0.49 * step)


def _nominal_rate(stream: av.VideoStream, steps: Int[np.ndarray, "n"]) -> Fraction:
    """Frames a second where frames follow each other as they usually do; the header's number where that fits.

    Pauses and dropped frames do not count, so that a second of the video is the same number of frames everywhere.
    """
    steps = np.sort(steps[steps > 0])
    if not len(steps):
        return _header_rates(stream)[-1]
    median = steps[(len(steps) - 1) // 2]
    usual = steps[(steps >= 0.6 * median) & (steps <= 1.67 * median)]
    count, total = len(usual), int(usual.sum())
    rounded = 1 + len(steps) - count  # ticks: each run of usual steps begins and ends at a rounded time
    for rate in _header_rates(stream):
        if abs(count / (rate * as_fraction(stream.time_base)) - total) <= rounded:
            return rate
    return count / (total * as_fraction(stream.time_base))


def _header_rates(stream: av.VideoStream) -> list[Fraction]:
    rates = map(as_fraction, (stream.base_rate, stream.guessed_rate, stream.average_rate))
    return [rate for rate in rates if rate] or [Fraction(25)]
