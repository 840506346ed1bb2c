"""A head in the coordinates of standardised inputs, compared with a head on inputs that are standardised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.standardized import EPSILON, standardize_head

DRAW = np.random.default_rng(0)
FEATURES = (3 + 0.1 * DRAW.normal(size=(64, 5)) * np.arange(1, 6)).astype(np.float32)
LABELS = DRAW.integers(0, 3, 64)


def steps(tx, state, params, inputs):
    """Losses of some steps of a linear head after a scale that is trained too, and the last parameters."""

    def loss_fn(params):
        logits = params["scale"] * (inputs @ params["head"]["kernel"] + params["head"]["bias"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    losses = []
    for _ in range(6):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses, params


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_are_those_of_a_head_on_standardised_inputs(kind):
    config = OptimizerConfig(kind=kind, weight_decay=0.3, clip_norm=1.0)
    tx = make_optimizer(config, lambda step: 0.1, factors={"head/": 2.0})
    mean, std = FEATURES.mean(axis=0, dtype=np.float64), np.sqrt(FEATURES.var(axis=0, dtype=np.float64) + EPSILON)
    kernel, bias = DRAW.normal(size=(5, 3)), DRAW.normal(size=3)
    plain = {"head": {"kernel": kernel / std[:, None], "bias": bias - (mean / std) @ kernel}, "scale": 1.5}
    inside = {"head": {"kernel": kernel, "bias": bias}, "scale": 1.5}
    plain, inside = (jax.tree.map(jnp.float32, params) for params in (plain, inside))
    ours = standardize_head(tx)
    losses, after = steps(ours, ours.init(plain).measured(FEATURES), plain, FEATURES)
    expected, among = steps(tx, tx.init(inside), inside, jnp.float32((FEATURES - mean) / std))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(after["head"]["kernel"] * std[:, None], among["head"]["kernel"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(after["scale"], among["scale"], rtol=1e-4)
    assert losses[-1] < losses[0]


def test_what_is_no_linear_head_learns_as_it_is():
    for params in ({"head": {"lora_a": jnp.ones((5, 2)), "lora_b": jnp.ones((2, 3))}}, {"scale": jnp.ones(3)}):
        tx = optax.adam(0.1)
        grads = jax.tree.map(lambda leaf: 2 * leaf, params)
        state = standardize_head(tx).init(params)
        updates, _ = standardize_head(tx).update(grads, state, params)
        expected, _ = tx.update(grads, tx.init(params), params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        assert state.mean is None


def test_an_input_that_is_constant_at_the_start_keeps_its_scale():
    """Elsewhere it would be multiplied by a thousand."""
    state = standardize_head(optax.sgd(1.0)).init({"head": {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}})
    silent = FEATURES * np.array([1, 1, 0, 1, 1], np.float32)
    np.testing.assert_allclose(state.measured(silent).std[2], 1)
    np.testing.assert_allclose(np.delete(state.measured(silent).std, 2), np.delete(silent.std(axis=0), 2), rtol=1e-3)
