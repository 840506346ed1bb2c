"""UMT's masks and loss; the rules are those of the original's training loop, written again here with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives.unmasked import alignment_loss, draw_attended

RANDOM = np.random.default_rng(0)


def test_as_many_tokens_of_each_frame_are_drawn_once_and_sorted():
    attention = jnp.asarray(RANDOM.random((3, 4, 9)), jnp.float32)
    kept = np.asarray(jax.jit(draw_attended, static_argnums=2)(jax.random.key(0), attention, 0.8))
    assert kept.shape == (3, 4 * 2)  # of nine tokens, int(7.2) are hidden
    frames = kept.reshape(3, 4, 2)
    assert (frames // 9 == np.arange(4)[:, None]).all() and (np.diff(kept, axis=1) > 0).all()


def test_tokens_are_drawn_one_after_the_other_with_the_attention_as_probabilities():
    """Compared with NumPy's draws without replacement: how often each pair of tokens is visible."""
    attention, draws, visible = np.array([0.5, 0.2, 0.15, 0.1, 0.05]), 20_000, 2
    many = jnp.asarray(np.tile(attention * 3, (draws, 1, 1)), jnp.float32)  # need not sum to one
    kept = np.asarray(draw_attended(jax.random.key(1), many, 0.6))
    expected = [RANDOM.choice(5, visible, replace=False, p=attention) for _ in range(draws)]
    actual, expected = (
        np.histogram2d(*np.sort(pairs, axis=1).T, bins=np.arange(6) - 0.5)[0] / draws for pairs in (kept, expected)
    )
    assert np.abs(actual - expected).max() < 5 * np.sqrt(0.25 / draws * 2)
    exact = attention[0] * attention[1] * (1 / (1 - attention[0]) + 1 / (1 - attention[1]))
    assert actual[0, 1] == pytest.approx(exact, abs=0.015)


def test_a_token_without_attention_is_visible_only_if_others_are_too_few():
    attention = jnp.array([[[0.0, 1e-3, 0.0, 2e-3]]])
    for seed in range(20):
        assert draw_attended(jax.random.key(seed), attention, 0.5).tolist() == [[1, 3]]
    assert draw_attended(jax.random.key(0), attention, 0.0).tolist() == [[0, 1, 2, 3]]


def test_the_loss_is_two_minus_twice_the_cosine():
    student, teacher = RANDOM.standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    cosine = (student * teacher).sum(-1) / np.sqrt((student**2).sum(-1) * (teacher**2).sum(-1))
    losses = alignment_loss(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(losses, (2 - 2 * cosine).mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(alignment_loss(jnp.asarray(3 * teacher), jnp.asarray(teacher)), 0, atol=1e-5)
    gradient = jax.grad(lambda x: alignment_loss(x, jnp.asarray(teacher)).sum())(jnp.zeros_like(student))
    assert np.isfinite(gradient).all()
