"""Frame times and frames against plain sequential decoding by PyAV."""

import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import videos
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from video_specs import EVEN, RATE, VideoSpec, compare, numbers, plain

from vidjax.data import decode, timeline

CODECS = {
    "mp4": ("libx264", "mpeg4", "mjpeg"),
    "mov": ("libx264", "mjpeg"),
    "3gp": ("mpeg4",),
    "mkv": ("libx264", "mpeg4", "mpeg2video", "libvpx"),
    "webm": ("libvpx", "libvpx-vp9"),
    "avi": ("libx264", "mpeg4", "mjpeg"),
    "ts": ("libx264", "mpeg2video"),
    "mpg": ("mpeg2video", "mpeg1video"),
    "vob": ("mpeg2video", "mpeg1video"),
    "apng": ("apng",),
    "flv": ("libx264", "flv"),
    "wmv": ("wmv2", "libx264"),
    "h264": ("libx264",),
}
MP4_OPTIONS = (
    {},
    {"video_track_timescale": "25"},
    {"video_track_timescale": "25", "movflags": "+faststart"},
    {"movflags": "frag_keyframe"},
    {"movflags": "frag_keyframe+empty_moov"},
    {"movflags": "frag_every_frame"},
)
REORDERING = {"libx264", "mpeg4", "mpeg2video", "mpeg1video"}


@st.composite
def specs(draw):
    suffix = draw(st.sampled_from(("mp4", "mp4", *sorted(CODECS))))
    codec = draw(st.sampled_from(CODECS[suffix]))
    count = draw(st.integers(4, 40))
    gaps = np.ones(count - 1, int)
    for _ in range(draw(st.sampled_from((0, 0, 1, 2, 3)))):
        gaps[draw(st.integers(0, count - 2))] = draw(st.sampled_from((2, 3, 10, 60)))
    isom = suffix in ("mp4", "mov", "3gp")
    options = draw(st.sampled_from(MP4_OPTIONS if isom else ({},)))
    fragments = "frag" in options.get("movflags", "")
    return VideoSpec(
        suffix,
        codec,
        tuple(gaps.tolist()),
        late=draw(st.sampled_from((0, 0, 3, 100))) if suffix not in ("avi", "h264") else 0,
        b_frames=draw(st.integers(0, 3)) if codec in REORDERING else 0,
        keyframe_every=draw(st.sampled_from((1, 5, 10, 100))),
        skip=draw(st.integers(0, count // 2)) if isom and not fragments else 0,
        options=options,
    )


# Comments describe such files in PyAV 18.1 (FFmpeg 8.1); the number is the expected `num_frames`.
CASES = {
    # The header of a fragmented MP4 counts the frames of its first fragment.
    "fragments": (VideoSpec("mp4", "libx264", EVEN, options={"movflags": "frag_keyframe"}), 40),
    # An AVI's header counts frames that were dropped when it was recorded.
    "dropped frames": (VideoSpec("avi", "mjpeg", (1, 1, 1, 2) * 9 + (1, 1, 1)), 49),
    "dropped frames, reordered": (VideoSpec("avi", "mpeg4", (1, 1, 1, 2) * 9 + (1, 1, 1), b_frames=2), 49),
    # The average rate of an MP4, and sometimes its length, is computed from decoding times.
    "a pause at the start": (VideoSpec("mp4", "libx264", (60, *EVEN[1:]), b_frames=2), 99),
    "a pause in the middle": (VideoSpec("mp4", "libx264", (*EVEN[:20], 60, *EVEN[21:]), b_frames=2), 99),
    "a pause at the end": (VideoSpec("mp4", "libx264", (*EVEN[1:], 60), b_frames=2), 99),
    "an edit list at a variable rate": (VideoSpec("mp4", "libx264", (1, 3) * 20, b_frames=2, skip=7), 73),
    # A frame may last a single tick, so tolerances must be smaller.
    "a tick a frame": (VideoSpec("mp4", "libx264", EVEN, options={"video_track_timescale": "25"}), 40),
    # The index of an MP4 has decoding times: these are regular here, and only the composition offsets have the pause.
    "a pause in the composition offsets": (
        VideoSpec("mp4", "libx264", (*EVEN[:20], 60, *EVEN[21:]), even_dts=True),
        99,
    ),
    "the same, reordered": (
        VideoSpec("mp4", "libx264", (*EVEN[:20], 60, *EVEN[21:]), b_frames=2, even_dts=True),
        99,
    ),
    "a late start": (VideoSpec("mkv", "libx264", EVEN, late=100, b_frames=2), 40),
    # An MPEG-2 elementary stream has no start time, and its first timestamp is one frame; those of an MPEG-1 stream are
    # unordered.
    "an elementary stream": (VideoSpec("m2v", "mpeg2video", EVEN), 40),
    "an older one": (VideoSpec("m1v", "mpeg1video", EVEN, b_frames=2), 40),
    # Small frames of a program stream share a pack, and FFmpeg gives several of them the same timestamp.
    "small frames": (VideoSpec("vob", "mpeg1video", EVEN, b_frames=2, keyframe_every=12), 40),
    # All packets of an animated PNG are wrongly marked as keyframes.
    "an animated image": (VideoSpec("apng", "apng", EVEN), 40),
    # FFmpeg gives the packets of a WMV other timestamps after a seek than when reading from the start.
    "times that change with a seek": (VideoSpec("wmv", "libx264", (3, 2) * 18, keyframe_every=250), 91),
    # In such streams ffmpeg treats a gap of more than 10 s as a clock jump and closes it.
    "a clock jump": (VideoSpec("ts", "libx264", (1, 1, 25 * 60, *EVEN[3:]), b_frames=2), 40),
}


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(spec=specs())
@example(spec=CASES["fragments"][0])
@example(spec=CASES["dropped frames"][0])
@example(spec=CASES["a pause at the end"][0])
@example(spec=CASES["a tick a frame"][0])
def test_random_files_agree_with_plain_decoding(spec, tmp_path_factory):
    path = spec.write(tmp_path_factory.mktemp("video"))
    try:
        plain(path)
    except av.EOFError:
        reject()  # FFmpeg does not open very short transport streams
    compare(path)


@pytest.mark.parametrize("case", CASES)
def test_frames_and_length_come_from_the_packets(case, tmp_path):
    spec, count = CASES[case]
    path = spec.write(tmp_path)
    info = decode.probe(path) if case in ("a clock jump", "an older one") else compare(path)
    if case == "times that change with a seek":
        return
    assert (info.num_frames, info.rate, info.duration) == (count, RATE, pytest.approx(count / RATE))
    times = np.cumsum((0, *spec.gaps)) if case != "a clock jump" else np.arange(40)
    first = int(np.searchsorted(times, spec.skip))
    assert numbers(decode.decode(path, [0, count - 1])) == [first, len(times) - 1]


def test_an_edit_list_that_hides_everything_is_one_line(tmp_path):
    path = VideoSpec("mp4", "libx264", EVEN, skip=1000).write(tmp_path)
    with pytest.raises(decode.DecodeError, match=r"video\.mp4: its video has no frames"):
        decode.probe(path)


def test_packets_are_read_only_if_the_index_is_insufficient_and_once_per_file(tmp_path, monkeypatch):
    scans, scan = [], timeline._from_packets
    monkeypatch.setattr(timeline, "_from_packets", lambda path, stream: scans.append(path) or scan(path, stream))
    spec = VideoSpec("mp4", "libx264", EVEN, b_frames=2).write(tmp_path)
    assert not decode.probe(spec).scanned and not scans
    fragments = VideoSpec("mov", "libx264", EVEN, options={"movflags": "frag_keyframe"}).write(tmp_path)
    for index in (0, 39, 7):
        decode.decode(fragments, [index])
    assert scans == [str(fragments)] and decode.probe(fragments).scanned
    VideoSpec("mov", "libx264", EVEN[:20], options={"movflags": "frag_keyframe"}).write(
        tmp_path
    )  # another file with the same name
    assert decode.probe(fragments).num_frames == 21


def test_a_wrong_index_is_detected_while_decoding(tmp_path, monkeypatch):
    path = VideoSpec("mp4", "libx264", (1,) * 20 + (3, 1) * 5, b_frames=2).write(tmp_path)
    right = numbers(decode.decode(path, range(41)))
    even = np.full(30, 512)
    with decode.open_video(path) as stream:
        assert timeline._from_index(str(path), stream) is None
        packets = timeline.measure(str(path), stream, trust_index=False).packets
        keys = np.arange(0, 31, 10)
        packets = replace(packets, ranks=None, grid=(0, 512), keys=keys, firsts=keys)
        wrong = timeline._timeline(stream, even, even < 0, packets, scanned=False)
    right_measure = timeline.measure
    monkeypatch.setattr(
        decode, "measure", lambda *args, trust_index=True: wrong if trust_index else right_measure(*args)
    )
    assert numbers(decode.decode(path, range(31))) == right[:31]


LATE = [
    ("avi", "libx264"),
    ("ts", "libx264"),
    ("flv", "libx264"),
    ("wmv", "wmv2"),
    ("wmv", "libx264"),
    ("mp4", "libsvtav1"),
]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("suffix", "codec"), LATE)
def test_a_late_clip_is_decoded_from_the_keyframe_before_it(suffix, codec, b_frames, tmp_path, monkeypatch):
    path = VideoSpec(suffix, codec, (1,) * 49, b_frames=b_frames if codec == "libx264" else 0).write(tmp_path)
    monkeypatch.setattr(decode, "_sequential", lambda *_: pytest.fail("read from the start"))
    decoded, decoded_from = [], decode._decoded_from
    monkeypatch.setattr(
        decode, "_decoded_from", lambda *args: (decoded.append(item) or item for item in decoded_from(*args))
    )
    assert numbers(decode.decode(path, [45, 47])) == [45, 47]
    assert len(decoded) <= 12


def test_only_edit_lists_with_several_parts_need_decoding_for_the_timeline(tmp_path, monkeypatch):
    decoded, from_frames = [], timeline._from_frames
    monkeypatch.setattr(timeline, "_from_frames", lambda *args: decoded.append(args) or from_frames(*args))
    compare(VideoSpec("mp4", "libx264", EVEN, b_frames=2, skip=7).write(tmp_path))
    assert not decoded
    # Frames 21 to 28, then 13 to 30: where they meet, FFmpeg 8.1 gives reordered frames timestamps that overlap.
    path = VideoSpec("mp4", "libx264", EVEN, b_frames=2, keyframe_every=100).write(tmp_path)
    path.write_bytes(edited(path.read_bytes(), [(320, 21 * 512 + 1024), (720, 13 * 512 + 1024)]))
    assert decode.probe(path).num_frames == 26 and decoded
    assert numbers(decode.decode(path, range(26))) == [*range(21, 29), *range(13, 31)]


def edited(data, edits):
    """Replaces the edit list of an MP4 by one of (milliseconds, first tick)."""
    entries = b"".join(struct.pack(">IiI", length, first, 1 << 16) for length, first in edits)
    listed = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    edts = data.index(b"edts") - 4
    (size,) = struct.unpack_from(">I", data, edts)
    new = struct.pack(">I4s", 8 + len(listed), b"edts") + listed
    data = bytearray(data[:edts] + new + data[edts + size :])
    for box in (b"moov", b"trak"):
        start = data.index(box) - 4
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + len(new) - size)
    return bytes(data)


def test_a_damaged_timestamp_is_one_line_and_not_a_video_of_years(tmp_path):
    path = VideoSpec("ivf", "libvpx-vp9", EVEN).write(tmp_path)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        last = [packet.pos for packet in file.demux(video=0) if packet.size][-1]
    struct.pack_into("<Q", data, last + 4, 1 << 40)  # after the size of the frame
    path.write_bytes(data)
    with pytest.raises(decode.DecodeError, match=r"video\.ivf: its timestamps are damaged: its 40 frames would last"):
        decode.probe(path)


def test_the_first_frame_of_a_file_decides_the_size_of_all(tmp_path):
    parts = []
    for size in (32, 64):
        with av.open(str(tmp_path / "part.ts"), "w") as out:
            stream = out.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            for i in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 5 * i, np.uint8), "rgb24")
                frame.pts, frame.time_base = i, Fraction(1, RATE)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        parts.append((tmp_path / "part.ts").read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    assert decode.probe(path).width == 32
    for indices in ([0, 15], [15]):
        assert decode.decode(path, indices).shape[1:3] == (32, 32)
    assert videos.streamed(path, [15])[0].shape == (32, 32, 3)
