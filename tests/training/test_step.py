"""The training step: accumulation, skipped steps, moving average, a single compilation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.training.optimizer import OptimizerConfig, decays, make_optimizer
from vidjax.training.state import create_state
from vidjax.training.step import make_train_step

VARIABLES = {
    "params": {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.zeros(2)},
    "statistics": {"seen": jnp.zeros(())},
}


def regression_loss(params, aux, batch, key):
    error = jnp.square(batch["x"] @ params["w"] + params["b"] - batch["y"]).mean(axis=1)
    loss = (error * batch["valid"]).sum() / jnp.maximum(batch["valid"].sum(), 1)
    seen = aux.model_state["statistics"]["seen"] + batch["x"].sum()
    return loss, ({"statistics": {"seen": seen}}, {"error": loss})


def make(accumulation=1, ema_decay=None, **optim):
    config = OptimizerConfig(learning_rate=0.1, warmup_epochs=0, **optim)
    tx = make_optimizer(config, config.schedule(256, 100, 10))
    state = create_state(VARIABLES, tx, jax.random.key(0), ema=ema_decay is not None)
    return state, make_train_step(regression_loss, tx, accumulation, ema_decay)


def batch(seed=0, size=8):
    x, y = jnp.asarray(np.random.default_rng(seed).normal(size=(2, size, 2)), jnp.float32)
    return {"x": x, "y": y, "valid": jnp.arange(size) % 3 > 0}


def test_accumulation_equals_the_whole_batch_with_unreadable_clips():
    whole, in_parts = make()[1], make(accumulation=4)[1]
    one, metrics = whole(make()[0], batch())
    four, metrics_in_parts = in_parts(make()[0], batch())
    chex.assert_trees_all_close(one.params, four.params, atol=1e-6)
    chex.assert_trees_all_close(one.opt_state, four.opt_state, atol=1e-6)
    for name in ("loss", "error", "gradient_norm", "clips"):
        np.testing.assert_allclose(metrics[name], metrics_in_parts[name], rtol=1e-6)


def test_a_gradient_that_is_not_finite_changes_only_the_counters():
    state, step = make(ema_decay=0.9)
    state, _ = step(state, batch())
    bad = batch() | {"x": jnp.full((8, 2), jnp.nan)}
    skipped, metrics = step(state, bad)
    chex.assert_trees_all_equal(skipped.params, state.params)
    chex.assert_trees_all_equal(skipped.model_state, state.model_state)
    chex.assert_trees_all_equal(skipped.opt_state, state.opt_state)
    assert metrics["skipped_steps"] == metrics["skipped_in_a_row"] == 1
    assert skipped.step == state.step + 1
    again, metrics = step(skipped, batch())
    assert metrics["skipped_steps"] == 1 and metrics["skipped_in_a_row"] == 0
    assert not np.allclose(again.params["w"], state.params["w"])


def test_skipping_equals_optax_apply_if_finite():
    """To rounding: where XLA fuses the update with the gradient (JAX 0.12), a last bit differs between two programs."""
    config = OptimizerConfig(learning_rate=0.1, warmup_epochs=0)
    tx = make_optimizer(config, config.schedule(256, 100, 10))
    state, step = make()
    step, reference = jax.jit(step), optax.apply_if_finite(tx, 1000)
    update = jax.jit(lambda grads, opt_state, params: reference.update(grads, opt_state, params))
    params, opt_state = state.params, reference.init(state.params)
    gradient = jax.jit(jax.grad(lambda params, batch: regression_loss(params, state.aux, batch, None)[0]))
    for seed in range(5):
        given = batch(seed) if seed not in (2, 3) else batch() | {"x": jnp.full((8, 2), jnp.inf)}
        updates, opt_state = update(gradient(params, given), opt_state, params)
        params = optax.apply_updates(params, updates)
        state, _ = step(state, given)
        chex.assert_trees_all_close(state.params, params, rtol=1e-6)
        chex.assert_trees_all_close(state.opt_state, opt_state.inner_state, rtol=1e-6)
        counts = (opt_state.total_notfinite, opt_state.notfinite_count, opt_state.last_finite)
        assert (state.skipped.total, state.skipped.in_a_row, state.skipped.last_finite) == counts
    assert state.skipped.total == 2 and state.skipped.in_a_row == 0


OPTIMIZERS = {
    "adam": lambda: optax.adam(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "lion": lambda: optax.lion(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "every second step": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "rate by the loss": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
    "line search": lambda: optax.lbfgs(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optax_optimiser_works_and_can_be_skipped(name):
    tx = OPTIMIZERS[name]()
    step = jax.jit(make_train_step(regression_loss, tx))
    state = create_state(VARIABLES, tx, jax.random.key(0))
    losses = []
    for n in range(8):
        if n == 4:
            before = state
            state, metrics = step(state, batch() | {"x": jnp.full((8, 2), jnp.nan)})
            chex.assert_trees_all_equal((state.params, state.opt_state), (before.params, before.opt_state))
            assert metrics["skipped_steps"] == 1
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_loss_reads_the_average_frozen_parameters_and_the_step(accumulation):
    """A student learns from a teacher and its own moving average, without a closure."""
    teacher = {"w": jnp.array([2.0, -1.0])}

    def loss_fn(params, aux, batch, key):
        outputs = [batch["x"] @ each["w"] for each in (params, aux.ema, aux.frozen)]
        student, average, target = outputs
        loss = jnp.square(student - target).mean() + 0.1 * jnp.square(student - average).mean()
        return loss, (aux.model_state, {"step": jnp.float32(aux.step), "average": aux.ema["w"].sum()})

    tx = optax.adam(0.1)
    state = create_state({"params": {"w": jnp.zeros(2)}}, tx, jax.random.key(0), ema=True, frozen=teacher)
    step = jax.jit(make_train_step(loss_fn, tx, accumulation, ema_decay=0.9))
    for n in range(60):
        expected = float(state.ema["w"].sum())
        state, metrics = step(state, {"x": batch(n)["x"]})  # without `valid`
        assert metrics["step"] == n and metrics["average"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert metrics["clips"] == 8
    np.testing.assert_allclose(state.params["w"], teacher["w"], atol=0.3)
    chex.assert_trees_all_equal(state.frozen, teacher)


def test_moving_average_follows_the_parameters():
    state, step = make(ema_decay=0.75)
    after, _ = step(state, batch())
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.params, after.params)
    chex.assert_trees_all_close(after.ema, expected, atol=1e-6)


def test_the_decay_of_the_moving_average_may_be_a_schedule():
    state, step = make(ema_decay=optax.linear_schedule(0.5, 1.0, 2))
    for decay in (0.5, 0.75, 1.0):
        after, _ = step(state, batch())
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, state.ema, after.params)
        chex.assert_trees_all_close(after.ema, expected, atol=1e-6)
        state = after


def test_clipping_bounds_the_update_but_not_the_reported_norm():
    state, step = make(kind="sgd", weight_decay=0, clip_norm=1e-3)
    after, metrics = step(state, batch())
    update = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    assert metrics["gradient_norm"] > 1e-2
    np.testing.assert_allclose(update, 0.1 * 1e-3, rtol=2e-3)  # float32 rounding of the difference


def test_the_step_compiles_once_and_donates():
    state, step = make()
    step = jax.jit(chex.assert_max_traces(step, n=1), donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    for seed in range(3):
        before = state
        state, _ = step(before, batch(seed))
        used = before.params, before.model_state, before.opt_state, before.key
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(used))
    assert int(state.step) == 3


def test_each_step_has_its_own_randomness():
    def noisy(params, aux, batch, key):
        return params["w"].sum() * 0 + jax.random.uniform(key), (aux.model_state, {})

    config = OptimizerConfig()
    tx = make_optimizer(config, config.schedule(256, 100, 10))
    state, step = create_state(VARIABLES, tx, jax.random.key(0)), make_train_step(noisy, tx)
    state, one = step(state, batch())
    _, two = step(state, batch())
    assert one["loss"] != two["loss"]


def test_schedule_is_the_published_one():
    config = OptimizerConfig(
        learning_rate=1.5e-4, warmup_learning_rate=1e-6, final_learning_rate=1e-5, warmup_epochs=40
    )
    schedule = config.schedule(batch_size=2048, steps=16000, steps_per_epoch=10)
    assert float(schedule(0)) == pytest.approx(8e-6, rel=1e-4)
    assert float(schedule(200)) == pytest.approx((8e-6 + 1.2e-3) / 2, rel=1e-4)
    assert float(schedule(400)) == pytest.approx(1.2e-3, rel=1e-4)
    assert float(schedule(8200)) == pytest.approx((1.2e-3 + 8e-5) / 2, rel=1e-4)
    assert float(schedule(16000)) == pytest.approx(8e-5, rel=1e-4)


def test_adamw_decays_matrices_only_and_equals_optax():
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4), "token": jnp.ones((1, 1, 4)), "scale": jnp.ones(3)}
    assert decays(params) == {"kernel": True, "bias": False, "token": False, "scale": False}
    config = OptimizerConfig(learning_rate=0.1, warmup_epochs=0, weight_decay=0.5)
    tx = make_optimizer(config, lambda step: 0.1)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05 * params["kernel"], rtol=1e-6)
    assert all(not updates[name].any() for name in ("bias", "token", "scale"))
    plain = optax.adamw(0.1, 0.9, 0.95, weight_decay=0.5)
    grads = jax.tree.map(lambda p: jnp.arange(p.size, dtype=jnp.float32).reshape(p.shape), params)
    ours = tx.update(grads, tx.init(params), params)[0]["kernel"]
    np.testing.assert_allclose(ours, plain.update(grads, plain.init(params), params)[0]["kernel"], rtol=1e-6)
