"""Layout of AdaViT's released checkpoints: an image ViT with separate queries, keys and values, and the decisions."""

from dataclasses import replace

from vidjax.convert.blocks import TIMM_NAMES, block, positions, separate_attention
from vidjax.convert.fits import inflate, table
from vidjax.convert.rules import Rule, dense, image_kernel, norm
from vidjax.convert.vit import TIMM
from vidjax.models.adavit import AdaViT

PARTS = {"query": "query", "key": "key", "value": "value", "out": "proj"}
ATTENTION = {part: f"blocks.{{i}}.attn.{name}" for part, name in PARTS.items()}
BLOCK = "transformer/block_{i}"

ORIGINAL = replace(
    TIMM,
    name="MengLcool/AdaViT",
    key="original",
    marker="blocks.0.attn.token_select.mlp_head.weight",
    rules=(
        Rule("cls_token", "class_token"),
        *positions("pos_embed", "", table("cubic")),
        *dense("patch_embed.proj", "patch_embedding", inflate, image_kernel),
        *block("blocks.{i}", BLOCK, separate_attention(f"{BLOCK}/attention", **ATTENTION), TIMM_NAMES),
        *norm("norm", "norm"),
        *dense("head", "head"),
        *dense("blocks.{i}.attn.token_select.mlp_head", "policy_{i}/tokens"),
        *dense("blocks.{i}.head_select.mlp_head", "policy_{i}/heads"),
        *dense("blocks.{i}.layer_select.mlp_head", "policy_{i}/branches"),
    ),
)


LAYOUTS = {AdaViT: (ORIGINAL,)}
