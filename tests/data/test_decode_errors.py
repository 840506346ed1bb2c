"""Files that cannot be decoded, or not whole, raise a one-line DecodeError, and leave nothing open."""

import gc
import os
from pathlib import Path

import av
import numpy as np
import pytest
import videos

from vidjax.data import decode
from vidjax.data.decode import DecodeError


@pytest.mark.skipif(not videos.CLIPS.exists(), reason="the real clips are not on this machine")
def test_a_clip_that_breaks_while_decoding_is_one_line():
    with pytest.raises(DecodeError, match=r"^\S+corrupted\.mp4: .+[^.]$"):
        decode.decode(videos.CLIPS / "corrupted.mp4", range(0, 50, 3))


def test_an_index_out_of_range_raises_index_error(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))
    for indices in ([8], [-1, 2]):
        with pytest.raises(IndexError, match="frames 0 to 7"):
            decode.decode(path, indices)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5])
def test_a_truncated_file_is_one_line(suffix, fraction, tmp_path):
    faststart = {"movflags": "+faststart"} if suffix == ".mp4" else None
    path = tmp_path / f"cut{suffix}"
    videos.truncate(videos.write_video(path, videos.numbered(200), container_options=faststart), fraction)
    with pytest.raises(DecodeError, match=rf"^\S+cut\{suffix}: [^\n]+[^.]$"):
        decode.decode(path, [decode.probe(path).num_frames - 1])


def test_a_truncated_file_without_a_stated_length_is_read_to_its_end(tmp_path):
    path = videos.truncate(videos.write_video(tmp_path / "cut.mkv", videos.numbered(200)), 0.5)
    length = decode.probe(path).num_frames
    assert 50 < length < 150
    assert videos.numbers(decode.decode(path, [length // 2])) == [length // 2]


def test_frames_before_the_truncation_can_be_read(tmp_path):
    path = tmp_path / "cut.mp4"
    videos.write_video(path, videos.numbered(200), container_options={"movflags": "+faststart"})
    videos.truncate(path, 0.6)
    assert videos.numbers(decode.decode(path, [10, 40])) == [10, 40]
    with pytest.raises(DecodeError, match=str(path)):
        decode.decode(path, [10, 199])


def test_damage_in_the_middle_is_an_error_only_for_affected_frames(tmp_path):
    path = videos.write_video(tmp_path / "hurt.mkv", videos.numbered(100, height=96), options={"crf": "5"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    assert videos.numbers(decode.decode(path, [0])) == [0]
    assert videos.numbers(decode.decode(path, [99])) == [99]
    with pytest.raises(DecodeError, match=r"frame \d+ is damaged"):
        decode.decode(path, [50])


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(4096)])
def test_a_file_that_is_not_a_video_is_one_line(content, tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"^\S+notes\.mp4: [^\n]+[^.]$"):
        decode.probe(path)


def test_missing_files_folders_and_sound_are_one_line(tmp_path):
    for path, reason in ((tmp_path / "absent.mp4", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DecodeError, match=reason):
            decode.probe(path)
    with pytest.raises(DecodeError, match="it contains no video"):
        decode.probe(videos.write_sound(tmp_path / "song.mkv"))


@pytest.mark.long
def test_files_are_closed_and_memory_does_not_grow(tmp_path):
    good = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))
    bad = videos.truncate(videos.write_video(tmp_path / "b.avi", videos.numbered(8)), 0.5)

    def read_both():
        decode.decode(good, [3, 5])
        with pytest.raises(DecodeError):
            decode.decode(bad, [3, 7])

    def measure():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc/self/statm")
    for _ in range(20):
        read_both()
    files, memory = measure()
    for _ in range(60):
        read_both()
    assert measure()[0] == files
    assert measure()[1] < memory + 5


def test_a_truncated_stream_yields_the_frames_before_the_error(tmp_path):
    path = tmp_path / "cut.mp4"
    videos.write_video(path, videos.numbered(200), container_options={"movflags": "+faststart"})
    videos.truncate(path, 0.6)
    yielded = []
    with decode.open_clip(path) as clip, pytest.raises(DecodeError, match=r"cut\.mp4: [^\n]+[^.]$"):
        yielded.extend(clip.iterate(range(clip.info.num_frames)))
    assert videos.numbers(np.stack(yielded)) == list(range(len(yielded))) and len(yielded) > 60


def test_what_cannot_be_streamed_raises(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))
    assert len(videos.streamed(path, [])) == 0
    unordered = r"frame indices to stream from \S+ must be strictly increasing: sort them"
    for indices, reason in (
        ([3, 3], unordered),
        ([4, 2], unordered),
        ([7, 8], "frames 0 to 7, but 7 to 8 were requested"),
    ):
        with pytest.raises(IndexError, match=reason):
            videos.streamed(path, indices)


def test_a_truncation_is_reported_with_its_frame(tmp_path):
    path = tmp_path / "a.mp4"
    videos.write_video(path, videos.numbered(200), b_frames=0, container_options={"movflags": "+faststart"})
    with av.open(str(path)) as file:
        end = [packet.pos for packet in file.demux(video=0)][150]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DecodeError, match=r"a\.mp4: it is cut off after frame 149, before frame 199$"):
        decode.decode(path, [199])


def test_a_file_without_decodable_frames_is_one_line(tmp_path):
    whole = videos.write_video(tmp_path / "whole.mkv", videos.numbered(30), keyframe_every=1000, b_frames=0)
    path = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:  # all but the only keyframe
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[1:-1]:
            packet.stream = stream
            out.mux(packet)
    with pytest.raises(DecodeError, match=r"cut\.mkv: none of its frames can be decoded$"):
        decode.probe(path)


def test_a_file_without_a_decoder_is_one_line(tmp_path):
    """PyAV 18.1 gives such streams no codec context, which used to raise an AttributeError."""
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(20), container_options={"movflags": "+faststart"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"avc1\0", b"encv\0", 1))  # like an encrypted video
    with pytest.raises(DecodeError, match=r"a\.mp4: there is no decoder for its video codec$"):
        decode.probe(path)
    path.write_bytes(data[:400])  # a download that ended within the header
    with pytest.raises(DecodeError, match=r"a\.mp4: [^\n]+$"):
        decode.probe(path)


@pytest.mark.parametrize("error", [IndexError("list"), AttributeError("none"), OverflowError(), ZeroDivisionError("x")])
@pytest.mark.parametrize("function", ["measure", "_seeking"])
def test_any_error_while_reading_becomes_a_decode_error(error, function, tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))

    def fail(*_):
        raise error

    def frames(*_):
        raise error
        yield

    monkeypatch.setattr(decode, function, fail if function == "measure" else frames)
    with pytest.raises(DecodeError, match=rf"a\.mp4: {str(error) or type(error).__name__}$"):
        decode.decode(path, [3])
    with pytest.raises(DecodeError, match=rf"a\.mp4: {str(error) or type(error).__name__}$"):
        videos.streamed(path, [3])


def test_errors_of_the_caller_pass_unchanged(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))
    with pytest.raises(KeyError), decode.open_clip(path):
        raise KeyError("the caller's")
    with decode.open_clip(path) as clip:
        frames = clip.iterate(range(8))
        next(frames)
        with pytest.raises(KeyError):
            frames.throw(KeyError("the caller's"))


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DecodeError, match=r"pipe\.mp4: it is a named pipe, not a file"):
        decode.probe(tmp_path / "pipe.mp4")
