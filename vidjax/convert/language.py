"""Layouts of GPT-2 and OPT in Hugging Face directories, and their configurations."""

import re
from functools import partial

import numpy as np

from vidjax.convert.blocks import PARTS, block, separate_attention
from vidjax.convert.files import Weights
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, Transform, norm, prefix, strip
from vidjax.errors import UserError
from vidjax.models.language import LanguageModel

HEAD = "lm_head.weight"  # repeats the word embeddings


def columns(part: int) -> Transform:
    """One of query, key and value of GPT-2, whose kernels are stored as `(in, out)`."""
    return Transform(lambda value: np.array_split(value, len(PARTS), axis=-1)[part], lambda x: x, part, axis=-1)


def gpt2_rules() -> tuple[Rule, ...]:
    """GPT-2's names without `transformer.`; kernels are not transposed."""
    source, target = "h.{i}", "transformer/block_{i}"
    linear = {
        "attn.c_proj": "attention/out", "mlp.c_fc": "mlp/fc1", "mlp.c_proj": "mlp/fc2",
    }  # fmt: skip
    entries = (("weight", "kernel"), ("bias", "bias"))
    return (
        Rule("wte.weight", "token_embedding/embedding"),
        Rule("wpe.weight", "position"),
        *norm(f"{source}.ln_1", f"{target}/norm1"),
        *norm(f"{source}.ln_2", f"{target}/norm2"),
        *(
            Rule(f"{source}.attn.c_attn.{entry}", f"{target}/attention/{part}/{parameter}", columns(i))
            for i, part in enumerate(PARTS)
            for entry, parameter in entries
        ),
        *(
            Rule(f"{source}.{name}.{entry}", f"{target}/{path}/{parameter}")
            for name, path in linear.items()
            for entry, parameter in entries
        ),
        *norm("ln_f", "norm"),
    )


def opt_rules(source: str = "", target: str = "") -> tuple[Rule, ...]:
    """OPT's names from `decoder.` on.

    Args:
      source: prefix of the published names.
      target: prefix of our paths.
    """
    decoder, layer, ours = f"{source}decoder", f"{source}decoder.layers.{{i}}", f"{target}transformer/block_{{i}}"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    attention = separate_attention(
        f"{ours}/attention", **{part: f"{layer}.self_attn.{name}" for part, name in names.items()}
    )
    return (
        Rule(f"{decoder}.embed_tokens.weight", f"{target}token_embedding/embedding"),
        Rule(f"{decoder}.embed_positions.weight", f"{target}position"),
        *block(layer, ours, attention, ("self_attn_layer_norm", "final_layer_norm", "fc1", "fc2")),
        *norm(f"{decoder}.final_layer_norm", f"{target}norm"),
    )


def prepare_gpt2(weights: Weights) -> Weights:
    """Removes the prefix, the repeated embeddings, and the causal masks in older files."""
    kept = {name: value for name, value in strip(weights, "transformer.").items() if name != HEAD}
    return {name: value for name, value in kept.items() if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)}


def prepare_opt(weights: Weights) -> Weights:
    """Removes the prefix and the repeated embeddings."""
    return {name: value for name, value in strip(weights, "model.").items() if name != HEAD}


layout = partial(Layout, key="transformers", format="safetensors", optional=(), surplus=())

GPT2 = layout(
    name="Hugging Face's GPT-2",
    marker="wte.weight",
    prepare=prepare_gpt2,
    restore=lambda weights: prefix(weights, "transformer."),
    rules=gpt2_rules(),
)
OPT = layout(
    name="Hugging Face's OPT",
    marker="decoder.embed_tokens.weight",
    prepare=prepare_opt,
    restore=lambda weights: prefix(weights, "model."),
    rules=opt_rules(),
)

OPT_FIELDS = {"activation": "relu", "offset": 2, "epsilon": 1e-5}


def layouts(model: LanguageModel) -> tuple[Layout, ...]:
    """That of OPT if positions have an offset, otherwise that of GPT-2."""
    return (OPT,) if model.offset else (GPT2,)


def gpt2_from_config(config: dict) -> LanguageModel:
    """The model of a configuration of GPT-2."""
    expect(config, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    for field, value in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        expect(config, field, value)
    expect(config, "tie_word_embeddings", True)
    width = config.get("n_embd", 768)
    return LanguageModel(
        config.get("vocab_size", 50257),
        config.get("n_positions", 1024),
        width,
        config.get("n_layer", 12),
        config.get("n_head", 12),
        (config.get("n_inner") or 4 * width) / width,
        epsilon=config.get("layer_norm_epsilon", 1e-5),
    )


def opt_from_config(config: dict) -> LanguageModel:
    """The model of a configuration of OPT."""
    width = config.get("hidden_size", 768)
    for field, value in (
        ("activation_function", "relu"), ("do_layer_norm_before", True), ("word_embed_proj_dim", width),
        ("_remove_final_layer_norm", False), ("enable_bias", True), ("tie_word_embeddings", True),
    ):  # fmt: skip
        expect(config, field, value)
    return LanguageModel(
        config.get("vocab_size", 50272),
        config.get("max_position_embeddings", 2048),
        width,
        config.get("num_hidden_layers", 12),
        config.get("num_attention_heads", 12),
        config.get("ffn_dim", 3072) / width,
        **OPT_FIELDS,
    )


def opt_to_config(model: LanguageModel) -> dict:
    """The inverse of `opt_from_config`."""
    for field, value in OPT_FIELDS.items():
        if getattr(model, field) != value:
            raise UserError(f"{field} is {getattr(model, field)!r}, OPT's is {value!r}: use the layout vidjax")
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "hidden_size": model.width,
        "word_embed_proj_dim": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "ffn_dim": round(model.width * model.mlp_ratio),
    }


def to_config(model: LanguageModel) -> dict:
    """The inverse of `gpt2_from_config` and `opt_from_config`."""
    if model.offset:
        return opt_to_config(model)
    if model.activation != "tanh_gelu":
        raise UserError(f"activation is {model.activation!r}, GPT-2's is 'tanh_gelu': use the layout vidjax")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocabulary,
        "n_positions": model.context,
        "n_embd": model.width,
        "n_layer": model.depth,
        "n_head": model.heads,
        "n_inner": round(model.width * model.mlp_ratio),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.epsilon,
    }


LAYOUTS = {LanguageModel: layouts}
CONFIGS = {"gpt2": gpt2_from_config, "opt": opt_from_config}
TO_CONFIGS = {LanguageModel: to_config}
