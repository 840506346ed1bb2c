"""AdaFrame: the frames that are chosen one after the other, the end of a clip, and its loss, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.models.adaframe import frame_at, steps_until_end
from vidjax.objectives.adaptive import adaframe_loss, margin_rewards, policy_gradient_loss

COUNTS = {
    "adaframe_tiny": (219_182, None),
    "adaframe_50": (30_778_850, None),
}  # counted here: there is no released code


@pytest.fixture(scope="module")
def run():
    model = vidjax.create_model("adaframe_tiny", num_classes=3, lag=0.262, patience=1, steps=3)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    variables["params"]["agent_head"]["place"]["kernel"] *= 20  # clips differ in places and utilities
    variables["params"]["agent_head"]["utility"]["kernel"] *= -10
    video = recipe.floats("video", (3, 6, 32, 32, 3)) + 4 * recipe.floats("frames", (3, 6, 1, 1, 3))
    return model, variables, jnp.asarray(video)


def test_watching_only_chosen_frames_gives_what_all_features_give(run):
    model, variables, video = run

    @jax.jit
    def both(variables):
        hidden, steps = model.apply(variables, video, method="watch")
        return model.apply(variables, video), hidden, steps, model.apply(variables, video, method="episode")

    logits, hidden, steps, episode = both(variables)
    assert hidden.shape == (3, 32)
    np.testing.assert_array_equal(steps, episode.steps)
    assert steps.tolist() == [3, 3, 2]  # of at most 3
    np.testing.assert_allclose(logits, episode.logits[jnp.arange(3), episode.steps - 1], atol=1e-5)
    assert (episode.places[:, 0] == 0.5).all() and episode.places[:, 1].std() > 0


def test_a_clip_ends_when_the_utility_lags_its_best():
    utilities = jnp.array([[0.1, 0.9, 0.1, 0.15, 0.9], [0.5, 0.6, 0.7, 0.8, 0.9], [0.9, 0.1, 0.9, 0.5, 0.1]])
    assert steps_until_end(utilities, 0.7, 2).tolist() == [4, 5, 5]
    assert steps_until_end(utilities, 0.75, 1).tolist() == [3, 5, 2]
    assert frame_at(jnp.array([-0.2, 0.0, 0.49, 1.0, 3.0]), 5).tolist() == [0, 0, 2, 4, 4]


def test_rewards_are_increases_of_the_margin():
    probabilities = jnp.array([[[0.5, 0.3, 0.2], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1]]])
    gains, returns = margin_rewards(jnp.log(probabilities), jnp.array([0]), discount=0.5)
    np.testing.assert_allclose(gains, [[0.2, 0.0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(returns, [[0.25, 0.5, 0.0]], atol=1e-6)
    likelihoods, utilities = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([[0.05, 0.1, 0.2]])
    terms = adaframe_loss(jnp.log(probabilities), likelihoods, utilities, jnp.array([0]), discount=0.5)
    np.testing.assert_allclose(terms.classification, [-np.log(0.8)], rtol=1e-5)
    np.testing.assert_allclose(terms.utility, [0.5 * (0.2**2 + 0.4**2 + 0.2**2)], rtol=1e-5)
    np.testing.assert_allclose(terms.selection, [1 * 0.2 + 2 * 0.4], rtol=1e-5)


def test_the_policy_gradient_is_that_of_the_expected_reward():
    """For a normal place of mean m and the reward -(place - 1)^2, whose expectation has the derivative 2 (1 - m)."""
    mean, deviation = jnp.asarray(0.3), 0.1
    places = mean + deviation * jax.random.normal(jax.random.key(0), (400_000,))
    rewards = -jnp.square(places - 1)

    def gradient(baseline):
        def loss(m):
            return policy_gradient_loss(jax.scipy.stats.norm.logpdf(places, m, deviation), rewards, baseline).mean()

        return -jax.grad(loss)(mean)

    np.testing.assert_allclose(gradient(rewards.mean()), 2 * (1 - 0.3), rtol=0.01)
    np.testing.assert_allclose(gradient(0.0), 2 * (1 - 0.3), rtol=0.03)


def test_training_draws_places_and_its_loss_reaches_all_parts(run):
    model, variables, video = run
    model = model.clone(steps=2)
    stats = {"batch_stats": variables["batch_stats"]}

    def loss(params, key):
        episode, _ = model.apply(
            {"params": params} | stats, video, True, method="episode", rngs={"places": key}, mutable=["batch_stats"]
        )
        terms = adaframe_loss(episode.logits, episode.log_probabilities, episode.utilities, jnp.array([0, 1, 2]))
        return terms.selection.mean(), episode.places

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    (selecting, places), (_, others) = (
        gradient(variables["params"], jax.random.key(0)),
        gradient(variables["params"], jax.random.key(1)),
    )
    assert jnp.abs(places - others)[:, 1:].min() > 0 and (places >= 0).all() and (places <= 1).all()
    for name in ("place", "lstm"):
        assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(selecting["agent_head"][name])) > 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(selecting["agent_head"]["utility"]))  # it is only a baseline


def test_networks_that_mix_frames_are_refused():
    model = vidjax.create_model("adaframe_tiny")
    shifted = model.clone(features=model.features.clone(shift="both"))
    with pytest.raises(ValueError, match="give networks with shift='none'"):
        jax.eval_shape(shifted.init, jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))
