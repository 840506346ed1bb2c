"""Streams that were copied to another container, joined or cut, against plain sequential decoding by PyAV."""

import av
import pytest
from av.bitstream import BitStreamFilterContext
from video_specs import EVEN, VideoSpec, compare, numbers, plain

from vidjax.data import decode


def copy(source, target):
    """Copies the packets of a video into another container without decoding."""
    with av.open(str(source)) as a, av.open(str(target), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(video=0):
            if packet.size:
                packet.stream = stream
                b.mux(packet)
    return target


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "nut", "flv", "avi"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_reordered_frames_copied_out_of_an_avi_are_in_order(codec, suffix, tmp_path):
    # An AVI has no presentation times. Instead of them, PyAV 18.1 (FFmpeg 8.1) and `ffmpeg -c copy` write decoding
    # times, which are shifted by a tick or a frame in MP4.
    if (codec, suffix) == ("mpeg4", "flv"):
        pytest.skip("FLV has no MPEG-4 part 2")
    path = copy(VideoSpec("avi", codec, EVEN, b_frames=2).write(tmp_path), tmp_path / f"copy.{suffix}")
    right = plain(path)[1]
    assert len(right) == 40 and decode.probe(path).num_frames == 40
    assert numbers(decode.decode(path, range(40))) == right
    assert [numbers(decode.decode(path, [i])) for i in (2, 17, 39)] == [[right[i]] for i in (2, 17, 39)]


def test_an_avi_with_fine_ticks_keeps_its_last_frames(tmp_path):
    film = VideoSpec("mp4", "libx264", EVEN, b_frames=2, options={"video_track_timescale": "12800"}).write(tmp_path)
    path = tmp_path / "copy.avi"
    with av.open(str(film)) as a, av.open(str(path), "w") as b:
        source = a.streams.video[0]
        stream = b.add_stream_from_template(source)
        annexb = BitStreamFilterContext("h264_mp4toannexb", source, stream)
        for packet in a.demux(video=0):
            for filtered in annexb.filter(packet) if packet.size else ():
                filtered.stream = stream
                b.mux(filtered)
    assert plain(path)[1] == list(range(40)) == numbers(decode.decode(path, range(decode.probe(path).num_frames)))


@pytest.mark.parametrize("counts", [(20, 20), (5, 40, 3)])
@pytest.mark.parametrize(
    ("suffix", "codec"), [("ts", "libx264"), ("vob", "mpeg2video"), ("h264", "libx264"), ("mkv", "libx264")]
)
def test_concatenated_streams_are_read_in_order(suffix, codec, counts, tmp_path):
    together = tmp_path / f"together.{suffix}"
    parts = [VideoSpec(suffix, codec, (1,) * (n - 1), b_frames=2).write(tmp_path).read_bytes() for n in counts]
    together.write_bytes(b"".join(parts))
    right = [number for n in counts for number in range(n)]
    if suffix == "mkv":  # FFmpeg 8.1 does not find a very short last part
        right = right[: len(plain(together)[1])]
    assert decode.probe(together).num_frames == len(right)
    assert numbers(decode.decode(together, range(len(right)))) == right
    assert numbers(decode.decode(together, [25, 3])) == [right[25], 3]


def test_reordered_frames_without_presentation_times_are_in_order(tmp_path):
    path = VideoSpec("mp4", "libx264", EVEN, b_frames=2).write(tmp_path)
    data = path.read_bytes().replace(b"ctts", b"free").replace(b"edts", b"free")  # some recorders omit these boxes
    path.write_bytes(data)
    assert decode.probe(path).num_frames == 40
    assert numbers(decode.decode(path, range(40))) == list(range(40))


def test_a_stream_cut_from_another_starts_at_its_first_complete_frame(tmp_path):
    path = VideoSpec("ts", "libx264", EVEN, b_frames=2).write(tmp_path)
    cut = tmp_path / "cut.ts"
    with av.open(str(path)) as source, av.open(str(cut), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][3:]:
            packet.stream = stream
            out.mux(packet)
    first = plain(cut)[1][0]
    assert first > 3 and numbers(decode.decode(cut, [0])) == [first]
    assert compare(cut).num_frames == 40 - first


def test_a_program_stream_cut_within_a_gop_counts_the_frames_that_can_be_decoded(tmp_path):
    data = VideoSpec("vob", "mpeg2video", EVEN, b_frames=2).write(tmp_path).read_bytes()
    cut = tmp_path / "cut.mpg"
    cut.write_bytes(data[data.index(b"\0\0\1\xba", len(data) // 2) :])  # from a pack header on
    right = plain(cut)[1]
    assert 0 < len(right) < 30
    assert numbers(decode.decode(cut, range(decode.probe(cut).num_frames)))[: len(right)] == right


def test_concatenated_avis_are_read_as_by_ffmpeg(tmp_path):
    data = VideoSpec("avi", "mjpeg", EVEN[:9]).write(tmp_path).read_bytes()
    path = tmp_path / "joined.avi"
    path.write_bytes(data * 3)
    right = plain(path)[1]
    assert len(right) > 10
    assert numbers(decode.decode(path, range(decode.probe(path).num_frames))) == right
