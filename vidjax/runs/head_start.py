"""What a head sees at the start of a run that trains little beside it, for `training.standardized`."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vidjax.runs.run import Run
from vidjax.training.sharding import jit_on_mesh, put_batch
from vidjax.training.standardized import Standardized
from vidjax.training.state import TrainState

CLIPS = 512
"""How many clips the statistics are of, at least: those of the first training batches."""


def measure_head(run: Run, state: TrainState) -> TrainState:
    """The state with the statistics of the head's inputs, of a run that was built with `standardized`.

    They are the same for any number of devices, and are saved with the optimiser's state. The state of other runs, of
    one that resumes, and of one whose head is not a linear layer stays as it is.
    """
    if run.has_begun or not isinstance(state.opt_state, Standardized) or state.opt_state.mean is None:
        return state
    model = run.model

    @partial(jit_on_mesh, mesh=run.mesh)
    def see(state: TrainState, batch: dict[str, jax.Array]) -> tuple[Array, Array]:
        variables = {"params": run.merge(state.params, state.frozen), **state.model_state}
        features = model.apply(variables, model.card.preprocess(batch["video"]), method="embed")
        return features.astype(jnp.float32), batch["valid"]

    features, parts = [], run.config.accumulation  # into which a step divides a batch, to fit into memory
    for batch in itertools.islice(run.labelled_batches(0), math.ceil(CLIPS / run.config.batch_size)):
        for number in range(parts):
            part = {name: np.split(rows, parts)[number] for name, rows in batch.items()}
            rows, valid = jax.device_get(see(state, put_batch(part, run.mesh)))
            features.append(rows[valid])
    if not sum(map(len, features)):  # no clip could be read, which training will say
        return state
    measured = state.opt_state.measured(np.concatenate(features))
    return state.replace(opt_state=jax.device_put(measured, run.sharding.opt_state))
