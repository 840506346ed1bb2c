"""Layouts of TimeSformer: the original, Hugging Face, mmaction2, and image ViTs for initialisation.

Position tables are resized in two dimensions, as in the original model at inference; the original's loader resizes the
flattened table instead, which moves positions into other rows.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import flax.linen as nn

from vidjax.convert.blocks import HUGGING_FACE_NAMES, block, fused_attention, packed_attention, positions, timm_block
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import (
    Layout,
    Rule,
    dense,
    first_axis,
    fold_layer_scale,
    image_kernel,
    norm,
    prefix,
    strip,
)
from vidjax.convert.vit import EXACT_GELU, block_config, square
from vidjax.models.timesformer import TimeSformer, kinetics

ATTENTION = {"divided_space_time": "divided", "joint_space_time": "joint", "space_only": "space"}
GROUPED_FROM_IMAGE = ("time", "space", "local", "global", "width", "height")
STRIDES = {16: 16, 96: 4}  # of the Kinetics models by number of frames, otherwise 32


def embeddings(token: str, position: str, patch: str) -> tuple[Rule, ...]:
    """Class token, position table and patch embedding."""
    return (
        Rule(token, "class_token"),
        *positions(position, "", table("nearest")),
        *dense(patch, "patch_embedding", inflate, image_kernel),
    )


def ends(final_norm: str, head: str | None) -> tuple[Rule, ...]:
    """The final norm and, if `head` is not None, the head."""
    return (*norm(final_norm, "norm"), *(dense(head, "head") if head else ()))


def times(source: str) -> Rule:
    """The time embedding."""
    return Rule(source, "time/table", first_axis, table("nearest"))


def branch(norm_source: str, attention: Callable[[str], tuple[Rule, ...]], target: str) -> tuple[Rule, ...]:
    """One attention layer of divided (grouped) attention, with its norm."""
    return (*norm(norm_source, f"{target}/norm"), *attention(f"{target}/attention"))


def timm_blocks(groups: tuple[str, ...]) -> tuple[Rule, ...]:
    """Blocks with timm's names, whose attention is loaded into a standard block's and into each of these groups."""
    source, target = "blocks.{i}", "transformer/block_{i}"

    def attention(path: str) -> tuple[Rule, ...]:
        return fused_attention(f"{source}.attn", path)

    return (
        *timm_block(source, target),
        *(rule for group in groups for rule in branch(f"{source}.norm1", attention, f"{target}/{group}")),
    )


def original(marker: str, groups: tuple[str, ...], name: str, head: str | None, optional: tuple[str, ...]) -> Layout:
    """The original's names: those of timm, and those of temporal attention."""
    time = "transformer/block_{i}/time"
    return Layout(
        name=name,
        key="original",
        marker=marker,
        prepare=without_prefix,
        restore=lambda weights: prefix(weights, "model."),
        wrap=lambda content: {"model_state": content},
        rules=(
            *embeddings("cls_token", "pos_embed", "patch_embed.proj"),
            times("time_embed"),
            *timm_blocks(groups),
            *branch("blocks.{i}.temporal_norm1", partial(fused_attention, "blocks.{i}.temporal_attn"), time),
            *dense("blocks.{i}.temporal_fc", f"{time}/projection"),
            *ends("norm", head),
        ),
        optional=optional,
    )


def without_prefix(weights: Weights) -> Weights:
    """Strips the original's prefix `model.`, and removes unused copies of entries that some of its files contain."""
    weights = fold_layer_scale(strip(weights, "module.", "model."))
    return {name: value for name, value in weights.items() if "temporal_temporal" not in name}


def without_module(weights: Weights) -> Weights:
    """Prepares the entries of an image ViT."""
    return fold_layer_scale(strip(weights, "module."))


def of_images(entries: Weights) -> bool:
    """Whether the entries are those of an image ViT rather than of space-only attention, which has the same names.

    The original's files have the prefix `model.`; otherwise, a head with 1000 classes (ImageNet) or more is taken to be
    that of an image model.
    """
    head = strip(entries, "module.").get("head.weight", ())
    return len(head) >= 1000


def hugging_face() -> Layout:
    """The layout of TimesformerForVideoClassification."""
    source, target = "encoder.layer.{i}", "transformer/block_{i}"

    def attention(name: str) -> Callable[[str], tuple[Rule, ...]]:
        def rules(path: str) -> tuple[Rule, ...]:
            fused = [r for r in fused_attention(f"{source}.{name}.attention", path) if ".qkv." in r.source]
            return (*fused, *dense(f"{source}.{name}.output.dense", f"{path}/out"))

        return rules

    return Layout(
        name="Hugging Face's TimeSformer",
        key="transformers",
        marker="embeddings.position_embeddings",
        prepare=lambda weights: strip(weights, "timesformer."),
        restore=lambda weights: prefix(weights, "timesformer.", "classifier."),
        format="safetensors",
        rules=(
            *embeddings(
                "embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection"
            ),
            times("embeddings.time_embeddings"),
            *block(source, target, attention("attention")(f"{target}/attention"), HUGGING_FACE_NAMES),
            *branch(f"{source}.layernorm_before", attention("attention"), f"{target}/space"),
            *branch(f"{source}.temporal_layernorm", attention("temporal_attention"), f"{target}/time"),
            *dense(f"{source}.temporal_dense", f"{target}/time/projection"),
            *ends("layernorm", "classifier"),
        ),
    )


def mmaction2(attention: str) -> Layout:
    """The layout of mmaction2's recognizer, whose blocks of divided attention have a norm in each part."""
    source, target = "transformer_layers.layers.{i}", "transformer/block_{i}"
    first, second = (partial(packed_attention, f"{source}.attentions.{number}.attn") for number in (0, 1))
    mlp = ("ffns.0.layers.0.0", "ffns.0.layers.1")
    if attention == "divided":
        time, space = f"{target}/time", f"{target}/space"
        blocks = (
            *branch(f"{source}.attentions.0.norm", first, time),
            *dense(f"{source}.attentions.0.temporal_fc", f"{time}/projection"),
            *branch(f"{source}.attentions.1.norm", second, space),
            *block(source, target, (), ("norms.0", "ffns.0.norm", *mlp)),
        )
    else:
        blocks = block(source, target, first(f"{target}/attention"), ("norms.0", "norms.1", *mlp))
    return Layout(
        name="mmaction2's TimeSformer",
        key="mmaction2",
        marker="patch_embed.projection.weight",
        prepare=lambda weights: strip(weights, "module.", "backbone."),
        restore=lambda weights: prefix(weights, "backbone.", "cls_head."),
        wrap=lambda content: {"state_dict": content},
        rules=(
            *embeddings("cls_token", "pos_embed", "patch_embed.projection"),
            times("time_embed"),
            *blocks,
            *ends("norm", "cls_head.fc_cls"),
        ),
        # From mmaction2's configurations.
        card={"mean": (0.5,) * 3, "std": (0.5,) * 3, "rate": None, "protocol": "mmaction2"},
    )


def layouts(model: TimeSformer) -> tuple[Layout, ...]:
    """The layouts of the model's weights, including image ViTs, of which all but the head is loaded."""
    name, marker = "facebookresearch/TimeSformer", "blocks.0.attn.qkv.weight"
    new = ("head/", "time/", "transformer/block_{i}/time/projection/")
    image = replace(original(marker, GROUPED_FROM_IMAGE, "timm's image ViT", None, new), key="timm", restore=None)
    mm, hf = mmaction2(model.attention), hugging_face()
    if model.attention == "space":
        image = replace(image, prepare=without_module, excludes=lambda entries, prepared: not of_images(entries))
        official = original(marker, (), name, "head", ("head/",))
        return image, replace(official, excludes=lambda entries, prepared: of_images(entries)), hf, mm
    image = replace(image, excludes=lambda entries, prepared: "time_embed" in prepared)
    official = original("time_embed", ("space",), name, "head", ("head/",))
    official = replace(official, excludes=lambda entries, prepared: mm.marker in prepared)  # it has time_embed too
    return (mm, official, hf, image) if model.attention in ("divided", "joint") else (image,)


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration."""
    expect(config, "attention_type", *ATTENTION)
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "layer_norm_eps", 1e-6)
    expect(config, "qkv_bias", True)
    return TimeSformer(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        ATTENTION[config["attention_type"]],
        config["intermediate_size"] / config["hidden_size"],
        (1, config["patch_size"], config["patch_size"]),
        drop_path=config.get("drop_path_rate", 0.0),
        channels=config.get("num_channels", 3),
        num_frames=config["num_frames"],
        image_size=config["image_size"],
        card=kinetics(STRIDES.get(config["num_frames"], 32)),
    )


def to_config(model: TimeSformer) -> dict:
    """The inverse of `from_config`.

    With space-only attention, transformers classifies each frame, our model their mean. Drop path, which only affects
    training, is omitted, because transformers 5 accepts only an integer rate.
    """
    names = {attention: name for name, attention in ATTENTION.items()}
    return {
        "architectures": ["TimesformerModel" if model.num_classes is None else "TimesformerForVideoClassification"],
        "model_type": "timesformer",
        **block_config(model),
        "layer_norm_eps": 1e-6,
        "attention_type": names[model.attention],
        "patch_size": square(model.patch_size, frames=1),
        "num_channels": model.channels,
        "num_frames": model.num_frames,
        "image_size": model.image_size,
    }


LAYOUTS = {TimeSformer: layouts}
CONFIGS = {"timesformer": from_config}
TO_CONFIGS = {TimeSformer: to_config}
