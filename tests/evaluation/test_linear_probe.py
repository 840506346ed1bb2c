"""The linear probe on features with known accuracy."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.evaluation.features import collect_features
from vidjax.evaluation.linear_probe import linear_predict, linear_probe


def blobs(seed, spread, count=300, classes=4, width=8):
    centers = np.random.default_rng(0).normal(size=(classes, width)) * 3
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (centers[labels] + spread * rng.normal(size=(count, width))).astype(np.float32), labels


def test_separable_features_are_separated_at_any_scale():
    (x, y), (u, v) = blobs(1, 0.3), blobs(2, 0.3)
    scale = np.array([1e-3, 1e3] * 4, np.float32)
    assert linear_probe(x * scale + 5, y, u * scale + 5, v, classes=4) == 1.0


def test_features_without_information_stay_at_chance():
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(2, 2000, 4)).astype(np.float32)
    y, v = rng.integers(0, 4, (2, 2000))
    assert linear_probe(x, y, u, v, classes=4) == pytest.approx(0.25, abs=0.04)


def test_the_fit_minimises_its_loss():
    """The gradient of the penalised cross-entropy vanishes at the fitted weights."""
    from vidjax.evaluation import linear_probe as module

    x, y = blobs(3, 3.0)
    x = (x - x.mean(0)) / x.std(0)
    weights = {
        name: np.asarray(value, np.float64)
        for name, value in module._fit(jnp.asarray(x), jnp.asarray(y), 4, 1e-2, 200).items()
    }
    logits = x @ weights["kernel"] + weights["bias"]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(4)[y]) / len(y)
    assert np.abs(x.T @ error + 1e-2 * weights["kernel"]).max() < 1e-3
    assert np.abs(error.sum(0)).max() < 1e-3


def test_each_penalty_equals_newtons_method():
    (x, y), (u, _) = blobs(4, 4.0, count=60, classes=3, width=4), blobs(5, 4.0, count=200, classes=3, width=4)
    penalties = (1e-2, 1.0)
    predicted = linear_predict(x * 3 + 1, y, u * 3 + 1, 3, penalties)  # the scale of features does not matter
    ones = [np.hstack([(features - x.mean(0)) / x.std(0), np.ones((len(features), 1))]) for features in (x, u)]
    for row, penalty in enumerate(penalties):
        weights, shrink = np.zeros((5, 3)), penalty * np.repeat([1.0] * 4 + [0.0], 3)
        for _ in range(30):
            logits = ones[0] @ weights
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            gradient = (ones[0].T @ (p - np.eye(3)[y]) / len(y)).ravel() + shrink * weights.ravel()
            middle = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
            hessian = np.einsum("ni,ncd,nj->icjd", ones[0], middle, ones[0]).reshape(15, 15) / len(y) + np.diag(shrink)
            weights -= np.linalg.lstsq(hessian, gradient, rcond=None)[0].reshape(5, 3)
        logits = np.sort(ones[1] @ weights, axis=1)
        clear = logits[:, -1] - logits[:, -2] > 1e-3
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(predicted[row][clear], (ones[1] @ weights).argmax(1)[clear])
    assert (predicted[0] != predicted[1]).any()


def test_unlabelled_clips_are_refused():
    with pytest.raises(ValueError, match=r"train labels must be non-empty and in 0\.\.3"):
        linear_probe(np.zeros((2, 3)), np.array([0, -1]), np.zeros((1, 3)), np.array([0]), classes=4)


def test_features_of_unreadable_and_unlabelled_clips_are_left_out():
    labels, valid = jnp.array([0, 1, -1, 2]), jnp.array([True, False, True, True])
    batches = [{"x": jnp.arange(4.0)[:, None] + 4 * n, "label": labels, "valid": valid} for n in (0, 1)]
    features, labels = collect_features(lambda batch: tuple(batch.values()), batches)
    assert features[:, 0].tolist() == [0, 3, 4, 7] and labels.tolist() == [0, 2, 0, 2]
