"""Late fusion: one prediction from the scores of several classifiers, such as those of frames and of flow."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.evaluation.features import check_labels
from vidjax.evaluation.linear_probe import minimize


def average(scores: Sequence[Float[np.ndarray, "n c"]], weights: Sequence[float]) -> Float[np.ndarray, "n c"]:
    """The weighted mean of probabilities; two-stream networks weigh both alike, TSN weighs flow 1.5 times."""
    return np.tensordot(np.asarray(weights) / np.sum(weights), np.stack(scores), axes=1)


def add_logits(logits: Sequence[Float[np.ndarray, "n c"]], weights: Sequence[float]) -> Float[np.ndarray, "n c"]:
    """The probabilities of the weighted sum of logits, as of both streams of I3D (google-deepmind/kinetics-i3d).

    The sum is that of evidence: where both are sure, the result is surer than either.
    """
    total = np.tensordot(np.asarray(weights), np.stack(logits).astype(np.float64), axes=1)
    return np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))


def stack_scores(scores: Sequence[Float[np.ndarray, "n c"]]) -> Float[np.ndarray, "n d"]:
    """The scores of all classifiers side by side, those of each divided by their length.

    Simonyan and Zisserman (2014, arXiv:1406.2199) train a linear SVM on these.
    """
    return np.concatenate([each / np.linalg.norm(each, axis=1, keepdims=True) for each in scores], axis=1)


def linear_svm(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    classes: int,
    cost: float = 1.0,
    iterations: int = 200,
) -> Float[np.ndarray, "m c"]:
    """Margins of linear support vector machines, one class against all others.

    Each minimises half the squared norm of its weights, of which the bias is one as in LIBLINEAR, plus `cost` times the
    sum of the squared hinge losses, by L-BFGS. The problem is convex.

    Raises:
      UserError: no scores, or a label outside `range(classes)`.
    """
    check_labels(classes, train=labels)
    return np.asarray(_margins(*map(jnp.asarray, (train, labels, test)), classes, cost, iterations))


@jax.jit(static_argnums=(3, 5))
def _margins(
    train: Float[Array, "n d"],
    labels: Int[Array, "n"],
    test: Float[Array, "m d"],
    classes: int,
    cost: float | Float[Array, ""],
    iterations: int,
) -> Float[Array, "m c"]:
    train, test = (jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1).astype(jnp.float32) for x in (train, test))
    signs = 2 * jax.nn.one_hot(labels, classes) - 1

    def loss(weights: Float[Array, "d c"]) -> Float[Array, ""]:
        errors = jnp.square(jnp.maximum(1 - signs * (train @ weights), 0))
        return jnp.square(weights).sum() / 2 + cost * errors.sum()

    return test @ minimize(loss, jnp.zeros((train.shape[1], classes)), iterations)
