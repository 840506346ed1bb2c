"""Latent prediction: the loss of the original, a run that is resumed, a teacher, a collapse, invalid input."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
import videos
from small_models import MODELS, variables_of
from small_runs import interrupt_after

import vidjax
from vidjax import cli, runs
from vidjax.convert import from_state_dict
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models import variable_shapes
from vidjax.models.vjepa import VJEPA, Pretraining
from vidjax.objectives import latent, multi_block
from vidjax.runs.latent import last_layers, load_teacher, make_loss, make_observer, make_targets
from vidjax.training.checkpoint import load_variables
from vidjax.training.metrics import read_metrics
from vidjax.training.sharding import make_mesh
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import jepa_pretrain

STEPS = 4
SMALL = f"""
demo --model vjepa2_tiny --short_blocks 8 --short_scale 0.15 --short_duration 1 --long_blocks 2 --long_scale 0.7
--long_duration 1 --data.size 64 --data.short_side 64 --data.frames 4 --data.stride 1 --data.workers 1 --batch_size 8
--steps {STEPS} --loop.log_every 1 --loop.save_every 2 --loop.evaluate_every 3 --probe_clips 0
--observed_clips 4 --ema_decay 0.9 --final_ema_decay 0.95 --optim.warmup_epochs 0 --optim.final_weight_decay 0.1
""".split()


def run(workdir, *flags):
    argv = [*SMALL, "--workdir", str(workdir), *flags]
    return jepa_pretrain.main(cli.parse(jepa_pretrain.Config, jepa_pretrain.RECIPES, jepa_pretrain.DATA_FLAG, argv))


def test_the_loss_of_a_step_equals_the_original(monkeypatch):
    """Context encoder on visible tokens, moving average on all, predictor, both masks: golden vjepa2_train."""
    golden = recipe.load("vjepa2_train")
    c, (video, *indices) = golden.config, golden.inputs
    card, video = Card(), np.moveaxis(video, 1, -1)  # recorded after normalisation
    pixels = jnp.asarray(video * card.std + card.mean, jnp.float32)
    monkeypatch.setattr(Card, "scale", lambda self, video: pixels)
    fields = {"width": c["D"], "depth": c["L"], "heads": c["H"], "patch_size": (2, c["P"], c["P"]), "card": card}
    predictor = {"predictor_width": c["pD"], "predictor_depth": c["pL"], "predictor_heads": c["pH"]}
    model = Pretraining(**fields, **predictor, mask_tokens=c["M"])
    params = from_state_dict(model, golden.weights, strict=True)["params"]
    # The golden was recorded with token 1; training with clips of one length uses token 0.
    params["predictor"]["mask_tokens"] = jnp.roll(params["predictor"]["mask_tokens"], -c["mask_index"], axis=0)
    target = from_state_dict(VJEPA(**fields), golden.weights, strict=True)["params"]
    masks = [
        multi_block.Mask(*map(jnp.asarray, pair), jnp.ones((2, sum(each.shape[1] for each in pair)), bool))
        for pair in (indices[:2], indices[2:])
    ]
    targets, draw = make_targets(model, None), lambda key, clips: masks
    shapes = [((mask.kept.shape[1], mask.predicted.shape[1]),) for mask in masks]
    loss_fn = make_loss(model, targets, draw, shapes)
    aux = Aux({}, params | {"encoder": target}, {"params": target}, jnp.zeros((), jnp.int32))
    batch = {"video": jnp.zeros(pixels.shape, jnp.uint8), "valid": jnp.ones(2, bool)}
    loss, (_, seen) = jax.jit(loss_fn)(params, aux, batch, jax.random.key(0))
    expected = golden.outputs["output0"].item()
    assert abs(float(loss) - expected) <= 1e-5 * expected
    other = jax.jit(loss_fn)(params, aux, batch | {"valid": jnp.array([True, False])}, jax.random.key(0))[0]
    assert abs(float(other) - expected) > 1e-3  # a mean over valid clips
    assert set(seen) == {"target_std", "prediction_std"} and all(value > 0.1 for value in seen.values())
    taught = make_targets(model, VJEPA(**fields))(aux, batch["video"])  # as if the average were a frozen teacher
    np.testing.assert_allclose(taught, targets(aux, batch["video"]), atol=1e-5)
    run = SimpleNamespace(model=model, source=[0, 1], mesh=make_mesh(), config=SimpleNamespace(seed=0))
    run.evaluation_batches, run.new_variables = lambda *_, **__: iter([batch]), lambda: {"params": params}
    evaluate = make_observer(run, targets, draw, 2)
    assert evaluate(SimpleNamespace(params=params, aux=aux), 1)["latent_loss"] == pytest.approx(expected, rel=1e-5)


def test_targets_of_several_layers_are_those_of_shallower_teachers_normalised_side_by_side(tmp_path):
    """CLIP's without class tokens and before its last norm, frame by frame; VideoMAE's of the whole clip."""
    tower = MODELS["clip"].video.clone(depth=2, num_frames=2)
    masked = vidjax.create_model("videomae_tiny", width=24, depth=2, heads=3, num_frames=2, image_size=32)
    for teacher, shallow in ((tower, tower.clone(depth=1)), (masked, masked.clone(depth=1))):
        side = teacher.image_size
        video = jnp.asarray(recipe.floats("video", (2, 2, side, side, 3)))
        variables = jax.jit(teacher.init)(jax.random.key(0), video)
        both = np.asarray(jax.jit(partial(last_layers, teacher, count=2))(variables, video))
        for number, model in enumerate((shallow, teacher)):
            tokens = model.apply(variables, video, method="encode")
            tokens = np.asarray(tokens).reshape(2, -1, tokens.shape[-1])
            if teacher is tower:  # its last norm has initial values, and another epsilon
                assert (variables["params"]["norm_post"]["scale"] == 1).all()
            expected = latent.normalize_tokens(jnp.asarray(tokens))
            actual = np.split(both, 2, axis=-1)[number]
            np.testing.assert_allclose(actual, expected, atol=2e-3)
    vidjax.save_pretrained(tmp_path / "clip", MODELS["clip"], variables_of("clip"))
    clip = jax.ShapeDtypeStruct((1, 4, 16, 16, 3), jnp.float32)
    assert load_teacher(str(tmp_path / "clip"), clip, 1)[2] == (4, 2, 2, 64)  # a pair of towers
    with pytest.raises(UserError, match="teacher_layers is 2: the teacher has not so many transformer blocks of the"):
        load_teacher(str(tmp_path / "clip"), clip, 2)


def run_with_sizes(workdir):
    """Masks of one kind have three sizes, which so few tokens are not worth."""
    with mock.patch.object(multi_block, "several_sizes", partial(multi_block.several_sizes, least=1)):
        run(workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("jepa") / "run"
    run_with_sizes(workdir)
    return workdir


@pytest.mark.long
def test_the_moving_average_of_a_resumed_run_is_equal_bit_for_bit(finished, tmp_path):
    interrupt_after(2, run_with_sizes, tmp_path / "run")
    run_with_sizes(tmp_path / "run")
    (expected, step), (resumed, _) = load_variables(finished), load_variables(tmp_path / "run")
    assert step == STEPS and expected.keys() == resumed.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)
    losses = [[e["loss"] for e in read_metrics(each) if "loss" in e] for each in (finished, tmp_path / "run")]
    assert len(losses[0]) == STEPS and losses[0] == losses[1]


@pytest.mark.long
def test_the_log_shows_how_diverse_targets_and_predictions_are(finished):
    entries = read_metrics(finished)
    assert all(entry[f"{name}_std"] > 0 for entry in entries if "loss" in entry for name in ("target", "prediction"))
    observed = [entry for entry in entries if "evaluation/latent_loss" in entry]
    assert [entry["step"] for entry in observed] == [3, STEPS]
    assert all(entry[f"evaluation/{name}"] > 0 for entry in observed for name in latent.DIVERSITY)
    assert (finished / "curves.png").exists()


@pytest.mark.long
def test_a_frozen_teacher_makes_the_targets(finished, tmp_path, capsys):
    """The encoder of another run, of another width."""
    run(tmp_path / "run", "--teacher", str(finished), "--steps", "2")
    assert f"of {finished}" in capsys.readouterr().out
    taught = [entry["target_std"] for entry in read_metrics(tmp_path / "run") if "loss" in entry]
    assert len(taught) == 2
    save_coarse(tmp_path / "coarse")
    grids = r"the teacher's tokens lie on a grid of \(2, 2, 2\), the model's on \(2, 4, 4\): choose another"
    with pytest.raises(UserError, match=grids):
        run(tmp_path / "other", "--teacher", str(tmp_path / "coarse"))


def save_coarse(folder):
    """An encoder of patches of 32 pixels."""
    model = vidjax.create_model("videomae_tiny", num_frames=4, image_size=64, patch_size=(2, 32, 32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    vidjax.save_pretrained(folder, model, zeros)


@pytest.mark.long
def test_an_encoder_of_version_2_1_is_trained_and_starts_a_classifier(tmp_path):
    """All levels are targets, and the context's tokens count after the warm-up, from the second step on here."""
    run(tmp_path / "run", "--model", "vjepa2_1_tiny", "--context_warmup", "0.5", "0.5", "--steps", "2")
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "run") if "loss" in entry]
    assert len(losses) == 2 and losses[1] > 1.2 * losses[0]
    classifier = vidjax.create_model("vjepa2_1_tiny", num_classes=3, num_frames=4)
    new = jax.jit(classifier.init)(jax.random.key(0), jnp.zeros((1, 4, 64, 64, 3)))
    started, _ = runs.start_from(str(tmp_path / "run"), classifier, new)
    saved = load_variables(tmp_path / "run")[0]
    kernel = started["params"]["image_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, saved["params/encoder/image_embedding/kernel"])
    assert (new["params"]["image_embedding"]["kernel"] != kernel).any()


@pytest.mark.long
def test_a_run_whose_targets_collapse_stops_with_advice_and_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(latent, "COLLAPSED", 100.0)
    advice = r"step 3: the targets have collapsed \(RankMe .*; untrained .*: start again with a lower --optim"
    with pytest.raises(UserError, match=advice) as error:
        run_with_sizes(tmp_path / "run")  # compiled for the run above
    assert "\n" not in str(error.value)
    assert load_variables(tmp_path / "run")[1] == 3


@pytest.mark.parametrize("name", ["vjepa2_1_base", "vjepa2_1_large", "vjepa2_1_giant"])
def test_all_sizes_predict_four_levels_and_the_distilled_ones_a_teachers_last(name):
    own = jepa_pretrain.make_model(jepa_pretrain.Config(model=name), None)
    assert own.predicted_levels == 4 and own.target_width is None
    taught = jepa_pretrain.make_model(jepa_pretrain.Config(model=name, teacher="runs/teacher"), 1664)
    assert taught.target_width == 1664 and taught.predicted_levels == (4 if name == "vjepa2_1_giant" else 1)


BAD = [
    (["--data.size", "32"], "8 blocks of 15% of a frame of 2x2 patches leave nothing to predict: use larger"),
    (["--long_scale", "0.95"], "2 blocks of 95% of a frame of 4x4 patches leave no context: use smaller blocks"),
    (["--predictor_width", "4"], "predictor_width is 4: its 4 heads need 6 channels or more each, use 24"),
    (["--model", "videomae_tiny"], "model videomae_tiny has no predictor: choose one of vjepa2_1_base, "),
    (["--teacher", "nowhere/at/all"], "teacher: there are no weights at nowhere/at/all: give a run, a file or a Hugg"),
    (["--data.frames", "3"], "3 frames cannot be cut into patches of 2: use a multiple of 2, such as 2 or 4"),
    (["--data.source", "SHORT", "--data.stride", "5"], "a clip needs 16 frames of a video, but the first of SHORT has"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("flags", "message"), BAD, ids=[flags[0] for flags, _ in BAD])
def test_invalid_input_is_one_line_before_anything_is_written(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos.write_video(Path("SHORT") / "a.mp4", videos.numbered(12))
    with pytest.raises(UserError, match=message) as error:
        run("run", *flags)
    assert "\n" not in str(error.value) and not Path("run").exists()


def test_recipes_follow_the_published_schedule():
    """A warm-up of 12,000 steps from 1e-4 to a constant 5.25e-4 at a batch of 3072, for 22 million videos."""
    config = jepa_pretrain.RECIPES["giant"]
    rate = config.optim.schedule(config.batch_size, config.steps, 22e6 / config.batch_size)
    assert [float(rate(step)) for step in (0, 12_100, 239_999)] == pytest.approx([1e-4, 5.25e-4, 5.25e-4], rel=1e-3)
    cooling = jepa_pretrain.RECIPES["giant_cooldown_384"]
    rate = cooling.optim.schedule(cooling.batch_size, cooling.steps, 1000)
    assert [float(rate(step)) for step in (0, 6000, 12_000)] == pytest.approx([5.25e-4, 2.63e-4, 1e-6], rel=1e-2)
    assert replace(config, ema_decay=0.5).blocks == (multi_block.SHORT_RANGE, multi_block.LONG_RANGE)
    with pytest.raises(UserError, match=r"context_warmup is \(0.5, 0.1\): give two fractions of the run in"):
        replace(config, context_warmup=(0.5, 0.1))
