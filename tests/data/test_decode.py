"""Frames by index from every container, at every rate and GOP structure, equal plain sequential decoding."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import videos

from vidjax.data import decode


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


def draws(num_frames, rounds=4):
    """Index lists of many kinds: adjacent, sparse, repeated, unsorted, first, last."""
    rng = np.random.default_rng(0)
    for _ in range(rounds):
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
    for indices in draws(len(expected), rounds=1):
        np.testing.assert_array_equal(decode.decode(path, indices, square_pixels=False), expected[indices])
    assert not count_misses


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
    for step in (1, 4, 29):
        assert videos.numbers(videos.streamed(path, range(0, 60, step), 24)) == list(expected[::step])


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
        np.testing.assert_array_equal(videos.streamed(path, indices), expected[indices])
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
        assert (clip.info.codec, clip.info.num_frames, clip.info.rate) == ("h264", 60, 25)
        for indices in ([50, 3], [10, 11, 40], [], [59, 59]):
            frames, info = clip.read(indices, 24)
            assert videos.numbers(frames) == indices and (info.height, info.width) == (48, 80)


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


@pytest.mark.parametrize("rotation", [90, 180])
def test_a_stream_is_upright_and_follows_timestamps(rotation, tmp_path):
    times = np.cumsum(np.random.default_rng(1).choice([0.02, 0.04, 0.1, 0.5], 40)) - 0.02
    for name, settings in (("turned.mp4", {"rotation": rotation}), ("variable.mp4", {"times": times - times[0]})):
        path = videos.write_video(tmp_path / name, videos.numbered(40), **settings)
        indices = range(0, decode.probe(path).num_frames, 3)
        np.testing.assert_array_equal(videos.streamed(path, indices), decode.decode(path, indices))


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
    assert videos.numbers(videos.streamed(path, range(0, 60, 4))) == list(range(0, 60, 4)) and modes == [10]


def test_a_bare_stream_without_timestamps_is_read_frame_by_frame(tmp_path):
    path = videos.write_video(tmp_path / "a.h264", videos.numbered(40))
    assert decode.probe(path).num_frames == 40
    assert videos.numbers(decode.decode(path, [39, 3, 17])) == [39, 3, 17]


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
