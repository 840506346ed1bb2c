"""Fisher vectors against recorded ones of scikit-image, and against the gradient of the likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.evaluation.fisher import Mixture, fisher_vector, improve, posteriors, visual_words


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
