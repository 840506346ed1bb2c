"""The state of a training run."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree


@flax.struct.dataclass
class Aux:
    """The inputs of a loss besides the trained parameters and the batch.

    Attributes:
      model_state: other variables of the model (running statistics), by collection.
      ema: moving average of the parameters, for example as the target of latent prediction; None if the run has none.
      frozen: parameters that are not trained, such as those of a teacher; None if there are none.
      step: number of previous steps, an int32 scalar.
    """

    model_state: PyTree
    ema: PyTree
    frozen: PyTree
    step: Any


@flax.struct.dataclass
class Skipped:
    """Counts of the steps that were skipped because their gradient was not finite.

    Attributes:
      total: all skipped steps so far, an int32 scalar.
      in_a_row: consecutive skipped steps up to the last step, an int32 scalar.
      last_finite: whether the gradient of the last step was finite.
    """

    total: Any
    in_a_row: Any
    last_finite: Any


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the frozen parameters; together with the config it determines the run.

    The leaves are arrays, or their shapes or shardings.

    Attributes:
      step: number of steps taken, an int32 scalar.
      params: parameters, float32.
      model_state: other variables of the model (running statistics), by collection.
      opt_state: state of the Optax optimiser.
      skipped: counts of skipped steps.
      ema: moving average of the parameters, or None.
      frozen: parameters that no step changes, or None; not saved in checkpoints.
      key: PRNG key of the run; step n uses `fold_in(key, n)`.
    """

    step: Any
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    skipped: Any
    ema: PyTree
    frozen: PyTree
    key: Any

    @property
    def evaluated_params(self) -> PyTree:
        """The moving average of the parameters if there is one, otherwise the parameters."""
        return self.params if self.ema is None else self.ema

    @property
    def aux(self) -> Aux:
        """The `aux` argument of the loss in the next step."""
        return Aux(self.model_state, self.ema, self.frozen, self.step)


def create_state(
    variables: dict[str, PyTree[Array]],
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    ema: bool = False,
    frozen: PyTree[Array] | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      variables: variables from `model.init`.
      tx: any Optax optimiser.
      key: PRNG key of the run.
      ema: keep a moving average of the parameters, initialised with a copy of them.
      frozen: parameters that are not trained, such as those of a teacher; the loss reads them as `aux.frozen`.
    """
    params = variables["params"]
    model_state = {name: value for name, value in variables.items() if name != "params"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        skipped=Skipped(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.ones((), bool)),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        frozen=frozen,
        key=key,
    )
