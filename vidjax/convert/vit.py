"""Layouts of image ViTs: timm and Hugging Face."""

import flax.linen as nn

from vidjax.convert.blocks import (
    HUGGING_FACE_NAMES,
    block,
    hugging_face_block,
    positions,
    separate_attention,
    timm_block,
)
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, dense, fold_layer_scale, image_kernel, norm, prefix, strip
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models.vit import ViT

EXACT_GELU = ("gelu", "gelu_python")  # Hugging Face's names of the exact GELU, then of its tanh approximation
TANH_GELU = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")


def transformers_block(source: str, target: str) -> tuple[Rule, ...]:
    """A standard block with the names in memory of transformers 5, whose files keep the older names."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    attention = {part: f"{source}.attention.{name}" for part, name in names.items()}
    norms = HUGGING_FACE_NAMES[:2]
    return block(source, target, separate_attention(f"{target}/attention", **attention), (*norms, "mlp.fc1", "mlp.fc2"))


def block_config(model: nn.Module) -> dict:
    """Fields of the blocks in transformers' configurations of image and video transformers."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": round(model.width * model.mlp_ratio),
        "hidden_act": EXACT_GELU[0],
        "qkv_bias": True,
    }


def square(patch_size: tuple[int, int, int], frames: int) -> int:
    """The side of square patches with this number of frames, the only ones that a configuration can describe.

    Raises:
      UserError: the patches are not square, or have another number of frames.
    """
    if patch_size[0] != frames or patch_size[1] != patch_size[2]:
        raise UserError(f"patch_size is {patch_size}, but transformers needs {frames} x n x n: choose another layout")
    return patch_size[1]


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration."""
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "qkv_bias", True)
    return ViT(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"] / config["hidden_size"],
        (1, config["patch_size"], config["patch_size"]),
        channels=config.get("num_channels", 3),
        image_size=config["image_size"],
        epsilon=config.get("layer_norm_eps", 1e-12),
        card=Card((0.5,) * 3, (0.5,) * 3, source="Hugging Face's ViT"),
    )


def to_config(model: ViT) -> dict:
    """The inverse of `from_config`."""
    return {
        "architectures": ["ViTModel" if model.num_classes is None else "ViTForImageClassification"],
        "model_type": "vit",
        **block_config(model),
        "layer_norm_eps": model.epsilon,
        "patch_size": square(model.patch_size, frames=1),
        "num_channels": model.channels,
        "image_size": model.image_size,
    }


TIMM = Layout(
    name="timm",
    key="timm",
    marker="blocks.0.attn.qkv.weight",
    prepare=lambda weights: fold_layer_scale(strip(weights, "module.")),
    rules=(
        Rule("cls_token", "class_token"),
        *positions("pos_embed", "", table("cubic")),
        *dense("patch_embed.proj", "patch_embedding", inflate, image_kernel),
        *timm_block("blocks.{i}", "transformer/block_{i}"),
        *norm("norm", "norm"),
        *dense("head", "head"),
    ),
)

HUGGING_FACE = Layout(
    name="Hugging Face's ViT",
    key="transformers",
    marker="embeddings.position_embeddings",
    prepare=lambda weights: strip(weights, "vit."),
    restore=lambda weights: prefix(weights, "vit.", "classifier."),
    format="safetensors",
    rules=(
        Rule("embeddings.cls_token", "class_token"),
        *positions("embeddings.position_embeddings", "", table("cubic")),
        *dense("embeddings.patch_embeddings.projection", "patch_embedding", inflate, image_kernel),
        *hugging_face_block("encoder.layer.{i}", "transformer/block_{i}"),
        *transformers_block("layers.{i}", "transformer/block_{i}"),
        *norm("layernorm", "norm"),
        *dense("classifier", "head"),
    ),
)

LAYOUTS = {ViT: (TIMM, HUGGING_FACE)}
CONFIGS = {"vit": from_config}
TO_CONFIGS = {ViT: to_config}
