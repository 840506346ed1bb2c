"""Hugging Face's configurations of CLIP and of its towers: the models they describe, and the inverse."""

import flax.linen as nn

from vidjax.convert.hub import expect
from vidjax.convert.vit import square
from vidjax.models.clip import CARD, ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText

# Defaults for fields that a configuration omits.
DEFAULTS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512}
TEXT_DEFAULTS = DEFAULTS | {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
    "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
IMAGE_DEFAULTS = DEFAULTS | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3, "image_size": 224,
    "patch_size": 32,
}  # fmt: skip
LEGACY_END = 2  # in older directories, which means that the end token is the one with the highest id


def _block_fields(config: dict) -> dict:
    """Fields of the blocks of either tower."""
    expect(config, "hidden_act", "quick_gelu", "gelu")
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "activation": config["hidden_act"],
        "epsilon": config["layer_norm_eps"],
    }


def text_from_config(config: dict) -> TextTower:
    """The text tower of a Hugging Face configuration."""
    config = TEXT_DEFAULTS | config
    end = config["eos_token_id"]
    return TextTower(
        config["vocab_size"],
        config["max_position_embeddings"],
        features=config["projection_dim"],
        end_token=None if end == LEGACY_END else end,
        **_block_fields(config),
    )


def from_config(config: dict) -> nn.Module:
    """The pair of a Hugging Face configuration."""
    features = {"projection_dim": config.get("projection_dim", DEFAULTS["projection_dim"])}
    text, image = ((config.get(f"{name}_config") or {}) | features for name in ("text", "vision"))
    return VideoText(image_from_config(image), text_from_config(text), CARD)


def image_from_config(config: dict) -> ImageTower:
    """The image tower of a Hugging Face configuration."""
    config = IMAGE_DEFAULTS | config
    patch = config["patch_size"]
    return ImageTower(
        features=config["projection_dim"],
        patch_size=(1, patch, patch),
        channels=config["num_channels"],
        image_size=config["image_size"],
        **_block_fields(config),
    )


def _block_config(tower: ImageTower | TextTower) -> dict:
    """The inverse of `_block_fields`, and the width of the shared space."""
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": round(tower.width * tower.mlp_ratio),
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.epsilon,
        "projection_dim": tower.features,
    }


def text_to_config(tower: TextTower) -> dict:
    """The inverse of `text_from_config`."""
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": tower.vocabulary,
        "max_position_embeddings": tower.context,
        "eos_token_id": LEGACY_END if tower.end_token is None else tower.end_token,
        **_block_config(tower),
    }


def image_to_config(tower: ImageTower) -> dict:
    """The inverse of `image_from_config`."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "patch_size": square(tower.patch_size, frames=1),
        "num_channels": tower.channels,
        "image_size": tower.image_size,
        **_block_config(tower),
    }


def to_config(model: VideoText) -> dict:
    """The inverse of `from_config`."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "text_config": text_to_config(model.text),
        "vision_config": image_to_config(model.video),
        "projection_dim": model.video.features,
    }


CONFIGS = {"clip": from_config, "clip_text_model": text_from_config, "clip_vision_model": image_from_config}
TO_CONFIGS = {(VideoText, ImageTower): to_config, ImageTower: image_to_config, TextTower: text_to_config}
