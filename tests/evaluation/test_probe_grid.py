"""Probes trained side by side: against each trained by itself, and on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.evaluation.probe_grid import fit_grid, grid_mesh, optimizer, predict_grid
from vidjax.models.vjepa import AttentivePooler

RATES, DECAYS = zip(*[(rate, decay) for rate in (3e-2, 1e-3) for decay in (0.0, 0.4, 0.8)], strict=True)
STEPS = 6


def attentive(classes=3):
    import flax.linen as nn

    return nn.Sequential([AttentivePooler(2, 1, 1e-5), nn.Dense(classes)])


@pytest.fixture(scope="module")
def problem():
    draw = np.random.default_rng(0)
    batches = [(draw.normal(size=(4, 5, 8)).astype(np.float32), draw.integers(0, 3, 4)) for _ in range(STEPS)]
    module = attentive()
    params = jax.jit(module.init)(jax.random.key(0), batches[0][0])
    return module.apply, params, batches


def plain(rate, decay):
    """The optimiser of one point."""
    schedule = optax.cosine_decay_schedule(rate, STEPS)
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=decay)


@pytest.fixture(scope="module")
def alone(problem):
    """Trains one point of the grid by a plain loop; all points share its step, which is compiled once."""
    apply, initial, batches = problem

    @jax.jit
    def step(params, state, features, labels, rate, decay):
        def loss_of(params):
            likelihood = jax.nn.log_softmax(apply(params, features))
            return -likelihood[jnp.arange(len(labels)), labels].mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = plain(rate, decay).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    def train(rate, decay):
        params, state, losses = initial, plain(rate, decay).init(initial), []
        for features, labels in batches:
            params, state, loss = step(params, state, features, labels, rate, decay)
            losses.append(loss)
        return params, np.array(losses)

    return train


@pytest.fixture(scope="module")
def logits_of(problem):
    """Logits of each probe; parameters may differ where they have no effect, as the bias of keys does."""
    apply, _, batches = problem
    return jax.jit(jax.vmap(lambda params: apply(params, batches[0][0])))


def test_a_grid_in_one_step_equals_each_point_by_itself(problem, alone, logits_of):
    params, losses = fit_grid(*problem, RATES, DECAYS, STEPS)
    assert losses.shape == (STEPS, len(RATES))
    for point, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        wanted, wanted_losses = alone(rate, decay)
        np.testing.assert_allclose(losses[:, point], wanted_losses, rtol=1e-4)
        wanted = problem[0](wanted, problem[2][0][0])
        np.testing.assert_allclose(logits_of(params)[point], wanted, rtol=1e-4, atol=1e-5)
    assert len(set(losses[-1].round(6).tolist())) == len(RATES)  # the points differ


def test_numbers_do_not_depend_on_the_number_of_devices(problem, logits_of):
    apply, _, batches = problem
    results = {}
    for count in (1, 4, 8):  # 4 and 8 devices: of the six points, each of three and six devices has equally many
        devices = jax.devices()[:count]
        params, losses = fit_grid(*problem, RATES, DECAYS, STEPS, devices=devices)
        predicted = predict_grid(apply, params, [features for features, _ in batches], devices)
        results[count] = losses, logits_of(jax.device_get(params)), predicted
    for count in (4, 8):
        np.testing.assert_allclose(results[count][0], results[1][0], rtol=1e-5)
        np.testing.assert_allclose(results[count][1], results[1][1], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(results[count][2], results[1][2])


def test_a_grid_is_divided_into_equal_parts():
    sizes = {points: grid_mesh(points).size for points in (1, 6, 7, 20, 24)}
    assert sizes == {1: 1, 6: 6, 7: 7, 20: 5, 24: 8}


def test_micro_batches_equal_their_batch(problem, logits_of):
    apply, params, batches = problem
    halves = [(features[part], labels[part]) for features, labels in batches for part in (slice(2), slice(2, 4))]
    whole, _ = fit_grid(apply, params, batches, RATES[:2], DECAYS[:2], STEPS)
    parts, losses = fit_grid(apply, params, halves, RATES[:2], DECAYS[:2], STEPS, accumulation=2)
    assert len(losses) == 2 * STEPS
    np.testing.assert_allclose(logits_of(parts), logits_of(whole), rtol=1e-4, atol=1e-5)


def test_the_learning_rate_falls_to_zero():
    rates, tx = [], optimizer(0.5, 0.0, 4)
    params = {"w": jnp.ones(())}
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update({"w": jnp.ones(())}, state, params)  # Adam's update of a constant gradient is 1
        rates.append(-float(updates["w"]))
    np.testing.assert_allclose(rates, [0.5 * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(5)], atol=1e-5)


def test_predictions_are_in_order_and_a_diverged_probe_predicts_no_class():
    params = {"w": jnp.stack([jnp.eye(3), jnp.full((3, 3), jnp.nan)])}
    batches = [np.eye(3, dtype=np.float32)[[2, 0]], np.eye(3, dtype=np.float32)[[1]]]
    predicted = predict_grid(lambda params, features: features @ params["w"], params, batches)
    assert predicted.tolist() == [[2, 0, 1], [-1, -1, -1]]
