"""Folders, TFRecords, TFDS and rendered videos as sources, and sources made from others."""

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
from small_sources import open_, place, refused

from vidjax.data import moving_shapes, records
from vidjax.data.decode import DecodeError
from vidjax.data.sources import draw, open_source, require_captions, require_labels, subset, with_captions, with_classes


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
        assert len(decoded) == 2  # the size is in the header of the first frame
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
