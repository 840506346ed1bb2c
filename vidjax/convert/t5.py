"""Layout of T5 in Hugging Face directories, and its configuration."""

from dataclasses import replace

from vidjax.convert.files import Weights
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, kernel
from vidjax.models.t5 import BUCKETS, LIMIT, T5

HEAD = "lm_head.weight"
# Entries that repeat the word embeddings, and one that old files have but no code reads.
UNUSED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
PARTS = {"query": "q", "key": "k", "value": "v", "out": "o"}


def stack_rules(source: str, target: str, kind: str) -> tuple[Rule, ...]:
    """The encoder, or the decoder with its attention to the encoder.

    Args:
      source: prefix of the published names.
      target: prefix of our paths.
      kind: encoder or decoder.
    """
    layer, ours = f"{source}{kind}.block.{{i}}.layer", f"{target}{kind}/block_{{i}}"
    attentions = [("0.SelfAttention", "attention", "0", "norm1")]
    if kind == "decoder":
        attentions.append(("1.EncDecAttention", "cross_attention", "1", "cross_norm"))
    last = len(attentions)
    linear = {"wi": "fc1", "wi_0": "fc1", "wi_1": "gate", "wo": "fc2"}
    return (
        *(
            Rule(f"{layer}.{name}.{theirs}.weight", f"{ours}/{path}/{part}/kernel", kernel)
            for name, path, _, _ in attentions
            for part, theirs in PARTS.items()
        ),
        *(Rule(f"{layer}.{at}.layer_norm.weight", f"{ours}/{norm}/scale") for _, _, at, norm in attentions),
        *(
            Rule(f"{layer}.{last}.DenseReluDense.{theirs}.weight", f"{ours}/mlp/{part}/kernel", kernel)
            for theirs, part in linear.items()
        ),
        Rule(f"{layer}.{last}.layer_norm.weight", f"{ours}/norm2/scale"),
        Rule(
            f"{source}{kind}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{target}{kind}_bias/table"
        ),
        Rule(f"{source}{kind}.final_layer_norm.weight", f"{target}{kind}_norm/scale"),
    )


def rules(gated: bool, source: str = "", target: str = "") -> tuple[Rule, ...]:
    """All rules of a model.

    Args:
      gated: see `T5`.
      source: prefix of the published names.
      target: prefix of our paths.
    """
    both = stack_rules(source, target, "encoder") + stack_rules(source, target, "decoder")
    left_out = (".wi.",) if gated else (".wi_0.", ".wi_1.")
    return (
        Rule(f"{source}shared.weight", f"{target}token_embedding/embedding"),
        *(rule for rule in both if not any(part in rule.source for part in left_out)),
        Rule(f"{source}{HEAD}", f"{target}word_head/kernel", kernel),
    )


def prepare(weights: Weights) -> Weights:
    """Removes repeated and unused entries."""
    return {name: value for name, value in weights.items() if name not in UNUSED}


LAYOUT = Layout(
    name="Hugging Face's T5",
    key="transformers",
    format="safetensors",
    marker="shared.weight",
    prepare=prepare,
    rules=(),
    optional=(),
    surplus=(),
)


def layouts(model: T5) -> tuple[Layout, ...]:
    """The layout with the rules of this version; a file of the first may repeat the embeddings as its last layer."""

    def without_head(weights: Weights) -> Weights:
        return {name: value for name, value in prepare(weights).items() if name != HEAD}

    return (replace(LAYOUT, rules=rules(model.gated), prepare=without_head if model.tied else prepare),)


def from_config(config: dict) -> T5:
    """The model of a configuration."""
    expect(config, "feed_forward_proj", "relu", "gated-gelu")
    expect(config, "relative_attention_num_buckets", BUCKETS)
    expect(config, "relative_attention_max_distance", LIMIT)
    expect(config, "layer_norm_epsilon", 1e-6)
    depth = config.get("num_layers", 6)
    expect(config, "num_decoder_layers", depth, None)
    return T5(
        config.get("vocab_size", 32128),
        config.get("d_model", 512),
        depth,
        config.get("num_heads", 8),
        config.get("d_kv", 64),
        config.get("d_ff", 2048),
        config.get("feed_forward_proj", "relu") == "gated-gelu",
        config.get("tie_word_embeddings", True),
    )


def to_config(model: T5) -> dict:
    """The inverse of `from_config`."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": model.vocabulary,
        "d_model": model.width,
        "num_layers": model.depth,
        "num_decoder_layers": model.depth,
        "num_heads": model.heads,
        "d_kv": model.head_width,
        "d_ff": model.hidden,
        "feed_forward_proj": "gated-gelu" if model.gated else "relu",
        "tie_word_embeddings": model.tied,
        "decoder_start_token_id": 0,
    }


LAYOUTS = {T5: layouts}
CONFIGS = {"t5": from_config}
TO_CONFIGS = {T5: to_config}
