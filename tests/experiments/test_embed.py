"""embed.py: the model's features with their times, also after interruptions."""

import json
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import videos

from vidjax.convert import save_pretrained
from vidjax.data.config import SourceConfig
from vidjax.data.decode import decode
from vidjax.data.sampling import dense
from vidjax.layers.card import Card
from vidjax.models import resnet3d, videomae

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import embed

SIDE = 16
LENGTHS = {"jump/0.mp4": 12, "jump/1.mp4": 30, "wave/2.mp4": 21, "wave/3.mp4": 9, "wave/4.mp4": 40}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = videomae.VideoMAE(
        24, 1, 3, patch_size=(2, 8, 8), num_classes=3, num_frames=4, image_size=SIDE, card=Card(stride=2)
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, SIDE, SIDE, 3)))
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(path, model, variables)
    return path, model, variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, (name, count) in enumerate(LENGTHS.items()):
        videos.write_video(folder / name, videos.numbered(count, 32, 32, first=100 * number))
    return folder


def run(checkpoint, folder, out, bad_share=0.2, **more):
    data = SourceConfig(source=str(folder), max_bad_share=bad_share)
    settings = {"batch_size": 8, "videos_per_part": 2} | more
    return embed.main(embed.Config(run=str(checkpoint[0]), data=data, out=str(out), **settings))


def read(out):
    with np.load(out) as arrays:
        return dict(arrays)


@cache
def encode(model):
    return jax.jit(partial(model.apply, method="encode"))


def tokens(checkpoint, path, indices):
    """The features of one clip, computed with the model directly."""
    _, model, variables = checkpoint
    video = model.card.normalize(jnp.asarray(decode(path, indices, SIDE)[None], jnp.float32) / 255)
    encoded = np.asarray(encode(model)(variables, video))[0]
    return encoded.reshape(-1, encoded.shape[-1])


def test_one_clip_per_video_with_label_and_time(checkpoint, folder, tmp_path):
    assert run(checkpoint, folder, tmp_path / "a.npz")["shape"] == (5, 24)
    result = read(tmp_path / "a.npz")
    assert result["ids"].tolist() == [str(folder / name) for name in LENGTHS]
    assert result["labels"].tolist() == [0, 0, 1, 1, 1] and result["class_names"].tolist() == ["jump", "wave"]
    for row, (name, count) in enumerate(LENGTHS.items()):
        indices = dense(count, 4, 2)
        wanted = tokens(checkpoint, folder / name, indices).mean(axis=0)
        np.testing.assert_allclose(result["features"][row], wanted, atol=1e-5)
        assert result["start"][row] == indices[0] / 25 and result["end"][row] == pytest.approx((indices[0] + 8) / 25)
    meta = json.loads(str(result["meta"]))
    assert (meta["pooling"], meta["data.frames"], meta["data.stride"], meta["videos"]) == ("mean", 4, 2, 5)
    assert not (tmp_path / "a.npz.parts").exists()


def test_windows_and_tokens_match_their_frames(checkpoint, folder, tmp_path):
    run(checkpoint, folder, tmp_path / "a.npz", window=4, stride=3, pooling="tokens")
    result = read(tmp_path / "a.npz")
    assert result["features"].shape == (20, 8, 24)
    row = 0
    for name, count in LENGTHS.items():
        sampled = np.arange(0, count, 2)
        starts = sorted({*range(0, len(sampled) - 3, 3), len(sampled) - 4})
        for start in starts:
            wanted = tokens(checkpoint, folder / name, sampled[start : start + 4])
            np.testing.assert_allclose(result["features"][row], wanted, atol=1e-5)
            assert result["start"][row] == sampled[start] / 25 and result["ids"][row] == str(folder / name)
            row += 1
    assert row == len(result["ids"])


def test_a_folder_has_a_file_for_each_video_with_windows_one_stride_apart(checkpoint, folder, tmp_path):
    settings = {"window": 4, "stride": 3, "feature_dtype": "float16"}
    run(checkpoint, folder, tmp_path / "features", **settings)
    described = json.loads((tmp_path / "features" / "videos.json").read_text())
    assert (described["window"], described["stride"]) == (4, 3)
    for name, count in LENGTHS.items():
        features = np.load(tmp_path / "features" / f"{Path(name).stem}.npy", mmap_mode="r")
        sampled = np.arange(0, count, 2)
        assert features.shape == ((len(sampled) - 4) // 3 + 1, 24) and features.dtype == np.float16
        last = sampled[3 * len(features) - 3 :][:4]
        wanted = tokens(checkpoint, folder / name, last).mean(axis=0)
        np.testing.assert_allclose(features[-1], wanted, atol=2e-3)
        entry = described["videos"][Path(name).stem]
        assert entry["duration"] == pytest.approx(count / 25)
        if len(features) > 1:
            assert entry["fps"] == pytest.approx(12.5)
    assert run(checkpoint, folder, tmp_path / "features", **settings) == {"finished": True}
    with pytest.raises(ValueError, match=r"stride was 3, is 2"):
        run(checkpoint, folder, tmp_path / "features", window=4, stride=2, feature_dtype="float16")
    with pytest.raises(ValueError, match=r"a/1.mp4 and b/1.mp4 have the same name: rename one"):
        embed.require_names(["a/1.mp4", "b/1.mp4"])
    with pytest.raises(ValueError, match=r"out is the folder .*: give --window"):
        run(checkpoint, folder, tmp_path / "another")


def test_an_interrupted_job_resumes_to_the_same_bytes(checkpoint, folder, tmp_path, monkeypatch, capsys):
    settings = {"window": 4, "stride": 2}
    run(checkpoint, folder, tmp_path / "whole.npz", **settings)
    make_encode = embed.make_encode

    def dying(*arguments):
        encode, calls = make_encode(*arguments), []

        def count(video):
            calls.append(1)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return encode(video)

        return count

    monkeypatch.setattr(embed, "make_encode", dying)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, folder, tmp_path / "stopped.npz", **settings)
    monkeypatch.setattr(embed, "make_encode", make_encode)
    done = sorted(path.name for path in (tmp_path / "stopped.npz.parts").iterdir())
    assert 1 < len(done) < 4 and not (tmp_path / "stopped.npz").exists()
    with pytest.raises(ValueError, match=r"another way \(stride was 2, is 4\): choose another --out"):
        run(checkpoint, folder, tmp_path / "stopped.npz", window=4, stride=4)
    capsys.readouterr()
    run(checkpoint, folder, tmp_path / "stopped.npz", **settings)
    assert f"{len(done) - 1} of 3 parts are done" in capsys.readouterr().out
    assert (tmp_path / "stopped.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()

    before = (tmp_path / "whole.npz").stat()
    assert run(checkpoint, folder, tmp_path / "whole.npz", **settings) == {"finished": True}
    with pytest.raises(ValueError, match=r"pooling was mean, is tokens.*nothing is overwritten"):
        run(checkpoint, folder, tmp_path / "whole.npz", pooling="tokens", **settings)
    assert (tmp_path / "whole.npz").stat().st_mtime_ns == before.st_mtime_ns
    tf.io.TFRecordWriter(str(tmp_path / "empty.tfrecord")).close()
    with pytest.raises(ValueError, match=r"there are no examples in tfrecord:\S+: give another source"):
        run(checkpoint, f"tfrecord:{tmp_path}/empty.tfrecord", tmp_path / "empty.npz")
    (tmp_path / "mine.npz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"has no features written by embed\.py"):
        run(checkpoint, folder, tmp_path / "mine.npz", **settings)


def test_resuming_with_other_files_or_labels_raises(checkpoint, folder, tmp_path, monkeypatch):
    table, out = tmp_path / "list.csv", tmp_path / "a.npz"

    def run_on(names, labels):
        lines = [f"{folder / name},{label}" for name, label in zip(names, labels, strict=True)]
        table.write_text("\n".join(["path,label", *lines]))
        return run(checkpoint, table, out)

    def stop(*_):
        raise KeyboardInterrupt

    others = {"order": ([*LENGTHS][::-1], "aabbb"), "labels": (LENGTHS, "ababb"), "class names": (LENGTHS, "aaccc")}

    def refuses_others():
        for what, (names, labels) in others.items():
            with pytest.raises(ValueError, match="the files, parts or labels changed") as refused:
                run_on(names, labels)
            assert "\n" not in str(refused.value), what

    with monkeypatch.context() as stopped:
        stopped.setattr(embed, "join", stop)
        with pytest.raises(KeyboardInterrupt):
            run_on(LENGTHS, "aabbb")
    refuses_others()
    assert not out.exists() and run_on(LENGTHS, "aabbb")["shape"] == (5, 24)
    refuses_others()
    assert run_on(LENGTHS, "aabbb") == {"finished": True}
    assert read(out)["labels"].tolist() == [0, 0, 1, 1, 1]


def test_unreadable_videos_are_listed_and_too_many_raise(checkpoint, tmp_path, capsys):
    videos.write_video(tmp_path / "videos" / "good.mp4", videos.numbered(20, 32, 32))
    videos.write_video(tmp_path / "videos" / "short.mp4", videos.numbered(5, 32, 32))
    cut = tmp_path / "videos" / "cut.mp4"
    videos.write_video(cut, videos.numbered(90, 32, 32), container_options={"movflags": "+faststart"})
    videos.truncate(cut, 0.7)
    with pytest.raises(ValueError, match=r"1 of the 3 videos .* more than data.max_bad_share 0.2 allows: .*cut.mp4: "):
        run(checkpoint, tmp_path / "videos", tmp_path / "a.npz", window=4, videos_per_part=1)
    result = run(checkpoint, tmp_path / "videos", tmp_path / "a.npz", bad_share=0.7, window=4, videos_per_part=1)
    assert result["unreadable"] == 2 and result["shape"] == (3, 24)
    assert {Path(id).name for id in read(tmp_path / "a.npz")["ids"]} == {"good.mp4"}
    listed = [json.loads(line) for line in (tmp_path / "a.npz.bad_files.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in listed] == ["cut.mp4", "short.mp4"]
    assert "too few for a window of 4" in listed[1]["error"]
    assert "of 1 of 3 videos" in capsys.readouterr().out


def test_tfrecords_have_the_same_features(checkpoint, folder, tmp_path):
    run(checkpoint, folder, tmp_path / "a.npz", pooling="tokens")
    run(checkpoint, folder, tmp_path / "a.tfrecord", pooling="tokens")
    wanted = read(tmp_path / "a.npz")
    records = [
        tf.train.Example.FromString(record.numpy()).features.feature
        for record in tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord"))
    ]
    assert len(records) == 5
    for row, record in enumerate(records):
        features = np.array(record["features"].float_list.value).reshape(record["shape"].int64_list.value)
        np.testing.assert_array_equal(features.astype(np.float32), wanted["features"][row])
        assert record["id"].bytes_list.value[0].decode() == wanted["ids"][row]
        assert record["label"].int64_list.value[0] == wanted["labels"][row]
        assert record["end"].float_list.value[0] == pytest.approx(wanted["end"][row])
    written = json.loads((tmp_path / "a.tfrecord.json").read_text())
    assert written["class_names"] == ["jump", "wave"] and written["meta"] == json.loads(str(wanted["meta"]))
    assert run(checkpoint, folder, tmp_path / "a.tfrecord", pooling="tokens") == {"finished": True}


def test_pooling_is_that_of_the_model_or_the_mean_over_its_grid(folder, tmp_path):
    model = resnet3d.ResNet3D(
        ("2d",) * 5, (1, 1, 1, 1), (8, 8, 8, 8), num_classes=3, num_frames=4, image_size=SIDE, card=Card(stride=2)
    )
    save_pretrained(tmp_path / "conv", model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, SIDE, SIDE, 3))))
    for pooling, shape in (("mean", (5, 8)), ("model", (5, 8)), ("tokens", (5, 4, 8))):
        result = run((tmp_path / "conv",), folder, tmp_path / f"{pooling}.npz", pooling=pooling)
        assert result["shape"] == shape
    arrays = [read(tmp_path / f"{pooling}.npz")["features"] for pooling in ("mean", "model", "tokens")]
    np.testing.assert_allclose(arrays[0], arrays[1], atol=1e-5)
    np.testing.assert_allclose(arrays[0], arrays[2].mean(axis=1), atol=1e-5)


def test_a_query_finds_its_own_window(checkpoint, folder, tmp_path, capsys):
    run(checkpoint, folder, tmp_path / "a.npz", window=4, stride=1)
    # The central clip of this copy is the window of 1.mp4 that starts at frame 12.
    part = videos.numbered(30, 32, 32, first=100)[11:20]
    query = videos.write_video(tmp_path / "query.mp4", part)
    search = {"query": str(query), "index": str(tmp_path / "a.npz"), "neighbours": 3}
    best, *others = embed.main(embed.Config(**search))
    assert Path(best["id"]).name == "1.mp4" and best["label"] == "jump" and best["similarity"] > 0.99
    assert abs(best["start"] - 11 / 25) < 0.09 and len(others) == 2
    assert f"{best['similarity']:.4f}" in capsys.readouterr().out

    _, model, variables = checkpoint
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    save_pretrained(tmp_path / "other", model, variables)
    with pytest.raises(ValueError, match="other has other weights than those that"):
        embed.main(embed.Config(run=str(tmp_path / "other"), **search))
    with pytest.raises(ValueError, match=r"absent\.npz does not exist: embed videos first"):
        embed.main(embed.Config(**search | {"index": "absent.npz"}))
    with pytest.raises(ValueError, match=r"absent\.mp4: No such file"):
        embed.main(embed.Config(**search | {"query": "absent.mp4"}))


def test_invalid_settings_raise(checkpoint, folder, tmp_path):
    for settings, reason in (
        ({}, "no model is given: give --run"),
        ({"run": "x", "out": "a.csv"}, "must end in .npz or .tfrecord"),
        ({"run": "x", "stride": 2}, "give --window too"),
        ({"run": "x", "query": "a.mp4"}, "a search needs both a query and an index"),
        ({"run": "x", "window": 0}, "window is 0: it must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=reason):
            embed.Config(**settings)
    for more, reason in (
        ({"window": 3}, "3 frames cannot be cut into patches of 2"),
        ({"batch_size": 3}, "cannot be split over 2 devices"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(checkpoint, folder, tmp_path / "a.npz", **more)
    decoder = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3}
    model = videomae.Pretraining(24, 1, 3, **decoder, patch_size=(2, 8, 8), num_frames=4, image_size=SIDE)
    inputs = (jnp.zeros((1, 4, SIDE, SIDE, 3)), jnp.zeros((1, 2), int), jnp.zeros((1, 6), int))
    save_pretrained(tmp_path / "mae", model, jax.jit(model.init)(jax.random.key(0), *inputs))
    with pytest.raises(ValueError, match="Pretraining has no pooling: use --pooling mean"):
        run((tmp_path / "mae",), folder, tmp_path / "a.npz", pooling="model")
    assert run((tmp_path / "mae",), folder, tmp_path / "a.npz")["shape"] == (5, 24)
