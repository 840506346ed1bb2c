"""Layouts of BEiT: the original (microsoft/unilm) and Hugging Face's.

Tables of relative positions are published flat, with the three biases of the class token at the end. The indices into
them are buffers of the originals, which are dropped. A classifier starts with copies of the table that the blocks share
in pre-training.
"""

import re

import flax.linen as nn

from vidjax.convert.blocks import HUGGING_FACE_NAMES, PARTS, block
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, Transform, dense, image_kernel, kernel, norm, strip
from vidjax.convert.videomae import original_blocks
from vidjax.convert.vit import EXACT_GELU, block_config, square
from vidjax.errors import UserError
from vidjax.models.beit import HALVES, BEiT, Pretraining

BUFFER = "relative_position_index"
TABLE = "relative_position_bias_table"
PATCHES = Transform(lambda value: value[:-3], lambda value: value.reshape(-1, value.shape[-1]), 0, axis=0)
CLASS = Transform(lambda value: value[-3:], lambda value: value, 1, axis=0)
# Names in the memory of transformers 5, and in its files.
IN_FILES = {
    "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    "relative_position_bias": "attention.attention.relative_position_bias",
}  # fmt: skip
SHARED = {"original": f"rel_pos_bias.{TABLE}", "transformers": f"beit.encoder.relative_position_bias.{TABLE}"}
OWN = {
    "original": f"blocks.{{i}}.attn.{TABLE}",
    "transformers": f"beit.encoder.layer.{{i}}.attention.attention.relative_position_bias.{TABLE}",
}


def relative_position(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a table of relative positions."""
    return (
        Rule(source, f"{target}relative_position/table", PATCHES, table("half_pixel_linear")),
        Rule(source, f"{target}relative_position/class_table", CLASS),
    )


def hugging_face_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """Blocks with the names of transformers' files, without a bias of the keys."""
    projection = f"{source}.attention.attention"
    attention = (
        *(Rule(f"{projection}.{part}.weight", f"{target}/attention/{part}/kernel", kernel) for part in PARTS),
        *(Rule(f"{projection}.{part}.bias", f"{target}/attention/{part}/bias") for part in ("query", "value")),
        *dense(f"{source}.attention.output.dense", f"{target}/attention/out"),
    )
    scales = {"lambda_1": "attention_scale", "lambda_2": "mlp_scale"}
    return (
        *block(source, target, attention, HUGGING_FACE_NAMES),
        *(Rule(f"{source}.{name}", f"{target}/{scale}") for name, scale in scales.items()),
    )


def published_name(name: str) -> str:
    """The name in files of an entry in the memory of transformers 5, or of a model without a head."""
    if not name.startswith(("beit.", "classifier.", "lm_head.", "layernorm.weight", "layernorm.bias")):
        name = f"beit.{name}"
    name = name.replace("beit.shared_position_bias.", "beit.encoder.relative_position_bias.")
    if match := re.match(r"beit\.layers\.(\d+)\.(.*)\.(\w+)$", name):
        name = f"beit.encoder.layer.{match[1]}.{IN_FILES.get(match[2], match[2])}.{match[3]}"
    return re.sub(r"^beit\.layers\.(\d+)\.lambda", r"beit.encoder.layer.\1.lambda", name)


def prepared(weights: Weights, model: BEiT | Pretraining, key: str) -> Weights:
    """Drops buffers, and copies a shared table for each of a classifier's blocks."""
    weights = {name: value for name, value in weights.items() if not name.endswith(BUFFER)}
    if isinstance(model, BEiT) and not model.shared_positions and SHARED[key] in weights:
        shared = weights.pop(SHARED[key])
        weights |= {OWN[key].format(i=i): shared for i in range(model.depth)}
    return weights


# Fine-tuning starts with a new head and norm, and without the parts that predict tokens.
CLASSIFIER = {"optional": ("head/", "head_norm/"), "surplus": ("head/", "mask_token", "norm/", "token_head/")}


def own_pretraining(model: BEiT, paths: set[str]) -> Layout:
    """A checkpoint of our own pre-training: our names with the prefix `encoder`."""
    fits = {path: table("half_pixel_linear") for path in paths if path.endswith("relative_position/table")}
    shared, block = "params/encoder/relative_position/", "params/encoder/transformer/block_{i}/relative_position/"

    def prepare(weights: Weights) -> Weights:
        tables = {name.removeprefix(shared): value for name, value in weights.items() if name.startswith(shared)}
        if model.shared_positions or not tables:
            return dict(weights)
        own = {block.format(i=i) + name: value for i in range(model.depth) for name, value in tables.items()}
        return {name: value for name, value in weights.items() if not name.startswith(shared)} | own

    return Layout(
        name="vidjax's own pre-training",
        key="vidjax_pretraining",
        restore=None,
        marker="params/encoder/patch_embedding/kernel",
        prepare=prepare,
        rules=tuple(Rule(f"params/encoder/{path}", path, fit=fits.get(path)) for path in sorted(paths)),
        **CLASSIFIER,
    )


def layouts(model: BEiT | Pretraining) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    pretraining = isinstance(model, Pretraining)
    encoder = "encoder/" if pretraining else ""
    blocks = f"{encoder}transformer/block_{{i}}"
    parts = {"optional": (), "surplus": ()} if pretraining else CLASSIFIER
    tables = {
        key: (*relative_position(SHARED[key], encoder), *relative_position(OWN[key], f"{blocks}/")) for key in SHARED
    }
    scales = {"gamma_1": "attention_scale", "gamma_2": "mlp_scale"}
    original = Layout(
        name="microsoft/unilm's BEiT",
        key="original",
        marker="blocks.0.gamma_1",
        prepare=lambda weights: prepared(strip(weights, "module."), model, "original"),
        wrap=lambda content: {"model": content},
        fixed={"encoder_norm": False} if pretraining else {},
        rules=(
            Rule("cls_token", f"{encoder}class_token"),
            Rule("mask_token", "mask_token"),
            *dense("patch_embed.proj", f"{encoder}patch_embedding", inflate, image_kernel),
            *original_blocks("blocks", f"{encoder}transformer"),
            *(Rule(f"blocks.{{i}}.{name}", f"{blocks}/{scale}") for name, scale in scales.items()),
            *tables["original"],
            *norm("norm", "norm"),
            *dense("lm_head", "token_head"),
            *norm("fc_norm", "head_norm"),
            *dense("head", "head"),
        ),
        **parts,
    )
    transformers = Layout(
        name="Hugging Face's BEiT",
        key="transformers",
        marker="beit.encoder.layer.0.lambda_1",
        prepare=lambda weights: prepared(
            {published_name(name): value for name, value in strip(weights, "module.").items()}, model, "transformers"
        ),
        format="safetensors",
        rules=(
            Rule("beit.embeddings.cls_token", f"{encoder}class_token"),
            Rule("beit.embeddings.mask_token", "mask_token"),
            *dense("beit.embeddings.patch_embeddings.projection", f"{encoder}patch_embedding", inflate, image_kernel),
            *hugging_face_blocks("beit.encoder.layer.{i}", blocks),
            *tables["transformers"],
            *norm("beit.layernorm", "encoder_norm"),
            *norm("layernorm", "norm"),
            *dense("lm_head", "token_head"),
            *norm("beit.pooler.layernorm", "head_norm"),
            *dense("classifier", "head"),
        ),
        **parts,
    )
    if pretraining:
        return original, transformers
    return original, transformers, own_pretraining(model, {rule.target for rule in original.rules})


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration; for BeitForMaskedImageModeling, a `Pretraining`."""
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "use_absolute_position_embeddings", False)
    shared = config.get("use_shared_relative_position_bias", False)
    if shared == config.get("use_relative_position_bias", False):
        raise UserError("the blocks must share relative positions, or each have its own: choose another checkpoint")
    side = config["patch_size"]
    fields = {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "patch_size": (1, side, side),
        "scale": config.get("layer_scale_init_value", 0.1),
        "channels": config.get("num_channels", 3),
        "image_size": config["image_size"],
        "epsilon": config.get("layer_norm_eps", 1e-12),
        "card": HALVES,
    }
    if "BeitForMaskedImageModeling" in (config.get("architectures") or ()):
        expect(config, "use_shared_relative_position_bias", True)
        twice = not config.get("use_mean_pooling", True)
        return Pretraining(**fields, vocabulary=config["vocab_size"], encoder_norm=twice)
    expect(config, "use_mean_pooling", True)
    return BEiT(**fields, shared_positions=shared)


def to_config(model: BEiT | Pretraining) -> dict:
    """The inverse of `from_config`."""
    pretraining = isinstance(model, Pretraining)
    kind = "BeitForMaskedImageModeling"
    if not pretraining:
        kind = "BeitModel" if model.num_classes is None else "BeitForImageClassification"
    config = block_config(model)
    del config["qkv_bias"]  # always, but for the keys
    shared = pretraining or model.shared_positions
    return {
        "architectures": [kind],
        "model_type": "beit",
        **config,
        "layer_norm_eps": model.epsilon,
        "patch_size": square(model.patch_size, frames=1),
        "num_channels": model.channels,
        "image_size": model.image_size,
        "layer_scale_init_value": model.scale,
        "use_absolute_position_embeddings": False,
        "use_mask_token": pretraining,
        "use_mean_pooling": not (pretraining and model.encoder_norm),
        "use_relative_position_bias": not shared,
        "use_shared_relative_position_bias": shared,
        **({"vocab_size": model.vocabulary} if pretraining else {}),
    }


LAYOUTS = {BEiT: layouts, Pretraining: layouts}
CONFIGS = {"beit": from_config}
TO_CONFIGS = {BEiT: to_config, Pretraining: to_config}
