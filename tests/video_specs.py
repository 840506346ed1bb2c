"""Video files of many codecs, containers and frame times, and what plain sequential decoding by PyAV gives for them."""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import videos

from vidjax.data import decode

RATE = 25
EVEN = (1,) * 39
"""The gaps between 40 frames at a constant rate."""


@dataclass(frozen=True)
class VideoSpec:
    """Description of a generated file; frame i has grey value 5 i."""

    suffix: str
    codec: str
    gaps: tuple[int, ...]
    """Time from each frame to the next, in 1/25 s."""
    late: int = 0
    """Time before the first frame, in 1/25 s."""
    b_frames: int = 0
    keyframe_every: int = 10
    skip: int = 0
    """Time at the start that an edit list hides, in 1/25 s."""
    options: dict[str, str] = field(default_factory=dict)
    """Container options."""
    even_dts: bool = False
    """Decoding times without the gaps."""

    def write(self, folder: Path) -> Path:
        """Writes the file into the folder."""
        path = folder / f"video.{self.suffix}"
        with av.open(str(path), "w", options=self.options) as out:
            stream = out.add_stream(self.codec, rate=RATE)
            stream.width = stream.height = 64 if self.codec == "libsvtav1" else 32
            stream.pix_fmt = {"mjpeg": "yuvj420p", "apng": "rgb24"}.get(self.codec, "yuv420p")
            context = stream.codec_context
            context.gop_size, context.max_b_frames, context.thread_count = self.keyframe_every, self.b_frames, 1
            context.bit_rate = 2_000_000
            if self.b_frames and self.codec == "libx264":
                context.options = {"x264-params": "b-adapt=0:scenecut=0"}  # x264 makes none of such images by itself
            packets = []
            for i, time in enumerate(np.cumsum((self.late, *self.gaps))):
                frame = av.VideoFrame.from_ndarray(np.full((stream.height, stream.width, 3), 5 * i, np.uint8), "rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = int(time), Fraction(1, RATE)
                packets += stream.encode(frame)
            for number, packet in enumerate(packets + stream.encode()):
                hidden = round(self.skip / (RATE * packet.time_base))
                packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
                if self.even_dts:
                    packet.dts = number - 3
                out.mux(packet)
        return path


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """The numbers of frames as written by `VideoSpec`."""
    return [round(float(frame.mean()) / 5) for frame in frames]


def plain(path: Path) -> tuple[list[float], list[int], float]:
    """Times (seconds after the first frame) and numbers of all frames, decoded sequentially, and seconds per tick."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [(frame.pts, frame.dts, frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
        # AVI and WMV store only decoding times, and the last frames have none if frames are reordered.
        by_decoding = file.format.name in ("avi", "asf") and stream.codec_context.has_b_frames
        tick, times = float(stream.time_base), []
        for pts, dts, _ in frames:
            time = dts if by_decoding else pts
            times.append(times[-1] + 1 / RATE if time is None and times else (time or 0) * tick)
    return [time - times[0] for time in times], numbers(image for _, _, image in frames), tick


def compare(path: Path) -> decode.VideoInfo:
    """Asserts that every way to read a file agrees with plain decoding; returns its VideoInfo."""
    times, seen, tick = plain(path)
    info = decode.probe(path)
    slack = min(0.99 * tick, 0.4 / info.rate)  # times are rounded to ticks
    shown = [seen[bisect.bisect_right(times, i / info.rate + slack) - 1] for i in range(info.num_frames)]
    assert shown[-1] == seen[-1] and times[-1] - slack <= (info.num_frames - 1) / info.rate < times[-1] + 1 / info.rate
    indices = range(info.num_frames)
    assert numbers(decode.decode(path, indices)) == shown
    assert numbers(videos.streamed(path, indices)) == shown
    rng = np.random.default_rng(0)
    for some in (rng.integers(0, len(shown), 4), np.arange(0, len(shown), 7), indices[::-1][:3], [len(shown) - 1]):
        assert numbers(decode.decode(path, some)) == [shown[i] for i in some]
    return info
