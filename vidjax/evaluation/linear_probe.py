"""Linear probing: a linear classifier on frozen features."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from vidjax.evaluation.features import check_labels


def linear_predict(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    classes: int,
    penalties: Sequence[float],
    iterations: int = 200,
) -> Int[np.ndarray, "p m"]:
    """Classes by multinomial logistic regressions on the train features, one for each penalty, fitted side by side.

    Features are standardised by the mean and std of the train features. The loss is the mean cross-entropy plus
    `penalty` / 2 times the squared norm of the weights (scikit-learn's C = 1 / (penalty * n)), minimised by L-BFGS. The
    problem is convex: there is no seed or learning rate to tune.

    Raises:
      UserError: no features, or a label outside `range(classes)`.
    """
    check_labels(classes, train=train_labels)
    mean, std = train_features.mean(axis=0), train_features.std(axis=0) + 1e-6
    train, test = (jnp.asarray((features - mean) / std, jnp.float32) for features in (train_features, test_features))
    weights = _fit_all(train, jnp.asarray(train_labels), classes, jnp.asarray(penalties, jnp.float32), iterations)
    return np.asarray((test @ weights["kernel"] + weights["bias"][:, None]).argmax(axis=-1))


def linear_probe(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    classes: int,
    penalty: float = 1e-3,
    iterations: int = 200,
) -> float:
    """Top-1 test accuracy of `linear_predict` with one penalty.

    Raises:
      UserError: no features, or a label outside `range(classes)`.
    """
    check_labels(classes, test=test_labels)
    (predicted,) = linear_predict(train_features, train_labels, test_features, classes, (penalty,), iterations)
    return float((predicted == test_labels).mean())


@jax.jit(static_argnums=(2, 4))
def _fit_all(
    features: Float[Array, "n d"], labels: Int[Array, "n"], classes: int, penalties: Float[Array, "p"], iterations: int
) -> dict[str, Array]:
    return jax.vmap(lambda penalty: _fit(features, labels, classes, penalty, iterations))(penalties)


def _fit(
    features: Float[Array, "n d"],
    labels: Int[Array, "n"],
    classes: int,
    penalty: float | Float[Array, ""],
    iterations: int,
) -> dict[str, Array]:
    def loss(weights: dict[str, Array]) -> Float[Array, ""]:
        logits = features @ weights["kernel"] + weights["bias"]
        error = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return error + penalty / 2 * jnp.square(weights["kernel"]).sum()

    start = {"kernel": jnp.zeros((features.shape[1], classes)), "bias": jnp.zeros(classes)}
    return minimize(loss, start, iterations)


def minimize(
    loss: Callable[[PyTree[Array]], Float[Array, ""]], weights: PyTree[Array], iterations: int
) -> PyTree[Array]:
    """The weights after so many iterations of L-BFGS."""
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, solver.init(weights)), length=iterations)
    return weights
