"""VATT's contrast against the formula of its paper and code, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives.vatt import asymmetric_nce, symmetric_nce

RANDOM = np.random.default_rng(0)
VIDEO, OTHER = RANDOM.normal(size=(5, 6)), RANDOM.normal(size=(5, 3, 6))
READABLE = np.array([True, True, True, False, True])
THERE = np.array([[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 0, 1]], bool)


def terms(i: int) -> tuple[float, float, float]:
    """What the clip's own texts, all texts, and all clips with its own add up to, each with weight exp(cosine / t)."""

    def likeness(video, text):
        return np.exp(video @ text / np.linalg.norm(video) / np.linalg.norm(text) / 0.07)

    own = sum(likeness(VIDEO[i], text) for text in OTHER[i][THERE[i]])
    rows = sum(likeness(VIDEO[i], text) for j in range(5) if READABLE[j] for text in OTHER[j][THERE[j]])
    columns = sum(likeness(VIDEO[j], text) for j in range(5) if READABLE[j] for text in OTHER[i][THERE[i]])
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
    assert not seen[3].any() and not read[3].any() and not read[~THERE].any() and read[2, 1].any()
    assert seen[1].any()  # a clip without text is a negative of the others' texts


def test_any_of_several_texts_may_match_and_their_sum_is_the_numerator():
    # The cosines of both clips with the texts (1, 0), (0, 1), (0, 1) and (0, 1) are 1, 0, 0, 0 and 0, 1, 1, 1.
    eye, yes, temperature = jnp.eye(2), jnp.ones(2, bool), 1 / np.log(2)  # each cosine of 1 weighs 2
    texts = jnp.stack([eye, jnp.stack([eye[1], eye[1]])])
    one, two = (2 + 1) / (5 + (3 + 3)), (2 + 2) / (7 + (2 + 4))
    loss = asymmetric_nce(eye, texts, yes, jnp.ones((2, 2), bool), temperature)
    np.testing.assert_allclose(loss, -np.log([one, two]).mean(), rtol=1e-5)
    # Without the second text of the first clip.
    one, two = 2 / (4 + (2 + 1)), (2 + 2) / (5 + (2 + 4))
    loss = asymmetric_nce(eye, texts, yes, jnp.array([[True, False], [True, True]]), temperature)
    np.testing.assert_allclose(loss, -np.log([one, two]).mean(), rtol=1e-5)


def test_a_perfect_match_costs_log_2_as_the_positive_is_in_the_denominator_twice():
    eye, yes, one = jnp.eye(4), jnp.ones(4, bool), jnp.ones((4, 1), bool)
    np.testing.assert_allclose(asymmetric_nce(eye, eye[:, None], yes, one, 0.01), np.log(2), atol=1e-5)
    np.testing.assert_allclose(symmetric_nce(eye, eye[:, None], yes, one, 0.01), 0, atol=1e-5)
    assert asymmetric_nce(eye, eye[:, None], yes, ~one) == 0
    assert jnp.isfinite(jax.grad(lambda x: asymmetric_nce(x, eye[:, None], yes, ~one))(0 * eye)).all()
