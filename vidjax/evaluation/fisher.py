"""Fisher vectors and bags of words: one vector for a set of local descriptors, such as those along dense trajectories.

What they are made from is learned here too: principal components, mixtures of Gaussians and visual words.

Perronnin et al. 2010 ("Improving the Fisher kernel for large-scale image classification"), as improved dense
trajectories (Wang and Schmid 2013) use them: gradients of the likelihood of the descriptors under a mixture of
Gaussians with respect to its means and deviations, signed square roots, unit length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError

BLOCK = 4096
"""Descriptors in a step of fitting, which bounds its memory."""
LEAST_VARIANCE = 1e-3
"""Of a Gaussian in a dimension, as a share of that of all descriptors."""


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
    return jax.nn.softmax(_joint(x, mixture))


def _joint(x: Float[Array, "n d"], mixture: Mixture) -> Float[Array, "n k"]:
    """Logarithm of the weight of each Gaussian times its density, but for a constant; by products of matrices."""
    precision = 1 / mixture.variances
    square = jnp.square(x) @ precision.T - 2 * x @ (precision * mixture.means).T
    constant = (jnp.square(mixture.means) * precision + jnp.log(mixture.variances)).sum(axis=-1)
    return jnp.log(mixture.weights) - (square + constant) / 2


class Sums(NamedTuple):
    """Sums over descriptors, each weighted by its posteriors: of ones, of its values and of their squares."""

    ones: Float[Array, "k"]
    values: Float[Array, "k d"]
    squares: Float[Array, "k d"]


def _sums(x: Float[Array, "n d"], mixture: Mixture, valid: Bool[Array, "n"] | None = None) -> Sums:
    gamma = posteriors(x, mixture)
    gamma = gamma if valid is None else gamma * valid[:, None]
    return Sums(gamma.sum(axis=0), gamma.T @ x, gamma.T @ jnp.square(x))


def fisher_vector(x: Float[Array, "n d"], mixture: Mixture, valid: Bool[Array, "n"] | None = None) -> Float[Array, "v"]:
    """The gradients by the weights (k), means (k d) and deviations (k d), normalised by their Fisher information.

    scikit-image gives the last part the opposite sign. Trajectories are encoded without the first one
    (`vector[k:]`).

    Args:
      valid: which descriptors count, so that sets of all sizes can be padded to few shapes; by default all.
    """
    sums, (weights, means, variances) = _sums(x, mixture, valid), mixture
    count, root = (len(x) if valid is None else valid.sum()), jnp.sqrt(weights)[:, None]
    ones = sums.ones[:, None]
    by_weight = (sums.ones / count - weights) / root[:, 0]
    by_mean = (sums.values - ones * means) / jnp.sqrt(variances) / (count * root)
    squares = (sums.squares - 2 * means * sums.values + ones * jnp.square(means)) / variances
    by_deviation = (squares - ones) / (count * root * jnp.sqrt(2.0))
    return jnp.concatenate([by_weight, by_mean.ravel(), by_deviation.ravel()])


def improve(vector: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
    """Signed square roots, scaled to unit length; zeros stay zeros."""
    roots = jnp.sign(vector) * jnp.sqrt(jnp.abs(vector))
    length = jnp.linalg.norm(roots, axis=-1, keepdims=True)
    return roots / jnp.where(length > 0, length, 1)


def visual_words(
    x: Float[Array, "n d"], words: Float[Array, "k d"], valid: Bool[Array, "n"] | None = None
) -> Int[Array, "k"]:
    """How many descriptors are nearest to each word, such as the centres of k-means.

    Args:
      valid: which descriptors count, by default all.
    """
    nearest = (jnp.square(words).sum(axis=-1) - 2 * x @ words.T).argmin(axis=-1)
    nearest = nearest if valid is None else jnp.where(valid, nearest, len(words))  # beyond the words: not counted
    return jnp.bincount(nearest, length=len(words))


def principal_components(
    x: Float[np.ndarray, "n d"], count: int
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d c"]]:
    """The mean of descriptors, and the directions of most variance, to which they are projected after it is taken off.

    Directions are divided by the root of the first one's variance, so that values are around one.
    """
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((x - mean).T.astype(np.float64)))
    scale = np.sqrt(max(values[-1], 1e-12))
    return mean, (vectors[:, ::-1][:, :count] / scale).astype(np.float32)


def _require_enough(count: int, clusters: int, what: str) -> None:
    if count < clusters:
        raise UserError(f"there are {count:,} descriptors for {clusters:,} {what}: give more videos, or fewer {what}")


def k_means(x: Float[np.ndarray, "n d"], count: int, seed: int, iterations: int = 20) -> Float[np.ndarray, "k d"]:
    """Centres by Lloyd's algorithm, from descriptors drawn at random; one that none is nearest to is drawn anew.

    Raises:
      UserError: there are fewer descriptors than centres.
    """
    _require_enough(len(x), count, "words")
    random = np.random.default_rng(seed)
    centres = x[np.sort(random.permutation(len(x))[:count])].astype(np.float32)
    for _ in range(iterations):
        ones, total = np.zeros(count), np.zeros((count, x.shape[1]))
        for start in range(0, len(x), BLOCK):
            block = x[start : start + BLOCK]
            nearest = (np.square(centres).sum(axis=1) - 2 * block @ centres.T).argmin(axis=1)
            ones += np.bincount(nearest, minlength=count)
            np.add.at(total, nearest, block)
        centres = np.where(
            ones[:, None] > 0, total / np.maximum(ones, 1)[:, None], x[random.integers(len(x), size=count)]
        )
        centres = centres.astype(np.float32)
    return centres


def fit_mixture(x: Float[np.ndarray, "n d"], count: int, seed: int, iterations: int = 30) -> Mixture:
    """A mixture by expectation maximisation, from the clusters of a few steps of k-means.

    Raises:
      UserError: there are fewer descriptors than Gaussians.
    """
    _require_enough(len(x), count, "Gaussians")
    variance = x.var(axis=0) + 1e-12
    uniform = np.full(count, 1 / count, np.float32)
    mixture = Mixture(uniform, k_means(x, count, seed, 5), np.tile(variance / count ** (2 / x.shape[1]), (count, 1)))
    add, filled = jax.jit(_sums), -len(x) % BLOCK
    blocks = np.pad(x, ((0, filled), (0, 0))).astype(np.float32).reshape(-1, BLOCK, x.shape[1])
    valid = (np.arange(len(x) + filled) < len(x)).reshape(-1, BLOCK)
    for _ in range(iterations):
        parts = [jax.device_get(add(block, mixture, each)) for block, each in zip(blocks, valid, strict=True)]
        ones, values, squares = (np.sum(part, axis=0, dtype=np.float64) for part in zip(*parts, strict=True))
        ones = np.maximum(ones, 1e-3)[:, None]
        means = values / ones
        variances = np.maximum(squares / ones - np.square(means), LEAST_VARIANCE * variance)
        learned = Mixture(ones[:, 0] / ones.sum(), means, variances)
        mixture = Mixture(*(array.astype(np.float32) for array in learned))
    return mixture


def chi_square(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Half the sums of (a - b)^2 / (a + b) of histograms."""
    sums = [(np.square(row - b) / np.maximum(row + b, 1e-12)).sum(axis=1) / 2 for row in a]
    return np.stack(sums) if len(a) else np.zeros((0, len(b)))


def chi_square_kernel(
    train: Sequence[Float[np.ndarray, "n _"]], test: Sequence[Float[np.ndarray, "m _"]]
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "m n"]]:
    """Kernels of several kinds of histograms: exp(-sum of distances), each divided by its mean over training videos.

    Wang et al. 2011, after Laptev et al. 2008 ("Learning realistic human actions from movies").
    """
    known, new = 0.0, 0.0
    for own, other in zip(train, test, strict=True):
        distance = chi_square(own, own)
        mean = distance.mean() or 1.0
        known, new = known + distance / mean, new + chi_square(other, own) / mean
    return np.exp(-known), np.exp(-new)


def kernel_features(
    train: Float[np.ndarray, "n n"], test: Float[np.ndarray, "m n"]
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "m r"]]:
    """Vectors whose products are the values of the kernel, for a linear classifier that then is one of the kernel.

    At most as many values as training videos, however long the vectors of the kernel are.
    """
    values, vectors = np.linalg.eigh(train.astype(np.float64))
    kept = values > 1e-7 * values[-1]
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return (train @ basis).astype(np.float32), (test @ basis).astype(np.float32)
