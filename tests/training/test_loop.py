"""The training loop: order of events, measured waiting times, errors from the prefetching thread."""

import itertools
import threading
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.errors import UserError
from vidjax.training import loop
from vidjax.training.checkpoint import load_variables
from vidjax.training.loop import Feeder, LoopConfig, fit
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.sharding import batch_sharding, make_mesh, replicated
from vidjax.training.state import create_state
from vidjax.training.step import make_train_step

OPTIM = OptimizerConfig(learning_rate=0.01, warmup_epochs=0)


def batches_from(first, poison=()):
    n = first
    while True:
        x = np.random.default_rng(n).normal(size=(8, 4)).astype(np.float32)
        yield {"x": np.full_like(x, np.nan) if n in poison else x, "valid": np.ones(8, bool)}
        n += 1


def run(workdir, steps=10, batches=batches_from, evaluate=None, best=None, advise=None, **loop):
    schedule = OPTIM.schedule(256, 10, 10)
    tx = make_optimizer(OPTIM, schedule)
    mesh = make_mesh()

    def loss_fn(params, aux, batch, key):
        noise = jax.random.normal(key, (4,)) * 0.1
        return jnp.square(batch["x"] @ params["w"] + noise - 1).mean(), (aux.model_state, {})

    state = create_state({"params": {"w": jnp.zeros((4, 4))}}, tx, jax.random.key(0))
    state = jax.device_put(state, replicated(mesh))
    step = jax.jit(
        make_train_step(loss_fn, tx), donate_argnums=0, in_shardings=(replicated(mesh), batch_sharding(mesh))
    )
    return fit(
        step, state, batches, steps=steps, workdir=workdir, mesh=mesh, config={}, schedule=schedule, evaluate=evaluate,
        best=best, advise=advise, loop=LoopConfig(**{"log_every": 1, "save_every": 4} | loop),
    )  # fmt: skip


def losses(workdir):
    return {entry["step"]: entry["loss"] for entry in read_metrics(workdir) if "loss" in entry}


def test_every_step_is_logged_and_the_last_one_saved(tmp_path):
    result = run(tmp_path)
    assert result.finished and result.steps_taken == 10 and int(result.state.step) == 10
    assert list(losses(tmp_path)) == list(range(1, 11))
    needed = {"step", "loss", "learning_rate", "clips_per_second", "data_wait_fraction"}
    assert all(needed <= entry.keys() for entry in read_metrics(tmp_path))
    assert (tmp_path / "checkpoints" / "10").is_dir()


def test_a_notebook_trains_in_six_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = nn.Dense(1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    batches = [{"x": np.random.default_rng(n).normal(size=(8, 4)).astype(np.float32)} for n in range(30)]

    def loss_fn(params, aux, batch, key):
        error = model.apply({"params": params}, batch["x"]) - batch["x"].sum(axis=1, keepdims=True)
        return jnp.square(error).mean(), (aux.model_state, {})

    tx = optax.adam(0.1)
    result = fit(make_train_step(loss_fn, tx), create_state(variables, tx, jax.random.key(1)), batches, steps=30)
    assert result.finished and int(result.state.step) == result.steps_taken == 30
    assert result.logged[-1]["loss"] < 0.1 * result.logged[0]["loss"]
    assert [entry["step"] for entry in result.logged] == [1, 10, 20, 30]
    again = model.init(jax.random.key(0), jnp.zeros((1, 4)))  # the arguments are not modified
    np.testing.assert_array_equal(variables["params"]["kernel"], again["params"]["kernel"])
    assert list(tmp_path.iterdir()) == [] and "step 30" in capsys.readouterr().out
    with pytest.raises(UserError, match="the batches ended before the last step: give as many as steps"):
        fit(make_train_step(loss_fn, tx), create_state(variables, tx, jax.random.key(1)), batches, steps=31)
    poisoned = [{"x": np.full((8, 4), np.nan, np.float32)}] * 9
    with pytest.raises(UserError, match=r"5 steps in a row .* stopped; lower the learning rate, or clip"):
        fit(make_train_step(loss_fn, tx), create_state(variables, tx, jax.random.key(1)), poisoned, steps=9)


def test_fit_with_only_a_work_directory_resumes_with_the_same_batches(tmp_path):
    def loss_fn(params, aux, batch, key):
        noise = jax.random.normal(key, (4,)) * aux.frozen
        return jnp.square(batch["x"] @ params["w"] + noise - 1).mean(), (aux.model_state, {})

    def train(workdir, steps):
        tx, batches = optax.sgd(0.05), itertools.islice(batches_from(0), 10)
        state = create_state({"params": {"w": jnp.zeros((4, 4))}}, tx, jax.random.key(0), frozen=jnp.ones(4))
        settings = {"steps": steps, "workdir": workdir, "loop": LoopConfig(log_every=1)}
        return fit(make_train_step(loss_fn, tx), state, batches, **settings)

    whole, _, rest = train(tmp_path / "whole", 10), train(tmp_path / "parts", 4), train(tmp_path / "parts", 10)
    assert rest.steps_taken == 6 and losses(tmp_path / "parts") == losses(tmp_path / "whole")
    np.testing.assert_array_equal(rest.state.params["w"], whole.state.params["w"])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "parts", steps=4)
    run(tmp_path / "parts", steps=10)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")  # to the last bit


def test_a_finished_run_takes_no_step(tmp_path, capsys):
    run(tmp_path)
    result = run(tmp_path)
    assert result.finished and result.steps_taken == 0
    assert "already finished: all 10 steps taken" in capsys.readouterr().out


def test_a_bad_gradient_is_skipped_counted_and_its_batch_saved(tmp_path):
    run(tmp_path, batches=lambda first: batches_from(first, poison={3, 6}))
    entries = {entry["step"]: entry for entry in read_metrics(tmp_path)}
    assert entries[4]["loss"] is None and entries[10]["skipped_steps"] == 2
    saved = np.load(tmp_path / "skipped_step_4_process_0.npz")
    assert saved["x"].shape == (8, 4) and np.isnan(saved["x"]).all()
    assert entries[4]["learning_rate"] == entries[3]["learning_rate"]  # the schedule does not count the skipped step


def test_several_bad_gradients_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(ValueError, match="3 steps in a row had a gradient that is not finite, up to step 6"):
        run(tmp_path, batches=lambda first: batches_from(first, poison={3, 4, 5, 6, 7}), max_skipped_in_a_row=3)


def test_evaluation_metrics_are_logged_with_a_prefix(tmp_path):
    run(tmp_path, evaluate=lambda state, step: {"twice": 2.0 * step}, evaluate_every=5)
    values = {e["step"]: e["evaluation/twice"] for e in read_metrics(tmp_path) if "evaluation/twice" in e}
    assert values == {5: 10.0, 10: 20.0}


def test_a_run_whose_evaluation_failed_resumes_without_loss(tmp_path, capsys):
    def broken(state, step):
        raise RuntimeError("no validation video can be read")

    run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="no validation video can be read"):
        run(tmp_path / "parts", evaluate=broken, evaluate_every=5, save_every=100)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["5"]
    capsys.readouterr()
    result = run(tmp_path / "parts", evaluate=lambda state, step: {"twice": 2.0 * step}, evaluate_every=5)
    assert result.finished and result.steps_taken == 5 and "resumed from step 5 of 10" in capsys.readouterr().out
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")  # to the last bit


def test_the_best_state_is_that_of_the_highest_metric_also_after_resuming(tmp_path):
    top1 = {2: 0.3, 4: 0.9, 6: 0.5, 8: 0.8, 10: 0.1}

    def evaluate(state, step):
        return {"step": float(step), "top1": top1[step], "error": 1 - top1[step]}

    run(tmp_path / "until_4", steps=4)
    for steps in (6, 10):  # the resumed run keeps the best state from before
        run(tmp_path / "run", steps=steps, evaluate=evaluate, evaluate_every=2, best="top1")
        variables, step = load_variables(tmp_path / "run", "best")
        assert step == 4 and [path.name for path in (tmp_path / "run" / "best").iterdir()] == ["4"]
        np.testing.assert_array_equal(variables["params/w"], load_variables(tmp_path / "until_4")[0]["params/w"])
    assert load_variables(tmp_path / "run", "last")[1] == 10


def test_an_error_in_the_data_is_raised_by_fit(tmp_path):
    def broken(first):
        yield next(batches_from(first))
        raise ValueError("too many bad files")

    with pytest.raises(ValueError, match="too many bad files"):
        run(tmp_path, batches=broken)


def test_batches_that_end_raise_and_ctrl_c_waits_for_the_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="the batches ended before the last step"):
        run(tmp_path / "ended", batches=lambda first: itertools.islice(batches_from(first), 3))

    def interrupted(first):
        yield from itertools.islice(batches_from(first), 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", batches=interrupted)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    run(tmp_path / "whole")
    assert run(tmp_path / "run").steps_taken == 6
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_waiting_counts_only_while_the_device_is_idle():
    calls, gate = [], threading.Event()

    def gated():
        for n in range(3):
            gate.wait()
            gate.clear()
            yield {"x": np.full((8, 1), n, np.float32)}

    def done_at(call):  # whether the current step has finished; the batch arrives after the third call
        calls.append(time.monotonic())
        if len(calls) == 3:
            gate.set()
        return len(calls) >= call

    feeder = Feeder(gated(), make_mesh())
    _, idle = feeder.get(lambda: done_at(3))
    assert 0 < idle <= time.monotonic() - calls[2]
    calls.clear()
    _, idle = feeder.get(lambda: done_at(4) and False)
    assert idle == 0
    threading.Timer(0.5, gate.set).start()
    _, idle = feeder.get(None)  # no step is running
    assert idle > 0
    feeder.close()


def test_batches_are_prefetched_in_order():
    feeder = Feeder(iter([{"x": np.full((8, 1), n, np.float32)} for n in range(5)]), make_mesh(), size=2)
    time.sleep(0.3)
    values = [float(feeder.get(None)[0]["x"][0, 0]) for _ in range(5)]
    feeder.close()
    assert values == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pause", [0.05, 0.0])
def test_a_starved_run_prints_advice_once_and_others_do_not(pause, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "NOTICED_AFTER", 0.2)
    calls = []

    def batches(first):
        for batch in batches_from(first):
            time.sleep(pause)
            yield batch

    def advise(wanted, made):
        calls.append((wanted, made))
        return "more cores"

    if not pause:
        monkeypatch.setattr(loop.Progress, "step", lambda self: time.sleep(0.05))
    result = run(tmp_path, steps=20, batches=batches, advise=advise, save_every=100)
    notes = [line for line in capsys.readouterr().out.splitlines() if "more cores" in line]
    if not pause:
        assert not calls and not notes and result.advice == ""
        return
    assert len(notes) == 1 and notes[0].endswith("waiting for data: more cores") and result.advice == "more cores"
    wanted, made = calls[-1]
    assert 0 < made < 8 / pause
    assert wanted == pytest.approx(result.clips_per_second / (1 - result.data_wait_fraction))


def test_invalid_values_raise():
    with pytest.raises(ValueError, match=r"loop\.keep is 0: it must be 1 or more"):
        LoopConfig(keep=0)
