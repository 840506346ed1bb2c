import gc
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import videos

from vidjax.data import decode
from vidjax.data.decode import DecodeError


@pytest.fixture
def count_misses(monkeypatch):
    """Records each time seeking failed and the file was read from its start."""
    misses, read = [], decode._read

    def counting(*args, **kwargs):
        result = read(*args, **kwargs)
        if result is None:
            misses.append(args)
        return result

    monkeypatch.setattr(decode, "_read", counting)
    return misses


def draws(num_frames, seed=0):
    """Index lists of many kinds: adjacent, sparse, repeated, unsorted, first, last."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        yield np.minimum(rng.integers(num_frames) + 4 * np.arange(16), num_frames - 1)
        yield np.sort(rng.integers(0, num_frames, 8))
        yield rng.integers(0, num_frames, 5)
    yield np.array([num_frames - 1])
    yield np.array([num_frames - 1, 0])
    yield np.array([0])


@pytest.mark.skipif(not videos.REAL_CLIPS, reason="the real clips are not on this machine")
@pytest.mark.parametrize("path", videos.REAL_CLIPS, ids=lambda path: path.name)
def test_real_clips_equal_plain_sequential_decoding(path, count_misses):
    expected = videos.sequential(path)
    info = decode.probe(path, square_pixels=False)
    assert (info.num_frames, info.height, info.width) == expected.shape[:3]
    for indices in draws(len(expected)):
        np.testing.assert_array_equal(decode.decode(path, indices, square_pixels=False), expected[indices])
    assert not count_misses


@pytest.mark.skipif(not videos.CLIPS.exists(), reason="the real clips are not on this machine")
def test_a_clip_that_breaks_while_decoding_is_one_line():
    with pytest.raises(DecodeError, match=r"^\S+corrupted\.mp4: .+[^.]$"):
        decode.decode(videos.CLIPS / "corrupted.mp4", range(0, 50, 3))


CONTAINERS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.mov": {},
    "h264.ts": {},
    "h264.flv": {},
    "h264.avi": {},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_no_b.avi": {"codec": "mpeg4", "b_frames": 0},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "wmv2.wmv": {"codec": "wmv2", "b_frames": 0},
    "vp8.webm": {"codec": "libvpx"},
    "ntsc.mp4": {"rate": 30000 / 1001},
    "ntsc.mkv": {"rate": 30000 / 1001},
    "no_b.mp4": {"b_frames": 0},
    "one_keyframe.mp4": {"keyframe_every": 1000},
    "only_keyframes.mp4": {"keyframe_every": 1},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12"}, "b_frames": 0},
    "edit_list.mp4": {"skip": 7},
    "edit_list.mov": {"skip": 15},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_index_i_is_frame_i_in_presentation_order(name, tmp_path):
    settings = {"rate": 25} | CONTAINERS[name]
    path = videos.write_video(tmp_path / name, videos.numbered(60 + settings.get("skip", 0)), **settings)
    expected = np.array(videos.numbers(videos.sequential(path)))
    assert list(expected - expected[0]) == list(range(60))
    info = decode.probe(path)
    assert info.num_frames == 60
    assert info.rate == pytest.approx(settings["rate"])
    assert info.duration == pytest.approx(60 / settings["rate"])
    for indices in draws(60):
        assert videos.numbers(decode.decode(path, indices)) == list(expected[indices])


@pytest.mark.parametrize("keyframe_every", [1, 5, 12, 1000])
@pytest.mark.parametrize("name", ["closed.mp4", "closed.mkv", "open.mp4", "open.mkv", "no_b.mp4"])
def test_sparse_frames_equal_full_decoding(name, keyframe_every, tmp_path, count_misses, monkeypatch):
    gop = f"open-gop={int('open' in name)}:keyint={keyframe_every}:min-keyint={keyframe_every}:scenecut=0:bframes=3"
    settings = {"b_frames": 0} if "no_b" in name else {"b_frames": 3, "options": {"x264-params": gop}}
    path = videos.write_video(tmp_path / name, videos.numbered(120), keyframe_every=keyframe_every, **settings)
    expected, seeks, decoded = videos.sequential(path), [], decode._decoded_from
    monkeypatch.setattr(decode, "_decoded_from", lambda *args, **kwargs: seeks.append(1) or decoded(*args, **kwargs))
    rng = np.random.default_rng(keyframe_every)
    spread = np.arange(8) * 15 + rng.integers(0, 15, 8)
    for indices in (spread, np.sort(rng.integers(0, 120, 3)), np.linspace(0, 119, 16).round().astype(int)):
        np.testing.assert_array_equal(decode.decode(path, indices), expected[indices])
        streamed = np.stack([*decode.stream_frames(path, lambda info, i=indices: i)])
        np.testing.assert_array_equal(streamed, expected[indices])
    assert not count_misses
    seeks.clear()
    decode.decode(path, spread)
    assert len(seeks) >= {1: 7, 5: 6, 12: 4, 1000: 1}[keyframe_every]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_videos_of_few_frames(length, suffix, tmp_path):
    path = videos.write_video(tmp_path / f"short{suffix}", videos.numbered(length))
    assert decode.probe(path).num_frames == length
    assert videos.numbers(decode.decode(path, range(length))) == list(range(length))


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mov", "variable.mkv"])
def test_a_variable_rate_is_read_by_timestamps(name, tmp_path):
    gaps = np.random.default_rng(1).choice([0.02, 0.04, 0.04, 0.1, 0.5], 59)
    times = np.concatenate([[0], np.cumsum(gaps)])
    path = videos.write_video(tmp_path / name, videos.numbered(60), times=times)
    info = decode.probe(path)
    # These files store times in milliseconds.
    shown = [int(np.searchsorted(times, i / info.rate + 0.0011, "right")) - 1 for i in range(info.num_frames)]
    assert info.duration == pytest.approx(times[-1], rel=0.02)
    assert videos.numbers(decode.decode(path, range(info.num_frames))) == shown
    for indices in draws(info.num_frames):
        assert videos.numbers(decode.decode(path, indices)) == [shown[i] for i in indices]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_the_display_rotation_is_applied(rotation, tmp_path):
    frames = videos.numbered(6)
    path = videos.write_video(tmp_path / "phone.mp4", frames, rotation=rotation)
    plain = videos.write_video(tmp_path / "plain.mp4", frames)
    frames = decode.decode(path, [4])
    np.testing.assert_array_equal(frames, np.rot90(decode.decode(plain, [4]), rotation // 90, axes=(1, 2)))
    info = decode.probe(path)
    assert (info.height, info.width) == frames.shape[1:3] == ((48, 80) if rotation == 180 else (80, 48))


def test_frames_shrink_to_the_short_side_and_never_grow(tmp_path):
    path = videos.write_video(tmp_path / "wide.mp4", videos.numbered(20, height=96, width=160))
    small = decode.decode(path, [3, 17], short_side=32)
    assert small.shape == (2, 32, 53, 3)
    assert videos.numbers(small) == [3, 17]
    assert decode.decode(path, [3], short_side=500).shape == (1, 96, 160, 3)
    tall = videos.write_video(tmp_path / "tall.mp4", videos.numbered(20, height=96, width=160), rotation=90)
    assert decode.decode(tall, [3], short_side=32).shape == (1, 53, 32, 3)


def test_an_open_clip_can_be_read_repeatedly(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(60))
    with decode.open_clip(path) as clip:
        assert (clip.info.num_frames, clip.info.rate) == (60, 25)
        for indices in ([50, 3], [10, 11, 40], [], [59, 59]):
            frames, info = clip.read(indices, 24)
            assert videos.numbers(frames) == indices and (info.height, info.width) == (48, 80)


def test_read_clip_lets_the_caller_choose_once_the_length_is_known(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(33))
    frames, info = decode.read_clip(path, lambda info: [info.num_frames - 1, info.num_frames // 2])
    assert videos.numbers(frames) == [32, 16]
    assert (info.codec, info.num_frames) == ("h264", 33)
    assert len(decode.decode(path, [])) == 0


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
        decode.read_clip(path, lambda info: [info.num_frames - 1])


def test_a_truncated_file_without_a_stated_length_is_read_to_its_end(tmp_path):
    path = videos.truncate(videos.write_video(tmp_path / "cut.mkv", videos.numbered(200)), 0.5)
    frames, info = decode.read_clip(path, lambda info: [info.num_frames // 2])
    assert 50 < info.num_frames < 150
    assert videos.numbers(frames) == [info.num_frames // 2]


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


def test_a_name_with_a_colon_or_a_percent_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = videos.write_video(tmp_path / "a.mp4", videos.numbered(5))
    for name in ("take:2.mp4", "50%03d.mp4", "наука.mp4"):
        video.rename(name)
        video = Path(name)
        assert decode.probe(name).num_frames == 5


def test_a_longer_last_frame_does_not_change_a_constant_rate(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(50), b_frames=0, last=2)
    assert abs(videos.average_rate(path) - 25) > 0.2
    assert decode.probe(path).rate == 25
    assert videos.numbers(decode.decode(path, range(50))) == list(range(50))


def test_files_are_closed_and_memory_does_not_grow(tmp_path):
    good = videos.write_video(tmp_path / "a.mp4", videos.numbered(30))
    bad = videos.truncate(videos.write_video(tmp_path / "b.avi", videos.numbered(30)), 0.5)

    def read_both():
        decode.decode(good, [3, 20])
        with pytest.raises(DecodeError):
            decode.decode(bad, [3, 29])

    def measure():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc/self/statm")
    for _ in range(50):
        read_both()
    files, memory = measure()
    for _ in range(100):
        read_both()
    assert measure()[0] == files
    assert measure()[1] < memory + 5


STREAMED = [
    "h264.mp4",
    "h264.mkv",
    "h264.ts",
    "mpeg4.avi",
    "ntsc.mkv",
    "open_gop.mp4",
    "intra_refresh.mp4",
    "edit_list.mp4",
]


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("step", [1, 4, 29])
def test_streamed_frames_equal_those_of_a_clip(name, step, tmp_path):
    settings = {"rate": 25} | CONTAINERS[name]
    path = videos.write_video(tmp_path / name, videos.numbered(90 + settings.get("skip", 0)), **settings)
    indices = np.arange(0, 90, step)
    streamed = np.stack(list(decode.stream_frames(path, lambda info: indices, 32)))
    np.testing.assert_array_equal(streamed, decode.decode(path, indices, 32))


@pytest.mark.parametrize("rotation", [90, 180])
def test_a_stream_is_upright_and_follows_timestamps(rotation, tmp_path):
    times = np.cumsum(np.random.default_rng(1).choice([0.02, 0.04, 0.1, 0.5], 40)) - 0.02
    for name, settings in (("turned.mp4", {"rotation": rotation}), ("variable.mp4", {"times": times - times[0]})):
        path = videos.write_video(tmp_path / name, videos.numbered(40), **settings)
        streamed = np.stack(list(decode.stream_frames(path, lambda info: range(0, info.num_frames, 3))))
        np.testing.assert_array_equal(streamed, decode.decode(path, range(0, decode.probe(path).num_frames, 3)))


def test_a_stream_continues_sequentially_if_seeking_fails_midway(tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(60))
    seeking, sequential, modes = decode._seeking, decode._sequential, []

    def miss_after_five(stream, timeline, wanted):
        for position, frame in enumerate(seeking(stream, timeline, wanted)):
            yield None if position == 5 else frame

    def count(stream, timeline, wanted):
        modes.append(len(wanted))
        return sequential(stream, timeline, wanted)

    monkeypatch.setattr(decode, "_seeking", miss_after_five)
    monkeypatch.setattr(decode, "_sequential", count)
    streamed = np.stack(list(decode.stream_frames(path, lambda info: range(0, 60, 4))))
    assert videos.numbers(streamed) == list(range(0, 60, 4)) and modes == [10]


def test_a_truncated_stream_yields_the_frames_before_the_error(tmp_path):
    path = tmp_path / "cut.mp4"
    videos.write_video(path, videos.numbered(200), container_options={"movflags": "+faststart"})
    videos.truncate(path, 0.6)
    yielded = []
    with pytest.raises(DecodeError, match=r"cut\.mp4: [^\n]+[^.]$"):
        yielded.extend(frame[None] for frame in decode.stream_frames(path, lambda info: range(info.num_frames)))
    assert [videos.numbers(frame)[0] for frame in yielded] == list(range(len(yielded))) and len(yielded) > 60


def test_what_cannot_be_streamed_raises(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))
    assert list(decode.stream_frames(path, lambda info: [])) == []
    unordered = r"frame indices to stream from \S+ must be strictly increasing: sort them"
    for indices, reason in (
        ([3, 3], unordered),
        ([4, 2], unordered),
        ([7, 8], "frames 0 to 7, but 7 to 8 were requested"),
    ):
        with pytest.raises(IndexError, match=reason):
            list(decode.stream_frames(path, lambda info, indices=indices: indices))
    with pytest.raises(DecodeError, match=r"absent.mp4: No such file"):
        next(decode.stream_frames(tmp_path / "absent.mp4", lambda info: [0]))
    with pytest.raises(DecodeError, match="it contains no video"):
        next(decode.stream_frames(videos.write_sound(tmp_path / "song.mkv"), lambda info: [0]))


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


def test_a_bare_stream_without_timestamps_is_read_frame_by_frame(tmp_path):
    path = videos.write_video(tmp_path / "a.h264", videos.numbered(40))
    assert decode.probe(path).num_frames == 40
    assert videos.numbers(decode.decode(path, [39, 3, 17])) == [39, 3, 17]


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
        list(decode.stream_frames(path, lambda info: [3]))


def test_errors_of_the_callers_function_pass_unchanged(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(8))

    def choose(info):
        return {}["absent"]

    with pytest.raises(KeyError):
        decode.read_clip(path, choose)
    with pytest.raises(KeyError):
        list(decode.stream_frames(path, choose))
    stream = decode.stream_frames(path, lambda info: range(8))
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("the caller's"))


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DecodeError, match=r"pipe\.mp4: it is a named pipe, not a file"):
        decode.probe(tmp_path / "pipe.mp4")


def test_a_still_image_before_the_film_is_not_the_video(tmp_path):
    # FFmpeg 8.1's own choice in a MOV is the first stream, where no stream is marked as a cover.
    path = tmp_path / "still_first.mov"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        for stream, pixels in zip(streams, ("yuvj420p", "yuv420p"), strict=True):
            stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        for stream, count in zip(streams, (1, 10), strict=True):
            for i in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i, np.uint8), "rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = i, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    info = decode.probe(path)
    assert (info.codec, info.num_frames) == ("h264", 10)
