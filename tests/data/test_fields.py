"""Further fields from manifests and TFRecords in batches."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import videos

from vidjax.data import records
from vidjax.data.batches import BadFiles, evaluation_batches, select
from vidjax.data.config import AugmentConfig, ClipConfig, DataConfig
from vidjax.data.crop import cut
from vidjax.data.decode import decode
from vidjax.data.example import Field
from vidjax.data.field_files import write_specs
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source
from vidjax.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import write_tfrecords

SPECS = {
    "score": Field("numbers"),
    "people": Field("numbers", (3,), "int32", fill=-1),
    "actions": Field("segments", (2, 3)),
    "boxes": Field("boxes", (2, 4)),
    "objects": Field("tracks", (1, 4)),
    "flow": Field("frames", (2,), "uint8", mirrored=(0,)),
    "sound": Field("samples", (50, 1), rate=100),
}
ALL = tuple(SPECS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A video of 50 frames (2 s), as a whole and from 1 s on, and one without further fields."""
    folder = tmp_path_factory.mktemp("fields")
    videos.write_video(folder / "a.mp4", videos.numbered(50))
    flow = np.zeros((49, 24, 40, 2), np.uint8)
    flow[..., 0], flow[..., 1] = np.arange(49)[:, None, None], 100
    np.save(folder / "flow.npy", flow)
    np.save(folder / "sound.npy", np.arange(200, dtype=np.float32)[:, None])
    fields = {
        "score": 0.5,
        "people": [7, 8],
        "actions": [[0, 0.3, 5], [0.6, 9, 6]],
        "boxes": [[0, 0, 0.5, 1]],
        "objects": [[0, 0, 0, 0, 0.5, 0.5], [0, 2, 0.5, 0.5, 1, 1]],
        "flow": "flow.npy",
        "sound": "sound.npy",
    }
    rows = [{"path": "a.mp4", "label": "x"} | fields, {"path": "a.mp4", "label": "y", "start": 1} | fields]
    rows.append({"path": "a.mp4", "label": "y", "end": 1, "sound": "sound.npy", "flow": "flow.npy", "mood": "good"})
    (folder / "fields.json").write_text(write_specs(SPECS))
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


CLIPS = ClipConfig(frames=4, size=24, stride=2, short_side=24, workers=1)  # seconds 0.08 apart


def test_fields_of_a_manifest_match_the_central_clip(manifest):
    source = open_source(str(manifest))
    assert source.notes == (source.notes[0],) and "'mood' in 1 rows" in source.notes[0]
    (batch,) = evaluation_batches(source, CLIPS, batch_size=4, fields=ALL)
    first = np.array([21, 9, 9])  # first frames of the clips in the whole video and in the halves
    np.testing.assert_allclose(batch["times"][:3], (first[:, None] + [0, 2, 4, 6]) / 25, rtol=1e-6)
    assert batch["crop"][:3].tolist() == [[0, 8, 24, 24, 24, 40, 0]] * 3 and not batch["crop"][3].any()
    assert batch["score"].tolist() == [0.5, 0.5, 0, 0]
    assert batch["people"].tolist() == [[7, 8, -1]] * 2 + [[-1] * 3] * 2
    end = batch["times"][:, 0] + 8 / 25
    np.testing.assert_allclose(batch["actions"][0], [[batch["times"][0, 0], end[0], 6], [-1] * 3], rtol=1e-6)
    np.testing.assert_allclose(batch["actions"][1], [[0.6, end[1], 6], [-1] * 3], rtol=1e-6)
    assert (batch["actions"][2:] == -1).all()
    np.testing.assert_allclose(batch["boxes"][:2], [[[0, 0, 0.5, 1], [-1] * 4]] * 2)
    x1 = batch["times"][0] / 4  # relative to the frame, 40 pixels wide, of which the crop removes 8 at the left
    np.testing.assert_allclose(batch["objects"][0, :, 0, 0], (40 * x1 - 8).clip(0) / 24, atol=1e-6)
    np.testing.assert_allclose(batch["objects"][0, :, 0, 1], x1, atol=1e-6)
    shown = np.array([21, 25 + 9, 9])[:, None] + [0, 2, 4, 6]  # frames of the file
    assert batch["flow"].shape == (4, 4, 24, 24, 2) and (batch["flow"][:3, ..., 1] == 100).all()
    np.testing.assert_array_equal(batch["flow"][:3, :, 5, 5, 0], shown)
    np.testing.assert_array_equal(batch["sound"][:3, :, 0], shown[:, :1] * 4 + np.arange(50))
    assert not batch["flow"][3].any() and not batch["sound"][3].any()
    assert batch["sound_valid"].tolist() == [True] * 3 + [False]
    assert next(select([batch], "flow", "valid")).keys() == {"flow", "valid"}


def test_each_view_has_its_own_fields(manifest):
    source = open_source(str(manifest))
    (batch,) = evaluation_batches(source, CLIPS, batch_size=3, view_counts=(2, 3), fields=ALL)
    shapes = {name: batch[name].shape[1:] for name in (*ALL, "times", "crop", "video")}
    assert shapes == {
        "score": (), "people": (3,), "actions": (6, 2, 3), "boxes": (6, 2, 4), "objects": (6, 4, 1, 4),
        "flow": (6, 4, 24, 24, 2), "sound": (6, 50, 1), "times": (6, 4), "crop": (6, 7), "video": (6, 4, 24, 24, 3),
    }  # fmt: skip
    assert (batch["times"][0, :3, 0] == 0).all() and (batch["times"][0, 3:, 0] == np.float32(43 / 25)).all()
    assert batch["crop"][0, :, 1].tolist() == [0, 8, 16] * 2
    np.testing.assert_allclose(batch["boxes"][0, :3, 0, 2], [20 / 24, 12 / 24, 4 / 24])


def test_times_and_crop_of_a_batch_reproduce_its_pixels(manifest):
    """Decoding the frames at the times of a random clip and applying its crop gives the clip, and its flow likewise."""
    config = DataConfig(
        **vars(CLIPS) | {"repeats": 2, "sampling": "segments"}, augment=AugmentConfig("random_resized", flip=True)
    )
    source, flips = open_source(str(manifest)), set()
    batches = train_batches(source, config, batch_size=6, seed=3, fields=("flow", "boxes", "score"))
    for _ in range(2):
        batch = next(batches)
        assert batch["score"].shape == (6,) and batch["valid"].all()
        for row in range(6):
            first = 25 * (batch["index"][row] == 1)
            frames = np.round(batch["times"][row] * 25).astype(int) + first
            decoded = decode(manifest.parent / "a.mp4", frames, 24)
            np.testing.assert_array_equal(cut(decoded, batch["crop"][row], 24), batch["video"][row])
            flow = np.minimum(frames, 48)
            flipped = batch["crop"][row, 6]
            expected = 255 - flow if flipped else flow
            np.testing.assert_array_equal(batch["flow"][row, :, 5, 5, 0], expected)
            flips.add(int(flipped))
    assert flips == {0, 1}


def test_invalid_fields_are_refused(manifest):
    config = DataConfig(**vars(CLIPS), augment=AugmentConfig(rand_augment_ops=2))
    with pytest.raises(UserError, match=r"^augment\.rand_augment_ops moves .*, but not objects: set it to 0$"):
        train_batches(open_source(str(manifest)), config, batch_size=2, seed=0, fields=("objects",))
    with pytest.raises(UserError, match=r"has no field 'depth': choose among video, label, score, people, "):
        train_batches(open_source(str(manifest)), config, batch_size=2, seed=0, fields=("depth",))
    with pytest.raises(UserError, match="video and label are in every batch"):
        train_batches(open_source(str(manifest)), config, batch_size=2, seed=0, fields=("label",))


def test_colour_augmentation_applies_to_the_video_only(manifest):
    config = DataConfig(**vars(CLIPS), augment=AugmentConfig("center", color_jitter=0.9, random_erasing=1.0))
    batch = next(train_batches(open_source(str(manifest)), config, batch_size=3, seed=0, fields=("flow",)))
    assert (batch["flow"][..., 1] == 100).all()
    assert batch["video"].std(axis=(0, 1)).max() > 20
    flow = next(train_batches(open_source(str(manifest)), replace(config, stream="flow"), batch_size=3, seed=0))
    np.testing.assert_array_equal(flow["video"], batch["flow"])


def test_fields_of_records_equal_those_of_the_manifest(manifest, tmp_path):
    write_tfrecords.main(write_tfrecords.Config(str(manifest), str(tmp_path / "records"), short_side=24, workers=1))
    source = open_source(f"tfrecord:{tmp_path}/records")
    assert {name: spec for name, spec in source.fields.items() if name in SPECS} == SPECS
    (stored,) = evaluation_batches(source, CLIPS, batch_size=3, fields=ALL)
    (direct,) = evaluation_batches(open_source(str(manifest)), CLIPS, batch_size=3, fields=ALL)
    for name in (*ALL, "times", "crop", "label", "valid"):
        np.testing.assert_allclose(stored[name], direct[name], rtol=1e-5, err_msg=name)
    other = changed_spec(manifest, tmp_path / "other")
    with pytest.raises(UserError, match="contains another conversion"):
        write_tfrecords.main(write_tfrecords.Config(other, str(tmp_path / "records"), short_side=24))


def changed_spec(manifest, folder):
    """The same list in another folder, with integer scores."""
    folder.mkdir()
    (folder / "fields.json").write_text(write_specs(SPECS | {"score": Field("numbers", dtype="int32")}))
    (folder / "list.jsonl").write_text(manifest.read_text())
    return f"{folder}/list.jsonl:{manifest.parent}"


def test_a_record_without_the_requested_stream_is_invalid(tmp_path):
    videos.write_shards(tmp_path)  # without further fields, as in older versions
    assert records.decode_record(open_bytes(tmp_path), "x").values == {}
    (tmp_path / "fields.json").write_text(write_specs(SPECS))
    source = open_source(f"tfrecord:{tmp_path}")
    bad = BadFiles(source, 1.0)
    config = replace(CLIPS, stride=1)
    (batch,) = evaluation_batches(source, config, batch_size=4, fields=("flow",), bad_files=bad)
    assert not batch["valid"].any() and all("it has no flow" in error for error in bad.errors.values())
    (batch,) = evaluation_batches(source, config, batch_size=4, fields=("score", "boxes"))
    assert batch["valid"].all() and (batch["boxes"] == -1).all() and not batch["score"].any()


def open_bytes(folder):
    return records.index_records([str(folder / "videos-0.tfrecord")]).read(0)


WRONG = [
    ({"flow": "none.npy"}, r"line 1: its flow, \S+none\.npy, does not exist: correct the path$"),
    ({"boxes": [[1, 2]]}, r"line 1: its boxes is \[\[1, 2\]\], which is not valid for boxes: it must be .* 4 numbers$"),
    ({"score": "much"}, r"line 1: its score is much, which is not valid for numbers: "),
    ({"flow": "flow.npy", "reverse": True}, r"line 1: reverse is not supported with 'flow'"),
]


@pytest.mark.parametrize(("fields", "sentence"), WRONG)
def test_a_wrong_value_is_a_one_line_error(manifest, fields, sentence):
    path = manifest.parent / "wrong.jsonl"
    path.write_text(json.dumps({"path": "a.mp4"} | fields))
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)


def test_a_csv_may_contain_numbers_and_boxes(manifest):
    path = manifest.parent / "list.csv"
    path.write_text('path,score,boxes\na.mp4,2.5,"[[0, 0, 1, 1]]"\na.mp4,,\n')
    source = open_source(str(path))
    (batch,) = evaluation_batches(source, CLIPS, batch_size=2, fields=("score", "boxes"))
    assert batch["score"].tolist() == [2.5, 0] and batch["boxes"][0, 0].tolist() == [0, 0, 1, 1]
    assert source.notes == (f"{path}: no row has people, actions, objects, flow, sound, described in fields.json",)


def test_an_array_that_does_not_match_its_spec_is_invalid(manifest):
    np.save(manifest.parent / "wide.npy", np.zeros((3, 4, 4, 3), np.uint8))
    path = manifest.parent / "wide.jsonl"
    path.write_text(json.dumps({"path": "a.mp4", "flow": "wide.npy"}))
    bad = BadFiles(source := open_source(str(path)), 1.0)
    list(evaluation_batches(source, CLIPS, batch_size=1, fields=("flow",), bad_files=bad))
    (error,) = bad.errors.values()
    assert error.endswith("wide.npy: it is uint8 3x4x4x3, not uint8 t x h x w x 2")


def test_reserved_names_of_fields_are_refused(manifest, tmp_path):
    (tmp_path / "fields.json").write_text('{"times": {"kind": "numbers"}}')
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    with pytest.raises(UserError, match=r"fields\.json describes 'times', "):
        open_source(str(tmp_path / "list.csv"))


def test_flow_and_boxes_of_the_embedded_data_set_match_its_pixels():
    config = DataConfig(frames=3, size=64, short_side=64, augment=AugmentConfig("random_resized", flip=True), workers=1)
    source = open_source("synthetic:moving_shapes")
    batch = next(train_batches(source, config, batch_size=24, seed=1, fields=("flow", "tracks")))
    compared = 0
    for row in range(24):
        for t in range(3):
            moving = (np.abs(batch["flow"][row, t] - 127.5) > 1).any(axis=-1)  # no motion is 128, or 127 if mirrored
            x1, y1, x2, y2 = batch["tracks"][row, t, 0] * 64
            bright = batch["video"][row, t].max(axis=-1) > 110  # true for shapes, false for backgrounds
            if moving.sum() > 50:  # edges are smoothed
                assert (moving & bright).sum() > 0.6 * (moving | bright).sum()
            if x1 >= 0 and min(x1, y1) > 1 and max(x2, y2) < 63 and moving.any():
                rows, columns = np.flatnonzero(moving.any(1)), np.flatnonzero(moving.any(0))
                np.testing.assert_allclose(
                    [x1, y1, x2, y2], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=2.5
                )
                compared += 1
    assert compared > 8
