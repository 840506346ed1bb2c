"""Models that choose what they compute: what a random choice and a shift change, budgets, a run and its table."""

import dataclasses
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed
from small_runs import interrupt_after

import vidjax
from vidjax import cli
from vidjax.convert.checkpoint import write_model
from vidjax.data.config import LabelledDataConfig
from vidjax.errors import UserError
from vidjax.models.ada3d import Ada3D
from vidjax.runs import adaptive, keep_classes
from vidjax.runs.embedding import pooling_model
from vidjax.training.checkpoint import load_variables
from vidjax.training.sharding import make_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import adaptive as script

SMALL = """
--data.frames 4 --data.stride 4 --data.workers 1 --data.train_examples 48
--data.validation_examples 12 --batch_size 6 --steps 4 --full_steps 2 --budgets 0.6 --loop.log_every 1
--loop.save_every 2 --loop.evaluate_every 4 --optim.warmup_epochs 0
""".split()
LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("stts_tiny_8", "adavit_tiny", "ada3d_tiny")]
MODELS = ("dynamicvit_tiny_8", *LONG)


def small(name):
    return vidjax.create_model(name, num_classes=3, num_frames=4)


def parse(*flags):
    return cli.parse(script.Config, script.RECIPES, script.DATA_FLAG, ["demo", *SMALL, *flags])


@pytest.mark.parametrize("name", MODELS)
def test_each_familys_objective_gives_a_loss_for_each_clip_and_keeps_running_statistics(name):
    model = small(name)
    shapes, frozen = vidjax.models.variable_shapes(model), vidjax.models.variable_shapes(model.model)
    video = jax.ShapeDtypeStruct((2, 4, model.image_size, model.image_size, 3), jnp.float32)
    labels, valid = jnp.array([0, 2]), jnp.array([True, False])

    def losses(variables, frozen, video, key):
        return adaptive.losses_of(model, variables, frozen, video, labels, valid, 0.5, 0.3, key)

    loss, changed, logits = jax.eval_shape(losses, shapes, frozen, video, jax.random.key(0))
    assert loss.shape == (2,) and logits.shape == (2, 3)
    assert set(changed) == ({"batch_stats"} if name == "ada3d_tiny" else set())
    part = adaptive.part_of(jax.tree.map(lambda leaf: np.full(leaf.shape, 2.0), shapes), frozen)
    assert jax.tree.structure(part) == jax.tree.structure(frozen)


@pytest.mark.parametrize("name", ["dynamicvit_tiny_8", *LONG[:2]])
def test_the_share_for_a_budget_costs_no_more_and_a_budget_below_the_least_is_refused(name):
    cost = adaptive.Cost(small(name))
    assert cost.least < 0.45 and 0.35 < cost.of_share(cost.share_for(0.5)) <= 0.5
    cost.require(cost.least, name)
    with pytest.raises(UserError, match=f"budget is .*: {name} takes at least 0.* give --budget 0.* or more"):
        cost.require(cost.least - 0.001, name)


def test_a_random_choice_keeps_as_many_other_tokens():
    model = vidjax.create_model("dynamicvit_tiny_8", num_classes=3, num_frames=4, depth=2, locations=(1,))
    variables, video = perturbed(model), jnp.asarray(recipe.floats("video", (2, 4, 32, 32, 3)))

    @jax.jit
    def kept(key):
        return model.apply(variables, video, method="masked").kept[0], random(key)

    def random(key):
        with adaptive.deciding(key):
            return model.apply(variables, video, method="masked").kept[0]

    own, other = map(np.asarray, kept(jax.random.key(1)))
    assert (own.sum(axis=1) == int(32 * 0.7)).all() and (other.sum(axis=1) == int(32 * 0.7)).all()
    assert (own != other).any() and (other[0] != other[1]).any()


@pytest.mark.long
def test_logits_are_shifted_until_the_clips_cost_the_budget():
    model = small("adavit_tiny")
    cost, variables = adaptive.Cost(model), perturbed(model)
    clips = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8))
    mesh, key = make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    shift = adaptive.shift_for(model, cost, 0.6, variables, [clips], mesh)
    at_random = adaptive.shift_for(model, cost, 0.6, variables, [clips], mesh, key)

    @partial(jax.jit, static_argnums=1)
    def cost_of(shift, shuffled):
        with adaptive.deciding(key if shuffled else None, shift, model.num_frames):
            usage = model.apply(variables, model.card.preprocess(clips), method="masked").usage
        return cost.of_usage(usage).mean()

    nothing, chosen, everything = (float(cost_of(shift + more, False)) for more in (-60, 0, 60))
    assert nothing == pytest.approx(cost.least, rel=1e-5) and everything == pytest.approx(1)
    assert nothing < chosen <= 0.6
    assert at_random != shift and 0.55 < float(cost_of(at_random, True)) <= 0.6


@pytest.mark.long
def test_a_run_trains_the_network_then_the_choice_resumes_equally_and_measures_both(tmp_path, monkeypatch, capsys):
    def run(workdir):
        return script.main(parse("--workdir", str(workdir)))

    def open_labelled(*args):
        return tuple(dataclasses.replace(source, notes=("of the data",)) for source in opened(*args))

    opened = script.open_labelled
    monkeypatch.setattr(script, "open_labelled", open_labelled)
    rows = run(tmp_path / "whole")["rows"]
    assert capsys.readouterr().out.count("note: of the data") == 1
    assert [(row["name"], row["budget"]) for row in rows] == [
        ("full", 1.0), ("chosen", 0.5), ("random", 0.5), ("chosen", 0.6), ("random", 0.6),
    ]  # fmt: skip
    assert rows[0]["macs"] == 1 and all(row["macs"] < row["budget"] and row["seconds"] > 0 for row in rows[1:])
    assert json.loads((tmp_path / "whole" / "adaptive.json").read_text()) == rows
    assert (tmp_path / "whole" / "adaptive.png").exists()
    model, variables = vidjax.load_pretrained(tmp_path / "whole", verbose=False)
    assert model.card.class_names == ("red", "yellow", "green", "blue") and 0.5 < model.keep < 1
    model, variables = keep_classes(model, variables, ("blue", "red"))
    assert model.num_classes == 2 and pooling_model(model, "model").num_classes is None
    assert model.apply(variables, jnp.zeros((1, 4, 32, 32, 3))).shape == (1, 2)
    shutil.copytree(tmp_path / "whole" / "full", tmp_path / "resumed" / "full")  # it is not trained again
    interrupt_after(2, run, tmp_path / "resumed")
    run(tmp_path / "resumed")
    (expected, step), (resumed, _) = load_variables(tmp_path / "whole"), load_variables(tmp_path / "resumed")
    assert step == 4 and expected.keys() == resumed.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


@pytest.mark.long
def test_ada3d_is_trained_without_a_budget_and_measured_at_some(tmp_path):
    config = cli.parse(script.Config, script.RECIPES, script.DATA_FLAG, ["demo_ada3d", *SMALL])
    rows = script.main(dataclasses.replace(config, budget=0.6, workdir=str(tmp_path / "run")))["rows"]
    assert [row["name"] for row in rows] == ["full", "chosen", "random"]
    assert all(0.1 < row["macs"] < 0.7 for row in rows[1:])
    model, variables = vidjax.load_pretrained(tmp_path / "run", verbose=False)
    network, whole = vidjax.load_pretrained(tmp_path / "run" / "full", verbose=False)
    assert isinstance(model, Ada3D) and not isinstance(network, Ada3D)
    # The network goes on learning beside its policy.
    kernel, before = (each["params"]["head"]["kernel"] for each in (variables, whole))
    assert 0 < np.abs(kernel - before).max() < 0.01


@pytest.mark.long
def test_frames_of_a_clip_exchange_what_adavit_decides_about_them():
    model = vidjax.create_model("adavit_tiny", num_classes=3, num_frames=4, model={"depth": 1})
    variables, video = perturbed(model), jnp.asarray(recipe.floats("video", (2, 4, 32, 32, 3)))
    variables["params"]["policy_0"]["tokens"]["kernel"] *= 20  # some tokens are used and some are not

    @jax.jit
    def used(key):
        with adaptive.deciding(key, frames=4):
            usage = model.apply(variables, video, method="masked").usage
        return usage.tokens.sum(axis=(1, 2)).reshape(2, 4)

    own, other = np.asarray(used(None)), np.asarray(used(jax.random.key(1)))
    assert (own != other).any()
    np.testing.assert_array_equal(np.sort(own), np.sort(other))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "vit_tiny"], "model vit_tiny does not choose what it computes"),
        (["--budget", "0.01"], "budget is 0.01: dynamicvit_tiny_8 takes at least 0.* give --budget 0.* or more"),
        (["--data.validation", "None"], "data.validation is missing"),
        (["--init_from", "other"], "init_from: other has other classes than the data"),
    ],
)
def test_invalid_input_is_reported_before_any_work(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small("dynamicvit_tiny_8")
    Path("other").mkdir()
    write_model(Path("other"), model.clone(card=dataclasses.replace(model.card, class_names=("a", "b", "c"))))
    with pytest.raises(UserError, match=message):
        script.main(parse("--workdir", "run", *flags))
    assert not Path("run").exists()


def test_ones_own_videos_need_no_recipe():
    flags = "--data.train train.csv --data.validation val.csv --init_from runs/b --model stts_tiny_8"
    config = cli.parse(script.Config, script.RECIPES, script.DATA_FLAG, flags.split())
    assert config == script.Config(
        model="stts_tiny_8", init_from="runs/b", data=LabelledDataConfig(train="train.csv", validation="val.csv")
    )
    assert config.optim.warmup_epochs < config.epochs / 2


def test_budgets_are_shares():
    with pytest.raises(UserError, match=r"budget is 1.5, .* give shares above 0 and at most 1"):
        script.Config(budget=1.5)
