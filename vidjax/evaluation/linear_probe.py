"""Linear probing: a linear classifier on frozen features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError


def linear_probe(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    classes: int,
    penalty: float = 1e-3,
    iterations: int = 200,
) -> float:
    """Top-1 test accuracy of multinomial logistic regression fitted to the train features by L-BFGS.

    Features are standardised by the mean and std of the train features. The loss is the mean cross-entropy plus
    `penalty` / 2 times the squared norm of the weights (scikit-learn's C = 1 / (penalty * n)). The problem is
    convex: there is no seed or learning rate to tune.

    Raises:
      UserError: no features, or a label outside `range(classes)`.
    """
    for name, labels in (("train", train_labels), ("test", test_labels)):
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{name} labels must be non-empty and in 0..{classes - 1}: leave out unlabelled clips")
    mean, std = train_features.mean(axis=0), train_features.std(axis=0) + 1e-6
    train, test = ((features - mean) / std for features in (train_features, test_features))
    weights = _fit(jnp.asarray(train, jnp.float32), jnp.asarray(train_labels), classes, penalty, iterations)
    predicted = np.asarray(jnp.asarray(test, jnp.float32) @ weights["kernel"] + weights["bias"]).argmax(axis=1)
    return float((predicted == test_labels).mean())


@jax.jit(static_argnums=(2, 3, 4))
def _fit(
    features: Float[Array, "n d"], labels: Int[Array, "n"], classes: int, penalty: float, iterations: int
) -> dict[str, Array]:
    def loss(weights: dict[str, Array]) -> Float[Array, ""]:
        logits = features @ weights["kernel"] + weights["bias"]
        error = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return error + penalty / 2 * jnp.square(weights["kernel"]).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), None

    weights = {"kernel": jnp.zeros((features.shape[1], classes)), "bias": jnp.zeros(classes)}
    (weights, _), _ = jax.lax.scan(step, (weights, solver.init(weights)), length=iterations)
    return weights
