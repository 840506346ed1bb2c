"""Annotations and features on disk: what is read, and what is refused before training."""

import json

import numpy as np
import pytest

from vidjax.data.feature_files import open_features
from vidjax.data.segments import SegmentConfig, open_segments
from vidjax.errors import UserError

SECONDS, STEPS, CHANNELS = 10.0, 61, 6  # 4 frames a step of 16, 25 fps: 10.24 s


def entry(*segments, subset="Training", duration=SECONDS, **more):
    annotations = [
        {"segment": list(bounds), "label": label, "label_id": "bac".index(label[0])} for *bounds, label in segments
    ]
    return {"subset": subset, "duration": duration, "annotations": annotations, **more}


VIDEOS = {
    "v1": entry((1, 3.5, "b run"), (8.9, 10.2, "a jump")),
    "v2": entry((2, 2, "a jump"), (4, 5, "a jump")),
    "v3": entry((0, 9, "b run"), subset="validation"),
}


@pytest.fixture
def write(tmp_path):
    """Writes annotations and a features file for each video or for the named ones; returns the config."""

    def write(database=VIDEOS, features=None, shape=(STEPS, CHANNELS), broken=0, **fields):
        (tmp_path / "a.json").write_text(json.dumps({"database": database}))
        (tmp_path / "f").mkdir(exist_ok=True)
        for number, name in enumerate(database if features is None else features):
            features = np.full(shape, number, np.float16)
            features[:broken] = np.nan
            np.save(tmp_path / "f" / f"v_{name}.npy", features)
        given = {"annotations": str(tmp_path / "a.json"), "features": str(tmp_path / "f"), "prefix": "v_"}
        return SegmentConfig(**given | {"fps": 25.0, "stride": 4.0, "frames": 16.0} | fields)

    return write


def test_a_subset_has_its_segments_within_the_video_and_classes_in_the_order_of_their_ids(write):
    source = open_segments(write(), "training")
    assert source.class_names == ("b run", "a jump") and source.ids == ["v1", "v2"] and source.channels == CHANNELS
    one, two = source.videos
    np.testing.assert_array_equal(one.segments, [[1, 3.5], [8.9, 10]])
    assert one.labels.tolist() == [0, 1] and two.segments.tolist() == [[4, 5]]
    assert (one.fps, one.stride, one.frames, one.duration) == (25, 4, 16, 10)
    assert [note.split(":")[0] for note in source.notes] == [
        "1 of 4 segments end after their video and are cut",
        "1 of 4 segments have no length and are left out",
    ]
    features = source.read(1)
    assert isinstance(features, np.memmap) and features.shape == (STEPS, CHANNELS) and (features == 1).all()
    early = open_segments(write({"v1": entry((-1, 2, "b run")), "v3": VIDEOS["v3"]}, max_bad_share=0.5), "training")
    assert early.videos[0].segments.tolist() == [[0, 2]]
    assert "1 of 1 segments start before 0 s and are cut: v1" in early.notes
    other = open_segments(write(VIDEOS | {"v3": entry((0, 9, "c swim"), subset="validation")}), "training")
    assert other.notes[0] == "1 of 3 classes have no segment to train on: c swim"
    ignoring = open_segments(write(ignored=("a jump",)), "training").videos
    assert [video.labels.tolist() for video in ignoring] == [[0], []]
    proposals = open_segments(write(one_class=True), "training")
    assert proposals.class_names == ("action",) and proposals.videos[0].labels.tolist() == [0, 0]


def test_many_files_are_listed_and_few_are_opened(write, monkeypatch):
    opened, load = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **more: opened.append(path) or load(path, **more))
    assert len(open_segments(write({f"v{number}": entry((1, 2, "a")) for number in range(60)}), "training")) == 60
    assert len(opened) <= 17


def test_a_file_of_another_width_among_many_is_named(write, tmp_path):
    config = write({f"v{number}": entry((1, 2, "a")) for number in range(60)})
    np.save(tmp_path / "f" / "v_v17.npy", np.zeros((STEPS, 7)))
    (tmp_path / "f" / "v_v18.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"2 of 60 files do not have 6 channels: v17 \(61x7\), v18 \(no array\); make"):
        open_segments(config, "training")


def test_features_are_read_with_channels_first_too(write, tmp_path):
    source = open_segments(write(shape=(CHANNELS, STEPS)), "training", channels=CHANNELS)
    assert source.read(0).shape == (STEPS, CHANNELS)
    with pytest.raises(UserError, match=r"v_v1.npy has the shape 6x61, but the features have 7 channels"):
        open_features(str(tmp_path / "f" / "v_v1.npy"), 7)
    (tmp_path / "f" / "v_v1.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"v_v1.npy cannot be read .* make its features again"):
        source.read(0)


def test_a_folder_of_embed_says_which_frames_features_are_of(write, tmp_path):
    described = {"window": 16, "stride": 4, "videos": {name: {"fps": 25.0, "duration": SECONDS} for name in VIDEOS}}
    config = write(fps=None, stride=None, frames=None)
    with pytest.raises(UserError, match=r"which frames the features in .* are of is unknown: give --data.stride and"):
        open_segments(config, "training")
    (tmp_path / "f" / "videos.json").write_text(json.dumps(described))
    video = open_segments(config, "training").videos[0]
    assert (video.fps, video.stride, video.frames) == (25, 4, 16)
    with pytest.raises(UserError, match=r"data.stride is 8, but the features in .* were made with 4: omit it"):
        open_segments(write(stride=8.0, frames=None), "training")


FRAMES = {name: entry((25, 80, "b run"), (200, 240, "a jump")) for name in ("v1", "v2")}
REFUSED = [
    ({"database": {}}, "has no videos in the subset training: it has none"),
    ({"database": {"v1": {"subset": "training", "duration": 3}}}, "is not in ActivityNet's form"),
    ({"database": {"v1": entry((1, "a"))}}, "is not in ActivityNet's form"),
    ({"features": ["v2", "v3"]}, r"1 of the 2 annotated videos have no features: v1; add them, or allow such with"),
    ({"features": [*VIDEOS, "v9"]}, r"1 of the 4 files of features have no annotation: v9; add them"),
    ({"database": FRAMES}, r"4 of 4 segments end far beyond their video: v1 \(25 to 80 of 10 s\).* look like frames"),
    ({"shape": (STEPS, 5)}, "2 of 2 files that were opened .*v_v1.npy has the shape 61x5, but .* have 6 channels"),
    ({"broken": 2}, r"2 of 2 files have features that are not finite: v1 \(2 of 61 steps\), v2 .*; make them again"),
    (
        {"stride": 8.0},
        r"2 of 2 files do not last as long as their videos: v1 \(61 features last 19.8 s, the video 10.0",
    ),
    ({"fps": None}, "has no fps of v1: give --data.fps"),
    ({"database": {"v1": entry()}}, "none of the 1 videos of training has a segment"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_mistakes_are_one_line_with_counts_and_examples(write, changes, message):
    with pytest.raises(UserError, match=message):
        open_segments(write(**changes), "training", CHANNELS)


def test_other_mistakes(write, tmp_path):
    with pytest.raises(UserError, match="2 segments are of 1 classes that the model does not know, such as a jump"):
        open_segments(write({"v2": VIDEOS["v2"]}), "training", class_names=("b run",))
    with pytest.raises(UserError, match=r"subset test: it has training \(2\), validation \(1\)"):
        open_segments(write(), "test")
    allowed = open_segments(
        write(features=["v2", "v3"], max_bad_share=0.6, annotations=str(tmp_path / "a.json")), "training"
    )
    assert len(allowed) == 2  # v1.npy is still there
    with pytest.raises(UserError, match=r"no features are given: give --data.features"):
        open_segments(SegmentConfig(), "training")
