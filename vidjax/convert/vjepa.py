"""Layouts of V-JEPA 2: the original (facebookresearch/vjepa2) and Hugging Face."""

import re

import flax.linen as nn
import numpy as np

from vidjax.convert.blocks import TIMM_NAMES, block, fused_rows, separate_attention, timm_block
from vidjax.convert.files import Weights
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, Transform, dense, norm, rename, strip
from vidjax.convert.vit import EXACT_GELU, square
from vidjax.errors import UserError
from vidjax.models.vjepa import CARD, VJEPA, Pretraining

# Parts of an original checkpoint, whose names start so after `files.read`, and what its wrappers add to the names.
ENCODER, PREDICTOR, TARGET, PROBE = "encoder.", "predictor.", "target_encoder.", "classifiers."
WRAPPER = re.compile(r"^(encoder\.|predictor\.|target_encoder\.|classifiers\.)?(module\.)?(backbone\.)?")
MASK_TOKEN = "predictor.mask_tokens"
TABLES = ("pos_embed", "predictor_pos_embed")
TOKENS = Transform(lambda value: value.reshape(len(value), -1), lambda value: value[:, None, None])
PARTIAL = {
    VJEPA: {"optional": ("head/", "head_pooler/"), "surplus": ("head/", "head_pooler/")},
    Pretraining: {"optional": ("predictor/",), "surplus": ("head/", "head_pooler/")},
}


def original(model: VJEPA | Pretraining) -> Layout:
    """The checkpoints of the original: encoder, predictor and the encoder's moving average, or a probe.

    An encoder alone is the moving average, as in the original's evaluations; together with a predictor, it is the
    encoder that was trained. To load a classifier, join the entries of the encoder's file and of the probe's.
    """
    together = isinstance(model, Pretraining)
    encoder = "encoder/" if together else ""

    def prepare(weights: Weights) -> Weights:
        weights = rename(weights, lambda name: WRAPPER.sub(r"\1", name))
        refuse_the_first(weights)
        averaged = not together and any(name.startswith(TARGET) for name in weights)
        others = (TARGET,) if together else (PREDICTOR, ENCODER if averaged else TARGET)
        weights = {
            name: value
            for name, value in weights.items()
            if not name.startswith(others) and name.rpartition(".")[2] not in TABLES
        }
        return stacked(strip(weights, TARGET if averaged else ENCODER, PROBE))

    def restore(weights: Weights) -> Weights:
        return rename(unstacked(weights), published_name)

    def published_name(name: str) -> str:
        if name.startswith(("pooler.", "linear.")):
            return f"{PROBE}module.{name}"
        if name.startswith(PREDICTOR):
            return f"{PREDICTOR}module.backbone.{name.removeprefix(PREDICTOR)}"
        return f"{ENCODER if together else TARGET}module.backbone.{name}"

    cross = "pooler.cross_attention_block"
    return Layout(
        name="facebookresearch/vjepa2",
        key="original",
        marker="patch_embed.proj.weight",
        prepare=prepare,
        restore=restore,
        wrap=parts,
        rules=(
            *dense("patch_embed.proj", f"{encoder}patch_embedding"),
            *timm_block("blocks.{i}", f"{encoder}transformer/block_{{i}}"),
            *norm("norm", f"{encoder}norm"),
            *dense("predictor.predictor_embed", "predictor/embedding"),
            Rule(MASK_TOKEN, "predictor/mask_tokens", TOKENS),
            *timm_block("predictor.predictor_blocks.{i}", "predictor/transformer/block_{i}"),
            *norm("predictor.predictor_norm", "predictor/norm"),
            *dense("predictor.predictor_proj", "predictor/head"),
            *timm_block("pooler.blocks.{i}", "head_pooler/transformer/block_{i}"),
            Rule("pooler.query_tokens", "head_pooler/query"),
            *block(cross, "head_pooler", fused_cross_attention(f"{cross}.xattn", "head_pooler"), TIMM_NAMES),
            *dense("linear", "head"),
        ),
        **PARTIAL[type(model)],
    )


def fused_cross_attention(source: str, target: str) -> tuple[Rule, ...]:
    """A query, and key and value in one linear layer `kv`."""
    return (
        *dense(f"{source}.q", f"{target}/query_projection"),
        *fused_rows(f"{source}.kv.", target, ("key", "value")),
    )


def refuse_the_first(weights: Weights) -> None:
    """Raises `UserError` for weights of the first V-JEPA, which have the same names but need their position tables.

    They have two mask tokens, those released for V-JEPA 2 ten. Position tables in the latter are ignored, as by the
    original (src/hub/backbones.py).
    """
    tables = any(name.rpartition(".")[2] in TABLES for name in weights)
    if tables and sum(name.startswith(f"{MASK_TOKEN}.") for name in weights) == 2:
        raise UserError("the weights are of the first V-JEPA, without rotary positions: give those of V-JEPA 2")


def stacked(weights: Weights) -> Weights:
    """The same entries with the mask tokens, which the original numbers, in one."""
    numbered = sorted(
        (name for name in weights if name.startswith(f"{MASK_TOKEN}.")), key=lambda name: int(name.rpartition(".")[2])
    )
    if not numbered:
        return weights
    others = {name: value for name, value in weights.items() if name not in numbered}
    return others | {MASK_TOKEN: np.stack([weights[name] for name in numbered])}


def unstacked(weights: Weights) -> Weights:
    """The inverse of `stacked`."""
    others = {name: value for name, value in weights.items() if name != MASK_TOKEN}
    return others | {f"{MASK_TOKEN}.{i}": token for i, token in enumerate(weights.get(MASK_TOKEN, ()))}


def parts(content: dict) -> dict:
    """A checkpoint with a dictionary for each part, that of the probe in a list, as the original's code reads them."""
    checkpoint = {}
    for part in (ENCODER, PREDICTOR, TARGET, PROBE):
        entries = {name.removeprefix(part): value for name, value in content.items() if name.startswith(part)}
        if entries:
            checkpoint[part.rstrip(".")] = [entries] if part == PROBE else entries
    return checkpoint


def hugging_face(model: VJEPA | Pretraining) -> Layout:
    """The layout of VJEPA2Model and VJEPA2ForVideoClassification.

    Both have a predictor, which classification does not use. An encoder is written with a predictor without blocks.
    """
    together = isinstance(model, Pretraining)
    encoder = "encoder/" if together else ""
    classifies = not together and (model.num_classes is not None or model.head is not None)

    def prepare(weights: Weights) -> Weights:
        weights = strip(weights, "module.", "vjepa2.")
        return weights if together else {name: v for name, v in weights.items() if not name.startswith(PREDICTOR)}

    def restore(weights: Weights) -> Weights:
        if not together:
            weights = weights | no_predictor(len(weights["encoder.layernorm.weight"]))
        if not classifies:
            return weights
        return rename(weights, lambda name: name if name.startswith(("pooler.", "classifier.")) else f"vjepa2.{name}")

    cross = "pooler.cross_attention_layer"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    attention = separate_attention(
        "head_pooler",
        **{
            "query_projection" if part == "query" else part: f"{cross}.cross_attn.{name}"
            for part, name in names.items()
        },
    )
    own = "pooler.self_attention_layers.{i}"
    self_attention = separate_attention(
        "head_pooler/transformer/block_{i}/attention",
        **{part: f"{own}.self_attn.{name}" for part, name in (names | {"out": "out_proj"}).items()},
    )
    return Layout(
        name="Hugging Face's V-JEPA 2",
        key="transformers",
        marker="encoder.embeddings.patch_embeddings.proj.weight",
        prepare=prepare,
        restore=restore,
        format="safetensors",
        rules=(
            *dense("encoder.embeddings.patch_embeddings.proj", f"{encoder}patch_embedding"),
            *hugging_face_blocks("encoder.layer", f"{encoder}transformer"),
            *norm("encoder.layernorm", f"{encoder}norm"),
            *dense("predictor.embeddings.predictor_embeddings", "predictor/embedding"),
            Rule("predictor.embeddings.mask_tokens", "predictor/mask_tokens", TOKENS),
            *hugging_face_blocks("predictor.layer", "predictor/transformer"),
            *norm("predictor.layernorm", "predictor/norm"),
            *dense("predictor.proj", "predictor/head"),
            *block(own, "head_pooler/transformer/block_{i}", self_attention, POOLER_NAMES),
            Rule("pooler.query_tokens", "head_pooler/query"),
            *block(cross, "head_pooler", attention, POOLER_NAMES),
            *dense("classifier", "head"),
        ),
        **PARTIAL[type(model)],
    )


POOLER_NAMES = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")


def hugging_face_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """The blocks of the encoder or the predictor."""
    source, target = f"{source}.{{i}}", f"{target}/block_{{i}}"
    parts = {"query": "query", "key": "key", "value": "value", "out": "proj"}
    attention = {part: f"{source}.attention.{name}" for part, name in parts.items()}
    return block(source, target, separate_attention(f"{target}/attention", **attention), TIMM_NAMES)


def no_predictor(width: int) -> Weights:
    """The entries of a predictor of width 1 without blocks, for an encoder of this width."""
    shapes = {
        "embeddings.mask_tokens": (1, 1, 1, 1),
        "embeddings.predictor_embeddings.weight": (1, width),
        "embeddings.predictor_embeddings.bias": (1,),
        "layernorm.weight": (1,),
        "layernorm.bias": (1,),
        "proj.weight": (width, 1),
        "proj.bias": (width,),
    }
    return {f"{PREDICTOR}{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration: a classifier, or an encoder with its predictor if this has blocks."""
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "layer_norm_eps", 1e-6)
    expect(config, "qkv_bias", True)
    expect(config, "pred_mlp_ratio", 4.0, 4)
    side = config.get("patch_size", 16)
    rows, columns = side if isinstance(side, list) else (side, side)
    fields = {
        "width": config.get("hidden_size", 1024),
        "depth": config.get("num_hidden_layers", 24),
        "heads": config.get("num_attention_heads", 16),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "patch_size": (config.get("tubelet_size", 2), rows, columns),
        "channels": config.get("in_chans", 3),
        "num_frames": config.get("frames_per_clip", 64),
        "image_size": config.get("crop_size", 256),
        "card": CARD,
    }
    kind = next(iter(config.get("architectures") or ()), "VJEPA2Model")
    if kind == "VJEPA2ForVideoClassification" or config.get("pred_num_hidden_layers", 12) == 0:
        return VJEPA(**fields, pooler_depth=config.get("num_pooler_layers", 3))
    return Pretraining(
        **fields,
        predictor_width=config.get("pred_hidden_size", 384),
        predictor_depth=config.get("pred_num_hidden_layers", 12),
        predictor_heads=config.get("pred_num_attention_heads", 12),
        mask_tokens=config.get("pred_num_mask_tokens", 10),
    )


def to_config(model: VJEPA | Pretraining) -> dict:
    """The inverse of `from_config`; transformers' poolers have layer norms with the encoder's epsilon, 1e-6.

    Raises:
      UserError: transformers has no such pooler.
    """
    config = {
        "model_type": "vjepa2",
        "architectures": ["VJEPA2Model"],
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "hidden_act": EXACT_GELU[0],
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        "tubelet_size": model.patch_size[0],
        "patch_size": square(model.patch_size, frames=model.patch_size[0]),
        "in_chans": model.channels,
        "frames_per_clip": model.num_frames,
        "crop_size": model.image_size,
    }
    if isinstance(model, Pretraining):
        if model.target_width not in (None, model.width):
            raise UserError("target_width is a teacher's, but transformers' predictor has the encoder's: use original")
        return {
            **config,
            "pred_hidden_size": model.predictor_width,
            "pred_num_hidden_layers": model.predictor_depth,
            "pred_num_attention_heads": model.predictor_heads,
            "pred_num_mask_tokens": model.mask_tokens,
        }
    config |= {
        "num_pooler_layers": model.pooler_depth,
        "pred_hidden_size": 1,
        "pred_num_hidden_layers": 0,
        "pred_num_attention_heads": 1,
        "pred_num_mask_tokens": 1,
    }
    if model.num_classes is None:
        return config
    if model.pooler_heads not in (None, model.heads):
        raise UserError(
            f"pooler_heads is {model.pooler_heads}, but in transformers it is that of the encoder, {model.heads}: "
            "use original"
        )
    if model.pooled_blocks is not None:
        raise UserError("pooled_blocks is set, but transformers' pooler sees only the last block: use original")
    return config | {"architectures": ["VJEPA2ForVideoClassification"]}


def own_pretraining(published: Layout) -> Layout:
    """A checkpoint of our own pre-training: our names, as in rules of the encoder, with the prefix `encoder`."""
    return Layout(
        name="vidjax's own pre-training",
        key="vidjax_pretraining",
        restore=None,
        marker="params/encoder/patch_embedding/kernel",
        rules=tuple(Rule(f"params/encoder/{path}", path) for path in sorted({rule.target for rule in published.rules})),
        **PARTIAL[VJEPA],
    )


def layouts(model: VJEPA | Pretraining) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    published = (original(model), hugging_face(model))
    return (*published, own_pretraining(published[0])) if isinstance(model, VJEPA) else published


LAYOUTS = {VJEPA: layouts, Pretraining: layouts}
CONFIGS = {"vjepa2": from_config}
TO_CONFIGS = {VJEPA: to_config, Pretraining: to_config}
