"""Hugging Face's configurations of BLIP, and of the image tower that BLIP-2 shares with it."""

import flax.linen as nn

from vidjax.convert.hub import expect
from vidjax.convert.vit import square
from vidjax.errors import UserError
from vidjax.models.blip import CARD, Answerer, Blip, Captioner, Text
from vidjax.models.vit import ViT

IMAGE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
TEXT = {
    "vocab_size": 30524, "max_position_embeddings": 512, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 8, "intermediate_size": 3072,
}  # fmt: skip
KINDS = {
    "BlipForImageTextRetrieval": Blip,
    "BlipForConditionalGeneration": Captioner,
    "BlipForQuestionAnswering": Answerer,
}


def image_from_config(config: dict, defaults: dict) -> ViT:
    """The image tower of a configuration."""
    config = defaults | config
    expect(config, "hidden_act", "gelu")
    width, patch = config["hidden_size"], config["patch_size"]
    return ViT(
        width,
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"] / width,
        (1, patch, patch),
        image_size=config["image_size"],
        epsilon=config["layer_norm_eps"],
    )


def image_to_config(model: ViT) -> dict:
    """The inverse of `image_from_config`."""
    return {
        "hidden_size": model.width,
        "intermediate_size": round(model.width * model.mlp_ratio),
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "image_size": model.image_size,
        "patch_size": square(model.patch_size, frames=1),
        "layer_norm_eps": model.epsilon,
    }


def from_config(config: dict) -> nn.Module:
    """The model of a configuration, whose kind is that of the first of its `architectures`."""
    kind = (config.get("architectures") or ["none"])[0]
    if kind not in KINDS:
        raise UserError(f"the architecture is {kind}: {', '.join(KINDS)} are supported")
    text = TEXT | (config.get("text_config") or {})
    expect(text, "hidden_act", "gelu")
    expect(text, "layer_norm_eps", 1e-12)
    text = Text(
        text["vocab_size"],
        text["max_position_embeddings"],
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        text["intermediate_size"] / text["hidden_size"],
    )
    video = image_from_config(config.get("vision_config") or {}, IMAGE)
    if KINDS[kind] is Captioner:
        return Captioner(video, text, CARD)
    if KINDS[kind] is Answerer:
        return Answerer(video, text, text, CARD)
    return Blip(video, text, config.get("image_text_hidden_size", 256), writes=False)


def to_config(model: Blip | Captioner | Answerer) -> dict:
    """The inverse of `from_config`."""
    text = model.text
    return {
        "architectures": [name for name, kind in KINDS.items() if isinstance(model, kind)],
        "model_type": "blip",
        "vision_config": {"model_type": "blip_vision_model"} | image_to_config(model.video),
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.context,
            "hidden_size": text.width,
            "encoder_hidden_size": model.video.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": round(text.width * text.mlp_ratio),
            "bos_token_id": text.vocabulary - 2,
        },
        **({"image_text_hidden_size": model.features} if isinstance(model, Blip) else {}),
    }


CONFIGS = {"blip": from_config}
TO_CONFIGS = {Blip: to_config, Captioner: to_config, Answerer: to_config}
