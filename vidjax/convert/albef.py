"""Layouts of ALBEF's release: the model, and its momentum copy, which the same file contains.

`layout="momentum"` reads the copy and `original`, the default, the model. Their names differ, so that the entries of
both together are those of a published file; temperature, matching head and queues, of which there is no copy, are in
both. The text encoder alone can start from a BERT, whose blocks have no cross-attention.
"""

from dataclasses import replace

from vidjax.convert.blocks import PARTS, positions, separate_attention, timm_block
from vidjax.convert.files import Weights
from vidjax.convert.fits import first, inflate, table
from vidjax.convert.rules import (
    Layout,
    Rule,
    Transform,
    dense,
    image_kernel,
    kernel,
    norm,
    prefix,
    rename,
    strip,
)
from vidjax.convert.text import post_norm_block
from vidjax.models.albef import Albef
from vidjax.models.text import FusionBert

COPIED = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
"""First names of what has a momentum copy, whose first names end in `_m`."""
WORDS, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": BIAS}
"""Entries of the text encoder that repeat others."""
UNUSED = ("bert.embeddings.position_ids", "bert.pooler.", "cls.seq_relationship.")
"""Other entries of BERTs that ALBEF does not have, or computes itself."""


def text_rules(source: str, target: str) -> tuple[Rule, ...]:
    """BERT with its head for masked words, and cross-attention in some blocks."""
    bert, layer, block = f"{source}bert.", f"{source}bert.encoder.layer.{{i}}", f"{target}block_{{i}}"
    parts = {part: f"{layer}.crossattention.self.{part}" for part in PARTS}
    head = f"{source}cls.predictions"
    return (
        Rule(f"{bert}embeddings.word_embeddings.weight", f"{target}token_embedding/embedding"),
        Rule(f"{bert}embeddings.position_embeddings.weight", f"{target}position", fit=first),
        Rule(f"{bert}embeddings.token_type_embeddings.weight", f"{target}type"),
        *norm(f"{bert}embeddings.LayerNorm", f"{target}embedding_norm"),
        *post_norm_block(layer, block),
        *separate_attention(f"{block}/cross_attention", **parts, out=f"{layer}.crossattention.output.dense"),
        *norm(f"{layer}.crossattention.output.LayerNorm", f"{block}/cross_norm"),
        *dense(f"{head}.transform.dense", f"{target}word_head/dense"),
        *norm(f"{head}.transform.LayerNorm", f"{target}word_head/norm"),
        Rule(f"{head}.bias", f"{target}word_head/bias"),
    )


RULES = (
    Rule("visual_encoder.cls_token", "video/class_token"),
    *positions("visual_encoder.pos_embed", "video/", table("half_pixel_cubic")),
    *dense("visual_encoder.patch_embed.proj", "video/patch_embedding", inflate, image_kernel),
    *timm_block("visual_encoder.blocks.{i}", "video/transformer/block_{i}"),
    *norm("visual_encoder.norm", "video/norm"),
    *text_rules("text_encoder.", "text/"),
    *dense("vision_proj", "video_projection"),
    *dense("text_proj", "text_projection"),
)
POSITION = Transform(lambda value: value.reshape(()), lambda value: value.astype(int).reshape(1))


def without(weights: Weights, source: str) -> Weights:
    """The entries without those of a BERT, with this prefix, that repeat others or that ALBEF does not use."""
    left_out = tuple(source + name for name in (*TIED, *UNUSED))
    return {name: value for name, value in weights.items() if not name.startswith(left_out)}


def prepare(weights: Weights) -> Weights:
    """The model's entries."""
    copies = tuple(f"{name}_m." for name in COPIED)
    own = {name: value for name, value in strip(weights, "module.").items() if not name.startswith(copies)}
    return without(own, "text_encoder.")


def prepare_momentum(weights: Weights) -> Weights:
    """The momentum copy's entries, under the model's names, and those of which there is no copy."""
    trained = tuple(f"{name}." for name in COPIED)
    own = {name: value for name, value in strip(weights, "module.").items() if not name.startswith(trained)}
    return without(rename(own, lambda name: name.replace("_m.", ".", 1)), "text_encoder.")


def prepare_bert(weights: Weights) -> Weights:
    """Entries of a BERT with or without heads, in new or old files."""
    weights = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in strip(weights, "bert.").items()
    }
    return without(prefix(weights, "bert.", "cls."), "")


def restore(weights: Weights) -> Weights:
    """The inverse of `prepare`; the original's code expects the repeated entries."""
    text = "text_encoder."
    return weights | {text + name: weights[text + source] for name, source in TIED.items()}


def restore_momentum(weights: Weights) -> Weights:
    """The inverse of `prepare_momentum`."""
    trained = tuple(f"{name}." for name in COPIED)
    copied = {name: name.replace(".", "_m.", 1) for name in restore(weights) if name.startswith(trained)}
    return rename(restore(weights), lambda name: copied.get(name, name))


ORIGINAL = Layout(
    name="salesforce/ALBEF",
    key="original",
    marker="visual_encoder.patch_embed.proj.weight",
    prepare=prepare,
    restore=restore,
    rules=(
        *RULES,
        *dense("itm_head", "match_head"),
        Rule("temp", "temperature"),
        Rule("image_queue", "queue/video_keys", kernel),
        Rule("text_queue", "queue/text_keys", kernel),
        Rule("queue_ptr", "queue/position", POSITION),
    ),
    optional=("queue/",),  # not in fine-tuned weights
    surplus=(),
    wrap=lambda weights: {"model": weights},
)

MOMENTUM = replace(
    ORIGINAL,
    name="the momentum copy of salesforce/ALBEF",
    key="momentum",
    prepare=prepare_momentum,
    restore=restore_momentum,
    excludes=lambda entries, prepared: ORIGINAL.marker in entries,  # the file also contains the model
)

BERT = Layout(
    name="Hugging Face's BERT",
    key="transformers",
    restore=None,  # it has no cross-attention
    marker="bert.embeddings.word_embeddings.weight",
    prepare=prepare_bert,
    rules=text_rules("", ""),
    optional=("block_{i}/cross_", "word_head/"),
    surplus=(),
)


def bert_layouts(model: FusionBert) -> tuple[Layout, ...]:
    """BERT's, which can be written too if no block attends to a video."""
    if model.fusion_depth:
        return (BERT,)
    return (replace(BERT, restore=dict, format="safetensors", optional=("word_head/",)),)


def bert_to_config(model: FusionBert) -> dict:
    """The configuration of transformers' BERT for masked words."""
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": round(model.width * model.mlp_ratio),
        "type_vocab_size": model.types,
        "layer_norm_eps": model.epsilon,
    }


LAYOUTS = {Albef: (ORIGINAL, MOMENTUM), FusionBert: bert_layouts}
TO_CONFIGS = {FusionBert: bert_to_config}
