"""The state of a run, as one value."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree


@flax.struct.dataclass
class Aux:
    """What a loss may read beside the parameters that it is differentiated by.

    Attributes:
      model_state: other variables of the model (running statistics), by collection.
      ema: moving average of the parameters, the target of latent prediction; None where the run keeps none.
      frozen: parameters that are never trained, such as a teacher's; None where there are none.
      step: number of steps taken before this one, an int32 scalar.
    """

    model_state: PyTree
    ema: PyTree
    frozen: PyTree
    step: Any


@flax.struct.dataclass
class Skipped:
    """Counts of the steps that were skipped because their gradient was not finite.

    Attributes:
      total: all of them so far, an int32 scalar.
      in_a_row: those up to the newest step, an int32 scalar.
      last_finite: whether the gradient of the newest step was finite.
    """

    total: Any
    in_a_row: Any
    last_finite: Any


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the frozen parameters; with the config it determines the rest of the run.

    The leaves are arrays; trees of their shapes or of their shardings have the same form.

    Attributes:
      step: number of steps taken, an int32 scalar.
      params: parameters, float32.
      model_state: other variables of the model (running statistics), by collection.
      opt_state: of the Optax optimiser.
      skipped: counts of skipped steps.
      ema: moving average of the parameters, or None.
      frozen: parameters that no step changes, or None; checkpoints leave them out.
      key: the run's random key; step n uses `fold_in(key, n)`.
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
        """The moving average where there is one."""
        return self.params if self.ema is None else self.ema

    @property
    def aux(self) -> Aux:
        """What the loss of the next step reads."""
        return Aux(self.model_state, self.ema, self.frozen, self.step)


def create_state(
    variables: dict[str, PyTree[Array]],
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    ema: bool = False,
    frozen: PyTree[Array] | None = None,
) -> TrainState:
    """The state before the first step, from `model.init`'s variables.

    Args:
      tx: any Optax optimiser.
      key: the run's.
      ema: keep a moving average of the parameters, which starts as a copy of them.
      frozen: parameters that the loss reads as `aux.frozen` and nothing changes, such as a teacher's.
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
