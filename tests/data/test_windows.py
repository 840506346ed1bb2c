"""Sliding windows over whole videos: their frames, times and order."""

import threading
from functools import partial

import numpy as np
import pytest
import videos

from vidjax.data.batches import evaluation_batches
from vidjax.data.config import ClipConfig
from vidjax.data.crop import center_crop
from vidjax.data.decode import DecodeError, decode
from vidjax.data.windows import Window, batches, open_files, open_videos, sampled_frames, window_starts

SIDE = 48
CLIPS = ClipConfig(frames=4, size=SIDE, stride=5, short_side=SIDE)


def numbered(count):
    """Square frames, so that cropping does not remove the encoded number."""
    return videos.numbered(count, SIDE, SIDE)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return videos.write_video(tmp_path_factory.mktemp("videos") / "a.mp4", numbered(103))


def shown(windows):
    return [videos.numbers(window.frames[0]) for window in windows]


def spans(windows):
    return [(round(window.start, 4), round(window.end, 4)) for window in windows]


@pytest.mark.parametrize(
    ("count", "window", "hop", "starts"),
    [
        (16, 16, 8, [0]),
        (24, 16, 8, [0, 8]),
        (25, 16, 8, [0, 8, 9]),  # the last window ends at the last frame
        (20, 16, 16, [0, 4]),
        (48, 16, 32, [0, 32]),
        (60, 16, 32, [0, 32]),  # the remaining frames are in a gap
        (70, 16, 32, [0, 32, 54]),
        (15, 16, 8, []),
        (0, 16, 8, []),
    ],
)
def test_every_frame_is_in_a_window_except_in_gaps(count, window, hop, starts):
    actual = window_starts(count, window, hop)
    assert actual.tolist() == starts
    if hop <= window <= count:
        assert set((actual[:, None] + np.arange(window)).ravel()) == set(range(count))


@pytest.mark.parametrize(("count", "step"), [(100, 4), (101, 4), (99, 2.5), (7, 0.4), (1, 3), (10, 30000 / 1001 / 12)])
def test_sampled_frames_are_those_of_dense_sampling(count, step):
    actual = sampled_frames(count, step)
    np.testing.assert_array_equal(actual, np.floor(np.arange(len(actual)) * step + 0.5))
    assert actual[-1] < count <= np.floor(len(actual) * step + 0.5)


def test_windows_have_the_right_frames_and_times_up_to_the_end(video):
    windows = list(open_files([str(video)]).windows(0, CLIPS, hop=2))
    sampled = list(range(0, 103, 5))  # 21 frames
    starts = [0, 2, 4, 6, 8, 10, 12, 14, 16, 17]
    assert shown(windows) == [sampled[start : start + 4] for start in starts]
    bounds = [*sampled, 103]
    assert spans(windows) == [(round(bounds[s] / 25, 4), round(bounds[s + 4] / 25, 4)) for s in starts]
    assert windows[0].frames.shape == (1, 4, SIDE, SIDE, 3)


def test_fps_and_gaps_between_windows(video):
    source = open_files([str(video)])
    slower = list(source.windows(0, ClipConfig(frames=3, size=SIDE, fps=10, short_side=SIDE), hop=3))
    assert shown(slower)[:2] == [[0, 3, 5], [8, 10, 13]]
    faster = list(source.windows(0, ClipConfig(frames=4, size=SIDE, fps=50, short_side=SIDE), hop=4))
    assert shown(faster)[:2] == [[0, 1, 1, 2], [2, 3, 3, 4]] and shown(faster)[-1][-1] == 102
    gaps = list(source.windows(0, CLIPS, hop=9))
    assert shown(gaps) == [[0, 5, 10, 15], [45, 50, 55, 60], [85, 90, 95, 100]]


def test_pixels_equal_those_of_evaluation_batches(video):
    config = ClipConfig(frames=4, size=28, stride=9, short_side=40)
    source = open_files([str(video)])
    expected = center_crop(decode(video, [0, 9, 18, 27], 40), 28, 28 / 40)
    np.testing.assert_array_equal(next(source.windows(0, config, hop=4)).frames[0], expected)
    for clips, crops in ((1, 1), (3, 3)):
        (clip,) = source.clip(0, config, (clips, crops))
        settings = {"batch_size": 1, "view_counts": (clips, crops)}
        (batch,) = evaluation_batches(source.source, config, **settings)
        np.testing.assert_array_equal(clip.frames, batch["video"][0])
    assert spans([clip]) == [(0.0, 4.12)]
    (clip,) = source.clip(0, config)
    assert spans([clip]) == [(37 / 25, 73 / 25)]
    (clip,) = source.clip(0, ClipConfig(frames=4, size=28, sampling="segments"))
    assert spans([clip]) == [(0.0, 4.12)]


def test_a_video_shorter_than_a_window_is_refused(tmp_path):
    path = videos.write_video(tmp_path / "short.mp4", numbered(14))
    with pytest.raises(DecodeError, match=r"short.mp4: its 14 frames, 3 at .* are too few for a window of 4: use"):
        next(open_files([str(path)]).windows(0, CLIPS, hop=4))
    assert shown(open_files([str(path)]).clip(0, CLIPS)) == [[0, 5, 10, 13]]  # a clip repeats the last frame


def test_windows_of_parts_and_reversed_rows(tmp_path):
    videos.write_video(tmp_path / "a.mp4", numbered(100))
    rows = ["path,label,start,end,reverse", "a.mp4,x,0,,", "a.mp4,y,1.0,2.6,", "a.mp4,x,1.0,2.6,true", "a.mp4,,3.9,,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    source = open_videos(str(tmp_path / "list.csv"), "train")
    assert [source.label(index) for index in range(4)] == [0, 1, 0, -1]
    assert shown(source.windows(1, CLIPS, hop=4)) == [[25, 30, 35, 40], [45, 50, 55, 60]]
    assert spans(source.windows(1, CLIPS, hop=4)) == [(0.0, 0.8), (0.8, 1.6)]
    assert shown(source.windows(2, CLIPS, hop=4)) == [[64, 59, 54, 49], [44, 39, 34, 29]]
    with pytest.raises(DecodeError, match="its 2 frames, 1 at this"):
        next(source.windows(3, CLIPS, hop=4))


def test_sources_without_video_files_are_read_in_pieces(tmp_path, monkeypatch):
    videos.write_shards(tmp_path)
    source = open_videos(f"tfrecord:{tmp_path}", "train")
    config = ClipConfig(frames=2, size=32, stride=1, short_side=40)
    whole = list(source.windows(1, config, hop=2))
    assert spans(whole) == [(0.0, 0.16), (0.16, 0.32), (0.32, 0.48)]
    frames = source.source.read(1, None, 40).frames
    expected = center_crop(frames, 32, 32 / 40)
    for piece in (256, 3, 1):
        monkeypatch.setattr("vidjax.data.example.PIECE", piece)
        pixels = np.concatenate([window.frames[0] for window in source.windows(1, config, hop=2)])
        np.testing.assert_array_equal(pixels, expected)
    assert source.label(1) == 1


def test_folders_are_expanded_and_damaged_files_yield_their_readable_windows(tmp_path):
    videos.write_video(tmp_path / "x" / "b.mp4", numbered(20))
    cut = tmp_path / "x" / "cut.mp4"
    videos.write_video(cut, numbered(300), container_options={"movflags": "+faststart"})
    videos.truncate(cut, 0.6)
    source = open_files([str(tmp_path / "x"), str(tmp_path / "absent.mp4")])
    assert [id.rpartition("/")[2] for id in source.source.ids] == ["b.mp4", "cut.mp4", "absent.mp4"]
    failed = {}
    streams = (source.windows(index, CLIPS, 4) for index in range(3))
    rows = [row for batch, _ in batches(streams, 4, 2, failed.__setitem__) for row in batch]
    numbers = [number for number, _ in rows]
    assert numbers == [0] + [1] * numbers.count(1) and 3 < numbers.count(1) < 14
    assert set(failed) == {1, 2} and "absent.mp4: No such file" in str(failed[2])


def test_lists_are_expanded_to_videos_and_their_parts(tmp_path):
    videos.write_video(tmp_path / "videos" / "aaaaaaaaaaa.mp4", numbered(103))
    (tmp_path / "list.csv").write_text("youtube_id,time_start,time_end,label\naaaaaaaaaaa,1,3,x\nbbbbbbbbbbb,1,3,y\n")
    source = open_files([f"{tmp_path}/list.csv:{tmp_path}/videos"])
    assert shown(source.windows(0, CLIPS, hop=4)) == [[25, 30, 35, 40], [45, 50, 55, 60], [55, 60, 65, 70]]
    assert source.source.class_names == () and source.label(0) == -1
    assert "1 of 2 videos are not in" in source.source.notes[0]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_are_ordered_and_full_with_any_number_of_workers(workers):
    running, counts = set(), []

    def stream(number, length):
        running.add(number)
        counts.append(len(running))
        for i in range(length):
            yield Window(0.0, float(i), np.full((1, 1, 1, 1, 3), 1 + number, np.uint8))
        running.discard(number)
        if number == 2:
            raise DecodeError("broken")

    failed = {}
    lengths = [3, 0, 20, 1, 17]
    streams = (stream(number, length) for number, length in enumerate(lengths))
    rows, pixels = zip(*batches(streams, 4, workers, failed.__setitem__), strict=True)
    order = [(number, window.end) for batch in rows for number, window in batch]
    assert order == [(number, i) for number, length in enumerate(lengths) for i in range(length)]
    assert list(failed) == [2] and {video.shape for video in pixels} == {(4, 1, 1, 1, 1, 3)}
    assert pixels[-1][:, 0, 0, 0, 0, 0].tolist() == [5, 0, 0, 0]
    assert not running and max(counts) <= workers


def test_closing_an_iterator_early_stops_its_threads(video):
    before = set(threading.enumerate())
    streams = (open_files([str(video)]).windows(0, CLIPS, 1) for _ in range(3))
    reading = batches(streams, 2, 2, partial(print))
    next(reading)
    assert set(threading.enumerate()) > before
    reading.close()
    assert set(threading.enumerate()) == before


def test_programming_errors_are_raised():
    def broken():
        yield from ()
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        list(batches([broken()], 2, 1, print))
