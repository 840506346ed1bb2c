import functools
import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import videos

from vidjax.data import moving_shapes, records
from vidjax.data.decode import DecodeError
from vidjax.data.sources import draw, open_source, require_captions, require_labels, subset, with_captions, with_classes


def open_(source, **settings):
    return open_source(str(source), **settings)


def refused(source, sentence, **settings):
    """Opening the source raises a one-line error that matches `sentence`."""
    with pytest.raises(ValueError) as caught:
        open_(source, **settings)
    message = str(caught.value)
    assert re.search(sentence, message), message
    assert "\n" not in message


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Ten seconds of ten numbered frames each."""
    return videos.write_video(tmp_path_factory.mktemp("video") / "a.mp4", videos.numbered(100), rate=10)


def place(video, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(video)


def test_a_folder_of_classes(video, tmp_path):
    names = ("b/2.mp4", "b/1.MP4", "a c/x.avi", "b/.hidden.mp4", ".trash/y.mp4", "deep/er/z.mkv")
    place(video, *(tmp_path / name for name in names))
    (tmp_path / "b" / "notes.txt").write_text("")
    source = open_(tmp_path)
    assert source.class_names == ("a c", "b", "deep/er")
    assert [re.sub(r".*(a c|b|deep)/", "", path) for path in source.ids] == ["x.avi", "1.MP4", "2.mp4", "er/z.mkv"]
    assert [source.read(i, (), None).label for i in range(4)] == [0, 1, 1, 2]


def test_a_flat_folder_has_no_labels(video, tmp_path):
    place(video, tmp_path / "2.mp4", tmp_path / "1.mp4")
    source = open_(tmp_path)
    assert source.class_names == ()
    clip = source.read(1, [7, 99, 0], 24)
    assert videos.numbers(clip.frames) == [7, 99, 0]
    assert (clip.label, clip.captions, clip.info.num_frames, clip.info.rate) == (-1, (), 100, 10)
    assert clip.frames.shape == (3, 24, 40, 3)


CLASSES = [
    (b'{"walk": 0}', r"classes\.json must be a list of class names$"),
    (b'["walk", 1]', r"classes\.json must be a list of class names$"),
    (b'["walk",', r"classes\.json is not JSON \(Expecting value.*\): it must be a list of class names"),
    (b'["caf\xe9"]', r"classes\.json is not JSON \(.* byte 0xe9 .*\): it must be a list of class names"),
    (b'["run", "walk", "run"]', r"classes\.json has the class 'run' twice: class names must be unique"),
]


def test_classes_json_determines_the_order_of_classes(video, tmp_path):
    place(video, tmp_path / "run" / "1.mp4")
    (tmp_path / "classes.json").write_text('["walk", "run"]')
    source = open_(tmp_path)
    assert source.class_names == ("walk", "run")
    assert source.read(0, (), None).label == 1
    (tmp_path / "classes.json").write_text('["walk"]')
    refused(tmp_path, "classes.json lacks 1 of the classes, run: add")
    for content, sentence in CLASSES:
        (tmp_path / "classes.json").write_bytes(content)
        refused(tmp_path, sentence)


def test_a_folder_without_videos_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path, r"contains no videos \(.* \.y4m\), only \.txt 1: give another")


def test_files_without_a_video_suffix_are_counted(tmp_path):
    """The .MTS files of camcorders are videos, as are .mp4 files; .gif files are not."""
    videos = ("a/1.MTS", "a/2.m2ts", "a/3.ogv", "a/4.VOB", "a/5.mxf", "a/6.hevc", "a/7.mp4")
    others = ("a/x.gif", "b/y.gif", "notes.txt", "a/README", "classes.json", ".hidden.txt", ".trash/z.gif")
    for name in (*videos, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('["a", "b"]')
    source = open_(tmp_path)
    assert source.ids == [str(tmp_path / name) for name in videos]
    counts = r"\(\.gif 2, (\.txt 1, no suffix 1|no suffix 1, \.txt 1)\)"
    (note,) = source.notes
    assert re.fullmatch(rf"{tmp_path}: 4 files are left out, as their suffix is none of a video {counts}", note)


def test_videos_outside_class_folders_are_noted(tmp_path):
    for name in ("run/1.mp4", "2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = open_(tmp_path)
    assert source.notes == (f"{tmp_path}: 1 of 2 videos are not in a class folder and have no label",)
    assert subset(source, [0, 1]).notes == with_classes(source, ("walk", "run")).notes == source.notes
    with pytest.raises(
        ValueError, match=rf"^1 of the 2 examples of {tmp_path} has no label: \S+2\.mp4; label them, or r"
    ):
        require_labels(source)
    require_labels(subset(source, [1]))


def test_each_real_folder_is_listed_once(tmp_path):
    """With a link to a parent folder, and a link to a folder outside the tree."""
    for name in ("tree/run/a.mp4", "tree/walk/b.mp4", "elsewhere/jump/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    tree = tmp_path / "tree"
    (tree / "run" / "all").symlink_to("..")
    (tree / "again").symlink_to("run")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "linked" / "back").symlink_to(tree / "walk")
    source = open_(tree)
    assert source.ids == [str(tree / name) for name in ("linked/jump/c.mp4", "run/a.mp4", "walk/b.mp4")]
    assert source.class_names == ("linked/jump", "run", "walk")
    (tmp_path / "link").symlink_to(tree)
    assert len(open_(tmp_path / "link")) == 3


def test_an_unreadable_folder_is_refused(video, tmp_path, monkeypatch):
    place(video, tmp_path / "run" / "1.mp4", tmp_path / "walk" / "2.mp4")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("walk"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(tmp_path, r"the folder \S+walk cannot be read \(Permission denied\): correct its permissions")


def test_missing_and_unknown_sources_are_refused(video, tmp_path):
    refused(tmp_path / "absent", "absent does not exist")
    refused(tmp_path / "absent.csv", "the manifest .*absent.csv does not exist")
    refused(video, "is a file: give its folder")
    refused("webdataset:x", "of an unknown kind: use tfds:NAME")
    refused("synthetic:balls", "of an unknown kind")
    refused("tfds:", "does not exist")


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


def test_the_embedded_data_set_has_disjoint_splits():
    train, validation = open_("synthetic:moving_shapes"), open_("synthetic:moving_shapes", split="validation")
    assert train.class_names == moving_shapes.CLASSES
    clip = train.read(5, [3, 0], 40)
    assert clip.frames.shape == (2, 40, 40, 3)
    assert (clip.label, clip.captions) == moving_shapes.describe(moving_shapes.SPLITS["train"][5])
    assert not np.array_equal(clip.frames, validation.read(5, [3, 0], 40).frames)
    assert len(train) == len(moving_shapes.SPLITS["train"]) == len(set(train.ids))
    refused("synthetic:moving_shapes", "data.split test is unknown", split="test")


def test_tfrecords_are_read_by_index(tmp_path):
    videos.write_shards(tmp_path)
    for pattern in (tmp_path, tmp_path / "videos-*.tfrecord"):
        source = open_(f"tfrecord:{pattern}")
        assert len(source) == 4
        assert source.class_names == ("a", "b")
        clip = source.read(3, [5, 1], 24)
        assert videos.numbers(clip.frames) == [115, 111]
        assert (clip.label, clip.info.rate, clip.info.num_frames) == (1, 12.5, 6)
        assert clip.captions == source.captions(3) == ("a text", "another") and source.label(3) == 1
        assert clip.frames.shape == (2, 24, 40, 3)
        assert source.read(0, (), None).captions == source.captions(0) == ()
    refused(f"tfrecord:{tmp_path}/nothing*", "matches no files: correct the pattern")
    for content, sentence in CLASSES:
        (tmp_path / "classes.json").write_bytes(content)
        refused(f"tfrecord:{tmp_path}", sentence)


def test_a_source_without_examples_is_refused(tmp_path):
    tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")).close()
    refused(f"tfrecord:{tmp_path}", r"^there are no examples in tfrecord:\S+: give another source$")
    with pytest.raises(ValueError, match="there are no examples in synthetic:moving_shapes: give another source"):
        subset(open_("synthetic:moving_shapes"), [])


@functools.cache
def tiny_videos():
    """A data set of seven videos for TFDS (cached, since TFDS registers builder classes by name)."""
    import tensorflow_datasets as tfds

    class TinyVideos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "video": tfds.features.Video(shape=(None, 48, 80, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=["run", "walk"]),
                "caption": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(5)), "test": self._generate_examples(range(5, 7))}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"video": videos.numbered(9, first=10 * i), "label": i % 2, "caption": f"number {i}"}

    return TinyVideos


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def tfds_folder(request, tmp_path_factory):
    """The data set as written by TFDS, in both file formats."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_videos()(data_dir=str(folder), file_format=request.param).download_and_prepare()
    return folder


def test_tfds_has_random_access_and_decodes_only_requested_frames(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    source = open_("tfds:tiny_videos")
    assert source.class_names == ("run", "walk")
    assert len(source) == 5
    decoded = []
    decode_jpeg = records.tf.io.decode_jpeg
    monkeypatch.setattr(records.tf.io, "decode_jpeg", lambda *a, **k: decoded.append(1) or decode_jpeg(*a, **k))
    seen = []
    for i in range(5):
        decoded.clear()
        clip = source.read(i, [8, 2], 24)
        assert clip.frames.shape == (2, 24, 40, 3)
        number = videos.numbers(clip.frames)[0] // 10
        assert videos.numbers(clip.frames) == [10 * number + 8, 10 * number + 2]
        assert (clip.label, clip.captions, clip.info.num_frames) == (number % 2, (f"number {number}",), 9)
        assert (source.label(i), source.captions(i)) == (clip.label, clip.captions)
        assert len(decoded) == 3  # the first frame for its size, and the two requested
        seen.append(number)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    part = open_("tfds:tiny_videos", split="train[1:3]+test")
    numbers = [videos.numbers(part.read(i, [0], None).frames)[0] // 10 for i in range(len(part))]
    assert numbers[:2] == seen[1:3] and sorted(numbers[2:]) == [5, 6]
    with pytest.raises(ValueError, match=r"data\.split val is unknown: tfds:tiny_videos has train, test"):
        open_("tfds:tiny_videos", split="val")
    refused("tfds:tiny_videos", r"data\.split train\[2:2\] of tfds:tiny_videos has no examples", split="train[2:2]")


def test_tfds_sets_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    refused("tfds:ucf10", r"is not a TensorFlow Dataset .*\(did you mean ucf101")
    refused("tfds:my_own_videos", "is not a TensorFlow Dataset and does not exist in TFDS_DATA_DIR")
    refused("tfds:ucf101", "is not prepared in .*: run `tfds build ucf101` first")
    refused("tfds:ucf101/nonsense", "BuilderConfig nonsense not found|nonsense")


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


def test_labels_are_mapped_by_class_name(video, tmp_path):
    for name in ("riding_a_Bike", "yoga"):
        place(video, tmp_path / name / "1.mp4")
    source = open_(tmp_path)
    matched = with_classes(source, ("archery", "Riding a bike", "yoga"))
    assert matched.class_names == ("archery", "Riding a bike", "yoga")
    assert [matched.read(i, (), None).label for i in range(2)] == [1, 2]
    assert [source.read(i, (), None).label for i in range(2)] == [0, 1]
    assert with_classes(source, source.class_names) is source
    with pytest.raises(ValueError, match=r"1 classes that the model does not know, such as 'yoga' \(did you mean yogi"):
        with_classes(source, ("riding a bike", "yogi"))
    place(video, tmp_path / "flat" / "1.mp4")
    with pytest.raises(ValueError, match="has no labels, and this needs them"):
        with_classes(open_(tmp_path / "flat"), ("a", "b"))


def test_draws_are_random_ordered_and_reproducible():
    source = open_source("synthetic:moving_shapes", "validation")
    few = draw(source, 20, seed=1)
    assert len(few) == 20 and len(set(few.ids)) == 20
    positions = [source.ids.index(id) for id in few.ids]
    assert positions == sorted(positions) and positions != list(range(20))
    assert draw(source, 20, seed=1).ids == few.ids != draw(source, 20, seed=2).ids
    clip, same = (
        few.read(3, np.arange(2), None),
        source.read(positions[3], np.arange(2), None),
    )
    np.testing.assert_array_equal(clip.frames, same.frames)
    assert draw(source, None, 0) is source and draw(source, 5000, 0) is source


def captioned(video, folder):
    """Four rows, with no, one and two captions."""
    rows = [("run", None), ("Walk_slowly", "one"), ("run", ["two", "three"]), (None, ["four"])]
    (folder / "list.jsonl").write_text(
        "".join(json.dumps({"path": str(video), "label": label, "caption": text}) + "\n" for label, text in rows)
    )
    return open_(folder / "list.jsonl")


def test_captions_stay_with_their_examples(video, tmp_path):
    source = captioned(video, tmp_path)
    every = [(), ("one",), ("two", "three"), ("four",)]
    turned = subset(with_classes(source, ("walk slowly", "jump", "Run")), [2, 3, 1])
    for index, old in enumerate([2, 3, 1]):
        clip = turned.read(index, (), None)
        assert turned.captions(index) == clip.captions == every[old]
        assert turned.label(index) == clip.label == [2, 0, 2, -1][old]


def test_a_source_without_captions_is_refused(video, tmp_path):
    source = captioned(video, tmp_path)
    with pytest.raises(ValueError, match=r"^1 of the 4 examples of \S+ has no caption: \S+/a\.mp4; give them one"):
        require_captions(source)
    require_captions(subset(source, [1, 2, 3]))
    (tmp_path / "plain.csv").write_text("path\n" + f"{video}\n" * 5)
    with pytest.raises(ValueError, match=r"^5 of the 5 examples of \S+ have no caption: (\S+, ){3}\.\.\.; "):
        require_captions(open_(tmp_path / "plain.csv"))
    videos.write_shards(tmp_path)
    shards = open_(f"tfrecord:{tmp_path}")
    with pytest.raises(ValueError, match=r"^the first example of \S+ has no caption: \S+videos-0\.tfrecord\[0\]; "):
        require_captions(shards)
    require_captions(subset(shards, [1]))


def test_captions_are_made_from_class_names(video, tmp_path):
    source = subset(captioned(video, tmp_path), [0, 1])
    made = with_captions(source, ("a clip of {}", "{}, filmed"))
    expected = [("a clip of run", "run, filmed"), ("a clip of Walk slowly", "Walk slowly, filmed")]
    for index in range(2):
        assert made.captions(index) == made.read(index, (), None).captions == expected[index]
    with pytest.raises(
        ValueError, match=r"^1 of the 4 examples of \S+ has no label to make captions of: \S+; label them"
    ):
        with_captions(captioned(video, tmp_path), ("{}",))
    with pytest.raises(ValueError, match="'a clip' has no slots"):
        with_captions(source, ("a clip",))
    (tmp_path / "plain.csv").write_text(f"path\n{video}\n")
    with pytest.raises(ValueError, match="has no labels to make captions of"):
        with_captions(open_(tmp_path / "plain.csv"), ("{}",))


def test_compositions_are_the_classes_of_their_splits():
    source = open_("synthetic:moving_shapes", split="compositions_held_out")
    assert source.class_names == moving_shapes.COMPOSITIONS
    clip = source.read(4, [0], 16)
    assert (clip.label, clip.captions) == (source.label(4), source.captions(4))
    assert clip.captions[1] == source.class_names[clip.label] in moving_shapes.compositions(held_out=True)
    directions = open_("synthetic:moving_shapes", split="directions_held_out")
    assert len(directions.class_names) == 8
    moved = directions.read(4, [0], 16)
    np.testing.assert_array_equal(moved.frames, clip.frames)
    assert moved.captions == clip.captions
    assert clip.captions[1].endswith(f" moves {directions.class_names[moved.label]}")


def test_a_tfds_data_set_without_videos_is_refused(monkeypatch):
    import tensorflow_datasets as tfds

    features = {"image": None, "label": None}
    images = SimpleNamespace(is_prepared=lambda: True, info=SimpleNamespace(features=features))
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: images)
    refused("tfds:images", "data.source tfds:images has no video feature, only image, label: choose another")


def test_a_record_without_frames_or_label_is_refused(tmp_path):
    record = records.Record([], 12.5, 48, 80, -1, "", (), "x")
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(records.encode_record(record))
    (tmp_path / "classes.json").write_text('["a"]')
    source = open_(f"tfrecord:{tmp_path}")
    with pytest.raises(DecodeError, match=r"a\.tfrecord\[0\]: it has no frames$"):
        source.read(0, [0], None)
    with pytest.raises(ValueError, match=r"the first example of \S+ has no label to make captions of"):
        with_captions(source, ("{}",))
    late = replace(source, label=lambda index: -index, ids=["first", "second"])
    with pytest.raises(ValueError, match=r"^second has no label to make captions of: label it, or remove it"):
        with_captions(late, ("{}",)).captions(1)
