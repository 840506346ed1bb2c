"""Fine-tuning a model of optical flow: the stream is selected, and the card scales its two channels."""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import vidjax
from vidjax import runs
from vidjax.data.batches import evaluation_batches
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.data.sources import draw, open_source
from vidjax.errors import UserError
from vidjax.models import inception3d
from vidjax.runs.results import read_scores
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import evaluate
import finetune
import fuse

DATA = LabelledDataConfig(
    stream="flow",
    frames=2,
    size=32,
    short_side=32,
    stride=4,
    workers=1,
    augment=AugmentConfig(crop="center"),
    train_examples=16,
    validation="synthetic:moving_shapes",
    validation_examples=8,
)


@pytest.fixture
def small_flow_model(monkeypatch):
    """A model with the input and card of i3d_flow (two channels) that compiles quickly."""
    create = vidjax.create_model
    like = create("i3d_flow")

    def create_small(name, **fields):
        return create("fr2d_tiny", channels=like.channels, card=like.card, **fields)

    monkeypatch.setattr(vidjax, "create_model", create_small)
    monkeypatch.setattr("vidjax.runs.computing.create_model", create_small)


def config(workdir):
    return finetune.Config(
        model="i3d_flow",
        data=DATA,
        batch_size=8,
        steps=3,
        optim=OptimizerConfig(learning_rate=1e-3, warmup_epochs=0),
        loop=LoopConfig(log_every=1, save_every=3, evaluate_every=3),
        workdir=str(workdir),
    )


@pytest.mark.long
@pytest.mark.usefixtures("small_flow_model")
def test_a_model_of_flow_is_fine_tuned_on_flow(tmp_path):
    numbers = finetune.main(config(tmp_path / "run"))
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "run") if "loss" in entry]
    assert len(losses) == 3 and np.isfinite(losses).all() and "top1" in numbers
    model, variables = vidjax.load_pretrained(tmp_path / "run")
    assert (model.channels, model.card.mean) == (2, (0.5, 0.5)) and "params" in variables
    clips = runs.usual_clips(tmp_path / "run", model)
    assert clips["stream"] == "flow"  # evaluation reads the same stream


@pytest.mark.long
def test_both_streams_of_i3d_are_fine_tuned_and_their_logits_are_added(tmp_path):
    logits = []
    for name, stream in (("i3d_tiny", "video"), ("i3d_tiny_flow", "flow")):
        run = dataclasses.replace(config(tmp_path / name), model=name, data=dataclasses.replace(DATA, stream=stream))
        assert np.isfinite(finetune.main(run)["last_loss"])
        videos = evaluate.SourceConfig(source="synthetic:moving_shapes", workers=1)
        numbers = evaluate.main(evaluate.Config(run=run.workdir, data=videos, out=str(tmp_path / stream)))
        assert numbers["clips"]["stream"] == stream

        model, variables = vidjax.load_pretrained(run.workdir, verbose=False)
        scores, source = read_scores(str(tmp_path / stream)), open_source("synthetic:moving_shapes", "validation")
        clips = runs.cut_clips(run.workdir, model, videos)
        batch = next(evaluation_batches(source, clips, batch_size=8))
        assert batch["video"].shape[-1] == model.channels == {"video": 3, "flow": 2}[stream]
        logits.append(model.apply(variables, model.card.preprocess(batch["video"])))
        np.testing.assert_allclose(scores["logits"][:8], logits[-1], atol=1e-4)
    streams = tuple(str(tmp_path / stream) for stream in ("video", "flow"))
    fused = fuse.main(fuse.Config(streams, combine="logits", out=str(tmp_path / "fused")))
    both = inception3d.two_stream(*(jnp.asarray(read_scores(folder)["logits"]) for folder in streams))
    np.testing.assert_allclose(both[:8], sum(logits), atol=2e-4)
    assert fused["top1"] == float((both.argmax(axis=-1) == read_scores(streams[0])["labels"]).mean())
    assert fused["alone"].keys() == {*streams}


@pytest.mark.long
def test_frames_and_flow_fused_early_are_trained_and_evaluated_as_one_model(tmp_path):
    data = dataclasses.replace(DATA, stream="video+flow", frames=4, size=64, short_side=64)
    run = dataclasses.replace(config(tmp_path / "run"), model="two_stream_tiny_convolution", data=data)
    numbers = finetune.main(run)
    videos = evaluate.SourceConfig(source="synthetic:moving_shapes", workers=1)
    evaluated = evaluate.main(evaluate.Config(run=run.workdir, data=videos, out=str(tmp_path / "out")))
    assert evaluated["clips"]["stream"] == "video+flow" and 0 <= evaluated["top1"] <= 1
    model, variables = vidjax.load_pretrained(run.workdir, verbose=False)
    assert model.channels == 5 and variables["params"]["temporal_conv_0"]["kernel"].shape[-2] == 8
    assert np.isfinite(numbers["last_loss"])


def test_a_model_of_another_number_of_channels_raises_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="stream flow has 2 channels, the model takes 3: choose another --data"):
        finetune.main(dataclasses.replace(config(tmp_path / "run"), model="fr2d_tiny"))
    for stream, message in (("label", "is no field of frames"), ("sound", "has no field 'sound'")):
        data = dataclasses.replace(DATA, stream=stream)
        with pytest.raises(UserError, match=message):
            finetune.main(dataclasses.replace(config(tmp_path / "run"), model="fr2d_tiny", data=data))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="the video has 2 channels, the model takes 3"):
        vidjax.create_model("fr2d_tiny").card.normalize(jnp.zeros((1, 2, 8, 8, 2)))


def test_the_card_scales_flow_correctly():
    source = draw(open_source("synthetic:moving_shapes", "validation"), 8, 0)
    (batch,) = evaluation_batches(source, DATA, batch_size=8)
    flow = np.asarray(vidjax.create_model("i3d_flow").card.preprocess(jnp.asarray(batch["video"])))
    assert flow.shape == (8, 2, 32, 32, 2)
    assert np.abs(np.median(flow, axis=(1, 2, 3))).max() < 0.005  # the background does not move
    for clip, label in zip(flow, batch["label"], strict=True):
        moved = clip[np.abs(clip).max(axis=-1) > 0.01].mean(axis=0)  # in units of 20 pixels
        angle = label * np.pi / 4
        expected = np.array([np.cos(angle), -np.sin(angle)])
        assert moved @ expected / np.linalg.norm(moved) > 0.95
        assert 32 / 40 / 20 - 0.01 < np.linalg.norm(moved) < 32 / 20 / 20 + 0.01


@pytest.mark.parametrize(
    ("stream", "message"),
    [("sound", "has no field 'sound': choose among video, label, flow, tracks"), ("tracks", "is no field of frames")],
)
def test_an_unknown_stream_raises(stream, message):
    data = LabelledDataConfig(stream=stream, frames=2, size=32)
    with pytest.raises(UserError, match=message):
        evaluation_batches(open_source("synthetic:moving_shapes"), data, batch_size=2)
