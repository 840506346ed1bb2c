"""Videos from the web, chosen by a teacher's scores and kept apart from the test set."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from vidjax.data.filtering import choose, nearest
from vidjax.data.sources import list_files
from vidjax.errors import UserError
from vidjax.runs.results import write_scores

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import filter_web

CLASSES = ("surfing", "yoga")
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55], [0.7, 0.3], [0.6, 0.4]])
FOUND = np.array([0, 0, 1, 1, 0])


def kept(**settings):
    chosen = choose(SCORES, FOUND, CLASSES, **{"threshold": 0.5} | settings)
    return [choice.label for choice in chosen], [choice.reason for choice in chosen]


def test_a_video_is_kept_with_a_class_that_is_probable_enough():
    labels, reasons = kept()
    assert labels == [0, -1, 1, -1, 0]
    assert reasons[1] == "0.20 for 'surfing', below 0.5; 0.80 for 'yoga'"
    assert kept(threshold=0.55)[0] == [0, -1, 1, -1, 0] and kept(threshold=0.56)[0] == [0, -1, -1, -1, 0]
    assert kept(by="teacher", threshold=0.6)[0] == [0, 1, -1, 0, 0]


def test_of_a_class_the_most_probable_videos_are_kept_and_those_left_out_do_not_count():
    labels, reasons = kept(most=1)
    assert labels == [0, -1, 1, -1, -1] and reasons[4] == "0.60, not among the 1 most probable of 'surfing'"
    labels, reasons = kept(most=1, left_out={0: "seen"})
    assert labels == [-1, -1, 1, -1, 0] and reasons[0] == "seen"


def test_the_nearest_of_the_others_is_found_in_chunks():
    rng = np.random.default_rng(0)
    ours, others = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    others[2] = 3 * ours[6]
    similar, which = nearest(ours, others, chunk=3)
    cosines = ours @ others.T / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(others, axis=1)
    np.testing.assert_allclose(similar, cosines.max(axis=1))
    np.testing.assert_array_equal(which, cosines.argmax(axis=1))
    assert which[6] == 2 and similar[6] == pytest.approx(1)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Six videos found by searching, of which the last could not be read, with scores and features."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        Path(f"v{number}.mp4").touch()  # never opened
    Path("web.csv").write_text(
        "path,label,start,end\nv0.mp4,surfing,,\nv1.mp4,surfing,,\nv2.mp4,yoga,2,7\nv3.mp4,yoga,,\nv4.mp4,surfing,,\n"
        "v5.mp4,yoga,,\n"
    )
    ids = [row.id for row in list_files("web.csv").rows][:5]
    Path("scores").mkdir()
    order = [4, 2, 0, 1, 3]  # the evaluation's order need not be the list's
    write_scores(Path("scores"), [ids[i] for i in order], FOUND[order], SCORES[order], np.log(SCORES[order]), CLASSES)
    features = np.eye(5, 4)
    np.savez("web.npz", ids=np.array(ids), features=features)
    np.savez("val.npz", ids=np.array(["held.mp4", "held.mp4"]), features=np.array([[2.0, 0.1, 0, 0], [1.0, 0, 0, 0]]))
    return tmp_path


def run(source="web.csv", **settings):
    return filter_web.main(filter_web.Config(source, "scores", **settings))


def test_kept_videos_are_a_source_and_each_other_one_has_a_reason(web, capsys):
    numbers = run(threshold=0.5, out="chosen", embeddings="web.npz", held_out="val.npz")
    assert numbers == {"videos": 6, "kept": 2, "without_score": 1, "held_out": 1, "not_probable": 2}
    chosen = list_files("chosen/train.csv")
    assert chosen.class_names == CLASSES
    assert [(Path(row.path).name, row.label, row.start, row.end) for row in chosen.rows] == [
        ("v2.mp4", 1, 2.0, 7.0),
        ("v4.mp4", 0, None, None),
    ]
    read = csv.DictReader(Path("chosen/choices.csv").read_text().splitlines())
    lines = {Path(line["video"]).name.split("#")[0]: line for line in read}
    assert lines["v0.mp4"]["reason"].startswith("nearly the same as the held-out held.mp4, similarity 0.99")
    assert lines["v3.mp4"]["reason"] == "0.30 for 'yoga', below 0.5; 0.70 for 'surfing'"
    assert lines["v5.mp4"]["reason"].startswith("the teacher has no score") and lines["v5.mp4"]["score"] == ""
    assert lines["v2.mp4"] | {"video": ""} == {
        "video": "", "searched": "yoga", "kept_as": "yoga", "score": "0.5500", "reason": ""
    }  # fmt: skip
    assert Path("chosen/table.csv").read_text().splitlines() == ["class,found,kept", "surfing,3,1", "yoga,3,1"]
    assert "2 of 6 videos are kept" in capsys.readouterr().out


def test_what_cannot_be_filtered_is_one_line_and_nothing_is_written(web):
    Path("full").mkdir()
    Path("full/file").touch()
    np.savez("other.npz", ids=np.array(["a"]), features=np.ones((1, 3)))
    np.savez("elsewhere.npz", ids=np.array(["/x/v0.mp4"]), features=np.ones((1, 4)))
    Path("twice.csv").write_text("path,label\nv0.mp4,surfing\nv0.mp4,yoga\n")
    Path("w.mp4").touch()
    Path("others.csv").write_text("path,label\nw.mp4,yoga\n")
    for settings, message in (
        ({"out": "full"}, "full is not an empty folder, and nothing is overwritten"),
        ({"threshold": 0.95}, "no video is left at the threshold 0.95: the highest score is 0.90"),
        ({"threshold": 2.0}, "threshold is 2.0: it is a probability"),
        ({"similarity": 2.0}, "similarity is 2.0: it is a cosine"),
        ({"most": 0}, "most is 0: it must be 1 or more"),
        ({"embeddings": "web.npz"}, "embeddings and held_out are compared with each other"),
        ({"embeddings": "web.csv", "held_out": "val.npz"}, "web.csv has no features"),
        ({"embeddings": "web.npz", "held_out": "other.npz"}, "of 4 channels, other.npz of 3"),
        ({"embeddings": "elsewhere.npz", "held_out": "val.npz"}, "elsewhere.npz has none of the videos of web.csv"),
        ({"source": "twice.csv"}, "twice.csv has v0.mp4 more than once"),
        ({"source": "others.csv"}, "scores has none of the videos of others.csv"),
        ({"source": "synthetic:moving_shapes"}, "only these can be filtered"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            run(**{"out": "new"} | settings)
    assert not Path("new").exists()
