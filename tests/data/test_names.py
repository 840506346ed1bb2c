"""File names with special characters: bytes that are not UTF-8, brackets, quotation marks."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import videos

from vidjax import cli
from vidjax.data import embeddings
from vidjax.data.batches import BadFiles
from vidjax.data.config import DataConfig
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source
from vidjax.runs import records
from vidjax.runs.results import write_csv

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import write_tfrecords

LATIN = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, in which Python represents the byte that is not UTF-8 as a surrogate."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A class folder with a video and an invalid file, all with such names."""
    folder = tmp_path_factory.mktemp("named") / "rec[1]"
    video = videos.write_video(folder / "a.mp4", videos.numbered(5))
    (folder / LATIN).mkdir()
    video.rename(folder / LATIN / f"{LATIN}.mp4")
    (folder / LATIN / f"{LATIN}2.mp4").write_text("?")
    return folder


def test_bad_files_are_listed_with_their_names(folder, tmp_path):
    source, config = open_source(str(folder)), DataConfig(frames=2, size=32)
    bad_files = BadFiles(source, 1.0, tmp_path / "bad_files.jsonl")
    batch = next(train_batches(source, config, batch_size=2, seed=0, bad_files=bad_files))
    assert sorted(zip(batch["index"], batch["valid"], strict=True)) == [(0, True), (1, False)]
    (line,) = (tmp_path / "bad_files.jsonl").read_text().splitlines()
    path = os.fsencode(json.loads(line)["path"])
    assert path == os.fsencode(folder) + b"/caf\xe9/caf\xe92.mp4" and os.path.isfile(path)


def test_records_preserve_the_bytes_of_names(folder, tmp_path, monkeypatch):
    """Also with PYTHONIOENCODING=utf-8:strict, with which such names cannot be printed."""
    for name in ("rec[1]", LATIN):
        out = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["write_tfrecords.py", str(folder), str(out), "--max_frames", "2"])
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True))
        cli.run(write_tfrecords.main, write_tfrecords.Config)
        assert b"train on them with --data.source " in sys.stdout.buffer.getvalue()
        for given in (
            f"tfrecord:{out}",
            f"tfrecord:{out}/*.tfrecord",
            f"tfrecord:{out}/videos-00000-of-00001.tfrecord",
        ):
            source = open_source(given)
            assert len(source) == 1 and source.class_names == (LATIN,) and source.label(0) == 0
            assert videos.numbers(source.read(0, [1], None).frames) == [2]
    (content,) = tf.data.TFRecordDataset([os.fsencode(out / "videos-00000-of-00001.tfrecord")]).as_numpy_iterator()
    feature = tf.train.Example.FromString(content).features.feature
    assert feature["video/label_name"].bytes_list.value[0] == b"caf\xe9"
    assert feature["video/id"].bytes_list.value[0] == os.fsencode(folder) + b"/caf\xe9/caf\xe9.mp4"


def test_the_printed_source_of_records_is_quoted_for_the_shell(folder, tmp_path, capsys):
    write_tfrecords.main(write_tfrecords.Config(str(folder), str(tmp_path / "it's"), max_frames=1))
    argument = capsys.readouterr().out.splitlines()[-1].partition("--data.source ")[2]
    printed = os.popen(f"printf %s {argument}").read()
    assert printed == f"tfrecord:{tmp_path}/it's" and len(open_source(printed)) == 1


def test_digests_accept_any_name():
    """The digest of UTF-8 names must not change, so that interrupted conversions can be resumed."""
    assert records.digest(["a", "é"]) == "7ab79b5e89f288f04c7389fa4fd59ec40019be6831307a42095a4c60334e1b01"
    assert records.digest([LATIN]) != records.digest(["caf\udce8"])


def test_a_csv_file_with_such_names_is_utf_8(tmp_path):
    write_csv(tmp_path / "a.csv", [{"video": LATIN, "label": "跳"}])
    assert list(csv.reader((tmp_path / "a.csv").open(encoding="utf-8"))) == [["video", "label"], ["caf\\udce9", "跳"]]


def test_features_preserve_the_bytes_of_names(tmp_path):
    arrays = {"features": np.ones((1, 3), np.float32), "index": np.zeros(1, np.int64), "labels": np.zeros(1, np.int32)}
    arrays |= {"start": np.zeros(1), "end": np.ones(1)}
    for name in (f"{LATIN}.tfrecord", "a.npz"):
        parts = embeddings.open_parts(tmp_path / name, {"x": 1})
        embeddings.write_part(parts / "0.npz", arrays, [])
        embeddings.join([parts / "0.npz"], tmp_path / name, [LATIN], [LATIN], {"x": 1})
    (content,) = tf.data.TFRecordDataset([os.fsencode(tmp_path / f"{LATIN}.tfrecord")]).as_numpy_iterator()
    assert tf.train.Example.FromString(content).features.feature["id"].bytes_list.value[0] == b"caf\xe9"
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["ids"].tolist() == arrays["class_names"].tolist() == [LATIN]
