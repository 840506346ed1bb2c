"""Manifests in CSV and JSON lines: parts of videos, labels, captions, and errors that name the line."""

import json

import numpy as np
import pytest
import videos
from small_sources import open_, place, refused

from vidjax.data.decode import DecodeError

CSV = 'path,label,caption,start,end\n{0},run,"a man, who runs",2,4.5\nsub/b.mp4,walk,,,\n{0},,,9.5,20\n'
JSONL = (
    '{{"path": "{0}", "label": "run", "caption": "a man, who runs", "start": 2, "end": 4.5}}\n\n'
    '{{"path": "sub/b.mp4", "label": "walk"}}\n{{"path": "{0}", "start": 9.5, "end": 20}}\n'
)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "content"), [("list.csv", CSV), ("list.jsonl", JSONL)])
def test_a_manifest(name, content, newline, mark, video, tmp_path):
    place(video, tmp_path / "sub" / "b.mp4")
    (tmp_path / name).write_text(mark + content.format(video), encoding="utf-8", newline=newline)
    source = open_(tmp_path / name)
    assert source.class_names == ("run", "walk")
    assert source.ids == [f"{video}#t=2,4.5", str(tmp_path / "sub/b.mp4"), f"{video}#t=9.5,20"]
    clips = [source.read(i) for i in range(3)]
    assert [clip.label for clip in clips] == [0, 1, -1]
    assert [clip.captions for clip in clips] == [("a man, who runs",), (), ()]
    assert [source.captions(i) for i in range(3)] == [("a man, who runs",), (), ()]
    assert [source.label(i) for i in range(3)] == [0, 1, -1]
    assert videos.numbers(clips[0].frames) == list(range(20, 45))
    assert videos.numbers(clips[1].frames) == list(range(100))
    assert videos.numbers(clips[2].frames) == list(range(95, 100))
    assert (clips[0].info.num_frames, clips[0].info.duration) == (25, 2.5)


def test_a_part_after_the_end_cannot_be_read(video, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,start\n{video},10\n")
    source = open_(tmp_path / "list.csv")
    with pytest.raises(DecodeError, match=r"a\.mp4: the part starts at 10\.0 s, but the video ends at 10\.00 s"):
        source.read(0)


def test_numeric_labels_are_class_indices(video, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,label\n{video},3\n{video},\n{video},1\n{video},-1\n")
    source = open_(tmp_path / "list.csv")
    assert source.class_names == ("0", "1", "2", "3")
    assert [source.read(i, (), None).label for i in range(4)] == [3, -1, 1, -1]
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d", "e"]')
    assert open_(tmp_path / "list.csv").class_names == ("a", "b", "c", "d", "e")
    (tmp_path / "classes.json").write_text('["a"]')
    refused(tmp_path / "list.csv", r"has the label 3, but classes\.json in the same folder has only 1 names: add")


def test_large_numbers_are_not_class_indices(video, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,label\n{video},0\n{video},99999999\n")
    refused(
        tmp_path / "list.csv", r"list\.csv has the label 99999999, which implies as many classes: number the classes"
    )
    (tmp_path / "list.csv").write_text(f"path,label\n{video},99999\n")
    assert len(open_(tmp_path / "list.csv").class_names) == 100_000
    (tmp_path / "list.csv").write_text(f"path,label\n{video},run\n{video},99999999\n{video},-1\n")
    source = open_(tmp_path / "list.csv")
    assert source.class_names == ("99999999", "run") and [source.label(i) for i in range(3)] == [1, 0, -1]


def test_a_manifest_without_labels(video, tmp_path):
    (tmp_path / "list.csv").write_text(f"path\n{video}\n")
    source = open_(tmp_path / "list.csv")
    assert source.class_names == ()
    assert source.read(0, (), None).label == -1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "file,label\nx.mp4,1\n", "has no 'path' column: .* but it is 'file,label'"),
        ("a.csv", "", "has no 'path' column"),
        ("a.csv", "path,label\n", "has no rows: add one per video"),
        ("a.csv", "path,caption\nx.mp4,one, two\n", "line 2: the row has more fields"),
        ("a.csv", "path,label\nx.mp4,1\n,2\n", "line 3: its path is missing"),
        ("a.csv", "path,reverse\nx.mp4,yes\n", "line 2: its reverse is 'yes', but it must be true or false"),
        ("a.csv", "path,start\nx.mp4,soon\n", "line 2: its start is 'soon', but it must be seconds"),
        ("a.csv", "path,start\nx.mp4,-1\n", "line 2: its start is '-1'"),
        ("a.csv", "path,start,end\nx.mp4,5,5\n", r"line 2: its end \(5.0 s\) is not after its start \(5.0 s\)"),
        ("a.jsonl", '{"path": "x.mp4"}\n{"path":\n', "line 2: invalid JSON"),
        ("a.jsonl", '{"file": "x.mp4"}\n', "line 1: the line must be an object with a 'path'"),
        ("a.jsonl", '["x.mp4"]\n', "line 1: the line must be an object with a 'path'"),
        ("a.jsonl", '{"path": 3}\n', "line 1: its path is missing"),
        ("a.jsonl", '{"path": "x.mp4", "caption": " "}\n', r"a\.jsonl, line 1: its caption is empty, remove it"),
        (
            "a.jsonl",
            '{"path": "x", "caption": null}\n{"path": "x", "caption": ["a", ""]}\n',
            "line 2: one of its captions is empty, remove it",
        ),
        (
            "a.jsonl",
            '{"path": "x.mp4", "caption": ["a", 3]}\n',
            r"line 1: its caption is \['a', 3\], but it must be a string",
        ),
        ("a.jsonl", '{"path": "x.mp4", "caption": "\\ud83d"}\n', "line 1: its caption is not valid text"),
        ("a.jsonl", "", "has no rows"),
        (
            "a.csv",
            "path\n" + "".join(f"{i}.mp4\n" for i in range(5)),
            r"5 files of 5 .*: \S+0.mp4, \S+1.mp4, \S+2.mp4, \.\.\.",
        ),
    ],
)
def test_invalid_manifests_are_refused_with_the_line(name, content, sentence, tmp_path):
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, sentence)


@pytest.mark.parametrize("label", ["-2", "-2.0", "1.25", "Infinity", "true", '"\\ud83d"', '["x"]', '{"x": 1}', '"-7"'])
def test_labels_must_be_names_or_non_negative_integers(label, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"path": "x.mp4", "label": 3}}\n{{"path": "x.mp4", "label": {label}}}\n')
    refused(
        tmp_path / "a.jsonl",
        r"a\.jsonl, line 2: its label is .+, but it must be a name, an integer from 0, or -1 for none",
    )
    (tmp_path / "a.csv").write_text("path,label\nx.mp4,-2\n")
    refused(tmp_path / "a.csv", r"a\.csv, line 2: its label is '-2', but it must be a name")


def test_null_labels_are_missing(video, tmp_path):
    rows = ({"path": str(video), "label": label} for label in (None, -1, "run"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_(tmp_path / "a.jsonl")
    assert source.class_names == ("run",) and [source.label(i) for i in range(3)] == [-1, -1, 0]


@pytest.mark.parametrize(("name", "rows"), [("a.csv", "path,label\n{},café\n"), ("a.jsonl", '\n{{"path": "{}é"}}\n')])
def test_manifests_must_be_utf_8(name, rows, video, tmp_path):
    (tmp_path / name).write_bytes(rows.format(video).encode("latin-1"))
    refused(tmp_path / name, rf"{name}, line 2: not UTF-8 \(.+\), save the file as UTF-8")
    (tmp_path / name).write_bytes(rows.format(video).encode("utf-16"))
    refused(tmp_path / name, rf"{name}, line 1: not UTF-8 \(.+\), save the file as UTF-8")


def test_an_unclosed_quotation_mark_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text('path,caption\nx.mp4,one\nx.mp4,"two\n' + "x.mp4,three\n" * 20000)
    refused(tmp_path / "a.csv", r"a\.csv, line 3: invalid CSV \(field larger than .*\), close the quotation marks")


def test_parts_can_be_reversed(video, tmp_path):
    rows = f"path,end,reverse\n{video},1.5,true\n{video},1.5,false\n{video},,True\n"
    (tmp_path / "list.csv").write_text(rows)
    source = open_(tmp_path / "list.csv")
    assert source.ids == [f"{video}#t=,1.5&reverse", f"{video}#t=,1.5", f"{video}#reverse"]
    backward, forward, whole = (source.read(i) for i in range(3))
    assert videos.numbers(forward.frames) == list(range(15))
    assert videos.numbers(backward.frames) == list(range(14, -1, -1))
    assert videos.numbers(whole.frames) == list(range(99, -1, -1))
    first = source.read(0, np.array([0, 3]), None)
    assert videos.numbers(first.frames) == [14, 11]
