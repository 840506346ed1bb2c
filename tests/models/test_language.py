"""Language models against goldens and transformers: logits, names both ways, and what they write, word for word."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import export_pretrained, from_state_dict, layouts, load_pretrained
from vidjax.convert.export import entries
from vidjax.evaluation.generation import beam_search
from vidjax.models import LANGUAGE_VARIANTS, create_model, example_inputs
from vidjax.models.language import LanguageModel
from vidjax.models.t5 import LIMIT, bucket_table
from vidjax.models.text import FusionBert
from vidjax.objectives.language_modeling import caption_loss
from vidjax.runs.generation import begin

LANGUAGE_COUNTS = {
    # From SYSTEMS-2.md: GPT-2, GPT-2 XL and BERT.
    "gpt2": 124_439_808,
    "gpt2_xl": 1_557_611_200,
    "bert_base_mlm": 109_514_298,
    # Our own counts of models whose sums are published; see also the totals in test_blip2.py.
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "opt_125m": 125_239_296,
    "opt_2_7b": 2_651_596_800,
    "opt_6_7b": 6_658_473_984,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "flan_t5_base": 247_577_856,
    "flan_t5_xl": 2_849_757_184,
    # 6.2 billion in its README; peft counts this number and that of its adapters.
    "chatglm_6b": 6_173_286_400,
    "chatglm_tiny": 360_672,
    "gpt2_tiny": 369_792,
    "opt_tiny": 369_984,
    "t5_tiny": 493_504,
    # 12 billion in the paper; the others are our own sizes.
    "dalle_gpt_12b": 12_292_833_024,
    "dalle_gpt_base": 123_271_680,
    "dalle_gpt_small": 40_414_464,
    "dalle_gpt_tiny": 414_179,
}


@pytest.mark.long
@pytest.mark.parametrize("name", LANGUAGE_VARIANTS)
def test_parameters_are_as_published(name):
    model = create_model(name, **({} if name == "bert_base_mlm" else {"scan": True}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    assert sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == LANGUAGE_COUNTS[name]


def model_of(name: str, c: dict):
    fields = (c["V"], c["ctx"], c["tD"], c["tL"], c["tH"])
    return FusionBert(*fields) if name == "bert_mlm" else LanguageModel(*fields)


def returned(name: str, golden: recipe.Golden) -> tuple[dict, np.ndarray]:
    model = model_of(name, golden.config)
    variables = from_state_dict(model, golden.weights, strict=True)
    ids, valid, segments = (jnp.asarray(x, jnp.int32) for x in golden.inputs[:3])
    if name == "gpt2":
        return variables, jax.jit(model.apply)(variables, ids, valid == 1)
    return variables, jax.jit(model.apply)(variables, ids, segments=segments)


@pytest.mark.parametrize("name", ["bert_mlm", "gpt2"])
def test_equals_the_golden(name):
    golden = recipe.load(name)
    model = model_of(name, golden.config)
    variables, logits = returned(name, golden)
    ids, valid, labels = golden.inputs[0], golden.inputs[1] == 1, golden.inputs[-1]
    np.testing.assert_allclose(logits[valid], golden.outputs["output0"][valid], rtol=0, atol=1e-5)
    if name == "gpt2":
        loss = caption_loss(logits, jnp.asarray(ids, jnp.int32), jnp.ones(2, bool))
        assert (ids != 0).tolist() == (labels != -100).tolist()
        np.testing.assert_allclose(loss, golden.outputs["output1"][0], rtol=1e-5)
    written = entries(layouts(model)[0], model, variables)
    assert written.keys() == golden.weights.keys()
    for entry, value in golden.weights.items():
        np.testing.assert_array_equal(written[entry], value)


PROMPTS = np.array([[0, 0, 5, 31, 44], [7, 20, 50, 26, 18]])  # padded at the left
SMALL = {
    "gpt2": {"n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {
        "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "ffn_dim": 32, "word_embed_proj_dim": 16,
    },
    "t5": {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 4, "d_ff": 32, "decoder_start_token_id": 0},
}  # fmt: skip


def peer_of(kind: str):
    """A small language model of transformers."""
    transformers = peers.transformers()
    config, model = {
        "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
        "opt": ("OPTConfig", "OPTForCausalLM"),
        "t5": ("T5Config", "T5ForConditionalGeneration"),
    }[kind]
    ids = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    peer = getattr(transformers, model)(getattr(transformers, config)(**SMALL[kind], **ids)).eval()
    peers.perturb(peer)
    peer.tie_weights()
    return peer


@pytest.mark.long
@pytest.mark.parametrize("kind", SMALL)
def test_writes_what_transformers_writes(kind, tmp_path):
    """Greedily and with beams, from prompts of different lengths, also after a round trip through our export."""
    peer = peer_of(kind)
    import torch

    peer.save_pretrained(tmp_path / "theirs")
    model, variables = load_pretrained(tmp_path / "theirs", strict=True, verbose=False)
    export_pretrained(model, variables, tmp_path / "ours", layout="transformers")
    again = type(peer).from_pretrained(tmp_path / "ours").eval()
    prompts, valid = torch.from_numpy(PROMPTS), torch.from_numpy(PROMPTS != 0)

    def write(beams, penalty):
        settings = {"length": 9, "end": 2, "beams": beams, "length_penalty": penalty}

        @jax.jit
        def run(variables, ids, valid):
            embedded = model.apply(variables, ids, method="embed")
            return beam_search(*begin(model, variables, embedded, valid, 9, beams=beams), **settings)[0]

        return np.asarray(run(variables, jnp.asarray(PROMPTS, jnp.int32), jnp.asarray(PROMPTS != 0)))

    for beams, penalty in ((1, 1.0), (3, 2.0)):
        settings = {"max_new_tokens": 9, "num_beams": beams, "length_penalty": penalty, "do_sample": False}
        settings |= {"eos_token_id": 2, "pad_token_id": 0}
        with torch.no_grad():
            expected = again.generate(prompts, attention_mask=valid.long(), **settings).numpy()
        expected = expected[:, 1:] if kind == "t5" else expected[:, PROMPTS.shape[1] :]
        expected = np.pad(expected, ((0, 0), (0, 9 - expected.shape[1])))
        np.testing.assert_array_equal(write(beams, penalty), expected)


def test_a_cache_gives_the_logits_of_the_whole_text():
    """With a prefix whose tokens see one another, as in GLM, which changes the logits of its first token."""
    model = LanguageModel(60, 24, 16, 2, 2, activation="relu", offset=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    named = jax.tree_util.keystr
    variables = jax.tree_util.tree_map_with_path(lambda p, x: jnp.asarray(recipe.floats(named(p), x.shape)) / 3, shapes)
    ids = jnp.asarray(recipe.floats("ids", (2, 7)) * 100, jnp.int32) % 60
    valid = jnp.ones((2, 7), bool).at[0, :2].set(False)
    prefix = valid & (jnp.arange(7) < 5)

    @jax.jit
    def both(variables, ids):
        whole = model.apply(variables, ids, valid, prefix)
        causal = model.apply(variables, ids, valid)
        embedded = model.apply(variables, ids[:, :5], method="embed")
        step, logits, cache = begin(model, variables, embedded, valid[:, :5], 3, prefix[:, :5])
        parts = [logits]
        for i in range(2):
            logits, cache = step(ids[:, 5 + i], jnp.int32(i), cache)
            parts.append(logits)
        return whole, causal, jnp.stack(parts, axis=1)

    whole, causal, parts = both(variables, ids)
    np.testing.assert_allclose(parts, whole[:, 4:], atol=1e-5)
    assert np.abs(whole - causal)[1].max(axis=-1).min() > 1e-3
    with pytest.raises(ValueError, match="prompt and text have 25 tokens: the language model takes at most 24"):
        jax.eval_shape(lambda x: begin(model, variables, x, jnp.ones((1, 5), bool), 20), jnp.zeros((1, 5, 16)))


@pytest.mark.parametrize("both_ways", [True, False])
def test_distances_have_the_buckets_of_transformers(both_ways):
    peers.transformers()
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-LIMIT, LIMIT + 1)
    expected = T5Attention._relative_position_bucket(distance, both_ways).numpy()
    masked = 0 if both_ways else LIMIT + 1
    np.testing.assert_array_equal(bucket_table(both_ways)[: masked or None], expected[: masked or None])
