"""Lists in the formats of other libraries and of published data sets."""

import json
import re

import pytest

from vidjax.data.sources import open_source
from vidjax.data.windows import open_videos


def touch(folder, *names):
    """Creates empty files: opening a list does not open its videos."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def opened(name, split="train"):
    """The file names and labels of a list, and the source."""
    source = open_source(str(name), split)
    return [re.sub(r".*/", "", id) for id in source.ids], [source.label(i) for i in range(len(source))], source


def refused(name, sentence, split="train"):
    with pytest.raises(ValueError) as caught:
        open_source(str(name), split)
    message = str(caught.value)
    assert re.search(sentence, message) and "\n" not in message, message


PATH_LABEL = {
    "videomae.csv": "{0}/a.mp4 3\n{0}/b c.mp4 0\n",  # VideoMAE reads it with pandas and a space as delimiter
    "mmaction2.txt": "a.mp4 3\nb c.mp4 0\n",
    "quoted.csv": '"a.mp4" 3\n"b c.mp4" 0\n',
    "tabs.txt": "a.mp4\t3\r\nb c.mp4\t0\r\n",
    "uniformer.csv": "a.mp4,3\nb c.mp4, 0\n\n",
    "floats.csv": "a.mp4,3.0\nb c.mp4,0.0\n",
}


@pytest.mark.parametrize("name", PATH_LABEL)
def test_a_line_of_path_and_label(name, tmp_path):
    touch(tmp_path, "a.mp4", "b c.mp4")
    (tmp_path / name).write_text(PATH_LABEL[name].format(tmp_path), newline="")
    files, labels, source = opened(tmp_path / name)
    assert (files, labels) == (["a.mp4", "b c.mp4"], [3, 0])
    assert source.class_names == ("0", "1", "2", "3") and source.notes == ()
    (tmp_path / "classes.json").write_text('["w", "x", "y", "z"]')
    assert opened(tmp_path / name)[2].class_names == ("w", "x", "y", "z")


def test_lines_of_paths_with_names_or_without_labels(tmp_path):
    touch(tmp_path, "a.mp4", "b, c.mp4")
    (tmp_path / "named.csv").write_text('a.mp4,playing drums\n"b, c.mp4",yoga\n')
    assert opened(tmp_path / "named.csv")[1:2] == ([0, 1],)
    (tmp_path / "ucf101.txt").write_text("a.mp4\nb, c.mp4\n")
    assert opened(tmp_path / "ucf101.txt")[:2] == (["a.mp4", "b, c.mp4"], [-1, -1])
    # VideoMAE V2's docs/DATASET.md: a video to pre-train on is written as `video_path 0 -1`.
    (tmp_path / "videomae2.txt").write_text("a.mp4 0 -1\nb, c.mp4 0 -1\n")
    files, labels, source = opened(tmp_path / "videomae2.txt")
    assert (files, labels) == (["a.mp4", "b, c.mp4"], [-1, -1])
    assert source.notes[0].endswith("2 of 2 rows have no label (-1 2)")


def test_paths_are_relative_to_the_folder_after_the_list(tmp_path):
    touch(tmp_path, "videos/x/a.mp4")
    for name, text in (("a.txt", "x/a.mp4 1\n"), ("a.csv", "path\nx/a.mp4\n"), ("a.jsonl", '{"path": "x/a.mp4"}\n')):
        (tmp_path / name).write_text(text)
        assert opened(f"{tmp_path / name}:{tmp_path / 'videos'}")[2].ids == [str(tmp_path / "videos/x/a.mp4")]
        refused(tmp_path / name, r"names 1 files of 1 that do not exist: .*; correct the paths, .* to the manifest$")
        refused(f"{tmp_path / name}:{tmp_path}", rf"correct the paths, which are relative to {tmp_path}$")
        refused(
            f"{tmp_path / name}:absent",
            rf"^absent, given as the folder of the videos of \S+{name}, is not a folder: correct",
        )
    (tmp_path / "empty.txt").write_text("\n")
    refused(tmp_path / "empty.txt", "has no rows: add one per video")


HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
KINETICS = (
    '"playing drums",-abcdefghij,10,20,train,0\nyoga,bbbbbbbbbb_,63,73,train,0\nyoga,_1_2_3_4_5_,0,10,train,1\n'
    "zumba,gone_gone_g,5,15,train,0\n"
)
FILES = ("-abcdefghij_000010_000020.mp4", "bbbbbbbbbb_.webm", "_1_2_3_4_5__0_10.mkv")


@pytest.mark.parametrize("places", [("", "", ""), ("playing drums/", "yoga/", "yoga/"), ("train/x/", "", "b/c/d/")])
def test_kinetics_is_read_as_published(places, tmp_path):
    """File names as written by download.py of ActivityNet, padded or not; an id alone is the whole video."""
    touch(tmp_path / "videos", *map("".join, zip(places, FILES, strict=True)))
    (tmp_path / "train.csv").write_text(HEADER + KINETICS)
    files, labels, source = opened(f"{tmp_path}/train.csv:{tmp_path}/videos")
    assert files == [FILES[0], f"{FILES[1]}#t=63,73", FILES[2]] and labels == [0, 1, 1]
    assert source.class_names == ("playing drums", "yoga", "zumba")  # of the whole list, regardless of missing files
    missing, untrimmed = source.notes
    assert re.search(r"train\.csv: 1 of 4 videos are not in \S+videos and are left out \(gone_gone_g\)$", missing)
    assert re.search(r"train\.csv: 1 of 3 videos are not trimmed; only time_start to time_end is read$", untrimmed)
    windows = open_videos(f"{tmp_path}/train.csv:{tmp_path}/videos", "train")
    assert windows.source.ids == source.ids and [row.id for row in windows.rows] == list(source.ids)


def test_a_trimmed_clip_takes_precedence_over_the_whole_video(tmp_path):
    touch(tmp_path, "aaaaaaaaaaa.mp4", "aaaaaaaaaaa_000001_000011.mp4")
    (tmp_path / "a.csv").write_text("youtube_id, time_start, time_end\naaaaaaaaaaa,1.0,11.0\naaaaaaaaaaa,2,12\n")
    files, labels, source = opened(f"{tmp_path}/a.csv:{tmp_path}")  # without labels, as of the test split
    assert files == ["aaaaaaaaaaa_000001_000011.mp4", "aaaaaaaaaaa.mp4#t=2,12"]
    assert labels == [-1, -1] and source.class_names == ()


def test_one_split_of_a_kinetics_list_is_used(tmp_path):
    touch(tmp_path, *(f"{letter * 11}.mp4" for letter in "abc"))
    (tmp_path / "manifest.csv").write_text("path,youtube_id\naaaaaaaaaaa.mp4,aaaaaaaaaaa\n")
    assert opened(tmp_path / "manifest.csv")[0] == ["aaaaaaaaaaa.mp4"]  # a manifest with an additional column
    rows = ["x,aaaaaaaaaaa,0,10,train", "y,bbbbbbbbbbb,0,10,validate", "x,ccccccccccc,0,10,train"]
    (tmp_path / "a.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows))
    name = f"{tmp_path}/a.csv:{tmp_path}"
    assert opened(name, "train")[1] == [0, 0] and opened(name, "validation")[1] == opened(name, "val")[1] == [1]
    refused(name, r"a\.csv has no videos of data\.split test, only of train, validation: choose one of these$", "test")
    (tmp_path / "a.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{rows[1]}\n")
    assert len(opened(name, "train")[1]) == 1  # a list with a single split is used as it is


def test_invalid_kinetics_lists_are_refused(tmp_path):
    path, name = tmp_path / "a.csv", f"{tmp_path}/a.csv:{tmp_path}"
    path.write_text(HEADER + KINETICS)
    refused(path, r"a\.csv contains YouTube ids instead of paths: add the folder of the videos, \S+a\.csv:FOLDER$")
    refused(name, r"^none of the 4 videos of \S+a\.csv is in \S+ \(-abcdefghij, \.\.\.\): correct the folder$")
    touch(tmp_path, "aaaaaaaaaaa.mp4")
    for row, sentence in (
        ("x,aaaaaaaaaaa,10,10,train,0", r"line 2: its end \(10\.0 s\) is not after its start \(10\.0 s\)"),
        ("x,aaaaaaaaaaa,soon,10,train,0", r"line 2: its time_start is 'soon', but it must be seconds"),
        ("x,aaaaaaaaaaa,,10,train,0", r"line 2: its youtube_id, time_start or time_end is missing, add it"),
    ):
        path.write_text(HEADER + row)
        refused(name, sentence)
    path.write_text(HEADER)
    refused(name, r"the manifest \S+a\.csv has no rows: add one per video")
    path.write_text("label,youtube_id,start\nx,aaaaaaaaaaa,1\n")
    refused(name, r"a\.csv has youtube_id but no column 'time_start': give a Kinetics list as published")
    path.write_text(HEADER + KINETICS)
    (tmp_path / "classes.json").write_text('["yoga"]')
    refused(name, r"classes\.json lacks 2 of the classes, playing drums, zumba: add them")


def something(folder, items, labels, labels_name="labels.json"):
    (folder / "train.json").write_text(json.dumps(items))
    (folder / labels_name).write_text(json.dumps(labels))
    return f"{folder}/train.json:{folder}"


ITEMS = [
    {"id": "7", "label": "moving a cup up", "template": "Moving [something] up", "placeholders": ["a cup"]},
    {"id": "8", "label": "bending a twig", "template": "Bending [something]", "placeholders": ["a twig"]},
    {"id": "9", "label": "bending a spoon", "template": "Bending [something]", "placeholders": ["a spoon"]},
]
LABELS = {"Moving something up": "0", "Bending something": "1"}


def test_something_something_is_read_as_published(tmp_path):
    touch(tmp_path, "7.webm", "videos/8.mp4")
    name = something(tmp_path, ITEMS, LABELS)
    files, labels, source = opened(name)
    assert (files, labels) == (["7.webm", "8.mp4"], [0, 1])
    assert source.class_names == ("Moving something up", "Bending something")
    assert [source.captions(i) for i in range(2)] == [("moving a cup up",), ("bending a twig",)]
    assert re.search(r"train\.json: 1 of 3 videos are not in \S+ and are left out \(9\)$", source.notes[0])
    (tmp_path / "labels.json").unlink()
    assert opened(name)[2].class_names == ("Bending something", "Moving something up")
    (tmp_path / "train.json").write_text('[{"id": 7}, {"id": "8"}]')  # as of the test split
    assert opened(name)[1] == [-1, -1]
    (tmp_path / "train.json").write_text(json.dumps([ITEMS[0], {"id": "8"}]))
    assert opened(name)[2].notes[0].endswith("train.json: 1 of 2 videos have no template and hence no label")


def test_each_release_of_something_something_has_its_own_labels(tmp_path):
    touch(tmp_path, "7.webm", "8.webm", "9.webm")
    for version, order in (("v1", (1, 0)), ("v2", (0, 1))):
        numbers = dict(zip(LABELS, map(str, order), strict=True))
        (tmp_path / f"something-something-{version}-labels.json").write_text(json.dumps(numbers))
        (tmp_path / f"something-something-{version}-train.json").write_text(json.dumps(ITEMS))
    for version, expected in (("v1", [1, 0, 0]), ("v2", [0, 1, 1])):
        assert opened(f"{tmp_path}/something-something-{version}-train.json:{tmp_path}")[1] == expected


def test_invalid_something_something_lists_are_refused(tmp_path):
    touch(tmp_path, "7.webm")
    name = something(tmp_path, ITEMS, {"Moving something up": "0"})
    refused(name, r"train\.json has 1 templates that are not in \S+labels\.json, such as 'Bending something': use both")
    refused(
        tmp_path / "train.json", r"train\.json contains ids instead of paths: add the folder of the videos, \S+:FOLDER$"
    )
    for labels in (["Moving something up"], {"Moving something up": "1"}, {"Moving something up": "zero"}, {}):
        refused(something(tmp_path, ITEMS, labels), r"labels\.json must number the templates from 0: give the file")
    something(tmp_path, ITEMS, LABELS)
    for content, sentence in (
        ("[", r"train\.json is not JSON \(.*\): give the file as published"),
        (
            '{"x": {"subset": "train"}}',
            r"train\.json is not a Something-Something list, .*: give such a list, or a \.csv",
        ),
        ('["run", "walk"]', r"train\.json is not a Something-Something list"),
    ):
        (tmp_path / "train.json").write_text(content)
        refused(name, sentence)
