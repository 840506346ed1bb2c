"""Multi-task learning: a softmax for each data set, in which only its own clips count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidjax.objectives.multi_task import own_logits, smooth_labels, softmax_of_tasks, sum_of_tasks

SIZES = (3, 2)
LABELS = np.array([1, 4, 0, 3, 2])
VALID = np.array([True, True, True, True, False])
LOGITS = jnp.asarray(np.random.default_rng(0).normal(0, 2, (5, 5)), jnp.float32)
TARGETS = jnp.eye(5)[LABELS]


def log_probability(logits, label):
    return logits[label] - np.log(np.exp(logits).sum())


def test_the_loss_is_the_sum_of_those_of_the_data_sets_and_others_scores_do_not_count():
    def loss(logits):
        return jnp.where(VALID, sum_of_tasks(logits, TARGETS, jnp.asarray(VALID), SIZES), 0).sum() / VALID.sum()

    first = np.mean([-log_probability(LOGITS[row, :3], LABELS[row]) for row in (0, 2)])
    second = np.mean([-log_probability(LOGITS[row, 3:], LABELS[row] - 3) for row in (1, 3)])
    value, gradient = jax.jit(jax.value_and_grad(loss))(LOGITS)
    np.testing.assert_allclose(value, first + second, rtol=1e-5)
    assert not gradient[[0, 2], 3:].any() and not gradient[[1, 3], :3].any() and not gradient[4].any()
    assert (np.abs(gradient[[0, 2], :3]) > 1e-4).all() and (np.abs(gradient[[1, 3], 3:]) > 1e-4).all()
    alone = sum_of_tasks(LOGITS[:1], TARGETS[:1], jnp.array([True]), SIZES)  # no clip of the second: it adds nothing
    np.testing.assert_allclose(alone[0], -log_probability(LOGITS[0, :3], 1), rtol=1e-5)


def test_a_clip_mixed_of_two_data_sets_counts_in_both_by_its_shares():
    mixed = jnp.array([[0.0, 0.7, 0, 0.3, 0], [0, 0, 0, 0, 1.0]])
    mean = sum_of_tasks(LOGITS[:2], mixed, jnp.ones(2, bool), SIZES).mean()
    first = -log_probability(LOGITS[0, :3], 1)  # the only one of its data set
    second = -(0.3 * log_probability(LOGITS[0, 3:], 0) + log_probability(LOGITS[1, 3:], 1)) / 1.3
    np.testing.assert_allclose(mean, first + second, rtol=1e-5)


def test_labels_are_smoothed_within_their_data_set():
    smooth = smooth_labels(TARGETS, 0.3, SIZES)
    np.testing.assert_allclose(smooth[0], [0.1, 0.8, 0.1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(smooth[1], [0, 0, 0, 0.15, 0.85], rtol=1e-6)
    np.testing.assert_array_equal(smooth_labels(TARGETS, 0.3, (5,)), optax.smooth_labels(TARGETS, 0.3))


def test_every_data_set_has_its_own_probabilities():
    probabilities = np.asarray(softmax_of_tasks(LOGITS, SIZES))
    np.testing.assert_allclose([probabilities[:, :3].sum(axis=1), probabilities[:, 3:].sum(axis=1)], 1, rtol=1e-6)
    own = np.asarray(jax.nn.softmax(own_logits(jnp.asarray(LOGITS), jnp.asarray(LABELS), SIZES)))
    np.testing.assert_allclose(
        own, np.where(np.repeat((LABELS < 3)[:, None] == [True, False], SIZES, 1), probabilities, 0)
    )
    np.testing.assert_array_equal(own_logits(jnp.asarray(LOGITS), jnp.array([-1, 0, 1, 2, 3]), (5,)), LOGITS)
