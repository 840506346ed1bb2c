import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives.latent import (
    DIVERSITY,
    diversity,
    has_collapsed,
    latent_loss,
    normalize_tokens,
    predict,
    rank_me,
)
from vidjax.objectives.multi_block import Mask

DRAW = np.random.default_rng(0).standard_normal


def test_targets_are_normalised_over_the_width_without_parameters():
    tokens = DRAW((2, 3, 8)).astype(np.float32) * 5 + 2
    expected = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(normalize_tokens(jnp.asarray(tokens)), expected, atol=1e-5)
    assert normalize_tokens(jnp.asarray(tokens, jnp.bfloat16)).dtype == jnp.float32


def test_the_loss_is_the_mean_absolute_difference_over_valid_tokens():
    predicted, target = DRAW((2, 4, 8)).astype(np.float32), DRAW((2, 4, 8)).astype(np.float32)
    valid = np.array([[True, True, False, False], [True] * 4])
    both = jnp.asarray(predicted), jnp.asarray(target)
    error = np.abs(predicted - target)
    np.testing.assert_allclose(latent_loss(*both), error.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        latent_loss(*both, jnp.asarray(valid)), [error[0, :2].mean(), error[1].mean()], rtol=1e-6
    )
    spoilt = both[0].at[0, 3].set(np.nan)
    assert np.isfinite(latent_loss(spoilt, both[1], jnp.asarray(valid))).all()


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_rank_me_is_the_exponential_of_the_entropy_of_the_singular_values(shape):
    features = DRAW(shape) + 3
    values = np.linalg.svd(features, compute_uv=False)
    fractions = values / values.sum()
    expected = np.exp(-(fractions * np.log(fractions)).sum())
    assert float(rank_me(jnp.asarray(features, jnp.float32))) == pytest.approx(expected, rel=1e-3)


def test_rank_me_of_equal_rows_is_one_and_of_an_orthogonal_matrix_its_size():
    assert float(rank_me(jnp.tile(jnp.asarray(DRAW(40), jnp.float32), (30, 1)))) == pytest.approx(1, abs=1e-3)
    orthogonal = np.linalg.qr(DRAW((16, 16)))[0]
    assert float(rank_me(jnp.asarray(orthogonal, jnp.float32))) == pytest.approx(16, rel=1e-3)


def test_diversity_samples_the_valid_tokens_of_all_clips():
    tokens = jnp.asarray(DRAW((4, 10, 6)), jnp.float32)
    everything = diversity("target", tokens)
    assert float(everything["target_std"]) == pytest.approx(float(tokens.reshape(40, 6).std(0).mean()), rel=1e-5)
    valid = jnp.arange(10) < jnp.array([3, 3, 3, 3])[:, None]
    spoilt = jnp.where(valid[..., None], tokens, jnp.nan)
    few = diversity("x", spoilt, valid, most=8)
    sample = tokens[:, [0, 1]].reshape(8, 6)  # places 0 and 3 // 2
    assert float(few["x_std"]) == pytest.approx(float(sample.std(0).mean()), rel=1e-5)
    assert float(few["x_rank"]) == pytest.approx(float(rank_me(sample)), rel=1e-5)


def test_the_loss_is_the_mean_over_masks_of_targets_encoded_once():
    targets = jnp.asarray(DRAW((2, 6, 4)), jnp.float32)
    masks = [
        Mask(
            jnp.array([[0, 1], [0, 2]]), jnp.array([[2, 3, 5], [1, 3, 0]]), jnp.ones((2, 5), bool).at[1, 4].set(False)
        ),
        Mask(jnp.array([[5], [4]]), jnp.array([[0], [1]]), jnp.ones((2, 2), bool)),
    ]

    def nothing(video, kept, predicted, valid):
        return jnp.zeros((*predicted.shape, 4))

    losses, seen = predict(nothing, jnp.zeros((2, 1, 1, 1, 1)), targets, masks)
    size = np.abs(np.asarray(targets)).mean(-1)
    first = [size[0, [2, 3, 5]].mean(), size[1, [1, 3]].mean()]
    second = [size[0, 0], size[1, 1]]
    np.testing.assert_allclose(losses, np.mean([first, second], axis=0), rtol=1e-5)
    assert set(seen) == set(DIVERSITY) and seen["prediction_std"] == 0


def test_a_collapse_is_a_loss_of_diversity_and_not_a_lack_of_it():
    untrained = {"target_rank": 31.0, "target_std": 0.8}
    assert not has_collapsed({"target_rank": 5.0, "target_std": 0.2}, untrained)
    assert has_collapsed({"target_rank": 5.0, "target_std": 0.07}, untrained)
    assert has_collapsed({"target_rank": 3.9, "target_std": 0.8}, untrained)
    same = {"target_rank": 1.0, "target_std": 0.0}  # of clips without any motion or texture
    assert not has_collapsed(same, same)
