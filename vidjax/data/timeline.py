"""When each frame of a video is on screen and where decoding may begin, without decoding it.

Headers lie in ways that change frames: they count what an edit list hides, the first fragment alone, or packets that
were dropped, and average rates are made of decoding times. So the packets are asked: their timestamps, sorted, are the
frames. Only an MP4 or MOV whose index already says the same (one step between all samples, nothing hidden, no
fragments, a length that agrees) is spared that pass.
"""

import math
import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Literal

import av
import numpy as np
from jaxtyping import Float, Int

from vidjax.data.container import open_video

NONE = np.iinfo(np.int64).min
"""A packet without this timestamp."""
RESETS = {"mpegts", "mpeg", "flv"}
"""Containers of streams, whose timestamps may start again or jump where the sender did."""
LONGEST_PAUSE = 10
"""Seconds: a longer distance between frames of such a stream is a jump of its clock and no pause, as in ffmpeg."""

REORDERED = 17
"""Packets after which a frame is shown at the latest, by H.264 and its kin."""


@dataclass(frozen=True)
class Timeline:
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
    clock: Literal["pts", "dts", "count"]
    """What tells which frame a decoded one is: its timestamp, its decoding time (AVI and WMV hold no other if frames
    are reordered), or nothing but its turn."""
    stamps: Int[np.ndarray, "s"]
    """The value of that clock for each frame; empty for a count."""
    scanned: bool
    """Whether the packets had to be read."""
    order_by: Literal["pts", "dts"]
    order: Int[np.ndarray, "p"]
    """The dts or pts of all packets, in the order of decoding."""
    keys: Int[np.ndarray, "k"]
    """Which of those packets are keyframes that can be jumped to; none where timestamps are not unique."""
    firsts: Int[np.ndarray, "k"]
    """The earliest frame that decoding from each keyframe may give."""

    def at(self, indices: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """The position of the frame on screen at `indices` frames of the nominal rate after the first one."""
        return indices if self.constant else self.on_screen(indices * self.step)

    def on_screen(self, times: Float[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """The position of the frame on screen at `times` after the first one."""
        return np.searchsorted(self.shown, times + _slack(self.step), "right") - 1


def measure(path: str, stream: av.VideoStream) -> Timeline:
    """The timeline of an opened video; may leave the file at its end.

    Raises:
      ValueError: the video has no frames.
    """
    return _from_index(path, stream) or scan(path, stream)


def scan(path: str, stream: av.VideoStream) -> Timeline:
    """The timeline by all packets, which are read once for many clips of a file."""
    if "://" in path:  # it may change unseen
        return _from_packets(path, stream)
    status = os.stat(path)
    known = _remembered(path, status.st_size, status.st_mtime_ns)
    if not known:
        known.append(_from_packets(path, stream))
    return known[0]


@lru_cache(maxsize=256)
def _remembered(path: str, size: int, modified: int) -> list[Timeline]:
    """A place for what the packets of a file said."""
    return []


def _from_index(path: str, stream: av.VideoStream) -> Timeline | None:
    """The timeline of an MP4 whose index shows a constant rate; None if it does not, or does not know all."""
    if "mp4" not in stream.container.format.name or stream.start_time is None or not stream.duration:
        return None
    entries = [(entry.timestamp, entry.is_keyframe, entry.is_discard) for entry in stream.index_entries]
    if len(entries) < 2 or any(discard for _, _, discard in entries) or _has_fragments(path):
        return None
    order = np.array([timestamp for timestamp, _, _ in entries])
    step = int(order[1] - order[0])
    if (
        step <= 0
        or not entries[0][1]
        or (np.diff(order) != step).any()
        or abs(stream.duration - len(order) * step) > step / 2
    ):
        return None
    stamps = stream.start_time + step * np.arange(len(order))
    if stream.codec_context.has_b_frames and not _ends_as(stream, order, stamps):
        return None
    keys = np.flatnonzero([keyframe for _, keyframe, _ in entries])
    return _timeline(
        stream,
        stamps,
        np.array([len(stamps)]),
        "pts",
        scanned=False,
        order_by="dts",
        order=order,
        keys=keys,
        firsts=keys,
    )


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


def _from_packets(path: str, stream: av.VideoStream) -> Timeline:
    packets = [
        (NONE if packet.pts is None else packet.pts, NONE if packet.dts is None else packet.dts, *_flags(packet))
        for packet in stream.container.demux(stream)
        if packet.size
    ]
    pts, dts, keyframe, hidden = np.array(packets, np.int64).reshape(-1, 4).T
    is_shown = hidden == 0
    if not is_shown.any():
        raise ValueError("its video has no frames" + (" that are shown" if len(packets) else ""))
    within = (pts > pts[is_shown].min()) & (pts < pts[is_shown].max())
    if stream.codec_context.has_b_frames and (within & ~is_shown).any():
        return _from_frames(path, stream)
    clock = _choose_clock(path, stream, pts[is_shown], dts[is_shown])
    if clock == "dts":
        timeline = _by_decoding_times(path, stream, dts[is_shown], np.flatnonzero(keyframe[is_shown]))
        if timeline is not None:
            return timeline
    if clock != "pts":
        count = int(is_shown.sum())
        rate, none = _header_rates(stream)[-1], np.zeros(0, np.int64)
        step = float(1 / (rate * stream.time_base))
        return Timeline(
            count, rate, step * np.arange(count), step, constant=True, clock="count", stamps=none, scanned=True,
            order_by="dts", order=none, keys=none, firsts=none,
        )  # fmt: skip
    parts = _between_resets(stream, pts[is_shown], dts[is_shown])
    parts = [np.unique(part) for part in parts]
    if not keyframe[0] or pts[is_shown][0] > parts[0][0]:  # cut out of a stream: what comes first may be lost
        parts[0] = parts[0][parts[0] >= (_first_frame(path).pts or parts[0][0])]
    stamps = np.concatenate(parts)
    order_by = "pts" if (dts == NONE).any() else "dts"
    order = pts if order_by == "pts" else dts
    keys = np.flatnonzero(keyframe)
    if (np.diff(stamps) <= 0).any() or (order == NONE).any() or len(np.unique(order)) < len(order):
        keys = keys[:0]
    return _timeline(
        stream,
        stamps,
        np.cumsum([len(part) for part in parts]),
        "pts",
        scanned=True,
        order_by=order_by,
        order=order,
        keys=keys,
        firsts=np.searchsorted(stamps, pts[keys]) if len(keys) else keys,
    )


def _from_frames(path: str, stream: av.VideoStream) -> Timeline:
    """The timeline by decoding everything, for an edit list of several parts.

    Where such parts meet, FFmpeg gives reordered frames timestamps that overlap; the frames come in the right order.
    """
    with open_video(path) as again:
        stamps = np.array([frame.pts for frame in again.container.decode(again)])
    none = np.zeros(0, np.int64)
    ends = np.append(np.flatnonzero(np.diff(stamps) <= 0) + 1, len(stamps))
    return _timeline(stream, stamps, ends, "count", scanned=True, order_by="dts", order=none, keys=none, firsts=none)


def _flags(packet: av.Packet) -> tuple[bool, bool]:
    return packet.is_keyframe, packet.is_discard  # an edit list hides what it discards


def _choose_clock(
    path: str, stream: av.VideoStream, pts: Int[np.ndarray, "n"], dts: Int[np.ndarray, "n"]
) -> Literal["pts", "dts", "count"]:
    has_pts, has_dts = (pts != NONE).all(), (dts != NONE).all()
    made_up = False
    if stream.codec_context.has_b_frames:
        # AVI and WMV store decoding times alone, and FFmpeg makes timestamps of them which are wrong if frames are
        # reordered. So are those of an MP4 without composition offsets.
        made_up = stream.container.format.name in ("avi", "asf") or ((pts == dts).all() and _is_shuffled(path))
    if has_pts and not made_up:
        return "pts"
    return "dts" if has_dts and (np.diff(dts) > 0).all() else "count"


def _is_shuffled(path: str) -> bool:
    """Whether the first frames do not come in the order of their timestamps."""
    with open_video(path) as stream:
        stamps = [frame.pts for frame in islice(stream.container.decode(stream), 2 * REORDERED)]
    return None in stamps or stamps != sorted(stamps)


def _by_decoding_times(
    path: str, stream: av.VideoStream, dts: Int[np.ndarray, "n"], keys: Int[np.ndarray, "k"]
) -> Timeline | None:
    """The timeline of frames that leave the decoder some packets after their own; None if it does not say when."""
    first = _first_frame(path).dts
    delay = int(np.searchsorted(dts, NONE if first is None else first))
    if delay == len(dts) or dts[delay] != first:
        return None
    step = max(round(1 / (_header_rates(stream)[-1] * stream.time_base)), 1)
    stamps = np.append(dts[delay:], dts[-1] + step * np.arange(1, delay + 1))
    keys = keys[keys < len(dts) - delay]  # the last frames leave when all packets are in, and do not say when
    return _timeline(
        stream, stamps, np.array([len(stamps)]), "dts", scanned=True, order_by="dts", order=dts, keys=keys, firsts=keys
    )


def _between_resets(
    stream: av.VideoStream, pts: Int[np.ndarray, "n"], dts: Int[np.ndarray, "n"]
) -> list[Int[np.ndarray, "m"]]:
    """Timestamps in the order of decoding, cut where the clock of a stream starts again."""
    if stream.container.format.name not in RESETS or (dts == NONE).any():
        return [pts]
    return np.split(pts, np.flatnonzero(np.diff(dts) < 0) + 1)


def _first_frame(path: str) -> av.VideoFrame:
    with open_video(path) as stream:
        for frame in stream.container.decode(stream):
            return frame
    raise ValueError("none of its frames can be decoded")


def _timeline(
    stream: av.VideoStream,
    stamps: Int[np.ndarray, "n"],
    ends: Int[np.ndarray, "p"],
    clock: Literal["pts", "dts", "count"],
    **fields,
) -> Timeline:
    """A timeline of timestamps in the order of presentation; `ends` are the positions where a clock starts again."""
    steps = np.diff(stamps)
    steps[ends[:-1] - 1] = 0  # unknown, and so is one over which the clock jumped
    if stream.container.format.name in RESETS:
        steps[steps > LONGEST_PAUSE / stream.time_base] = 0
    rate = _nominal_rate(stream, steps)
    step = float(1 / (rate * stream.time_base))
    shown = np.cumsum(np.append(0.0, np.where(steps == 0, step, steps)))
    late = np.abs(shown - step * np.arange(len(shown))).max()
    constant = bool(late <= max(_slack(step), step / 10))  # cameras jitter
    # Elsewhere as many as it takes to see the last frame.
    count = len(shown) if constant else math.ceil((float(shown[-1]) - _slack(step)) / step) + 1
    return Timeline(count, rate, shown, step, constant, clock, stamps, **fields)


def _slack(step: float) -> float:
    """Ticks by which a timestamp may be late for its rounding: Matroska has milliseconds, others one tick a frame."""
    return min(1.0, max(min(0.7, 0.49 * step), step / 10))


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
        if abs(count / (rate * stream.time_base) - total) <= rounded:
            return rate
    return count / (total * stream.time_base)


def _header_rates(stream: av.VideoStream) -> list[Fraction]:
    rates = (stream.base_rate, stream.guessed_rate, stream.average_rate)
    return [rate for rate in rates if rate] or [Fraction(25)]
