"""Fisher vectors against recorded ones of scikit-image, and against the gradient of the likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.errors import UserError
from vidjax.evaluation.fisher import (
    Mixture,
    chi_square_kernel,
    fisher_vector,
    fit_mixture,
    improve,
    k_means,
    kernel_features,
    posteriors,
    principal_components,
    visual_words,
)
from vidjax.evaluation.fusion import linear_svm


@pytest.fixture(scope="module")
def stored():
    return np.load(recipe.HERE / "fisher_vector.npz")


@pytest.fixture(scope="module")
def mixture(stored):
    return Mixture(*(jnp.asarray(stored[name], jnp.float32) for name in ("weights", "means", "variances")))


def test_they_equal_scikit_images_but_for_the_sign_of_the_deviations(stored, mixture):
    x = jnp.asarray(stored["features"])
    np.testing.assert_allclose(posteriors(x, mixture), stored["output0"], atol=1e-5)
    k, d = mixture.means.shape
    signs = np.repeat([1, 1, -1], [k, k * d, k * d])
    vector = fisher_vector(x, mixture)
    np.testing.assert_allclose(signs * vector, stored["output1"], atol=1e-5)
    np.testing.assert_allclose(signs * improve(vector), stored["output2"], atol=1e-5)
    assert visual_words(x, mixture.means).tolist() == stored["output3"].tolist()


def test_they_are_the_gradient_of_the_mean_log_likelihood(stored, mixture):
    x = jnp.asarray(stored["features"])

    def likelihood(means, deviations):
        z = (x[:, None] - means) / deviations
        logits = jnp.log(mixture.weights) - (jnp.square(z) / 2 + jnp.log(deviations)).sum(axis=-1)
        return jax.nn.logsumexp(logits, axis=1).mean()

    deviations = jnp.sqrt(mixture.variances)
    by_mean, by_deviation = jax.grad(likelihood, (0, 1))(mixture.means, deviations)
    root = jnp.sqrt(mixture.weights)[:, None]
    expected = [by_mean * deviations / root, by_deviation * deviations / (root * 2**0.5)]
    k = len(mixture.weights)
    np.testing.assert_allclose(fisher_vector(x, mixture)[k:], np.concatenate(expected, axis=None), atol=1e-5)


def test_zeros_stay_zeros():
    assert not improve(jnp.zeros(4)).any()


def test_padding_that_is_not_valid_changes_nothing(stored, mixture):
    x = jnp.asarray(stored["features"])
    padded, valid = jnp.pad(x, ((0, 5), (0, 0)), constant_values=3), jnp.arange(len(x) + 5) < len(x)
    np.testing.assert_allclose(fisher_vector(padded, mixture, valid), fisher_vector(x, mixture), atol=1e-5)
    counts = visual_words(padded, mixture.means, valid)
    assert counts.tolist() == visual_words(x, mixture.means).tolist() and counts.sum() == len(x)


def test_a_mixture_and_words_that_made_the_descriptors_are_found():
    random = np.random.default_rng(0)
    means, stds = np.array([[-3, 0], [2, 2], [2, -3]]), np.array([[0.5, 1.0], [0.3, 0.3], [1.0, 0.5]])
    which = random.choice(3, 5000, p=[0.5, 0.3, 0.2])
    x = (means[which] + stds[which] * random.standard_normal((5000, 2))).astype(np.float32)
    found = fit_mixture(x, 3, seed=1)
    order = np.argmin(np.linalg.norm(found.means[:, None] - means, axis=-1), axis=0)
    np.testing.assert_allclose(found.weights[order], [0.5, 0.3, 0.2], atol=0.03)
    np.testing.assert_allclose(found.means[order], means, atol=0.1)
    np.testing.assert_allclose(np.sqrt(found.variances[order]), stds, atol=0.06)
    words = k_means(x, 3, seed=1)
    np.testing.assert_allclose(np.sort(words[:, 0]), [-3, 2, 2], atol=0.15)
    for fit, what in ((fit_mixture, "Gaussians"), (k_means, "words")):
        with pytest.raises(UserError, match=f"there are 2 descriptors for 3 {what}: give more videos, or fewer {what}"):
            fit(x[:2], 3, seed=0)


def test_principal_components_hold_the_variance_of_the_descriptors():
    random = np.random.default_rng(0)
    x = random.standard_normal((4000, 2)) @ [[3, 0, 4], [0, 1, 0]] + 7
    mean, directions = principal_components(x.astype(np.float32), 2)
    y = (x - mean) @ directions
    np.testing.assert_allclose(np.cov(y.T), np.diag([1, 1 / 25]), atol=0.01)


def test_kernel_features_have_the_products_of_the_kernel_and_tell_classes_apart():
    random = np.random.default_rng(0)
    histograms = random.dirichlet([5, 1, 1], 30), random.dirichlet([1, 1, 5], 30)
    x, labels = np.concatenate(histograms), np.repeat([0, 1], 30)
    train, test = chi_square_kernel([x[::2], x[::2]], [x[1::2], x[1::2]])
    distance = np.array([[0.5 * sum((a - b) ** 2 / (a + b)) for b in x[::2]] for a in x[1::2]])
    own = np.array([[0.5 * sum((a - b) ** 2 / (a + b)) for b in x[::2]] for a in x[::2]])
    np.testing.assert_allclose(test, np.exp(-2 * distance / own.mean()), rtol=1e-5)
    a, b = kernel_features(train, test)
    np.testing.assert_allclose(a @ a.T, train, atol=1e-4)
    np.testing.assert_allclose(b @ a.T, test, atol=1e-3)
    margins = linear_svm(a, labels[::2], b, 2, cost=100.0)
    assert (margins.argmax(axis=1) == labels[1::2]).mean() > 0.85
