"""Layouts of SigLIP 2, for both towers or one: big_vision's NumPy files, and Hugging Face's directories.

Hugging Face has two kinds: `siglip` for fixed image sizes, with a convolution of patches, and `siglip2` for NaFlex,
with a linear map. big_vision stores the layers of a tower in one array.
"""

import flax.linen as nn

from vidjax.convert.blocks import packed_attention, stack, unstack
from vidjax.convert.clip import hugging_face_block, rows
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, Transform, dense, image_kernel, kernel, norm, prefix, strip
from vidjax.convert.vit import square
from vidjax.convert.vivit import flax_attention, flax_pair
from vidjax.errors import UserError
from vidjax.models.siglip import CARD, SigLip, TextTower
from vidjax.models.video_text import VideoText

ROWS = Transform(lambda value: value, rows)
LEADING_ROWS = Transform(lambda value: value[0], lambda value: rows(value)[None])
SCALAR = Transform(lambda value: value.reshape(()), lambda value: value.reshape(1))
SCALARS = ("logit_scale", "logit_bias")


def flat_patches(model: SigLip, transposed: bool) -> Transform:
    """The linear map of flattened patches, `(row column channel)`; PyTorch's is transposed."""
    shape = (*model.patch_size, model.channels, -1)
    return Transform(
        lambda value: (value.T if transposed else value).reshape(shape),
        lambda value: rows(value).T if transposed else rows(value),
    )


# Hugging Face's names


def transformers_image(model: SigLip, source: str, target: str) -> tuple[Rule, ...]:
    """The image tower."""
    patches = flat_patches(model, transposed=True) if model.flexible else image_kernel
    fit = table("antialiased_linear" if model.flexible else "half_pixel_cubic")
    return (
        *dense(f"{source}embeddings.patch_embedding", f"{target}patch_embedding", inflate, patches),
        Rule(f"{source}embeddings.position_embedding.weight", f"{target}position/table", ROWS, fit),
        *hugging_face_block(f"{source}encoder.layers.{{i}}", f"{target}transformer/block_{{i}}"),
        *norm(f"{source}post_layernorm", f"{target}norm"),
        Rule(f"{source}head.probe", f"{target}head_pool/token"),
        *packed_attention(f"{source}head.attention", f"{target}head_pool/attention"),
        *norm(f"{source}head.layernorm", f"{target}head_pool/norm"),
        *dense(f"{source}head.mlp.fc1", f"{target}head_pool/mlp/fc1"),
        *dense(f"{source}head.mlp.fc2", f"{target}head_pool/mlp/fc2"),
    )


def transformers_text() -> tuple[Rule, ...]:
    """The text tower of a pair."""
    return (
        Rule("text_model.embeddings.token_embedding.weight", "text/token_embedding/embedding"),
        Rule("text_model.embeddings.position_embedding.weight", "text/position"),
        *hugging_face_block("text_model.encoder.layers.{i}", "text/transformer/block_{i}"),
        *norm("text_model.final_layer_norm", "text/norm"),
        Rule("text_model.head.weight", "text/projection/kernel", kernel),
        Rule("text_model.head.bias", "text/projection/bias"),
    )


def image_of_pair(weights: Weights) -> Weights:
    """The image tower's entries, also if the file is that of a pair."""
    weights = strip(weights, "module.", "vision_model.")
    others = ("text_model.", *SCALARS)
    return {name: value for name, value in weights.items() if not name.startswith(others)}


def transformers(model: SigLip) -> Layout:
    """SiglipVisionModel or Siglip2VisionModel."""
    return Layout(
        name=f"Hugging Face's {'Siglip2' if model.flexible else 'Siglip'}",
        key="transformers",
        marker="embeddings.position_embedding.weight",
        prepare=image_of_pair,
        format="safetensors",
        rules=transformers_image(model, "", ""),
    )


def transformers_pair(model: VideoText) -> Layout:
    """SiglipModel or Siglip2Model."""
    return Layout(
        name=f"Hugging Face's {'Siglip2' if model.video.flexible else 'Siglip'}",
        key="transformers",
        marker="text_model.embeddings.position_embedding.weight",
        prepare=lambda weights: strip(weights, "module."),
        format="safetensors",
        rules=(
            *transformers_image(model.video, "vision_model.", "video/"),
            *transformers_text(),
            *(Rule(name, name, SCALAR) for name in SCALARS),
        ),
        optional=(),
        surplus=(),
    )


# big_vision's names


def original_blocks(source: str, target: str, heads: int) -> tuple[Rule, ...]:
    """A stack of blocks, after `unstack`."""
    source, target = f"{source}/encoderblock_{{i}}", f"{target}/block_{{i}}"
    return (
        *flax_pair(f"{source}/LayerNorm_0", f"{target}/norm1", "scale"),
        *flax_attention(f"{source}/MultiHeadDotProductAttention_0", f"{target}/attention", heads),
        *flax_pair(f"{source}/LayerNorm_1", f"{target}/norm2", "scale"),
        *flax_pair(f"{source}/MlpBlock_0/Dense_0", f"{target}/mlp/fc1", "kernel"),
        *flax_pair(f"{source}/MlpBlock_0/Dense_1", f"{target}/mlp/fc2", "kernel"),
    )


def original_image(model: SigLip, target: str) -> tuple[Rule, ...]:
    """The image tower."""
    flat = flat_patches(model, transposed=False)
    patches = flat if model.flexible else Transform(lambda value: value, lambda value: value[0])
    fit = table("antialiased_linear" if model.flexible else "half_pixel_cubic")
    pool, ours = "img/MAPHead_0", f"{target}head_pool"
    return (
        Rule("img/embedding/kernel", f"{target}patch_embedding/kernel", patches, inflate),
        Rule("img/embedding/bias", f"{target}patch_embedding/bias"),
        Rule("img/pos_embedding", f"{target}position/table", LEADING_ROWS, fit),
        *original_blocks("img/Transformer", f"{target}transformer", model.heads),
        *flax_pair("img/Transformer/encoder_norm", f"{target}norm", "scale"),
        Rule(f"{pool}/probe", f"{ours}/token"),
        *flax_attention(f"{pool}/MultiHeadDotProductAttention_0", f"{ours}/attention", model.heads),
        *flax_pair(f"{pool}/LayerNorm_0", f"{ours}/norm", "scale"),
        *flax_pair(f"{pool}/MlpBlock_0/Dense_0", f"{ours}/mlp/fc1", "kernel"),
        *flax_pair(f"{pool}/MlpBlock_0/Dense_1", f"{ours}/mlp/fc2", "kernel"),
    )


def original_text(model: TextTower) -> tuple[Rule, ...]:
    """The text tower of a pair."""
    positions = Transform(lambda value: value[0], lambda value: value[None])
    return (
        Rule("txt/Embed_0/embedding", "text/token_embedding/embedding"),
        Rule("txt/pos_embedding", "text/position", positions),
        *original_blocks("txt/Encoder_0", "text/transformer", model.heads),
        *flax_pair("txt/Encoder_0/encoder_norm", "text/norm", "scale"),
        *flax_pair("txt/head", "text/projection", "kernel"),
    )


STACK = "encoderblock"
ORIGINAL = {
    "key": "original",
    "restore": lambda weights: stack(prefix(weights, "params/"), STACK),
    "format": "npz",
}


def layers_apart(weights: Weights) -> Weights:
    """The entries of each layer, without the prefix of a file."""
    return unstack(strip(weights, "params/"), STACK)


def original(model: SigLip) -> Layout:
    """The image tower, also of a file of a pair."""

    def prepare(weights: Weights) -> Weights:
        return {name: value for name, value in layers_apart(weights).items() if name.startswith("img/")}

    return Layout(
        name=f"big_vision's SigLIP{' (NaFlex)' if model.flexible else ''}",
        marker="img/pos_embedding",
        prepare=prepare,
        rules=original_image(model, ""),
        **ORIGINAL,
    )


def original_pair(model: VideoText) -> Layout:
    """Both towers."""
    return Layout(
        name=f"big_vision's SigLIP{' (NaFlex)' if model.video.flexible else ''}",
        marker="txt/pos_embedding",
        prepare=layers_apart,
        rules=(
            *original_image(model.video, "video/"),
            *original_text(model.text),
            Rule("t", "logit_scale", SCALAR),
            Rule("b", "logit_bias", SCALAR),
        ),
        optional=(),
        surplus=(),
        **ORIGINAL,
    )


# Configurations

SAME = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def fields_of(config: dict) -> dict:
    """Fields of the blocks of either tower."""
    for field, value in SAME.items():
        expect(config, field, value)
    width = config.get("hidden_size", 768)
    return {
        "width": width,
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_ratio": config.get("intermediate_size", 3072) / width,
    }


def image_from_config(config: dict, flexible: bool) -> SigLip:
    """The image tower of a configuration."""
    expect(config, "vision_use_head", True)
    patch = config.get("patch_size", 16)
    side = round(config.get("num_patches", 256) ** 0.5) * patch if flexible else config.get("image_size", 224)
    channels = config.get("num_channels", 3)
    return SigLip(
        **fields_of(config), patch_size=(1, patch, patch), flexible=flexible, channels=channels, image_size=side
    )


def text_from_config(config: dict) -> TextTower:
    """The text tower of a configuration."""
    fields = fields_of(config)
    features = config.get("projection_size") or fields["width"]
    return TextTower(
        config.get("vocab_size", 32000), config.get("max_position_embeddings", 64), features=features, **fields
    )


def from_config(config: dict) -> nn.Module:
    """The pair of a configuration."""
    flexible = config["model_type"] == "siglip2"
    image = image_from_config(config.get("vision_config") or {}, flexible)
    return VideoText(image, text_from_config(config.get("text_config") or {}), CARD, bias=-10.0)


def block_config(model: SigLip | TextTower) -> dict:
    """The inverse of `fields_of`."""
    return {
        **SAME,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": round(model.width * model.mlp_ratio),
    }


def image_to_config(model: SigLip) -> dict:
    """The inverse of `image_from_config`."""
    if model.num_classes is not None:
        raise UserError("transformers' Siglip classifier averages the tokens: set num_classes to None, or use vidjax")
    patch = square(model.patch_size, frames=1)
    kind = "Siglip2" if model.flexible else "Siglip"
    size = {"num_patches": (model.image_size // patch) ** 2} if model.flexible else {"image_size": model.image_size}
    return {
        "architectures": [f"{kind}VisionModel"],
        "model_type": f"{kind.lower()}_vision_model",
        **block_config(model),
        "patch_size": patch,
        "num_channels": model.channels,
        **size,
    }


def to_config(model: VideoText) -> dict:
    """The inverse of `from_config`."""
    kind = "Siglip2" if model.video.flexible else "Siglip"
    text = {
        "model_type": f"{kind.lower()}_text_model",
        **block_config(model.text),
        "vocab_size": model.text.vocabulary,
        "max_position_embeddings": model.text.context,
        "projection_size": model.text.features,
    }
    return {
        "architectures": [f"{kind}Model"],
        "model_type": kind.lower(),
        "vision_config": image_to_config(model.video),
        "text_config": text,
    }


PAIR = (VideoText, SigLip)
LAYOUTS = {
    SigLip: lambda model: (original(model), transformers(model)),
    PAIR: lambda model: (original_pair(model), transformers_pair(model)),
}
CONFIGS = {
    "siglip": from_config,
    "siglip2": from_config,
    "siglip_vision_model": lambda config: image_from_config(config, flexible=False),
    "siglip2_vision_model": lambda config: image_from_config(config, flexible=True),
}
TO_CONFIGS = {SigLip: image_to_config, PAIR: to_config}
