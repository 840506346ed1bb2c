"""Layout of BERT in Hugging Face directories; the heads of its pre-training are ignored."""

from vidjax.convert.blocks import PARTS, block, separate_attention
from vidjax.convert.files import Weights
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, norm, strip
from vidjax.models.text import Bert


def post_norm_block(source: str, target: str) -> tuple[Rule, ...]:
    """A post-norm block with Hugging Face's names."""
    parts = {part: f"{source}.attention.self.{part}" for part in PARTS}
    attention = separate_attention(f"{target}/attention", **parts, out=f"{source}.attention.output.dense")
    names = ("attention.output.LayerNorm", "output.LayerNorm", "intermediate.dense", "output.dense")
    return block(source, target, attention, names)


HEADS = ("pooler.", "cls.")


def prepare(weights: Weights) -> Weights:
    """Removes heads and position indices, and renames TensorFlow's names of norm parameters in older files."""
    renamed = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in strip(weights, "bert.").items()
    }
    return {
        name: value
        for name, value in renamed.items()
        if not name.startswith(HEADS) and not name.endswith(".position_ids")
    }


HUGGING_FACE = Layout(
    name="Hugging Face's BERT",
    key="transformers",
    restore=None,  # the layout has no entry for the projection
    marker="embeddings.word_embeddings.weight",
    prepare=prepare,
    rules=(
        Rule("embeddings.word_embeddings.weight", "token_embedding/embedding"),
        Rule("embeddings.position_embeddings.weight", "position"),
        Rule("embeddings.token_type_embeddings.weight", "type"),
        *norm("embeddings.LayerNorm", "embedding_norm"),
        *post_norm_block("encoder.layer.{i}", "transformer/block_{i}"),
    ),
    optional=("projection/",),
    surplus=(),
)

LAYOUTS = {Bert: (HUGGING_FACE,)}

FEATURES = 512  # features of the projection, which published BERTs do not have


def from_config(config: dict) -> Bert:
    """The tower of a Hugging Face configuration."""
    expect(config, "hidden_act", "gelu")
    expect(config, "position_embedding_type", "absolute")
    expect(config, "pad_token_id", 0)
    expect(config, "is_decoder", False)
    return Bert(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        FEATURES,
        config["intermediate_size"] / config["hidden_size"],
        config.get("type_vocab_size", 2),
        epsilon=config.get("layer_norm_eps", 1e-12),
    )


CONFIGS = {"bert": from_config}
