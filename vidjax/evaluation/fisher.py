"""Fisher vectors and bags of words: one vector for a set of local descriptors, such as those along dense trajectories.

Perronnin et al. 2010 ("Improving the Fisher kernel for large-scale image classification"), as improved dense
trajectories (Wang and Schmid 2013) use them: gradients of the likelihood of the descriptors under a mixture of
Gaussians with respect to its means and deviations, signed square roots, unit length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Mixture(NamedTuple):
    """A mixture of Gaussians whose dimensions are independent.

    Attributes:
      weights: that sum to one.
    """

    weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]


def posteriors(x: Float[Array, "n d"], mixture: Mixture) -> Float[Array, "n k"]:
    """Probability of each Gaussian given each descriptor."""
    distance = jnp.square(x[:, None] - mixture.means) / mixture.variances
    logits = jnp.log(mixture.weights) - (distance + jnp.log(mixture.variances)).sum(axis=-1) / 2
    return jax.nn.softmax(logits)


def fisher_vector(x: Float[Array, "n d"], mixture: Mixture) -> Float[Array, "v"]:
    """The gradients by the weights (k), means (k d) and deviations (k d), normalised by their Fisher information.

    scikit-image gives the last part the opposite sign. Trajectories are encoded without the first one
    (`vector[k:]`).
    """
    gamma = posteriors(x, mixture)
    z = (x[:, None] - mixture.means) / jnp.sqrt(mixture.variances)
    root = jnp.sqrt(mixture.weights)
    by_weight = (gamma.mean(axis=0) - mixture.weights) / root
    by_mean = jnp.einsum("nk,nkd->kd", gamma, z) / len(x) / root[:, None]
    by_deviation = jnp.einsum("nk,nkd->kd", gamma, jnp.square(z) - 1) / len(x) / (root[:, None] * jnp.sqrt(2.0))
    return jnp.concatenate([by_weight, by_mean.ravel(), by_deviation.ravel()])


def improve(vector: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
    """Signed square roots, scaled to unit length; zeros stay zeros."""
    roots = jnp.sign(vector) * jnp.sqrt(jnp.abs(vector))
    length = jnp.linalg.norm(roots, axis=-1, keepdims=True)
    return roots / jnp.where(length > 0, length, 1)


def visual_words(x: Float[Array, "n d"], words: Float[Array, "k d"]) -> Int[Array, "k"]:
    """How many descriptors are nearest to each word, such as the centres of k-means."""
    distance = jnp.square(words).sum(axis=-1) - 2 * x @ words.T
    return jnp.bincount(distance.argmin(axis=-1), length=len(words))
