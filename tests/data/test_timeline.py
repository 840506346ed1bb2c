"""Which frame is on screen when, beside plain decoding from start to end by PyAV."""

import bisect
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from vidjax.data import decode

RATE = 25
CODECS = {
    "mp4": ("libx264", "mpeg4", "mjpeg"),
    "mov": ("libx264", "mjpeg"),
    "3gp": ("mpeg4",),
    "mkv": ("libx264", "mpeg4", "mpeg2video", "libvpx"),
    "webm": ("libvpx", "libvpx-vp9"),
    "avi": ("libx264", "mpeg4", "mjpeg"),
    "ts": ("libx264", "mpeg2video"),
    "mpg": ("mpeg2video",),
    "vob": ("mpeg2video",),
    "flv": ("libx264", "flv"),
    "wmv": ("wmv2", "libx264"),
    "h264": ("libx264",),
}
MP4_OPTIONS = (
    {},
    {"video_track_timescale": "25"},
    {"movflags": "+faststart"},
    {"movflags": "frag_keyframe"},
    {"movflags": "frag_keyframe+empty_moov"},
    {"movflags": "frag_every_frame"},
)
REORDERING = {"libx264", "mpeg4", "mpeg2video"}


@dataclass(frozen=True)
class Film:
    """What a file is made of; frame i is of grey 5 i."""

    suffix: str
    codec: str
    gaps: tuple[int, ...]
    """Twenty-fifths of a second from each frame to the next."""
    late: int = 0
    """Twenty-fifths of a second before the first frame."""
    b_frames: int = 0
    keyframe_every: int = 10
    skip: int = 0
    """Twenty-fifths of a second that an edit list hides at the start."""
    options: dict[str, str] = field(default_factory=dict)
    """Of the container."""

    def write(self, folder: Path) -> Path:
        path = folder / f"film.{self.suffix}"
        with av.open(str(path), "w", options=self.options) as out:
            stream = out.add_stream(self.codec, rate=RATE)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuvj420p" if self.codec == "mjpeg" else "yuv420p"
            context = stream.codec_context
            context.gop_size, context.max_b_frames, context.thread_count = self.keyframe_every, self.b_frames, 1
            context.bit_rate = 2_000_000
            for i, time in enumerate(np.cumsum((self.late, *self.gaps))):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * i, np.uint8), "rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = int(time), Fraction(1, RATE)
                self._mux(out, stream.encode(frame))
            self._mux(out, stream.encode())
        return path

    def _mux(self, out: av.container.OutputContainer, packets: list[av.Packet]) -> None:
        for packet in packets:
            hidden = round(self.skip / (RATE * packet.time_base))
            packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
            out.mux(packet)


def numbers(frames):
    return [round(float(frame.mean()) / 5) for frame in frames]


def plain(path):
    """Seconds after the first frame and number of every frame, by PyAV from start to end, and the clock's tick."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        found = [(frame.pts, frame.dts, frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
        # AVI and WMV hold decoding times alone, and no others if frames are reordered; the last frames have none.
        by_decoding = file.format.name in ("avi", "asf") and stream.codec_context.has_b_frames
        tick, times = float(stream.time_base), []
        for pts, dts, _ in found:
            time = dts if by_decoding else pts
            times.append(times[-1] + 1 / RATE if time is None and times else (time or 0) * tick)
    return [time - times[0] for time in times], numbers(picture for _, _, picture in found), tick


def compare(path):
    """Asserts that every way to read a file agrees with plain decoding; gives what is known of it."""
    times, seen, tick = plain(path)
    info = decode.probe(path)
    slack = min(tick, 0.1 / info.rate)
    shown = [seen[bisect.bisect_right(times, i / info.rate + slack) - 1] for i in range(info.num_frames)]
    assert shown[-1] == seen[-1] and times[-1] - slack <= (info.num_frames - 1) / info.rate < times[-1] + 1 / info.rate
    indices = range(info.num_frames)
    assert numbers(decode.decode(path, indices)) == shown
    assert numbers(decode.stream_frames(path, lambda info: indices)) == shown
    rng = np.random.default_rng(0)
    for some in (rng.integers(0, len(shown), 4), np.arange(0, len(shown), 7), indices[::-1][:3], [len(shown) - 1]):
        assert numbers(decode.decode(path, some)) == [shown[i] for i in some]
    return info


@st.composite
def films(draw):
    suffix = draw(st.sampled_from(sorted(CODECS)))
    codec = draw(st.sampled_from(CODECS[suffix]))
    count = draw(st.integers(4, 40))
    gaps = np.ones(count - 1, int)
    for _ in range(draw(st.integers(0, 3))):
        gaps[draw(st.integers(0, count - 2))] = draw(st.sampled_from((2, 3, 10, 60)))
    isom = suffix in ("mp4", "mov", "3gp")
    options = draw(st.sampled_from(MP4_OPTIONS if isom else ({},)))
    fragments = "frag" in options.get("movflags", "")
    return Film(
        suffix,
        codec,
        tuple(gaps.tolist()),
        late=draw(st.sampled_from((0, 0, 3, 100))) if suffix not in ("avi", "h264") else 0,
        b_frames=draw(st.integers(0, 3)) if codec in REORDERING else 0,
        keyframe_every=draw(st.sampled_from((1, 5, 10, 100))),
        skip=draw(st.integers(0, count // 2)) if isom and not fragments else 0,
        options=options,
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(film=films())
def test_any_file_is_read_as_plain_decoding_reads_it(film, tmp_path_factory):
    path = film.write(tmp_path_factory.mktemp("film"))
    try:
        plain(path)
    except av.EOFError:
        reject()  # a transport stream of few bytes, which FFmpeg does not open
    compare(path)
