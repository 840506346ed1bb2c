"""Layouts of ViViT: Scenic, Hugging Face (model 1), and image ViTs for initialisation."""

import flax.linen as nn
import numpy as np

from vidjax.convert.blocks import ALL_POSITIONS, PARTS, fused_attention, hugging_face_block, positions, timm_block
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Fit, Layout, Rule, Transform, dense, fold_layer_scale, norm, prefix, strip
from vidjax.convert.vit import TANH_GELU, block_config, transformers_block
from vidjax.errors import UserError
from vidjax.models.vivit import FactorizedEncoder, ViViT, kinetics


def of_clips(model: ViViT | FactorizedEncoder) -> Fit:
    """Fits position tables; published ones have the grid of the default clip, 32 frames of 224 pixels."""
    sizes = (ViViT.num_frames, ViViT.image_size, ViViT.image_size)
    return table("linear", usual=tuple(size // patch for size, patch in zip(sizes, model.patch_size, strict=True)))


def flax_attention(source: str, target: str, heads: int) -> tuple[Rule, ...]:
    """Flax's multi-head attention: kernels `(d, heads, head width)`, biases `(heads, head width)`.

    The kernel of the output layer is `(heads, head width, d)`.
    """
    kernel = Transform(
        lambda value: value.reshape(value.shape[0], -1), lambda value: value.reshape(value.shape[0], heads, -1)
    )
    bias = Transform(np.ravel, lambda value: value.reshape(heads, -1))
    out = Transform(
        lambda value: value.reshape(-1, value.shape[-1]), lambda value: value.reshape(heads, -1, value.shape[-1])
    )
    return (
        *(Rule(f"{source}/{part}/kernel", f"{target}/{part}/kernel", kernel) for part in PARTS),
        *(Rule(f"{source}/{part}/bias", f"{target}/{part}/bias", bias) for part in PARTS),
        Rule(f"{source}/out/kernel", f"{target}/out/kernel", out),
        Rule(f"{source}/out/bias", f"{target}/out/bias"),
    )


def flax_pair(source: str, target: str, first: str) -> tuple[Rule, ...]:
    """A kernel or a scale, and a bias, which have the same names in Flax as in our model."""
    return Rule(f"{source}/{first}", f"{target}/{first}"), Rule(f"{source}/bias", f"{target}/bias")


def scenic_blocks(source: str, target: str, heads: int, divided: bool) -> tuple[Rule, ...]:
    """Blocks of models 1, 2 and 4, or with `divided` those of model 3."""
    source, target = f"{source}/encoderblock_{{i}}", f"{target}/block_{{i}}"
    if divided:
        attention = (
            *flax_pair(f"{source}/LayerNorm_time", f"{target}/temporal_norm", "scale"),
            *flax_attention(f"{source}/MultiHeadDotProductAttention_time", f"{target}/temporal_attention", heads),
            *flax_pair(f"{source}/LayerNorm_space", f"{target}/spatial_norm", "scale"),
            *flax_attention(f"{source}/MultiHeadDotProductAttention_space", f"{target}/spatial_attention", heads),
        )
    else:
        attention = (
            *flax_pair(f"{source}/LayerNorm_0", f"{target}/norm1", "scale"),
            *flax_attention(f"{source}/MultiHeadDotProductAttention_0", f"{target}/attention", heads),
        )
    norm2, mlp = ("LayerNorm_mlp", "MlpBlock") if divided else ("LayerNorm_1", "MlpBlock_0")
    return (
        *attention,
        *flax_pair(f"{source}/{norm2}", f"{target}/norm2", "scale"),
        *flax_pair(f"{source}/{mlp}/Dense_0", f"{target}/mlp/fc1", "kernel"),
        *flax_pair(f"{source}/{mlp}/Dense_1", f"{target}/mlp/fc2", "kernel"),
    )


def scenic(model: ViViT | FactorizedEncoder) -> Layout:
    """The layout of Scenic's tree of parameters, with paths joined by slashes."""
    ends = (*flax_pair("embedding", "patch_embedding", "kernel"), *flax_pair("output_projection", "head", "kernel"))
    if isinstance(model, FactorizedEncoder):
        space, time, marker = "SpatialTransformer", "TemporalTransformer", "SpatialTransformer/encoder_norm/scale"
        middle = (
            Rule("cls_SpatialTransformer", "class_token"),
            Rule("cls_TemporalTransformer", "temporal_class_token"),
            *scenic_positions(model, f"{space}/posembed_input/pos_embedding", ""),
            *scenic_positions(model, f"{time}/posembed_input/pos_embedding", "temporal_"),
            *scenic_blocks(space, "spatial_transformer", model.heads, divided=False),
            *flax_pair(f"{space}/encoder_norm", "spatial_norm", "scale"),
            *scenic_blocks(time, "temporal_transformer", model.heads, divided=False),
            *flax_pair(f"{time}/encoder_norm", "norm", "scale"),
        )
    else:
        marker = "Transformer/encoder_norm/scale"
        divided = model.attention == "factorized_self_attention"
        middle = (
            Rule("cls", "class_token"),
            *scenic_positions(model, "Transformer/posembed_input/pos_embedding", ""),
            *scenic_blocks("Transformer", "transformer", model.heads, divided),
            *flax_pair("Transformer/encoder_norm", "norm", "scale"),
        )
    return Layout(
        "Scenic's ViViT", marker, (*middle, *ends), inner_tree, key="scenic", format="flax", wrap=training_state
    )


def training_state(tree: dict) -> dict:
    """A training state with these parameters, in the format that Scenic restores."""
    return {"params": tree, "model_state": {}, "global_step": 0, "rng": np.zeros(2, np.uint32)}


def scenic_positions(model: ViViT | FactorizedEncoder, source: str, target: str) -> tuple[Rule, ...]:
    """A position table, with or without an entry of the class token."""
    if model.pooling == "class_token":
        return positions(source, target, of_clips(model))
    return (Rule(source, f"{target}position/table", ALL_POSITIONS, of_clips(model)),)


def inner_tree(weights: Weights) -> Weights:
    """The parameters of a training state, without their prefix (such as `optimizer/target/params/`)."""
    prefixes = [name.removesuffix("embedding/kernel") for name in weights if name.endswith("embedding/kernel")]
    prefix = min(prefixes, key=len, default="")
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def image(model: ViViT | FactorizedEncoder) -> Layout:
    """The layout of a timm image ViT, for initialisation.

    The patch kernel is inflated, positions are resized and repeated over time, and a temporal transformer is new. The
    temporal attention of model 3 starts as a copy of the image model's attention, but with a new norm, as in Scenic.
    """
    factorized = isinstance(model, FactorizedEncoder)
    source, target = "blocks.{i}", f"{'spatial_' if factorized else ''}transformer/block_{{i}}"
    new = ("temporal_transformer/", "temporal_class_token", "temporal_class_position", "temporal_position/", "norm/")
    return Layout(
        name="timm's image ViT",
        key="timm",
        restore=None,
        marker="blocks.0.attn.qkv.weight",
        prepare=lambda weights: fold_layer_scale(strip(weights, "module.")),
        rules=(
            Rule("cls_token", "class_token"),
            *positions("pos_embed", "", table("linear", image=True)),
            *dense("patch_embed.proj", "patch_embedding", inflate),
            *timm_block(source, target),
            *norm(f"{source}.norm1", f"{target}/spatial_norm"),
            *fused_attention(f"{source}.attn", f"{target}/spatial_attention"),
            *fused_attention(f"{source}.attn", f"{target}/temporal_attention"),
            *norm("norm", "spatial_norm" if factorized else "norm"),
        ),
        optional=("head/", *(new if factorized else ("transformer/block_{i}/temporal_norm/",))),
        surplus=("head/", "class_token", "class_position"),
    )


def hugging_face(model: ViViT) -> Layout:
    """The layout of VivitForVideoClassification, which is model 1."""
    return Layout(
        name="Hugging Face's ViViT",
        key="transformers",
        marker="embeddings.position_embeddings",
        prepare=lambda weights: strip(weights, "vivit."),
        restore=lambda weights: prefix(weights, "vivit.", "classifier."),
        format="safetensors",
        rules=(
            Rule("embeddings.cls_token", "class_token"),
            *positions("embeddings.position_embeddings", "", of_clips(model)),
            *dense("embeddings.patch_embeddings.projection", "patch_embedding"),
            *hugging_face_block("encoder.layer.{i}", "transformer/block_{i}"),
            *transformers_block("layers.{i}", "transformer/block_{i}"),
            *norm("layernorm", "norm"),
            *dense("classifier", "head"),
        ),
    )


def layouts(model: ViViT | FactorizedEncoder) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    joint = isinstance(model, ViViT) and model.attention == "joint"
    return (scenic(model), *((hugging_face(model),) if joint else ()), image(model))


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration."""
    expect(config, "hidden_act", *TANH_GELU)
    expect(config, "layer_norm_eps", 1e-6)
    expect(config, "qkv_bias", True)
    return ViViT(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        patch_size=tuple(config["tubelet_size"]),
        channels=config.get("num_channels", 3),
        num_frames=config["num_frames"],
        image_size=config["image_size"],
        card=kinetics(),
    )


def to_config(model: ViViT) -> dict:
    """The inverse of `from_config`.

    Raises:
      UserError: the model does not use a class token, as transformers does.
    """
    if model.pooling != "class_token":
        raise UserError(f"pooling is '{model.pooling}', but transformers' ViViT has a class token: use scenic")
    return {
        "architectures": ["VivitModel" if model.num_classes is None else "VivitForVideoClassification"],
        "model_type": "vivit",
        **block_config(model),
        "hidden_act": TANH_GELU[0],
        "layer_norm_eps": 1e-6,
        "tubelet_size": list(model.patch_size),
        "num_channels": model.channels,
        "num_frames": model.num_frames,
        "image_size": model.image_size,
    }


LAYOUTS = {ViViT: layouts, FactorizedEncoder: layouts}
CONFIGS = {"vivit": from_config}
TO_CONFIGS = {ViViT: to_config}
