"""Probes that are trained side by side over a grid of learning rates and weight decays, as V-JEPA 2 trains its own.

All points of the grid see the same batches and start from the same parameters. One step trains them all: it is mapped
over the grid, whose points are divided among the devices. No number is shared between the points, so that devices only
decide who computes what.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

Apply = Callable[[PyTree, Array], Float[Array, "b classes"]]
"""`(parameters, features) -> logits` of one probe."""
GRID, SHARED = PartitionSpec("grid"), PartitionSpec()


def grid_mesh(points: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """As many of the devices, by default of all of this process, as divide the grid into equal parts."""
    devices = jax.local_devices() if devices is None else devices
    count = max(n for n in range(1, len(devices) + 1) if points % n == 0)
    return Mesh(np.array(devices[:count]), ("grid",))


def optimizer(
    learning_rate: float | Float[Array, ""], weight_decay: float | Float[Array, ""], steps: int, accumulation: int = 1
) -> optax.GradientTransformation:
    """AdamW whose learning rate falls from its value to zero along a cosine, without warm-up.

    As in facebookresearch/vjepa2 (evals/video_classification_frozen), all parameters decay, biases too.

    Args:
      steps: number of updates.
      accumulation: batches whose gradients are averaged for an update.
    """
    cosine = optax.cosine_decay_schedule(1.0, steps)
    rule = optax.adamw(lambda step: learning_rate * cosine(step), weight_decay=weight_decay)
    return optax.MultiSteps(rule, accumulation).gradient_transformation() if accumulation > 1 else rule


def fit_grid(
    apply: Apply,
    params: PyTree[Array],
    batches: Iterable[tuple[np.ndarray, Int[np.ndarray, "b"]]],
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    steps: int,
    accumulation: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[PyTree[Array], Float[np.ndarray, "batches g"]]:
    """Trains a probe for each pair of a learning rate and a weight decay by softmax cross-entropy.

    Args:
      apply: the probe.
      params: its initial parameters.
      batches: features and labels, `steps * accumulation` of them.
      learning_rates, weight_decays: of the points of the grid, of the same length g.
      steps, accumulation: see `optimizer`.
      devices: see `grid_mesh`.

    Returns:
      The parameters, with the grid as a new first axis, and the loss of every batch.
    """
    mesh = grid_mesh(len(learning_rates), devices)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, GRID))
    def start(rates: Float[Array, "g"], decays: Float[Array, "g"], params: PyTree) -> tuple:
        def one(rate: Array, decay: Array) -> tuple:
            return params, optimizer(rate, decay, steps, accumulation).init(params)

        params, state = jax.vmap(one)(rates, decays)
        return params, state

    def update(params: PyTree, state: Any, rate: Array, decay: Array, features: Array, labels: Array) -> tuple:
        def loss_of(params: PyTree) -> Float[Array, ""]:
            logits = apply(params, features).astype(jnp.float32)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer(rate, decay, steps, accumulation).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    mapped = jax.vmap(update, in_axes=(0, 0, 0, 0, None, None))
    specs = {"in_specs": (GRID, GRID, GRID, GRID, SHARED, SHARED), "out_specs": GRID}
    step = jax.jit(jax.shard_map(mapped, mesh=mesh, **specs), donate_argnums=(0, 1))
    points = [np.asarray(values, np.float32) for values in (learning_rates, weight_decays)]
    points = jax.device_put(points, NamedSharding(mesh, GRID))
    params, state = start(*points, params)
    losses: list[Array] = []
    for batch in batches:
        params, state, loss = step(params, state, *points, *jax.device_put(batch, NamedSharding(mesh, SHARED)))
        if losses:
            losses[-1].block_until_ready()  # so that only two batches are on the devices
        losses.append(loss)
    return params, np.array(jax.device_get(losses))


def predict_grid(
    apply: Apply, params: PyTree[Array], batches: Iterable[np.ndarray], devices: Sequence[jax.Device] | None = None
) -> Int[np.ndarray, "g m"]:
    """Classes predicted by the probes of `fit_grid`; -1 where the logits are not finite, as after a divergence.

    Args:
      batches: features, in order.
    """
    mesh = grid_mesh(len(jax.tree.leaves(params)[0]), devices)

    def classify(params: PyTree, features: Array) -> Int[Array, "b"]:
        logits = apply(params, features)
        return jnp.where(jnp.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), -1)

    mapped = jax.vmap(classify, in_axes=(0, None))
    predict = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=(GRID, SHARED), out_specs=GRID))
    shared = NamedSharding(mesh, SHARED)
    return np.concatenate([np.asarray(predict(params, jax.device_put(batch, shared))) for batch in batches], axis=1)
