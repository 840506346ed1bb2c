"""Layout of V-JEPA 2.1 (facebookresearch/vjepa2, src/hub/backbones.py)."""

import re

from vidjax.convert.blocks import timm_block
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout, Rule, dense, norm, rename
from vidjax.convert.vjepa import MASK_TOKEN, PREDICTOR, TOKENS, own_pretraining, stacked, unstacked
from vidjax.models.vjepa21 import VJEPA21, Pretraining21

# The moving averages that the original's evaluations read; distilled models (ViT-B and ViT-L) have the first.
AVERAGES = ("ema_encoder.", "target_encoder.")
ENCODER = "encoder."
WRAPPER = re.compile(r"^(predictor\.)?(module\.)?(backbone\.)?")


def original(model: VJEPA21 | Pretraining21) -> Layout:
    """The original's checkpoints, of whose encoders the moving average is read, and the only one written.

    An encoder with a predictor is the one that was trained; a file without it has the moving average.
    """
    together = isinstance(model, Pretraining21)
    encoder = "encoder/" if together else ""
    written = ENCODER if together else AVERAGES[1]
    mixing = ("predictor_embed.0", "predictor_embed.2") if together and model.predicted_levels > 1 else ()

    def prepare(weights: Weights) -> Weights:
        listed = (ENCODER, *AVERAGES) if together else (*AVERAGES, ENCODER)
        part = next((part for part in listed if any(name.startswith(part) for name in weights)), ENCODER)
        others = tuple(each for each in (*listed, *(() if together else (PREDICTOR,))) if each != part)
        kept = {name: value for name, value in weights.items() if not name.startswith(others)}
        return stacked(rename(kept, lambda name: WRAPPER.sub(r"\1", name.removeprefix(part))))

    def restore(weights: Weights) -> Weights:
        def published_name(name: str) -> str:
            part = PREDICTOR if name.startswith(PREDICTOR) else written
            return f"{part}module.backbone.{name.removeprefix(PREDICTOR)}"

        return rename(unstacked(weights), published_name)

    def wrap(content: dict) -> dict:
        parts = {part: {} for part in (written, *((PREDICTOR,) if together else ()))}
        for name, value in content.items():
            part = next(each for each in parts if name.startswith(each))
            parts[part][name.removeprefix(part)] = value
        return {part.rstrip("."): entries for part, entries in parts.items()}

    return Layout(
        name="facebookresearch/vjepa2 (2.1)",
        key="original",
        marker="norms_block.0.weight",
        prepare=prepare,
        restore=restore,
        wrap=wrap,
        rules=(
            *dense("patch_embed.proj", f"{encoder}patch_embedding"),
            *dense("patch_embed_img.proj", f"{encoder}image_embedding"),
            Rule("video_mod_embed", f"{encoder}video_token"),
            Rule("img_mod_embed", f"{encoder}image_token"),
            *timm_block("blocks.{i}", f"{encoder}transformer/block_{{i}}"),
            *norm("norms_block.{i}", f"{encoder}norm_{{i}}"),
            *(dense(f"predictor.{mixing[0]}", "predictor/mixing") if mixing else ()),
            *dense(f"predictor.{mixing[1] if mixing else 'predictor_embed'}", "predictor/embedding"),
            Rule(MASK_TOKEN, "predictor/mask_tokens", TOKENS),
            Rule("predictor.video_mod_embed", "predictor/video_token"),
            Rule("predictor.img_mod_embed", "predictor/image_token"),
            *timm_block("predictor.predictor_blocks.{i}", "predictor/transformer/block_{i}"),
            *norm("predictor.predictor_norm", "predictor/norm"),
            *dense("predictor.predictor_proj", "predictor/head"),
            *dense("predictor.predictor_proj_context", "predictor/context_head"),
        ),
        optional=("predictor/",) if together else ("head/", "head_pooler/"),
    )


def layouts(model: VJEPA21 | Pretraining21) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    return (original(model), *((own_pretraining(original(model)),) if isinstance(model, VJEPA21) else ()))


LAYOUTS = {VJEPA21: layouts, Pretraining21: layouts}
