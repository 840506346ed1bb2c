"""The state of a run, as one value."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. It is saved whole; with the config it determines the rest of the run.

    The leaves are arrays; trees of their shapes or of their shardings have the same form.

    Attributes:
      step: number of steps taken, an int32 scalar.
      params: parameters, float32.
      model_state: other variables of the model (running statistics), by collection.
      opt_state: of `optimizer.make_optimizer`.
      ema: moving average of the parameters, or None.
      key: the run's random key; step n uses `fold_in(key, n)`.
    """

    step: Any
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree
    key: Any

    @property
    def evaluated_params(self) -> PyTree:
        """The moving average where there is one."""
        return self.params if self.ema is None else self.ema


def create_state(
    variables: dict[str, PyTree[Array]], tx: optax.GradientTransformation, key: Key[Array, ""], ema: bool = False
) -> TrainState:
    """The state before the first step, from `model.init`'s variables."""
    params = variables["params"]
    model_state = {name: value for name, value in variables.items() if name != "params"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        key=key,
    )
