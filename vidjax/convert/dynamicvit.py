"""Layout of DynamicViT's released checkpoints: an image ViT with timm's names, and the predictors."""

from dataclasses import replace

from vidjax.convert.blocks import score_predictor
from vidjax.convert.rules import Layout
from vidjax.convert.vit import TIMM
from vidjax.models.dynamicvit import DynamicViT
from vidjax.models.vit import ViT

ORIGINAL = replace(
    TIMM,
    name="raoyongming/DynamicViT",
    key="original",
    marker="score_predictor.0.in_conv.0.weight",
    rules=(*TIMM.rules, *score_predictor("score_predictor.{i}", "predictor_{i}")),
    wrap=lambda content: {"model": content},
)


def of(model: DynamicViT) -> tuple[Layout, ...]:
    """The layouts of a model: none but of image ViTs were published."""
    return (ORIGINAL,) if isinstance(model.model, ViT) else ()


LAYOUTS = {DynamicViT: of}
