"""Merged data sets: classes by name, repeated videos and validation videos left out, and lists that can be read."""

import csv
import json
import sys
from pathlib import Path

import pytest

from vidjax import cli
from vidjax.data.labels import find_classes
from vidjax.data.manifest import Row
from vidjax.data.merge import KINETICS, merge_class_names, video_key
from vidjax.data.sources import open_source

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import merge_labels  # noqa: E402

TUBE = "-A5JFdMXB_k"
"""A YouTube id."""


def test_names_that_differ_in_case_quotes_spaces_or_underscores_are_one_class():
    lists = {
        "a": ("hugging", "massaging person's head", "playing cards"),
        "b": ("hugging (not baby)", "hugging baby", "Playing_Cards"),
        "c": ("vault", '"massaging person\u2019s  head"', "hugging_baby"),
    }
    names, positions = merge_class_names(lists, KINETICS)
    assert names == ("hugging (not baby)", "massaging person's head", "playing cards", "hugging baby", "vault")
    assert positions == {"a": [0, 1, 2], "b": [0, 3, 2], "c": [4, 1, 3]}
    assert len(merge_class_names(lists, {})[0]) == 6  # without new names, hugging is another class
    assert find_classes(("Vault", "a b"), ("vault", "Vault", "a_b")) == [1, 2]  # an equal name takes precedence


def test_clips_of_a_youtube_video_are_the_same_video():
    names = (f"/x/{TUBE}_000018_000028.mp4", f"y/{TUBE}.mkv", f"{TUBE}_1_11.mp4")
    assert {video_key(Row(name, 0), "name") for name in names} == {TUBE}
    assert video_key(Row("a/clip_1_2.mp4", 0), "name") == video_key(Row("b/clip_1_2.mp4", 0), "name") == "clip_1_2"
    assert video_key(Row("a/1.mp4", 0), "file") != video_key(Row("b/1.mp4", 0), "file")
    assert video_key(Row("a/../b/1.mp4", 0), "file") == video_key(Row("b/1.mp4", 0), "file")


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Two data sets that share classes and videos, a list of class numbers, and one without labels."""
    monkeypatch.chdir(tmp_path)
    rows = {
        "k4/train.csv": [
            "v1,hugging",
            "v2,surfing",
            "v3,surfing",
            "v4,",
            f"{TUBE}_1_11,surfing",
            f"{TUBE}_5_15,surfing",
        ],
        "k4/val.csv": ["v8,hugging", "v9,surfing"],
        "k6/train.csv": [
            "v2,Surfing",
            "v3,vault",
            "v5,vault",
            "v6,hugging (not baby)",
            "v8,vault",
            "v7,vault",
            "v0,vault",
        ],
        "k6/val.csv": ["v7,vault", "v5,vault", "v0,"],
        "numbers/train.csv": ["v1,0", "v2,1"],
        "flat/train.csv": ["v1,", "v2,"],
        "twice/train.csv": ["v1,vault", "v2,Vault"],
    }
    for path, lines in rows.items():
        folder = Path(path).parent
        folder.mkdir(exist_ok=True)
        cells = [line.split(",") for line in lines]
        for name, _ in cells:
            (folder / f"{name}.mp4").touch()
        Path(path).write_text("path,label,start\n" + "".join(f"{name}.mp4,{label},0.5\n" for name, label in cells))
    return tmp_path


def call(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / "merge_labels.py"), *flags])
    cli.run(merge_labels.main, merge_labels.Config)


SETS = "--train k4=k4/train.csv k6=k6/train.csv --validation k4=k4/val.csv k6=k6/val.csv --out merged".split()


def read(path):
    source = open_source(path)
    return source.class_names, [(Path(row.partition("#")[0]).name, source.class_names[source.label(i)])
                                for i, row in enumerate(source.ids)]  # fmt: skip


def test_repeated_and_validation_videos_are_left_out_and_every_list_can_be_read(lists, monkeypatch, capsys):
    Path("names.json").write_text(json.dumps({"hugging": "hugging (not baby)"}))
    call(monkeypatch, *SETS, "--renamed", "names.json")
    names, rows = read("merged/train.csv")
    assert names == ("hugging (not baby)", "surfing", "vault")
    assert rows == [
        ("v1.mp4", "hugging (not baby)"), ("v2.mp4", "surfing"), ("v3.mp4", "surfing"), (f"{TUBE}_1_11.mp4", "surfing"),
        (f"{TUBE}_5_15.mp4", "surfing"), ("v6.mp4", "hugging (not baby)"),
    ]  # fmt: skip
    assert read("merged/k4/val.csv") == (names[:2], [("v8.mp4", names[0]), ("v9.mp4", "surfing")])
    # A set keeps what an earlier one has too, under the same names.
    assert read("merged/k6/train.csv") == (
        ("surfing", "hugging (not baby)", "vault"),
        [("v2.mp4", "surfing"), ("v3.mp4", "vault"), ("v6.mp4", "hugging (not baby)")],
    )
    assert open_source("merged/train.csv").ids[0].endswith("#t=0.5")

    with open("merged/table.csv", newline="") as file:
        heading, *table = csv.reader(file)
    assert [row[0] for row in table] == ["k4", "k6", "all"]
    assert [list(map(int, row[1:])) for row in table] == [
        [2, 2, 6, 1, 0, 0, 0, 5, 2],
        [3, 1, 7, 0, 4, 2, 1, 1, 2],
        [3, 3, 13, 1, 4, 2, 1, 6, 4],
    ]
    with open("merged/dropped.csv", newline="") as file:
        dropped = [
            (name, Path(path.partition("#")[0]).stem, reason) for name, path, reason in list(csv.reader(file))[1:]
        ]
    assert dropped == [
        ("k4", "v4", "no label"),
        ("k6", "v2", "in k4 as surfing"),
        ("k6", "v3", "in k4 as surfing"),
        ("k6", "v5", "in validation of k6"),
        ("k6", "v8", "in validation of k4"),
        ("k6", "v7", "in validation of k6"),
        ("k6", "v0", "in validation of k6"),  # although it has no label there
    ]
    out = capsys.readouterr().out
    assert "of these with another class there" in out and "and 2 more in dropped.csv" in out
    assert heading[4:7] == ["without a label", "in a validation set", "in an earlier set"]


BAD = [
    ("--train k4=k4/train.csv", "train names a single data set"),
    ("--train k4=k4/train.csv k4=k6/train.csv", "train names k4 twice"),
    ("--train k4=k4/train.csv k6/train.csv", "train: k6/train.csv is not NAME=SOURCE"),
    ("--train a=k4/train.csv b=k6/train.csv --validation c=k4/val.csv", "validation: c is not among the sets of train"),
    ("--train a=k4/train.csv b=numbers/train.csv", "b has class numbers but no names"),
    ("--train a=k4/train.csv b=flat/train.csv", "b has no labels, and classes are merged by name"),
    ("--train a=k4/train.csv b=twice/train.csv", "b has classes that would become one, 'Vault', 'vault'"),
    ("--train a=k4/train.csv b=synthetic:moving_shapes", "b=synthetic:moving_shapes is not a folder or a list"),
    ("--train a=k4/train.csv b=nowhere.csv", "nowhere.csv does not exist"),
    ("--train a=k4/train.csv b=k6/train.csv --validation a=k6/val.csv", "a has 1 classes for validation that it lacks"),
    ("--train a=k4/train.csv b=k6/train.csv --renamed typo.json", "no data set has the class 'huging'"),
    ("--train a=k4/train.csv b=k6/train.csv --renamed nothing.json", "renamed nothing.json cannot be read"),
    ("--train a=k4/val.csv b=k4/train.csv --validation a=k4/train.csv b=k4/val.csv", "no training video is left"),
    ("--train a=k4/train.csv b=k6/train.csv --out k4", "k4 is not an empty folder, and nothing is overwritten"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[flags for flags, _ in BAD])
def test_invalid_input_exits_with_one_line_and_writes_nothing(flags, message, lists, monkeypatch, capsys):
    Path("typo.json").write_text('{"huging": "hugging (not baby)"}')
    before = sorted(Path(".").rglob("*"))
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--out", "merged", *flags.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and err.count("\n") == 1
    assert sorted(Path(".").rglob("*")) == before
