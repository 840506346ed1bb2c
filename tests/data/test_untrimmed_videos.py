"""Untrimmed videos as windows of frames: which frames they have, and what is refused before training."""

import json

import numpy as np
import pytest
import videos

from vidjax.data.segments import SHAPES, SegmentConfig, open_segments
from vidjax.data.untrimmed_shapes import render
from vidjax.errors import UserError

FRAMES, RATE = 50, 25


def database(duration=FRAMES / RATE):
    action = {"segment": [0.2, 0.8], "label": "jump"}
    return {
        name: {"subset": subset, "duration": duration, "annotations": [action]}
        for name, subset in (("one", "training"), ("two", "training"), ("other", "validation"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file for each video, whose frames show their numbers."""
    folder = tmp_path_factory.mktemp("videos")
    for name in database():
        videos.write_video(folder / "v" / f"{name}.mp4", videos.numbered(FRAMES))
    return folder


def config(folder, entries=None, **fields):
    (folder / "a.json").write_text(json.dumps({"database": entries or database()}))
    given = {"videos": str(folder / "v"), "fps": RATE / 2, "frames": 4, "stride": 3, "size": 32, "short_side": 32}
    return SegmentConfig(annotations=str(folder / "a.json"), **given | fields)


def test_a_slice_has_the_sampled_frames_of_these_windows(folder):
    source = open_segments(config(folder), "training")
    assert source.ids == ["one", "two"] and source.channels is None
    video = source.videos[0]
    assert (video.fps, video.stride, video.frames, video.duration) == (RATE / 2, 3, 4, FRAMES / RATE)
    windows = source.read(0)
    assert len(windows) == 8  # of 25 sampled frames
    assert windows[:].shape == (7 * 3 + 4, 32, 32, 3)
    with source.windows[0].source.open(0, ()) as example:
        stored, _ = example.streams["video"].read(np.arange(FRAMES), 32)
    left = (stored.shape[2] - 32) // 2
    np.testing.assert_array_equal(windows[2:4], stored[12 : 12 + 2 * 7 : 2, :, left : left + 32])


def test_embedded_videos_are_rendered_at_the_size_of_the_clips():
    source = open_segments(
        SegmentConfig(videos=SHAPES, fps=8, frames=8, stride=4, size=16, short_side=16), "validation"
    )
    assert len(source) == 48 and len(source.read(0)) == 59
    np.testing.assert_array_equal(source.read(1)[3:4], render(3_000_001, np.arange(24, 40, 2), 16))


REFUSED = [
    ({"videos": "nowhere"}, "data.videos nowhere does not exist: give the folder"),
    ({"fps": None}, "data.fps is None: with data.videos, give the frames sampled per second"),
    ({"stride": 2.5}, "data.stride is 2.5: with data.videos, give"),
    ({"features": "f"}, "data.features and data.videos are both given: an encoder is trained on videos, give one"),
    ({"resize": True}, "data.resize and data.prefix are for features: omit them"),
    (
        {"entries": database() | {"lost": database()["one"]}},
        r"1 of the 3 annotated videos have no file: lost; add them",
    ),
    ({"entries": {"one": database()["one"]}}, r"2 of the 3 video files have no annotation: other, two; add them"),
    ({"entries": database(50)}, r"2 of 2 videos do not last as long as annotated: one \(it lasts 2.0 s, annotated are"),
    ({"frames": 40}, r"2 of 2 videos are shorter than a window of 40 frames: one \(2.0 s\), two"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_mistakes_are_one_line_with_counts_and_examples(folder, changes, message):
    with pytest.raises(UserError, match=message):
        open_segments(config(folder, **changes), "training")


def test_files_of_the_same_name_and_damaged_files_are_refused(folder, tmp_path):
    for place in ("v", "v/more"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "one.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"one.mp4 and .*one.mp4 have the same name: rename one, as in"):
        open_segments(config(tmp_path), "training")
    (tmp_path / "v" / "more" / "one.mp4").unlink()
    with pytest.raises(UserError, match=r"v/one.mp4"):
        open_segments(config(tmp_path, {"one": database()["one"]}), "training")
