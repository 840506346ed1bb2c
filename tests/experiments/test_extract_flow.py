"""Flow beside frames: what is stored, how several processes share the work, and RAFT in windows."""

import dataclasses
import json
import sys
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import videos
from PIL import Image
from small_models import perturbed

import vidjax
from vidjax.convert import save_pretrained
from vidjax.data.batches import evaluation_batches
from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.data.flow import follow_points, to_bytes
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source
from vidjax.errors import UserError
from vidjax.runs.flow import PAIRS, choose_flows, raft_flows
from vidjax.visualize.flow import draw_tracks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import extract_flow
import write_tfrecords


def known_flows(frames):
    """A flow that tells which two frames it was made from."""
    for first, second in pairwise(frames):
        levels = [float(first.mean()) / 16, -float(second.mean()) / 16]
        yield np.broadcast_to(np.float32(levels), (*first.shape[:2], 2))


@pytest.fixture
def write(monkeypatch):
    monkeypatch.setattr(extract_flow, "choose_flows", lambda method, weights: known_flows)

    def write(source, out, **settings):
        settings = {"short_side": 16, "workers": 1, "videos_per_shard": 2} | settings
        extract_flow.main(extract_flow.Config(str(source), str(out), **settings))
        return open_source(f"tfrecord:{out}")

    return write


def test_flow_is_stored_beside_the_frames_that_it_leads_from(write, tmp_path, capsys):
    with pytest.raises(UserError, match="matches no files"):  # the third of two shards: nothing to do, nor to draw
        write("synthetic:moving_shapes", tmp_path, examples=3, max_frames=5, pictures=1, part="3/3")
    printed = capsys.readouterr().out
    assert "part 3/3: 0 of the shards" in printed and "train on them with --data.train tfrecord:" in printed
    source = write("synthetic:moving_shapes", tmp_path, examples=3, max_frames=5, pictures=1, part="2/2")
    assert len(source) == 1 and "1 shards of other parts are not complete yet" in capsys.readouterr().out
    source = write("synthetic:moving_shapes", tmp_path, examples=3, max_frames=5, pictures=1)
    printed = capsys.readouterr().out
    assert "flow of synthetic:moving_shapes is replaced" in printed and "1 shards are complete from an ear" in printed
    assert len(source) == 3 and source.fields["flow"].mirrored == (0,) and "tracks" in source.fields
    with source.open(1, ("flow", "tracks")) as example:
        frames, flow = (example.streams[name].read(np.arange(5))[0] for name in ("video", "flow"))
        assert example.values["tracks"].shape == (64, 6)
    expected = np.stack(list(known_flows(frames)))[[0, 1, 2, 3, 3]]
    assert np.abs(flow.astype(int) - to_bytes(expected)).max() <= 1  # frames are stored as JPEG
    assert Image.open(tmp_path / "pictures" / "00000.png").size[0] >= 480

    config = DataConfig(frames=2, size=16, short_side=16, stream="flow", augment=AugmentConfig("center", flip=True))
    batch = next(train_batches(source, config, batch_size=8, seed=0))
    x, flipped = batch["video"][:, 0, 0, 0, 0], batch["crop"][:, 6].astype(bool)
    assert batch["valid"].all() and 0 < flipped.sum() < 8
    assert (x[flipped] < 127).all() and (x[~flipped] > 128).all()  # turned with the clip


def test_flow_in_float16_is_exact_from_the_records_to_the_model(write, tmp_path, monkeypatch):
    given = []

    def flows(frames):
        for k, (first, _) in enumerate(pairwise(frames)):
            draw = np.random.default_rng(k).standard_normal((*first.shape[:2], 2)).astype(np.float32)
            given.append(draw * np.float32([0.001, 5.0, 40.0][k]))  # nothing is lost near 0 or cut beyond 20
            yield given[-1]

    monkeypatch.setattr(extract_flow, "choose_flows", lambda method, weights: flows)
    videos.write_video(tmp_path / "videos" / "a.mp4", videos.numbered(4, 16, 16))
    source = write(tmp_path / "videos", tmp_path / "records", store="float16", pictures=1)
    stored = np.stack([*given, given[-1]]).astype(np.float16)
    with source.open(0, ("flow",)) as example:
        np.testing.assert_array_equal(example.streams["flow"].read(np.arange(4))[0], stored)
    write_tfrecords.main(write_tfrecords.Config(f"tfrecord:{tmp_path}/records", str(tmp_path / "copy")))
    source = open_source(f"tfrecord:{tmp_path}/copy")
    assert source.fields["flow"].dtype == "float16"

    config = DataConfig(
        frames=4, size=16, short_side=16, stride=1, stream="flow", augment=AugmentConfig("center", flip=True)
    )
    batch = next(train_batches(source, config, batch_size=8, seed=0, fields=("video+flow",)))
    flipped = batch["crop"][:, 6].astype(bool)
    assert batch["video"].dtype == np.float16 and 0 < flipped.sum() < 8
    turned = stored[:, :, ::-1] * np.float16([-1, 1])
    for clip, is_turned in zip(batch["video"], flipped, strict=True):
        np.testing.assert_array_equal(clip, turned if is_turned else stored)
    (row,) = evaluation_batches(source, config, batch_size=1, fields=("video+flow",))
    np.testing.assert_array_equal(row["video"][0], stored)
    # Joined with frames, these are scaled as flow is.
    joined, card = row["video+flow"][0], vidjax.create_model("two_stream_tiny_sum").card
    np.testing.assert_array_equal(joined[..., 3:], stored)
    with source.open(0, ()) as example:
        frames = example.streams["video"].read(np.arange(4))[0]
    np.testing.assert_allclose(card.scale(joined)[..., :3], card.scale(frames), atol=2e-4)
    small = np.linspace(-20, 20, 99, dtype=np.float32)[:, None]
    np.testing.assert_allclose(card.scale(small.astype(np.float16)), card.scale(to_bytes(small)), atol=2.5e-3)
    # Of half the size, it is interpolated and not rounded to whole numbers.
    half = dataclasses.replace(config, size=8, short_side=8, augment=AugmentConfig("center"))
    trained = next(train_batches(source, half, batch_size=1, seed=0))["video"][0]
    (tested,) = evaluation_batches(source, half, batch_size=1)
    np.testing.assert_allclose(trained, tested["video"][0], rtol=2e-3, atol=1e-2)
    assert trained.shape == (4, 8, 8, 2) and 1e-4 < np.abs(trained[0]).max() < 4e-3 and np.abs(trained[2]).max() > 20

    fields = tmp_path / "copy" / "fields.json"
    write(tmp_path / "videos", tmp_path / "bytes", pictures=0)
    (tmp_path / "bytes" / "fields.json").write_text(fields.read_text())
    wrong = open_source(f"tfrecord:{tmp_path}/bytes")
    with (
        wrong.open(0, ("flow",)) as example,
        pytest.raises(ValueError, match="frame 0 is not stored as float16: write it"),
    ):
        example.streams["flow"].read([0])


def test_videos_without_flow_or_with_flow_of_another_length_are_counted(write, tmp_path, monkeypatch):
    for name, count in (("a", 4), ("b", 1)):
        videos.write_video(tmp_path / "videos" / f"{name}.mp4", videos.numbered(count))
    source = write(tmp_path / "videos", tmp_path / "records", pictures=0)
    (line,) = (tmp_path / "records" / "bad_files.jsonl").read_text().splitlines()
    assert json.loads(line)["error"].endswith("b.mp4: it has one frame, and flow needs two")
    assert len(source) == 1
    encode = extract_flow.make_record

    def without_last(source, index, config, fields, make_streams):
        return encode(source, index, config, fields, lambda frames: {"flow": make_streams(frames)["flow"][:-1]})

    monkeypatch.setattr(extract_flow, "make_record", without_last)
    source = write(tmp_path / "videos", tmp_path / "short", pictures=0)
    message = r"\[0\]: its flow has 3 frames, its video 4: write it again"
    with pytest.raises(UserError, match=message), source.open(0, ("flow",)):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": 0}, "examples is 0: it must be 1 or more"),
        ({"pictures": -1}, "pictures is -1: it must be 0 or more"),
        ({"name": "video"}, "name is 'video': give a word that batches do not use, such as flow"),
        ({"name": "times"}, "name is 'times': give a word that batches do not use"),
        ({"max_frames": 1}, "max_frames is 1: flow needs 2 or more"),
        ({"method": "raft"}, "method raft needs weights: give --weights, such as raft_small_c_t_v2"),
        ({"weights": "a"}, "weights are RAFT's, not those of method tvl1: omit --weights, or give --method raft"),
        ({"method": "raft", "weights": "absent.pth"}, r"weights: there are no weights at absent\.pth"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_is_written(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        extract_flow.main(extract_flow.Config("synthetic:moving_shapes", str(tmp_path / "out"), **settings))
    assert not (tmp_path / "out").exists()


def test_another_method_in_the_same_folder_is_refused(write, tmp_path):
    write("synthetic:moving_shapes", tmp_path, examples=1, max_frames=2, pictures=0)
    with pytest.raises(UserError, match=r"contains another conversion .*method was tvl1, is dis"):
        write("synthetic:moving_shapes", tmp_path, examples=1, max_frames=2, pictures=0, method="dis")


def test_opencv_finds_the_direction_of_the_embedded_shapes(tmp_path):
    pytest.importorskip("cv2")
    flows, source = choose_flows("farneback", None), open_source("synthetic:moving_shapes")
    for index in range(4):
        frames = source.read(index, range(3), 64).frames
        moving = np.stack([flow[np.hypot(*np.moveaxis(flow, -1, 0)) > 1] for flow in flows(iter(frames))][:1])
        angle = source.label(index) * np.pi / 4
        mean = moving.mean(axis=(0, 1))
        assert mean @ [np.cos(angle), -np.sin(angle)] > 0.9 * np.linalg.norm(mean)


def test_points_follow_the_shape_and_are_lost_where_it_leaves(tmp_path):
    pytest.importorskip("cv2")
    rows = np.linspace(0, 3, 64)
    background = 60 + 20 * np.sin(rows[:, None]) * np.cos(rows)
    frames = np.repeat(np.broadcast_to(background, (6, 64, 64))[..., None], 3, axis=-1).astype(np.uint8)
    for i, frame in enumerate(frames):
        frame[20:36, 30 + 4 * i : 46 + 4 * i] = 230  # its right corners leave after the fourth frame
    tracks = follow_points(frames)
    left = tracks[:, tracks[0, :, 0] < 38]
    assert np.abs(left - left[:1] - np.arange(6)[:, None, None] * [4, 0]).max() < 0.2
    right = tracks[:, tracks[0, :, 0] > 40]
    assert left.shape[1] and right.shape[1] and not np.isnan(right[3]).any() and np.isnan(right[5]).all()
    drawn = draw_tracks(frames[3], tracks[:4])
    assert (drawn != frames[3]).any(axis=-1).sum() > 20 and (draw_tracks(frames[5], tracks[:, :0]) == frames[5]).all()


@pytest.mark.long
def test_raft_in_windows_is_raft_between_all_frames(tmp_path):
    model = vidjax.create_model("raft_tiny", updates=1)
    variables = perturbed(model)
    save_pretrained(tmp_path / "raft", model, variables)
    frames = np.random.default_rng(0).integers(0, 256, (PAIRS + 3, 60, 72, 3), np.uint8)
    found = np.stack(list(raft_flows(str(tmp_path / "raft"))(iter(frames))))
    padded = np.pad(frames, ((0, 0), (0, 4), (0, 0), (0, 0)), "edge")
    expected = jax.jit(model.apply)(variables, model.card.preprocess(padded[None]))[0, :, :60]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    other = vidjax.create_model("r3d_tiny", num_classes=2)
    save_pretrained(tmp_path / "other", other, perturbed(other))
    with pytest.raises(UserError, match=r"weights .* are those of \w+, not of RAFT: give raft_small_c_t_v2"):
        raft_flows(str(tmp_path / "other"))
