"""Sentences with moments, and features on disk: what is read, and what is refused before training."""

import json

import numpy as np
import pytest

from vidjax.data.moments import MomentConfig, open_moments, read_queries
from vidjax.errors import UserError

STEPS = 8
"""Features of 2 s: 16 s."""


def line(qid=1, query="a dog barks", vid="v1", windows=((2, 6),), duration=16, **more):
    return {"qid": qid, "query": query, "vid": vid, "relevant_windows": windows, "duration": duration, **more}


RATED = line(relevant_clip_ids=[1, 2], saliency_scores=[[4, 3, 2], [0, 1, 1]])
UNRATED = line(2, "it sits", "v2", ((0, 3), (15, 17)), relevant_clip_ids=[], saliency_scores=[])
LINES = [RATED, UNRATED]


@pytest.fixture
def write(tmp_path):
    """Writes annotations and two folders of features; returns the config."""

    def write(lines=LINES, videos=("v1", "v2"), shape=(STEPS, 6), other=(STEPS + 1, 4), **fields):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for folder in ("f", "g"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for number, name in enumerate(videos):
            np.save(tmp_path / "f" / f"{name}.npy", np.full(shape, number + 3, np.float16))
            np.savez(tmp_path / "g" / f"{name}.npz", features=np.full(other, 2.0))
        given = {"train": str(tmp_path / "a.jsonl"), "validation": None, "clip_seconds": 2.0}
        return MomentConfig(**given | {"features": (str(tmp_path / "f"), str(tmp_path / "g"))} | fields)

    return write


def test_features_of_two_encoders_are_of_unit_length_side_by_side_until_the_first_ends(write):
    source, validation = open_moments(write())
    assert validation is None and source.widths == (6, 4) and source.captions(1) == ("it sits",)
    features = source.read("v2")
    assert features.shape == (STEPS, 10)
    np.testing.assert_allclose(features[:, :6], 6**-0.5, rtol=1e-5)
    np.testing.assert_allclose(features[:, 6:], 0.5, rtol=1e-5)
    one, two = source.queries
    np.testing.assert_array_equal(one.ratings[:4], [[0, 0, 0], [4, 3, 2], [0, 1, 1], [0, 0, 0]])
    assert one.ratings.shape == (8, 3) and not two.ratings.any()
    assert two.windows.tolist() == [[0, 3], [15, 16]]
    assert source.notes == ("1 of 3 moments end after their video and are cut: v2",)


def test_the_three_forms_of_annotations_say_the_same(tmp_path):
    (tmp_path / "c.txt").write_text("v1 0.5 6.9##a dog barks\nv1 1 2## it sits.\n")
    (tmp_path / "c.json").write_text(
        json.dumps(
            {"v1": {"duration": 9, "timestamps": [[0.5, 6.9], [1, 2]], "sentences": ["a dog barks", "it sits."]}}
        )
    )
    rows = [line(windows=[[0.5, 6.9]], duration=9), line(2, "it sits.", windows=[[1, 2]], duration=9)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    read = {suffix: read_queries(str(tmp_path / f"c.{suffix}")) for suffix in ("txt", "json", "jsonl")}
    for queries in read.values():
        assert [query.text for query in queries] == ["a dog barks", "it sits."]
        assert [query.video for query in queries] == ["v1", "v1"]
        assert [query.windows.tolist() for query in queries] == [[[0.5, 6.9]], [[1, 2]]]
    assert [query.duration for query in read["json"] + read["txt"]] == [9, 9, None, None]
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "v1.npy", np.ones((5, 4)))
    data = MomentConfig(str(tmp_path / "c.txt"), None, (str(tmp_path / "f"),), 2.0)
    assert open_moments(data)[0].files["v1"][0].duration == 10  # of its features


def test_a_folder_of_embed_says_how_far_features_are_apart(write, tmp_path):
    def describe(folder, stride):
        videos = {name: {"fps": 8.0, "duration": 16} for name in ("v1", "v2")}
        described = {"window": 16, "stride": stride, "videos": videos}
        (tmp_path / folder / "videos.json").write_text(json.dumps(described))

    config = write(clip_seconds=None)
    with pytest.raises(UserError, match=r"how far the features in .*f are apart is unknown: give --data.clip_seconds"):
        open_moments(config)
    describe("f", 16)
    describe("g", 8)
    with pytest.raises(UserError, match=r"features of v1 in .*f, .*g are 2 s, 1 s apart: make them at one stride"):
        open_moments(config)
    describe("g", 16)
    file = open_moments(config)[0].files["v1"][0]
    assert (file.fps, file.stride, file.frames) == (8, 16, 16)
    with pytest.raises(UserError, match=r"data.clip_seconds is 1, but the features of v1 in .* are 2 s apart: omit it"):
        open_moments(write(clip_seconds=1.0))


FRAMES = [line(windows=[[50, 150]]), line(2, windows=[[200, 400]])]
REFUSED = [
    ({"lines": [RATED, line(2, vid="v3"), line(3, vid="v3")]}, r"f: 2 of the 3 queries .* 1 videos without .*: v3"),
    ({"lines": FRAMES}, r"2 of 2 moments end far beyond their video: v1 \(50 to 150 of 16 s\).* look like frames"),
    ({"lines": [RATED, line(2, " ?")]}, r"1 of 2 queries have no words: 2 of v1; remove them"),
    ({"lines": [line(windows=())]}, "none of the 1 queries has a moment: annotate them"),
    ({"lines": []}, "have no queries: give another file"),
    ({"lines": [RATED, {"qid": 2}]}, r"a.jsonl, line 2 is not in QVHighlights' form .*: a line has qid, query, vid"),
    ({"lines": [line() | {"relevant_clip_ids": [-1], "saliency_scores": [[3]]}]}, r"relevant_clip_ids has -1"),
    ({"lines": [line(windows=[[1, "a"]])]}, r"line 1 is not in QVHighlights' form"),
    ({"clip_seconds": 4.0}, r"2 of 2 files do not last as long as their videos: v1 \(8 features last 32.0 s, the"),
    ({"features": ()}, "no features are given: give --data.features"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_mistakes_are_one_line_with_counts_and_examples(write, changes, message):
    with pytest.raises(UserError, match=message):
        open_moments(write(**changes))


def test_videos_without_features_or_queries_are_notes_if_allowed(write):
    source, _ = open_moments(write(lines=[RATED, line(2, vid="v3")], max_bad_share=0.5))
    assert len(source) == 1 and [note.rpartition("/")[2] for note in source.notes] == [
        "a.jsonl are about 1 videos without features: v3",
        "a.jsonl are about 1 videos without features: v3",
        "f: 1 of 2 videos have no query: v2",
        "g: 1 of 2 videos have no query: v2",
    ]


def test_other_mistakes(write, tmp_path):
    config = write()
    np.save(tmp_path / "f" / "v2.npy", np.ones((STEPS, 5)))
    with pytest.raises(UserError, match=r"v2.npy has the shape 8x5, but the features have 6 channels"):
        open_moments(config)
    with pytest.raises(
        UserError, match=r"annotations a.csv: give a file that ends in .jsonl, .txt, .json, or synthetic:"
    ):
        read_queries("a.csv")
    (tmp_path / "c.txt").write_text("v1 1 2 it sits\n")
    with pytest.raises(UserError, match=r"c.txt, line 1 is not in Charades-STA's form .*: a line is VIDEO START END##"):
        read_queries(str(tmp_path / "c.txt"))
    (tmp_path / "c.json").write_text('{"v1": {"duration": 3, "timestamps": [[1, 2]], "sentences": []}}')
    with pytest.raises(UserError, match=r"c.json is not in ActivityNet Captions' form .* at v1\)"):
        read_queries(str(tmp_path / "c.json"))
    for wrong in ({"clip_seconds": 0.0}, {"max_bad_share": 2.0}):
        with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
            MomentConfig(**wrong)
