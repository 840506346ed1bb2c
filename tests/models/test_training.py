"""X3D and CSN train, with one block each: no other test compiles the gradients of their layers in a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_runs import draw_variables

import vidjax


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("x3d_tiny", {"depths": (1, 0, 0, 0), "widths": (8, 8, 8, 8), "head_width": 8}),
        ("ipcsn_tiny", {"depths": (0, 1, 0, 0)}),
    ],
)
def test_a_step_moves_every_parameter_and_statistic_and_lowers_the_loss(name, fields):
    fields |= {"num_classes": 3, "num_frames": 2, "image_size": 16, "dropout": 0.0}
    model, video = vidjax.create_model(name, **fields), jnp.asarray(recipe.floats("video", (6, 2, 16, 16, 3)))
    variables = draw_variables(model)

    @jax.jit
    def step(params, statistics):
        def loss(params):
            logits, state = model.apply(
                {"params": params, "batch_stats": statistics}, video, train=True, mutable=["batch_stats"]
            )
            return -jax.nn.log_softmax(logits)[jnp.arange(6), jnp.arange(6) % 3].mean(), state["batch_stats"]

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - 0.02 * g, params, gradients), statistics

    first, *moved = step(variables["params"], variables["batch_stats"])
    for before, after in zip(
        *map(jax.tree.leaves, ([variables["params"], variables["batch_stats"]], moved)), strict=True
    ):
        assert not np.array_equal(before, after)
    assert step(*moved)[0] < first
