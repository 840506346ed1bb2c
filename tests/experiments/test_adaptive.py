"""Models that choose what they compute: what a random choice and a shift change, budgets, a run from videos to table."""

import json
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
from vidjax.errors import UserError
from vidjax.runs import adaptive
from vidjax.training.checkpoint import load_variables

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import adaptive as script

SMALL = """
--data.frames 4 --data.size 32 --data.short_side 32 --data.stride 4 --data.workers 1 --data.train_examples 48
--data.validation_examples 12 --batch_size 6 --steps 4 --full_steps 2 --budgets 0.6 --loop.log_every 1
--loop.save_every 2 --loop.evaluate_every 4 --optim.warmup_epochs 0
""".split()
MODELS = ("dynamicvit_tiny", "stts_tiny", "adavit_tiny", "ada3d_tiny")


def small(name):
    return vidjax.create_model(name, num_classes=3, num_frames=4, image_size=32 if "ada" in name else 64)


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


@pytest.mark.parametrize("name", ["dynamicvit_tiny", "adavit_tiny"])
def test_the_share_for_a_budget_costs_no_more_and_a_budget_below_the_least_is_refused(name):
    cost = adaptive.Cost(small(name))
    assert cost.least < 0.5 and 0.45 < cost.of_share(cost.share_for(0.5)) <= 0.5
    cost.require(cost.least, name)
    with pytest.raises(UserError, match=f"budget is 0.001: {name} takes at least 0.* give --budget 0.* or more"):
        cost.require(0.001, name)


def test_a_random_choice_keeps_as_many_other_tokens_and_a_shift_uses_more():
    model = small("dynamicvit_tiny")
    variables, video = perturbed(model), jnp.asarray(recipe.floats("video", (2, 4, 64, 64, 3)))

    def kept(key):
        with adaptive.deciding(key):
            return model.apply(variables, video, method="masked").kept[0]

    own, other = np.asarray(kept(None)), np.asarray(kept(jax.random.key(1)))
    np.testing.assert_array_equal(own.sum(axis=1), other.sum(axis=1))
    assert (own != other).any()
    model = small("adavit_tiny")
    cost, variables = adaptive.Cost(model), perturbed(model)
    video = jnp.asarray(recipe.floats("video", (2, 4, 32, 32, 3)))
    shift = adaptive.shift_for(model, cost, 0.6, {"own": variables}, video)
    used = []
    for each in (shift - 30, shift, shift + 30):
        with adaptive.deciding(shift=each):
            usage = jax.jit(partial(model.apply, method="masked"))(variables, video).usage
        used.append(float(cost.of_usage(usage).mean()))
    assert used[0] == pytest.approx(cost.least, rel=1e-5) and used[0] < used[1] <= 0.6 and used[2] == pytest.approx(1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["dynamicvit_tiny", "ada3d_tiny"])
def test_a_run_trains_the_network_then_the_choice_resumes_equally_and_measures_both(name, tmp_path):
    def run(workdir):
        budget = ["--data.size", "64", "--data.short_side", "64"] if name == "dynamicvit_tiny" else []
        return script.main(parse("--model", name, "--workdir", str(workdir), *budget))

    rows = run(tmp_path / "whole")["rows"]
    assert [(row["name"], row["budget"]) for row in rows] == [
        ("full", 1.0), ("chosen", 0.5), ("random", 0.5), ("chosen", 0.6), ("random", 0.6),
    ]  # fmt: skip
    assert rows[0]["macs"] == 1 and all(row["macs"] < 1 and row["seconds"] > 0 for row in rows[1:])
    assert json.loads((tmp_path / "whole" / "adaptive.json").read_text()) == rows
    assert (tmp_path / "whole" / "adaptive.png").exists()
    interrupt_after(2, run, tmp_path / "resumed")
    run(tmp_path / "resumed")
    (expected, step), (resumed, _) = load_variables(tmp_path / "whole"), load_variables(tmp_path / "resumed")
    assert step == 4 and expected.keys() == resumed.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "vit_tiny"], "model vit_tiny does not choose what it computes"),
        (["--budget", "0.01"], "budget is 0.01: dynamicvit_tiny takes at least"),
        (["--data.validation", "None"], "data.validation is missing"),
    ],
)
def test_invalid_input_is_reported_before_any_work(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        script.main(parse("--data.size", "64", "--workdir", "run", *flags))
    assert not Path("run").exists()
