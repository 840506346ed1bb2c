"""Layout of V-JEPA 2.1's encoders (facebookresearch/vjepa2, src/hub/backbones.py)."""

import re

from vidjax.convert.blocks import timm_block
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout, Rule, dense, norm, rename
from vidjax.models.vjepa21 import VJEPA21

# The moving averages that the original's evaluations read; distilled models (ViT-B and ViT-L) have the first.
AVERAGES = ("ema_encoder.", "target_encoder.")
OTHERS = ("encoder.", "predictor.")
WRAPPER = re.compile(r"^(module\.)?(backbone\.)?")


def original(model: VJEPA21) -> Layout:
    """The original's checkpoints, of whose networks the encoder's moving average is read, and the only one written."""

    def prepare(weights: Weights) -> Weights:
        average = next((part for part in AVERAGES if any(name.startswith(part) for name in weights)), "encoder.")
        others = tuple(part for part in (*AVERAGES, *OTHERS) if part != average)
        kept = {name: value for name, value in weights.items() if not name.startswith(others)}
        return rename(kept, lambda name: WRAPPER.sub("", name.removeprefix(average)))

    def restore(weights: Weights) -> Weights:
        return rename(weights, lambda name: f"{AVERAGES[1]}module.backbone.{name}")

    return Layout(
        name="facebookresearch/vjepa2 (2.1)",
        key="original",
        marker="norms_block.0.weight",
        prepare=prepare,
        restore=restore,
        wrap=lambda content: {
            AVERAGES[1].rstrip("."): {name.removeprefix(AVERAGES[1]): value for name, value in content.items()}
        },
        rules=(
            *dense("patch_embed.proj", "patch_embedding"),
            *dense("patch_embed_img.proj", "image_embedding"),
            Rule("video_mod_embed", "video_token"),
            Rule("img_mod_embed", "image_token"),
            *timm_block("blocks.{i}", "transformer/block_{i}"),
            *norm("norms_block.{i}", "norm_{i}"),
        ),
        optional=("head/", "head_pooler/"),
    )


def layouts(model: VJEPA21) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    return (original(model),)


LAYOUTS = {VJEPA21: layouts}
