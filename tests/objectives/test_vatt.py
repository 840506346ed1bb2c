"""VATT's contrast against the formula of its paper and code, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives.vatt import asymmetric_nce, symmetric_nce

RANDOM = np.random.default_rng(0)
VIDEO, OTHER = RANDOM.normal(size=(5, 6)), RANDOM.normal(size=(5, 3, 6))
READABLE = np.array([True, True, True, False, True])
THERE = np.array([True, False, True, True, True])


def terms(i: int) -> tuple[float, float, float]:
    """What the clip's own texts, all texts, and all clips with its own add up to, each with weight exp(cosine / t)."""

    def likeness(video, text):
        return np.exp(video @ text / np.linalg.norm(video) / np.linalg.norm(text) / 0.07)

    own = sum(likeness(VIDEO[i], text) for text in OTHER[i])
    rows = sum(likeness(VIDEO[i], text) for j in range(5) if READABLE[j] and THERE[j] for text in OTHER[j])
    columns = sum(likeness(VIDEO[j], text) for j in range(5) if READABLE[j] for text in OTHER[i])
    return own, rows, columns


@pytest.mark.parametrize("loss", [asymmetric_nce, symmetric_nce])
def test_the_loss_is_the_mean_over_clips_with_both_and_missing_ones_change_nothing(loss):
    counted = [0, 2, 4]
    if loss is asymmetric_nce:
        expected = [-np.log(own / (rows + columns)) for own, rows, columns in map(terms, counted)]
    else:
        expected = [-np.log(own / rows) - np.log(own / columns) for own, rows, columns in map(terms, counted)]
    args = (jnp.asarray(VIDEO, jnp.float32), jnp.asarray(OTHER, jnp.float32))
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*args, READABLE, THERE)
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)
    seen, read = gradients
    assert not seen[3].any() and not read[3].any() and not read[1].any()
    assert seen[1].any()  # a clip without text is a negative of the others' texts


def test_a_perfect_match_costs_log_2_as_the_positive_is_in_the_denominator_twice():
    eye, yes = jnp.eye(4), jnp.ones(4, bool)
    np.testing.assert_allclose(asymmetric_nce(eye, eye[:, None], yes, yes, 0.01), np.log(2), atol=1e-5)
    np.testing.assert_allclose(symmetric_nce(eye, eye[:, None], yes, yes, 0.01), 0, atol=1e-5)
    assert asymmetric_nce(eye, eye[:, None], yes, ~yes) == 0
    assert jnp.isfinite(jax.grad(lambda x: asymmetric_nce(x, eye[:, None], yes, ~yes))(0 * eye)).all()
