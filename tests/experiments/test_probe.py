"""probe.py: features of the encoder's own clips, cached once, and probes whose numbers depend on nothing else."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from small_models import MODELS
from small_runs import changed

from vidjax.convert import save_pretrained
from vidjax.data import batches
from vidjax.data.feature_cache import FeatureCache
from vidjax.data.sampling import dense
from vidjax.data.sources import open_source
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models import example_inputs, text, videomae
from vidjax.runs.features import make_encode
from vidjax.runs.probe import AttentiveConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import probe

SIDE, SHAPES = 16, "synthetic:moving_shapes"
CARD = Card(mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7), stride=3)
ATTENTIVE = AttentiveConfig((1e-2, 1e-3), (0.01,), depth=0, epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def model():
    return videomae.VideoMAE(24, 1, 3, patch_size=(2, 8, 8), num_classes=3, num_frames=4, image_size=SIDE, card=CARD)


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, SIDE, SIDE, 3)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model, variables):
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(path, model, variables)
    return path


@pytest.fixture
def config(checkpoint, tmp_path):
    data = probe.LabelledSourceConfig(train_examples=24, validation=SHAPES, validation_examples=16, workers=1)
    penalties = (1e-3, 1e-1)
    settings = {"batch_size": 8, "penalties": penalties, "k": (1, 5), "attentive": ATTENTIVE}
    return probe.Config(str(checkpoint), data=data, out=str(tmp_path / "out"), **settings)


def cached(config, split="train"):
    folder = Path(config.out) / "features" / split
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def numbers(results):
    """What a probe measures, without its config."""
    return {name: {key: result[key] for key in ("top1", "best", "grid")} for name, result in results.items()}


def test_features_are_those_of_the_model_for_the_clips_of_its_card(config, model, variables, capsys):
    results = probe.main(config)
    source, arrays = open_source(SHAPES, "train"), cached(config)
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:24])
    assert arrays["labels"].tolist() == [source.label(i) for i in chosen]
    short = round(SIDE / CARD.crop_ratio)
    for row in (0, 23):
        with source.open(chosen[row], ["video"]) as example:
            frames, _ = example.streams["video"].read(dense(64, 4, 3), short)
        video = (jnp.asarray(frames[None], jnp.float32) / 255 - jnp.array(CARD.mean)) / jnp.array(CARD.std)
        tokens = model.apply(variables, video, method="encode")
        wanted = {"model": model.apply(variables, video, method="embed")[0], "tokens": tokens.reshape(-1, 24)}
        for kind, values in wanted.items():
            assert arrays[kind].dtype == np.float16 and arrays[kind].shape == (24, *values.shape)
            np.testing.assert_allclose(arrays[kind][row], values, atol=4e-3)
    printed = capsys.readouterr().out
    for name, result in results.items():
        saved = json.loads((Path(config.out) / f"{name}.json").read_text())
        assert saved == json.loads(json.dumps(result)) and saved["train_videos"] == 24 and saved["videos"] == 16
        low, high = saved["top1_interval"]
        assert 0 <= low <= saved["top1"] <= high <= 1 and saved["top1"] == max(each["top1"] for each in saved["grid"])
        assert f"{name:10} {saved['top1']:7.2%}" in printed
    assert saved["features"]["data.stride"] == 3 and saved["features"]["mean"] == [0.2, 0.3, 0.4]


def test_an_interrupted_job_computes_only_what_is_missing(config, monkeypatch):
    wanted = numbers(probe.main(config))
    arrays, again = cached(config), changed(config, out=f"{config.out}2")
    read, computed = batches.evaluation_batches, []

    def interrupted(count):
        def evaluation_batches(*args, indices, **settings):
            for batch in itertools.islice(read(*args, indices=indices, **settings), count):
                computed.extend(batch["index"][batch["valid"]].tolist())
                yield batch
            if count:
                raise KeyboardInterrupt

        return evaluation_batches

    monkeypatch.setattr(batches, "evaluation_batches", interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        probe.main(again)
    assert computed == list(range(16))
    monkeypatch.setattr(batches, "evaluation_batches", interrupted(None))
    assert numbers(probe.main(again)) == wanted
    assert computed == [*range(24), *range(16)]  # the rest of the training videos, and the validation videos
    for name, array in cached(again).items():
        np.testing.assert_array_equal(array, arrays[name])
    computed.clear()
    assert numbers(probe.main(again)) == wanted and not computed
    # Other probes of the same features; other features of the same clips are added.
    few = changed(again, probes=("linear",), pooling="mean_std")
    assert "attentive" not in probe.main(few) and len(computed) == 40
    tokens = arrays["tokens"].astype(np.float32)
    wanted = np.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=-1)
    np.testing.assert_allclose(cached(again)["mean_std"], wanted, atol=5e-3)


def test_a_cache_of_other_features_is_refused(config, model, variables, tmp_path):
    linear = changed(config, probes=("linear",))
    probe.main(linear)
    save_pretrained(tmp_path / "other", model, jax.tree.map(lambda leaf: leaf + 0.1, variables))
    for fields, reason in (
        ({"run": str(tmp_path / "other")}, "encoder was VideoMAE .*, is VideoMAE "),
        ({"untrained": True, "seed": 1, "data__train_examples": 24}, "encoder was VideoMAE"),
        ({"data__stride": 2}, "data.stride was 3, is 2"),
        ({"data__size": 24}, "data.size was 16, is 24"),
        ({"data__train_examples": 23}, "videos was 24, is 23"),
        ({"data__validation": SHAPES, "data__validation_split": "train"}, "the files, parts or labels changed"),
        ({"cache_dtype": "float32"}, "cache_dtype was float16, is float32"),
    ):
        with pytest.raises(UserError, match=rf"made in another way \(.*{reason}.*choose another --out") as caught:
            probe.main(changed(linear, **fields))
        assert "\n" not in str(caught.value)


def test_numbers_do_not_depend_on_the_number_of_devices(config):
    many = probe.main(config)
    one = probe.main(changed(config, out=f"{config.out}1"), jax.devices()[:1])
    for kind in ("model", "tokens"):
        np.testing.assert_allclose(cached(config)[kind], np.load(f"{config.out}1/features/train/{kind}.npy"), atol=2e-3)
    for name in many:
        assert many[name]["top1"] == one[name]["top1"] and many[name]["best"] == one[name]["best"]
    losses = [[point["loss"] for point in each["attentive"]["grid"]] for each in (many, one)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_unreadable_videos_are_left_out_and_listed(config, tmp_path, capsys):
    for name in ("jump/0", "jump/1", "jump/2", "wave/3", "wave/4", "wave/5"):
        videos.write_video(tmp_path / "videos" / f"{name}.mp4", videos.numbered(12, 32, 32))
    (tmp_path / "videos" / "wave" / "6.mp4").write_text("no video")
    folder = dataclasses.replace(config.data, train=str(tmp_path / "videos"), validation=str(tmp_path / "videos"))
    result = probe.main(changed(config, data=folder, probes=("knn",), k=(1,)))["knn"]
    assert result["train_videos"] == result["videos"] == 6 and result["classes"] == ["jump", "wave"]
    (line,) = (Path(config.out) / "features/train/bad_files.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("6.mp4") and "1 videos could not be read" in capsys.readouterr().out
    with pytest.raises(UserError, match="k 7 is more than the 6 training videos"):
        probe.main(changed(config, data=folder, probes=("knn",), k=(7,)))


def test_invalid_input_raises_one_line(config, tmp_path):
    videos.write_video(tmp_path / "bare" / "0.mp4", videos.numbered(12, 32, 32))
    for name in ("x/0.mp4", "y/1.mp4"):
        videos.write_video(tmp_path / "others" / name, videos.numbered(12, 32, 32))
    tower = text.TextTower(60, 7, 24, 1, 1, 16)
    save_pretrained(tmp_path / "text", tower, jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, 7), int)))
    for fields, reason in (
        ({"data__train": str(tmp_path / "bare")}, "has 0 classes: give labels of at least two"),
        ({"data__train": str(tmp_path / "absent")}, "absent does not exist"),
        ({"data__validation": str(tmp_path / "others")}, "classes that the model does not know, such as 'x'"),
        ({"data__validation": None}, "give --data.validation"),
        ({"run": str(tmp_path / "text")}, "TextTower does not encode videos"),
        ({"run": str(tmp_path / "absent")}, "absent"),
        ({"k": (25,)}, "k 25 is more than the 24 training videos: give --k"),
        ({"k": ()}, "k is empty: give at least one value"),
        ({"k": (0,)}, "penalties must be 0 or more, and k 1 or more"),
        ({"probes": ()}, "probes is empty"),
        ({"penalties": ()}, "penalties is empty"),
        ({"attentive__learning_rates": ()}, "attentive.learning_rates is empty: give at least one value"),
        ({"attentive__weight_decays": (-0.1,)}, "attentive.weight_decays not below"),
        ({"attentive__heads": 5}, "attentive.heads is 5: it must divide the 24 channels"),
        ({"data__frames": 3}, "3 frames cannot be cut into patches of 2"),
        ({"batch_size": 3}, "cannot be split over 2 devices"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            probe.main(changed(config, **fields))
        assert "\n" not in str(caught.value), reason


def test_features_that_float16_cannot_hold_are_refused(tmp_path):
    cache = FeatureCache(tmp_path / "cache", {"encoder": "a"}, 2)
    cache.add("model", (3,), "float16")
    for values, reason in (
        (np.full((1, 3), 1e5), "model features are too large for float16: give --cache_dtype float32"),
        (np.full((1, 3), np.nan), "model features are not finite"),
    ):
        with pytest.raises(UserError, match=reason):
            cache.write(np.array([1]), np.array([0]), {"model": values})
    assert not cache.done("model").any()
    with pytest.raises(
        UserError, match=r"tokens features of 2 videos take .* GB, and .* GB left: choose another --out"
    ):
        cache.add("tokens", (10**9, 10**6), "float16")


@pytest.mark.parametrize(
    ("name", "width"), [("videomae's pre-training", 24), ("clip", 16), ("albef", 16), ("siglip", 48)]
)
def test_every_encoder_has_pooled_features(name, width):
    model = MODELS[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    video = jax.ShapeDtypeStruct((2, model.num_frames, model.image_size, model.image_size, 3), jnp.uint8)
    shapes = jax.eval_shape(make_encode(model, ("model", "mean_std", "tokens")), variables, video)
    tokens = shapes["tokens"].shape[-1]
    assert shapes["model"].shape == (2, width) and shapes["mean_std"].shape == (2, 2 * tokens)
    assert shapes["tokens"].ndim == 3 and all(each.dtype == jnp.float32 for each in shapes.values())
