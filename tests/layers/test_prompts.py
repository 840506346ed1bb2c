"""Prompt tuning, P-tuning and prefix tuning of GPT-2 against peft's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import from_state_dict
from vidjax.layers.prompts import Prompt, with_prefix, with_prompt
from vidjax.models.language import LanguageModel

ENCODER = "prompt_encoder.default."


def prompt_of(name: str, golden: recipe.Golden) -> tuple[Prompt, dict]:
    """The module of a golden, and its variables."""
    c = golden.config
    features = c["tD"] if "prefix" not in name else 2 * c["tL"] * c["tD"]
    entries = {path.removeprefix(ENCODER): value for path, value in golden.weights.items() if ENCODER in path}
    params = {"embedding": {"embedding": entries.pop("embedding.weight")}}
    layers = sorted({path.rpartition(".")[0] for path in entries})
    for i, layer in enumerate(layers):
        params[f"fc{i}"] = {"kernel": entries[f"{layer}.weight"].T, "bias": entries[f"{layer}.bias"]}
    fields = {"width": c["tD"], "hidden": c["encoder_hidden_size"], "layers": len(layers)} if layers else {}
    return Prompt(c["virtual"], features, **fields), {"params": params}


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "prefix_tuning", "prefix_tuning_mlp"])
def test_equals_the_golden(name):
    golden = recipe.load(name)
    c = golden.config
    model = LanguageModel(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"])
    base = {path.removeprefix("base_model."): v for path, v in golden.weights.items() if path.startswith("base_model.")}
    variables = from_state_dict(model, base, strict=True)
    module, own = prompt_of(name, golden)
    np.testing.assert_allclose(module.apply(own), golden.outputs["output1"], rtol=0, atol=1e-6)
    ids, valid = jnp.asarray(golden.inputs[0], jnp.int32), jnp.asarray(golden.inputs[1]) == 1
    logits_of = with_prefix if "prefix" in name else with_prompt
    logits = jax.jit(lambda own: logits_of(model, variables, module.apply(own), ids, valid))(own)
    expected = golden.outputs["output0"]
    shown = np.asarray(valid) if "prefix" in name else np.concatenate([np.ones((2, 4), bool), valid], axis=1)
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits[shown], expected[shown], rtol=0, atol=2e-5)


def test_a_prefix_is_trained_through_the_cache():
    model, module = LanguageModel(20, 12, 16, 2, 2), Prompt(3, 2 * 2 * 16)
    ids = jnp.arange(8, dtype=jnp.int32).reshape(1, 8)
    variables, own = model.init(jax.random.key(0), ids), module.init(jax.random.key(1))

    def loss(own):
        return with_prefix(model, variables, module.apply(own), ids, ids < 9).std()

    gradient = jax.jit(jax.grad(loss))(own)["params"]["embedding"]["embedding"]
    assert (np.abs(gradient).reshape(3, 2, 2, 16).sum(axis=-1) > 0).all()  # of keys and values in both blocks
