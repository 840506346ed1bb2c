"""The training step as a pure function."""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

from vidjax.training.state import Aux, Skipped, TrainState

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
# (params, aux, batch, key) -> (loss, (model_state, metrics)); the loss is a mean over the valid clips of the batch, and
# batch norm computes its statistics over valid clips only (`layers.normalization.valid_clips`).
LossFn = Callable[[PyTree, Aux, Batch, Key[Array, ""]], tuple[Float[Array, ""], tuple[PyTree, Metrics]]]


def valid_mean(values: Shaped[Array, "b"], valid: Bool[Array, "b"]) -> Float[Array, ""]:
    """The mean over valid clips, even if the others are not finite; 0 without valid clips."""
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulation: int = 1,
    ema_decay: optax.ScalarOrSchedule | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes a pure step `(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Args:
      loss_fn: see `LossFn`; its `aux` has the running statistics, the moving average, frozen parameters and the step.
      tx: any Optax optimiser; `value`, `grad` and `value_fn` are passed to those that use them.
      accumulation: number of micro-batches per batch, to save memory; each is weighted by its number of valid clips.
      ema_decay: decay of the moving average of the parameters, which follows the update; a number or a schedule.

    Returns:
      The step. `valid` (b,) in the batch is false for clips that could not be read; without it all clips are valid.
      The metrics are those of `loss_fn` and `loss`, `gradient_norm`, `clips` (number of valid clips), `skipped_steps`
      (all steps so far whose gradient norm was not finite) and `skipped_in_a_row`. A skipped step does not change the
      parameters, the optimiser state or the model state.
    """
    tx = optax.with_extra_args_support(tx)

    def gradient(state: TrainState, model_state: PyTree, batch: Batch, key: Array) -> tuple[Any, ...]:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        aux = state.aux.replace(model_state=model_state)
        (loss, (model_state, metrics)), grads = grad_fn(state.params, aux, batch, key)
        return model_state, (grads, {"loss": loss, **metrics})

    def accumulated(state: TrainState, batch: Batch, key: Array) -> tuple[Any, ...]:
        # Micro-batch i consists of every accumulation-th clip, so that no clips move between devices.
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
        if "valid" not in batch:
            batch = batch | {"valid": jnp.ones(len(jax.tree.leaves(batch)[0]), bool)}
        key = jax.random.fold_in(state.key, state.step)
        if accumulation == 1:
            model_state, (grads, metrics) = gradient(state, state.model_state, batch, key)
        else:
            model_state, (grads, metrics) = accumulated(state, batch, key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)  # one number; testing every array takes as long to compile as the optimiser

        def update() -> tuple[PyTree, PyTree]:
            extra = {"value": metrics["loss"], "grad": grads}
            extra["value_fn"] = lambda params: loss_fn(params, state.aux, batch, key)[0]
            updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
            return optax.apply_updates(state.params, updates), opt_state

        decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
        params, opt_state = jax.lax.cond(finite, update, lambda: (state.params, state.opt_state))
        skipped = Skipped(
            total=state.skipped.total + ~finite,
            in_a_row=jnp.where(finite, 0, state.skipped.in_a_row + 1),
            last_finite=finite,
        )
        metrics |= {
            "gradient_norm": norm,
            "clips": batch["valid"].sum(),
            "skipped_steps": skipped.total,
            "skipped_in_a_row": skipped.in_a_row,
        }
        return (
            state.replace(
                step=state.step + 1,
                params=params,
                model_state=jax.tree.map(lambda new, old: jnp.where(finite, new, old), model_state, state.model_state),
                opt_state=opt_state,
                skipped=skipped,
                ema=None if decay is None else optax.incremental_update(params, state.ema, 1 - decay),
            ),
            metrics,
        )

    return step
