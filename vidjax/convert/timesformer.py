"""Weights of TimeSformers: the original's, Hugging Face's, mmaction2's, and an image ViT's to start from.

A table of positions of another size is resized in the plane, as the original's model does at inference; its loader
resizes the flattened table instead, which puts the positions of one row into another.
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
STRIDES = {16: 16, 96: 4}  # of Kinetics' models by their frames, 32 where not told here


def embeddings(token: str, position: str, patch: str) -> tuple[Rule, ...]:
    """Class token, table of positions and patch embedding."""
    return (
        Rule(token, "class_token"),
        *positions(position, "", table("nearest")),
        *dense(patch, "patch_embedding", inflate, image_kernel),
    )


def ends(final_norm: str, head: str | None) -> tuple[Rule, ...]:
    """The last norm, and the head where it is wanted."""
    return (*norm(final_norm, "norm"), *(dense(head, "head") if head else ()))


def times(source: str) -> Rule:
    """The table of times."""
    return Rule(source, "time/table", first_axis, table("nearest"))


def branch(norm_source: str, attention: Callable[[str], tuple[Rule, ...]], target: str) -> tuple[Rule, ...]:
    """One grouped attention with its norm."""
    return (*norm(norm_source, f"{target}/norm"), *attention(f"{target}/attention"))


def timm_blocks(groups: tuple[str, ...]) -> tuple[Rule, ...]:
    """Blocks in timm's names, their attention where a standard block has it and in each of these groups."""
    source, target = "blocks.{i}", "transformer/block_{i}"

    def attention(at: str) -> tuple[Rule, ...]:
        return fused_attention(f"{source}.attn", at)

    return (
        *timm_block(source, target),
        *(rule for group in groups for rule in branch(f"{source}.norm1", attention, f"{target}/{group}")),
    )


def original(marker: str, groups: tuple[str, ...], name: str, head: str | None, optional: tuple[str, ...]) -> Layout:
    """The original's names, which are timm's with attention over time beside them."""
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
            *branch("blocks.{i}.temporal_norm1", lambda at: fused_attention("blocks.{i}.temporal_attn", at), time),
            *dense("blocks.{i}.temporal_fc", f"{time}/projection"),
            *ends("norm", head),
        ),
        optional=optional,
    )


def without_prefix(weights: Weights) -> Weights:
    """The original's files call everything `model.`; some keep a copy under a doubled name, which nothing reads."""
    weights = fold_layer_scale(strip(weights, "module.", "model."))
    return {name: value for name, value in weights.items() if "temporal_temporal" not in name}


def without_module(weights: Weights) -> Weights:
    """An image ViT's entries."""
    return fold_layer_scale(strip(weights, "module."))


def of_images(entries: Weights) -> bool:
    """Whether the entries are an image ViT's, and not those of space-only attention, whose names are the same.

    The original's files tell themselves by the prefix `model.`; without one, the classes are those of images from
    ImageNet's 1000 on.
    """
    head = strip(entries, "module.").get("head.weight", ())
    return len(head) >= 1000


def hugging_face() -> Layout:
    """The layout of TimesformerForVideoClassification."""
    source, target = "encoder.layer.{i}", "transformer/block_{i}"

    def attention(name: str) -> Callable[[str], tuple[Rule, ...]]:
        def rules(at: str) -> tuple[Rule, ...]:
            fused = [r for r in fused_attention(f"{source}.{name}.attention", at) if ".qkv." in r.source]
            return (*fused, *dense(f"{source}.{name}.output.dense", f"{at}/out"))

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
    """The layout of mmaction2's recognizer, whose blocks of divided attention hold a norm in each part."""
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
        card={"mean": (0.5,) * 3, "std": (0.5,) * 3},  # of its configurations
    )


def layouts(model: TimeSformer) -> tuple[Layout, ...]:
    """What the model's weights may be in. An image ViT gives all but its head."""
    theirs, marker = "facebookresearch/TimeSformer", "blocks.0.attn.qkv.weight"
    new = ("head/", "time/", "transformer/block_{i}/time/projection/")
    image = replace(original(marker, GROUPED_FROM_IMAGE, "timm's image ViT", None, new), key="timm", restore=None)
    mm, hf = mmaction2(model.attention), hugging_face()
    if model.attention == "space":
        image = replace(image, prepare=without_module, excludes=lambda entries, prepared: not of_images(entries))
        official = original(marker, (), theirs, "head", ("head/",))
        return image, replace(official, excludes=lambda entries, prepared: of_images(entries)), hf, mm
    image = replace(image, excludes=lambda entries, prepared: "time_embed" in prepared)
    official = original("time_embed", ("space",), theirs, "head", ("head/",))
    official = replace(official, excludes=lambda entries, prepared: mm.marker in prepared)  # which has times as well
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
    """The inverse of `from_config`; of space-only attention transformers classifies each frame, ours their mean.

    Drop path, which is training's alone, is left out: transformers 5 takes a whole number for its rate.
    """
    names = {ours: theirs for theirs, ours in ATTENTION.items()}
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
