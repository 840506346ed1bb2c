"""One training step as a pure function."""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from vidjax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
# (params, model_state, batch, key) -> (loss, (model_state, metrics)); the loss is a mean over the batch's valid clips,
# and the statistics of batch norms are of these alone (`layers.normalization.valid_clips`).
LossFn = Callable[[PyTree, PyTree, Batch, Key[Array, ""]], tuple[Float[Array, ""], tuple[PyTree, Metrics]]]


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, accumulation: int = 1, ema_decay: float | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure step `(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Args:
      loss_fn: see `LossFn`; every batch has a `valid` array (b,), false for clips that could not be read.
      tx: of `optimizer.make_optimizer`.
      accumulation: micro-batches a batch is cut into to save memory; each counts by its number of valid clips.
      ema_decay: decay of the moving average of the parameters.

    Returns:
      The step. Its metrics are those of `loss_fn` and `loss`, `gradient_norm`, `clips` (valid ones), `skipped_steps`
      (all steps so far whose gradient was not finite) and `skipped_in_a_row`. A skipped step changes neither the
      parameters nor the optimiser's or the model's state.
    """

    def gradient(state: TrainState, model_state: PyTree, batch: Batch, key: Array) -> tuple[Any, ...]:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (model_state, metrics)), grads = grad_fn(state.params, model_state, batch, key)
        return model_state, (grads, {"loss": loss, **metrics})

    def accumulated(state: TrainState, batch: Batch, key: Array) -> tuple[Any, ...]:
        # Micro-batch i takes every accumulation-th clip, so that each device keeps its own share of every one.
        micro = {k: einops.rearrange(v, "(b a) ... -> a b ...", a=accumulation) for k, v in batch.items()}
        keys = jax.random.split(key, accumulation)
        first = jax.tree.map(lambda x: x[0], (micro, keys))
        shapes = jax.eval_shape(gradient, state, state.model_state, *first)[1]

        def add(carry: tuple[Any, ...], part: tuple[Batch, Array]) -> tuple[Any, None]:
            model_state, total = carry
            model_state, values = gradient(state, model_state, *part)
            weight = part[0]["valid"].sum()
            return (model_state, jax.tree.map(lambda t, v: t + weight * v, total, values)), None

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (model_state, total), _ = jax.lax.scan(add, (state.model_state, zeros), (micro, keys))
        return model_state, jax.tree.map(lambda t: t / jnp.maximum(batch["valid"].sum(), 1), total)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulation == 1:
            model_state, (grads, metrics) = gradient(state, state.model_state, batch, key)
        else:
            model_state, (grads, metrics) = accumulated(state, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = opt_state.last_finite
        metrics |= {
            "gradient_norm": optax.tree.norm(grads),
            "clips": batch["valid"].sum(),
            "skipped_steps": opt_state.total_notfinite,
            "skipped_in_a_row": opt_state.notfinite_count,
        }
        return (
            state.replace(
                step=state.step + 1,
                params=params,
                model_state=jax.tree.map(lambda new, old: jnp.where(finite, new, old), model_state, state.model_state),
                opt_state=opt_state,
                ema=None if ema_decay is None else optax.incremental_update(params, state.ema, 1 - ema_decay),
            ),
            metrics,
        )

    return step
