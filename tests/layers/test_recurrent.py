"""LSTM and GRU against PyTorch's recorded outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import conversion, rules
from vidjax.layers.recurrent import GRU, LSTM


def converted(module: nn.Module, weights: dict[str, np.ndarray], x: jax.Array, layer: int = 0) -> dict:
    """The variables of one layer, with every entry used."""
    layout = rules.Layout("PyTorch", "", rules.recurrent("", "", layer))
    entries = {name: value for name, value in weights.items() if name.endswith(f"_l{layer}")}
    return conversion.apply(layout, entries, jax.eval_shape(module.init, jax.random.key(0), x), strict=True)[0]


def test_two_layers_of_lstm_equal_pytorchs():
    golden = recipe.load("lstm")
    module, x, last = LSTM(golden.config["hidden"]), jnp.asarray(golden.inputs[0]), []
    for layer in range(2):
        x, state = jax.jit(module.apply)(converted(module, golden.weights, x, layer), x)
        last.append(state)
    np.testing.assert_allclose(x, golden.outputs["output0"], atol=1e-6)
    for part, key in enumerate(("output1", "output2")):
        np.testing.assert_allclose([state[part] for state in last], golden.outputs[key], atol=1e-6)


def test_gru_equals_pytorchs():
    golden = recipe.load("gru")
    module, x = GRU(golden.config["hidden"]), jnp.asarray(golden.inputs[0])
    states, last = jax.jit(module.apply)(converted(module, golden.weights, x), x)
    np.testing.assert_allclose(states, golden.outputs["output0"], atol=1e-6)
    np.testing.assert_allclose(last[None], golden.outputs["output1"], atol=1e-6)


@pytest.mark.parametrize("module", [LSTM(6), GRU(6)], ids=["LSTM", "GRU"])
def test_a_sequence_can_be_continued_from_its_state(module):
    x = jnp.asarray(recipe.floats("x", (2, 7, 5)))
    variables = module.init(jax.random.key(0), x)
    apply = jax.jit(module.apply)
    whole, last = apply(variables, x)
    first, state = apply(variables, x[:, :3])
    second, state = apply(variables, x[:, 3:], state)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, last)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_weights_go_out_as_they_came_in(name):
    golden = recipe.load(name)
    module = {"lstm": LSTM, "gru": GRU}[name](golden.config["hidden"])
    variables = converted(module, golden.weights, jnp.asarray(golden.inputs[0]))
    written = conversion.invert(rules.Layout("PyTorch", "", rules.recurrent("", "")), variables)
    assert written.keys() == {entry for entry in golden.weights if entry.endswith("_l0")}
    for entry, value in written.items():
        np.testing.assert_array_equal(value, golden.weights[entry])


def test_states_are_float32_for_half_precision_inputs():
    x = jnp.asarray(recipe.floats("x", (2, 7, 5)), jnp.bfloat16)
    for module in (LSTM(6), GRU(6)):
        shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}


def test_caffes_lstm_has_one_bias():
    x = jnp.asarray(recipe.floats("x", (2, 7, 5)))
    two = jax.jit(LSTM(6).init)(jax.random.key(0), x)
    params = dict(two["params"])
    params["input_bias"] = params["input_bias"] + params.pop("state_bias")
    one = LSTM(6, state_bias=False)
    assert jax.tree.structure(jax.eval_shape(one.init, jax.random.key(0), x)["params"]) == jax.tree.structure(params)
    np.testing.assert_array_equal(one.apply({"params": params}, x)[0], LSTM(6).apply(two, x)[0])
