"""Checkpoints: retention, damaged checkpoints, and loading the weights of another run."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from small_runs import truncate_largest

from vidjax.training.checkpoint import Checkpoints, fits, load_variables
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.state import create_state

CONFIG = OptimizerConfig()
TX = make_optimizer(CONFIG, CONFIG.schedule(256, 100, 10))


def make_state(step, ema=False):
    variables = {"params": {"layer": {"kernel": jnp.full((64, 64), float(step)), "bias": jnp.full(3, float(step))}}}
    return create_state(variables, TX, jax.random.key(step), ema).replace(step=jnp.int32(step))


def save(directory, *steps, ema=False, **options):
    checkpoints = Checkpoints(directory / "checkpoints", **options)
    for step in steps:
        checkpoints.save(make_state(step, ema), {"seed": 0}, next_batch=step)
    checkpoints.close()


def names(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())


def test_the_state_is_restored_exactly(tmp_path):
    save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state, next_batch = checkpoints.restore(make_state(0))
    checkpoints.close()
    assert next_batch == 7
    expected = make_state(7)
    assert jnp.array_equal(jax.random.key_data(state.key), jax.random.key_data(expected.key))
    for got, want in zip(jax.tree.leaves(state.replace(key=0)), jax.tree.leaves(expected.replace(key=0)), strict=True):
        np.testing.assert_array_equal(got, want)


@flax.struct.dataclass
class OldState:
    """The form in which earlier versions saved the state, with `optax.apply_if_finite`."""

    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    key: Any


def test_a_run_saved_with_apply_if_finite_resumes_and_its_layout_is_unchanged(tmp_path):
    new = make_state(7, ema=True)
    counted = optax.ApplyIfFiniteState(jnp.int32(2), jnp.array(False), jnp.int32(5), new.opt_state)
    old = OldState(new.step, new.params, new.model_state, counted, new.ema, new.key)
    with ocp.CheckpointManager(tmp_path / "old" / "checkpoints") as manager:
        items = {"state": ocp.args.StandardSave(old), "config": ocp.args.JsonSave({})}
        manager.save(7, args=ocp.args.Composite(**items, data=ocp.args.JsonSave({"next_batch": 7, "value": None})))
    save(tmp_path / "new", 7, ema=True)
    layouts = [
        ocp.PyTreeCheckpointHandler().metadata(tmp_path / name / "checkpoints/7/state").tree for name in ("old", "new")
    ]
    names = [set(ocp.tree.to_flat_dict(tree, sep="/")) for tree in layouts]
    assert names[0] == names[1] and "opt_state/total_notfinite" in names[0]
    assert fits(tmp_path / "old", new)
    checkpoints = Checkpoints(tmp_path / "old" / "checkpoints")
    state, next_batch = checkpoints.restore(make_state(0, ema=True))
    checkpoints.close()
    assert next_batch == 7
    assert (state.skipped.total, state.skipped.in_a_row, bool(state.skipped.last_finite)) == (5, 2, False)
    same = [each.replace(key=0, skipped=None) for each in (state, new)]
    for got, want in zip(*map(jax.tree.leaves, same), strict=True):
        np.testing.assert_array_equal(got, want)


def test_frozen_parameters_are_not_saved_and_come_from_the_new_state(tmp_path):
    teacher = {"kernel": jnp.full((64, 64), 3.0)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(make_state(7).replace(frozen=teacher), {}, next_batch=7)
    checkpoints.close()
    assert fits(tmp_path, make_state(0)) and fits(tmp_path, make_state(0).replace(frozen=teacher))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state, _ = checkpoints.restore(make_state(0).replace(frozen=teacher))
    checkpoints.close()
    assert state.frozen is teacher and state.params["layer"]["kernel"][0, 0] == 7


def test_restoring_without_checkpoints_gives_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(make_state(0)) is None
    checkpoints.close()


def test_the_newest_and_every_kth_are_kept(tmp_path):
    save(tmp_path, 10, 20, 30, 40, 50, keep=2, keep_every=20)
    assert names(tmp_path) == [20, 40, 50]


def test_a_damaged_checkpoint_is_reported_and_moved_and_the_previous_one_used(tmp_path, caplog):
    save(tmp_path, 10, 20)
    truncate_largest(tmp_path / "checkpoints" / "20")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state, next_batch = checkpoints.restore(make_state(0))
    assert next_batch == 10 and float(state.params["layer"]["bias"][0]) == 10
    assert "checkpoint 20 cannot be read" in caplog.text and "damaged checkpoint 20 was moved to" in caplog.text
    assert (tmp_path / "damaged_checkpoints" / "20").is_dir()
    checkpoints.save(make_state(20), {}, next_batch=20)  # its step can be saved again
    checkpoints.close()
    assert names(tmp_path) == [10, 20]


def test_a_run_with_only_damaged_checkpoints_does_not_start_from_scratch(tmp_path):
    save(tmp_path, 10, 20)
    for step in ("10", "20"):
        truncate_largest(tmp_path / "checkpoints" / step)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints .* can be read"):
        checkpoints.restore(make_state(0))
    checkpoints.close()
    assert names(tmp_path) == [10, 20]


def test_checkpoints_of_another_optimiser_are_not_called_damaged(tmp_path):
    save(tmp_path, 10, 20)
    other = create_state({"params": make_state(0).params}, optax.sgd(0.1, momentum=0.9), jax.random.key(0))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="have other arrays than this run's model and optimiser: resume it with the"):
        checkpoints.restore(other)
    checkpoints.close()
    assert names(tmp_path) == [10, 20]


def test_remains_of_a_killed_save_are_ignored_and_removed(tmp_path):
    save(tmp_path, 10)
    left = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp-123"
    left.mkdir()
    (left / "part").write_text("half")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(make_state(0))[1] == 10
    checkpoints.close()
    assert not left.exists()


def test_variables_are_loaded_with_the_moving_average_if_there_is_one(tmp_path):
    save(tmp_path / "plain", 5, 9)
    variables, step = load_variables(tmp_path / "plain")
    assert step == 9 and set(variables) == {"params/layer/kernel", "params/layer/bias"}
    assert variables["params/layer/bias"].tolist() == [9, 9, 9]
    checkpoints = Checkpoints(tmp_path / "averaged" / "checkpoints")
    state = make_state(3, ema=True).replace(model_state={"batch_stats": {"norm": {"mean": jnp.full(2, 7.0)}}})
    checkpoints.save(state.replace(ema=jax.tree.map(lambda p: p + 0.5, state.ema)), {}, next_batch=3)
    checkpoints.close()
    variables, _ = load_variables(tmp_path / "averaged")
    assert variables["params/layer/bias"].tolist() == [3.5, 3.5, 3.5]
    assert variables["batch_stats/norm/mean"].tolist() == [7, 7]


def test_loading_without_checkpoints_or_from_a_damaged_one_raises(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint"):
        load_variables(tmp_path)
    save(tmp_path, 5)
    with pytest.raises(ValueError, match="has no checkpoint in best/"):
        load_variables(tmp_path, "best")
    truncate_largest(tmp_path / "checkpoints" / "5")
    with pytest.raises(ValueError, match=r"checkpoint 5 in .* cannot be read \(.*\): restore it"):
        load_variables(tmp_path)


def test_the_metric_of_the_newest_checkpoint_is_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "best", keep=1)
    assert checkpoints.newest_value() == -np.inf
    checkpoints.save(make_state(3), {}, next_batch=3, value=0.25)
    checkpoints.save(make_state(8), {}, next_batch=8, value=0.5)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "best", keep=1)
    assert checkpoints.newest_value() == 0.5
    checkpoints.close()


def test_a_checkpoint_fits_only_states_of_the_same_structure(tmp_path):
    def state(width=64, ema=False, **optim):
        config = OptimizerConfig(**optim)
        tx = make_optimizer(config, config.schedule(256, 100, 10))
        variables = {"params": {"layer": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(3)}}}
        return jax.eval_shape(lambda: create_state(variables, tx, jax.random.key(0), ema))

    assert fits(tmp_path, state())  # no checkpoint yet
    save(tmp_path, 3)
    assert fits(tmp_path, state()) and fits(tmp_path, state(learning_rate=1.0, clip_norm=1.0, warmup_epochs=1.0))
    for other in (state(65), state(ema=True), state(kind="sgd"), state(layer_decay=0.5)):
        assert not fits(tmp_path, other)
