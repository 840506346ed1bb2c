"""Layouts of VideoMAE: the original (MCG-NJU/VideoMAE), mmaction2 and Hugging Face."""

import flax.linen as nn
import numpy as np

from vidjax.convert.blocks import HUGGING_FACE_NAMES, PARTS, TIMM_NAMES, block
from vidjax.convert.files import Weights
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, dense, fold_layer_scale, kernel, kernel_rows, norm, prefix, strip
from vidjax.convert.vit import EXACT_GELU, block_config, square
from vidjax.errors import UserError
from vidjax.layers.embedding import sinusoid_table
from vidjax.models.videomae import CARD, Pretraining, VideoMAE

MMACTION2_NAMES = ("norm1", "norm2", "mlp.layers.0.0", "mlp.layers.1")


def prepare(weights: Weights) -> Weights:
    """Removes prefixes and the sinusoidal position table in mmaction2's files, and folds layer scale."""
    weights = fold_layer_scale(strip(weights, "module.", "backbone.", "encoder."))
    table = weights.get("pos_embed")
    if table is not None and np.allclose(table[0], sinusoid_table(*table.shape[-2:]), atol=1e-4):
        del weights["pos_embed"]
    return weights


LEARNED = Rule("pos_embed", "position/table")  # no model here has a learned table, so that it is rejected


def original_blocks(source: str, target: str, names: tuple[str, str, str, str] = TIMM_NAMES) -> tuple[Rule, ...]:
    """Blocks with timm's names, query, key and value fused, and no key bias.

    Args:
      names: see `blocks.block`.
    """
    source, target = f"{source}.{{i}}", f"{target}/block_{{i}}"
    attention = (
        *(
            Rule(f"{source}.attn.qkv.weight", f"{target}/attention/{part}/kernel", kernel_rows(number, 3))
            for number, part in enumerate(PARTS)
        ),
        Rule(f"{source}.attn.q_bias", f"{target}/attention/query/bias"),
        Rule(f"{source}.attn.v_bias", f"{target}/attention/value/bias"),
        *dense(f"{source}.attn.proj", f"{target}/attention/out"),
    )
    return block(source, target, attention, names)


def original(encoder: str, **partial: tuple[str, ...]) -> Layout:
    """The original layout; `encoder` is the prefix of the encoder's paths in our model."""
    return Layout(
        name="MCG-NJU/VideoMAE",
        key="original",
        marker="patch_embed.proj.weight",
        prepare=prepare,
        restore=lambda weights: prefix(
            weights, encoder.replace("/", "."), "encoder_to_decoder.", "mask_token", "decoder."
        ),
        wrap=lambda content: {"model": content},
        rules=(
            LEARNED,
            *dense("patch_embed.proj", f"{encoder}patch_embedding"),
            *original_blocks("blocks", f"{encoder}transformer"),
            *norm("norm", f"{encoder}norm"),
            *norm("fc_norm", f"{encoder}head_norm"),
            *dense("head", f"{encoder}head"),
            Rule("encoder_to_decoder.weight", "decoder/embedding/kernel", kernel),
            Rule("mask_token", "decoder/mask_token"),
            *original_blocks("decoder.blocks", "decoder/transformer"),
            *norm("decoder.norm", "decoder/norm"),
            *dense("decoder.head", "decoder/head"),
        ),
        **partial,
    )


def mmaction2(**partial: tuple[str, ...]) -> Layout:
    """The layout of mmaction2's recognizer."""
    return Layout(
        name="mmaction2's VideoMAE",
        key="mmaction2",
        marker="patch_embed.projection.weight",
        prepare=prepare,
        restore=lambda weights: prefix(weights, "backbone.", "cls_head."),
        wrap=lambda content: {"state_dict": content},
        rules=(
            LEARNED,
            *dense("patch_embed.projection", "patch_embedding"),
            *original_blocks("blocks", "transformer", MMACTION2_NAMES),
            *norm("norm", "norm"),
            *norm("fc_norm", "head_norm"),
            *dense("cls_head.fc_cls", "head"),
        ),
        card={"protocol": "mmaction2"},
        **partial,
    )


def hugging_face_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """Blocks with the names of transformers; published files have q_bias, transformers 5 writes query.bias."""
    source, target = f"{source}.{{i}}", f"{target}/block_{{i}}"
    projection = f"{source}.attention.attention"
    attention = (
        Rule(f"{projection}.q_bias", f"{target}/attention/query/bias"),
        Rule(f"{projection}.v_bias", f"{target}/attention/value/bias"),
        *dense(f"{projection}.query", f"{target}/attention/query"),
        Rule(f"{projection}.key.weight", f"{target}/attention/key/kernel", kernel),
        *dense(f"{projection}.value", f"{target}/attention/value"),
        *dense(f"{source}.attention.output.dense", f"{target}/attention/out"),
    )
    return block(source, target, attention, HUGGING_FACE_NAMES)


def hugging_face(encoder: str, **partial: tuple[str, ...]) -> Layout:
    """The layout of VideoMAEModel, VideoMAEForPreTraining and VideoMAEForVideoClassification."""
    return Layout(
        name="Hugging Face's VideoMAE",
        key="transformers",
        marker="embeddings.patch_embeddings.projection.weight",
        prepare=lambda weights: strip(weights, "module.", "videomae."),
        restore=lambda weights: prefix(
            weights, "videomae.", "classifier.", "fc_norm.", "encoder_to_decoder.", "mask_token", "decoder."
        ),
        format="safetensors",
        rules=(
            *dense("embeddings.patch_embeddings.projection", f"{encoder}patch_embedding"),
            *hugging_face_blocks("encoder.layer", f"{encoder}transformer"),
            *norm("layernorm", f"{encoder}norm"),
            *norm("fc_norm", f"{encoder}head_norm"),
            *dense("classifier", f"{encoder}head"),
            Rule("encoder_to_decoder.weight", "decoder/embedding/kernel", kernel),
            Rule("mask_token", "decoder/mask_token"),
            *hugging_face_blocks("decoder.decoder_layers", "decoder/transformer"),
            *norm("decoder.norm", "decoder/norm"),
            *dense("decoder.head", "decoder/head"),
        ),
        **partial,
    )


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration; for VideoMAEForPreTraining, a `Pretraining`.

    The layer norms' epsilon is that of the original, whichever of the two the configuration has: see `models.videomae`.
    """
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "layer_norm_eps", 1e-12, 1e-6)
    expect(config, "qkv_bias", True)
    kind = next(iter(config.get("architectures") or ()), "VideoMAEForVideoClassification")
    if kind == "VideoMAEForVideoClassification":
        expect(config, "use_mean_pooling", True)  # otherwise the first token is classified
    fields = {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "patch_size": (config.get("tubelet_size", 2), config["patch_size"], config["patch_size"]),
        "channels": config.get("num_channels", 3),
        "num_frames": config.get("num_frames", 16),
        "image_size": config["image_size"],
        "card": CARD,
    }
    if kind == "VideoMAEForPreTraining":
        decoder = {
            "decoder_width": config["decoder_hidden_size"],
            "decoder_depth": config["decoder_num_hidden_layers"],
            "decoder_heads": config["decoder_num_attention_heads"],
        }
        return Pretraining(**fields, **decoder, encoder_norm=not config.get("use_mean_pooling", True))
    return VideoMAE(**fields, final_norm=not config.get("use_mean_pooling", True))


def to_config(model: VideoMAE | Pretraining) -> dict:
    """The inverse of `from_config`.

    In transformers the norm after pooling and the decoder's last norm always have an epsilon of 1e-5.
    """
    config = {
        "model_type": "videomae",
        **block_config(model),
        "layer_norm_eps": 1e-6,
        "tubelet_size": model.patch_size[0],
        "patch_size": square(model.patch_size, frames=model.patch_size[0]),
        "num_channels": model.channels,
        "num_frames": model.num_frames,
        "image_size": model.image_size,
    }
    if isinstance(model, VideoMAE):
        if model.final_norm and model.num_classes is not None:
            raise UserError("final_norm is set, but transformers' classifier has its norm after pooling: use original")
        kind = "VideoMAEModel" if model.num_classes is None else "VideoMAEForVideoClassification"
        return {**config, "architectures": [kind], "use_mean_pooling": not model.final_norm}
    return {
        **config,
        "architectures": ["VideoMAEForPreTraining"],
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": round(model.decoder_width * model.mlp_ratio),
        "use_mean_pooling": not model.encoder_norm,
    }


# Fine-tuning starts with a new head and, as in the original, without the final norm of the pre-training encoder.
CLASSIFIER = {"optional": ("head/", "head_norm/"), "surplus": ("head/", "head_norm/", "norm/", "decoder/")}
PRETRAINING = {"optional": ("decoder/",), "surplus": ("encoder/head/", "encoder/head_norm/")}

# A checkpoint of our own pre-training: our names with the prefix `encoder`.
PATHS = sorted({rule.target for rule in hugging_face("").rules})
OURS = Layout(
    name="vidjax's own pre-training",
    key="vidjax_pretraining",
    restore=None,
    marker="params/encoder/patch_embedding/kernel",
    rules=tuple(Rule(f"params/encoder/{path}", path) for path in PATHS),
    **CLASSIFIER,
)

LAYOUTS = {
    VideoMAE: (original("", **CLASSIFIER), hugging_face("", **CLASSIFIER), mmaction2(**CLASSIFIER), OURS),
    Pretraining: (original("encoder/", **PRETRAINING), hugging_face("encoder/", **PRETRAINING)),
}
CONFIGS = {"videomae": from_config}
TO_CONFIGS = {VideoMAE: to_config, Pretraining: to_config}
