"""The time at which each frame of a video is on screen, determined without decoding.

Headers are unreliable: frame counts include frames that an edit list hides, only the first fragment, or packets that
were dropped, and average rates are computed from decoding times. Therefore all packets are read; their sorted
timestamps are the frame times. This pass is skipped for an MP4 or MOV whose index is consistent (equal steps between
all samples in decoding and in presentation order, nothing hidden, no fragments), and for an AVI with a complete index.
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

from vidjax.data.container import STILL_CODECS, as_fraction, open_video
from vidjax.data.mp4_boxes import composition_offsets
from vidjax.data.packets import Packets

NONE = np.iinfo(np.int64).min
"""Stands for a missing timestamp."""
RESETS = {"mpegts", "mpeg", "flv"}
"""Streaming containers, whose timestamps may restart or jump."""
LONGEST_PAUSE = 10
"""Seconds. In a streaming container a longer gap between frames is a clock jump rather than a pause, as in ffmpeg."""
MAX_REORDER = 17
"""Maximum number of packets from a frame's own to its presentation in H.264 and similar codecs."""
MOST_FRAMES = 10**7
"""A video that lasts longer than this many frames (four days at 30 fps) but has fewer has a damaged timestamp."""


class Timeline(NamedTuple):
    """The frames of a video in presentation order. A position counts frames in this order; times are in ticks."""

    num_frames: int
    """Number of frame indices at the nominal rate, from the first to the last frame."""
    rate: Fraction
    """Nominal frames per second, not counting pauses and dropped frames."""
    shown: Float[np.ndarray, "n"]
    """Time at which each frame appears, with clock jumps removed."""
    step: float
    """Time between frames at the nominal rate."""
    constant: bool
    """Whether all frames are at multiples of `step`."""
    packets: Packets | None
    """The packets, for seeking; None if frames can only be identified by decoding from the start."""
    scanned: bool
    """Whether all packets were read."""

    def at(self, indices: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """The positions of the frames on screen at `indices` frames of the nominal rate after the first frame."""
        return indices if self.constant else self.on_screen(indices * self.step)

    def on_screen(self, times: Float[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """The positions of the frames on screen at `times` after the first frame."""
        return np.searchsorted(self.shown, times + _slack(self.step), "right") - 1


def measure(path: str, stream: av.VideoStream, trust_index: bool = True) -> Timeline:
    """The timeline of an open video. It is cached per file; the file may be left at its end.

    Args:
      path: path of the file.
      stream: its video stream.
      trust_index: pass false to read all packets, if the index has proved to be wrong.

    Raises:
      ValueError: the video has no frames.
    """
    known: dict[bool, Timeline] = {}
    if "://" not in path:  # remote files may change unnoticed
        status = os.stat(path)
        known = _cached_timelines(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    if trust_index not in known:  # keeps both, so that the length of a file does not change
        by_index = (_from_index(path, stream) or _from_avi_index(path, stream)) if trust_index else None
        known[trust_index] = by_index or _from_packets(path, stream)
    return known[trust_index]


@lru_cache(maxsize=256)
def _cached_timelines(path: str, size: int, modified: int) -> dict[bool, Timeline]:
    """Cache entry of a file: timelines by `trust_index`."""
    return {}


def _from_index(path: str, stream: av.VideoStream) -> Timeline | None:
    """The timeline of an MP4 whose index shows a constant rate; None if it does not or is incomplete."""
    if "mp4" not in stream.container.format.name or stream.start_time is None or not stream.duration:
        return None
    entries = [(e.timestamp, e.size, e.pos, e.is_keyframe, e.is_discard) for e in stream.index_entries]
    if len(entries) < 2:
        return None
    order, sizes, offsets, keyframe, hidden = np.array(entries, np.int64).T
    step = int(order[1] - order[0])
    even = step > 0 and (np.diff(order) == step).all() and abs(stream.duration - len(order) * step) <= step / 2
    if not even or hidden.any() or not keyframe[0]:
        return None
    if (offsets_in_time := composition_offsets(path, stream.id, len(order))) is None:
        return None
    stamps = order + offsets_in_time
    reordered = (np.diff(stamps) < 0).any()
    if stream.codec_context.has_b_frames and (not reordered or stream.codec_context.name == "mpeg4"):
        return None  # presentation times may be missing, or packets may contain two frames
    if (np.diff(np.sort(stamps)) != step).any():
        return None
    keys = np.flatnonzero(keyframe)
    packets = Packets(sizes, offsets, "dts", order, keys, keys, grid=(int(stream.start_time), step))
    return _timeline(stream, np.diff(np.sort(stamps)), np.zeros(len(stamps) - 1, bool), packets, scanned=False)


def _from_avi_index(path: str, stream: av.VideoStream) -> Timeline | None:
    """The timeline of an AVI whose index is complete and determines when frames are shown; else None."""
    if stream.container.format.name != "avi":
        return None
    entries = [(e.timestamp, e.size, e.pos, e.is_keyframe) for e in stream.index_entries]
    if not entries or entries[-1][0] + 1 != stream.frames or not entries[0][3] or _is_followed_by_another(path):
        return None
    dts, sizes, offsets, keyframe = np.array(entries, np.int64).T
    if not sizes.all() or (np.diff(dts) <= 0).any():
        return None
    offsets = offsets + 8  # the chunk header
    if stream.codec_context.has_b_frames:
        table = _PacketTable(dts, dts, sizes, offsets, keyframe, np.zeros_like(dts))
        return _by_delay(path, stream, table, scanned=False)
    if (np.diff(dts) != 1).any():
        return None
    keys = np.flatnonzero(keyframe)
    packets = Packets(sizes, offsets, "dts", dts, keys, keys, ranks=np.arange(len(dts)))
    return _timeline(stream, np.diff(dts), np.zeros(len(dts) - 1, bool), packets, scanned=False)


def _is_followed_by_another(path: str) -> bool:
    """Whether the file is a concatenation of AVIs: the index covers only the first one, but FFmpeg reads them all."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<4xI", file.read(8))
        file.seek(8 + length + length % 2)
        following = file.read(12)
    return following[:4] == b"RIFF" and following[8:] == b"AVI "


class _PacketTable(NamedTuple):
    """Properties of all packets in decoding order."""

    pts: Int[np.ndarray, "p"]
    dts: Int[np.ndarray, "p"]
    sizes: Int[np.ndarray, "p"]
    offsets: Int[np.ndarray, "p"]
    keyframe: Int[np.ndarray, "p"]
    hidden: Int[np.ndarray, "p"]
    """1 if an edit list hides the packet."""


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
    table = _PacketTable(*np.array(rows, np.int64).reshape(-1, 6).T)
    _, which, count = np.unique(table.offsets, return_inverse=True, return_counts=True)
    table = table._replace(offsets=np.where(count[which] > 1, -1, table.offsets))  # a shared one identifies no packet
    shown = table.hidden == 0
    pts, dts = table.pts[shown], table.dts[shown]
    if not len(pts):
        raise ValueError("its video has no frames" + (" that are shown" if rows else ""))
    name, context = stream.container.format.name, stream.codec_context
    if len(pts) == 1 and context.name in STILL_CODECS and stream.container.streams.audio:
        raise ValueError("it contains no video, only a cover image")
    within = (table.pts > pts.min()) & (table.pts < pts.max()) & ~shown
    if context.has_b_frames and within.any():
        return _from_frames(path, stream)
    if (pts == NONE).any() or name == "mpegvideo" or _has_invented_pts(path, stream, pts):
        dts_usable = name != "mpegvideo" and (dts != NONE).all() and (np.diff(dts) > 0).all()
        return (dts_usable and _by_delay(path, stream, table, scanned=True)) or _by_order(stream, len(pts))
    return _by_times(path, stream, table, shown)


def _by_times(path: str, stream: av.VideoStream, table: _PacketTable, shown: Bool[np.ndarray, "p"]) -> Timeline:
    """The timeline from the presentation timestamps of the packets."""
    pts, name = table.pts[shown], stream.container.format.name
    parts = _between_resets(stream, pts, table.dts[shown])
    in_order = [np.argsort(part, kind="stable") for part in parts]
    stamps = np.concatenate([part[order] for part, order in zip(parts, in_order, strict=True)])
    ends = np.cumsum([len(part) for part in parts])
    unknown = np.zeros(len(stamps) - 1, bool)
    unknown[ends[:-1] - 1] = True
    if name == "mpeg":  # the last timestamps of a part that was cut off are wrong
        for end in ends[:-1]:
            unknown[max(end - 3, 0) : end] = True
    begins = np.flatnonzero(shown)[np.append(0, ends[:-1])]
    if not table.keyframe[begins[1:]].all():
        return _from_frames(path, stream)  # the number of frames lost at a joint is known only after decoding
    # If the packets were cut out of a stream, the first ones may not decode to a frame.
    lost = 0
    if not table.keyframe[0] or pts[0] > stamps[0]:
        first = _first_frame(path).pts
        lost = 0 if first is None else int(np.searchsorted(stamps[: ends[0]], first))
    if (np.diff(stamps)[~unknown] == 0).any():
        return _by_order(stream, len(stamps) - lost, np.diff(stamps)[lost:], unknown[lost:])
    ranks = np.full(len(shown), -1)
    ranks[shown] = np.concatenate(
        [start + np.argsort(order) for start, order in zip(np.append(0, ends), in_order, strict=False)]
    )
    stamps, unknown = stamps[lost:], unknown[lost:]
    order_by: Literal["pts", "dts"] = "pts" if (table.dts == NONE).any() else "dts"
    order = table.pts if order_by == "pts" else table.dts
    keys = np.flatnonzero(table.keyframe)
    if (
        len(parts) > 1
        or (order == NONE).any()
        or len(np.unique(order)) < len(order)
        or stream.codec_context.name == "apng"
    ):
        keys = keys[:0]  # ambiguous seek targets; APNG packets are wrongly marked as keyframes
    firsts = np.searchsorted(stamps, table.pts[keys]) if len(keys) else keys
    packets = Packets(table.sizes, table.offsets, order_by, order, keys, firsts, ranks=np.maximum(ranks - lost, -1))
    return _timeline(stream, np.diff(stamps), unknown, packets, scanned=True)


def _by_order(
    stream: av.VideoStream,
    count: int,
    steps: Int[np.ndarray, "m"] | None = None,
    unknown: Bool[np.ndarray, "m"] | None = None,
) -> Timeline:
    """The timeline of frames of which only the order is known, or of which some share a timestamp."""
    if steps is not None and stream.container.format.name != "mpeg":
        return _timeline(stream, steps, unknown, None, scanned=True)
    # FFmpeg assigns one timestamp to several small frames in a pack of a program stream and leaves a gap after them.
    rate = _nominal_rate(stream, np.zeros(0, np.int64) if steps is None else steps[~unknown])
    step = float(1 / (rate * as_fraction(stream.time_base)))
    return Timeline(count, rate, step * np.arange(count), step, constant=True, packets=None, scanned=True)


def _from_frames(path: str, stream: av.VideoStream) -> Timeline:
    """The timeline by decoding all frames, for an edit list with several parts and for streams joined within a GOP.

    Where two parts meet, FFmpeg gives reordered frames overlapping timestamps, but outputs them in the right order.
    """
    with open_video(path) as again:
        stamps = [frame.pts for frame in again.container.decode(again)]
    if None in stamps:
        return _by_order(stream, len(stamps))
    steps = np.diff(stamps)
    return _timeline(stream, steps, steps <= 0, None, scanned=True)


def _has_invented_pts(path: str, stream: av.VideoStream, pts: Int[np.ndarray, "n"]) -> bool:
    """Whether presentation timestamps are invented by FFmpeg, and wrong because frames are reordered.

    AVI, WMV and MP4 without composition offsets store only decoding times, and remuxing them to another container does
    not add presentation times. Two frames packed into one packet (MPEG-4 in AVI) share a timestamp.
    """
    if not stream.codec_context.has_b_frames:
        return False
    if stream.container.format.name in ("avi", "asf"):
        return True
    suspicious = stream.codec_context.name == "mpeg4" or (np.diff(pts) > 0).all()
    return bool(suspicious) and _is_shuffled(path)


def _is_shuffled(path: str) -> bool:
    """Whether the first decoded frames are not in the order of their timestamps."""
    with open_video(path) as stream:
        stamps = [frame.pts for frame in islice(stream.container.decode(stream), 2 * MAX_REORDER)]
    return None in stamps or stamps != sorted(stamps)


def _by_delay(path: str, stream: av.VideoStream, table: _PacketTable, scanned: bool) -> Timeline | None:
    """The timeline from decoding times and the decoder's constant delay; None if the delay cannot be determined."""
    first, dts = _first_frame(path).dts, table.dts
    delay = int(np.searchsorted(dts, NONE if first is None else first))
    if delay == len(dts) or dts[delay] != first or table.hidden.any():
        return None
    # The header of an AVI may contain the time base instead of the rate.
    step = round(1 / (_header_rates(stream)[-1] * as_fraction(stream.time_base)))
    step = max(step, int(np.diff(dts).min()) if len(dts) > 1 else 1)
    steps = np.append(np.diff(dts[delay:]), np.full(delay, step))
    keys = np.flatnonzero(table.keyframe)
    keys = keys[keys < len(dts) - delay]  # the last frames are flushed at the end without dts
    packets = Packets(table.sizes, table.offsets, "dts", dts, keys, keys, delay=delay)
    return _timeline(stream, steps, np.zeros(len(steps), bool), packets, scanned)


def _between_resets(
    stream: av.VideoStream, pts: Int[np.ndarray, "n"], dts: Int[np.ndarray, "n"]
) -> list[Int[np.ndarray, "m"]]:
    """Timestamps in decoding order, split where the clock of a stream restarts."""
    known = np.flatnonzero(dts != NONE)
    if "mp4" in stream.container.format.name or not len(known):
        return [pts]
    following = np.minimum(np.searchsorted(known, np.arange(len(dts))), len(known) - 1)
    dts = dts[known[following]]  # the first packets of a part may have none
    steps = np.diff(dts)
    starts, small = [0], 5 * np.median(np.abs(steps)) if len(steps) else 0
    for back in np.flatnonzero(steps < 0) + 1:
        if dts[back] <= dts[starts[-1]] or dts[back - 1] - dts[back] > small:  # else FFmpeg's error within a pack
            starts.append(int(back))
    return np.split(pts, starts[1:])


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
    """A timeline from the steps between frames; an unknown step counts as the nominal one."""
    if stream.container.format.name in RESETS:
        unknown = unknown | (steps > LONGEST_PAUSE / as_fraction(stream.time_base))
    rate = _nominal_rate(stream, steps[~unknown])
    step = float(1 / (rate * as_fraction(stream.time_base)))
    shown = np.cumsum(np.append(0.0, np.where(unknown, step, steps)))
    late = np.abs(shown - step * np.arange(len(shown))).max()
    constant = bool(late <= max(_slack(step), step / 10))  # cameras jitter slightly
    # At a variable rate, as many as are needed to reach the last frame.
    count = len(shown) if constant else math.ceil((float(shown[-1]) - _slack(step)) / step) + 1
    if count > MOST_FRAMES > len(shown):
        raise ValueError(f"its timestamps are damaged: its {len(shown)} frames would last {float(count / rate):.3g} s")
    return Timeline(count, rate, shown, step, constant, packets, scanned)


def _slack(step: float) -> float:
    """Rounding tolerance of timestamps, in ticks. Matroska rounds to milliseconds; some files have a tick per frame."""
    return min(0.99, 0.49 * step)


def _nominal_rate(stream: av.VideoStream, steps: Int[np.ndarray, "n"]) -> Fraction:
    """Typical frames per second; the rate in the header if it agrees.

    Pauses and dropped frames do not count, so that one second is the same number of frames throughout the video.
    """
    steps = np.sort(steps[steps > 0])
    if not len(steps):
        return _header_rates(stream)[-1]
    median = steps[(len(steps) - 1) // 2]
    usual = steps[(steps >= 0.6 * median) & (steps <= 1.67 * median)]
    count, total = len(usual), int(usual.sum())
    rounded = 1 + len(steps) - count  # ticks: each run of typical steps starts and ends at a rounded time
    for rate in _header_rates(stream):
        if abs(count / (rate * as_fraction(stream.time_base)) - total) <= rounded:
            return rate
    return count / (total * as_fraction(stream.time_base))


def _header_rates(stream: av.VideoStream) -> list[Fraction]:
    rates = map(as_fraction, (stream.base_rate, stream.guessed_rate, stream.average_rate))
    return [rate for rate in rates if rate] or [Fraction(25)]
