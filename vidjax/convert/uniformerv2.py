"""Layouts of UniFormerV2: the original (OpenGVLab/UniFormerV2) and mmaction2's; and CLIP's, for initialisation.

From CLIP's weights the image tower is loaded, without its last norm and projection. A kernel over three frames starts
with CLIP's in the middle and zeros around it, as in the original, whatever the inflation asked for: a mean over the
frames would not start as CLIP on each frame.
"""

from dataclasses import replace

import numpy as np

from vidjax.convert.blocks import packed_attention
from vidjax.convert.clip import (
    HUGGING_FACE_IMAGE,
    hugging_face_image,
    image_tables,
    openai_block,
    openai_image,
    prepare_openai_image,
)
from vidjax.convert.files import Weights
from vidjax.convert.fits import Shape, inflate
from vidjax.convert.rules import Inflation, Layout, Rule, batch_norm, dense, kernel, norm, prefix, strip
from vidjax.convert.uniformer import pointwise
from vidjax.models.uniformerv2 import UniFormerV2


def in_the_middle(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """Inflates the kernel of a frame to one of several, see the module."""
    return inflate(value, shape, "central")


LAYER, BLOCK = "transformer.resblocks.{i}", "transformer/block_{i}"
QUERY = "transformer.temporal_cls_token"


def local_aggregation(source: str, target: str) -> tuple[Rule, ...]:
    """A local aggregation: a batch norm and three convolutions."""
    return (
        *batch_norm(f"{source}.pos_embed.0", f"{target}/norm"),
        *pointwise(f"{source}.pos_embed.1", f"{target}/value"),
        *dense(f"{source}.pos_embed.2", f"{target}/affinity"),
        *pointwise(f"{source}.pos_embed.3", f"{target}/out"),
    )


def global_block(source: str, target: str) -> tuple[Rule, ...]:
    """A global block without its position encoding."""
    return (
        *packed_attention(f"{source}.attn", f"{target}/attention"),
        *norm(f"{source}.ln_1", f"{target}/norm_query"),
        *norm(f"{source}.ln_3", f"{target}/norm_context"),
        *norm(f"{source}.ln_2", f"{target}/norm_mlp"),
        *dense(f"{source}.mlp.c_fc", f"{target}/fc1"),
        *dense(f"{source}.mlp.c_proj", f"{target}/fc2"),
    )


RULES = (
    *image_tables("class_embedding", "positional_embedding", ""),
    Rule("conv1.weight", "patch_embedding/kernel", kernel),
    *norm("ln_pre", "norm_pre"),
    *openai_block(LAYER, BLOCK),
    *local_aggregation(f"{LAYER}.lmhra1", f"{BLOCK}/local1"),
    *local_aggregation(f"{LAYER}.lmhra2", f"{BLOCK}/local2"),
    Rule(QUERY, "video_transformer/block_0/query"),
    *dense("transformer.dpe.{i}", "video_transformer/block_{i}/position"),
    *global_block("transformer.dec.{i}", "video_transformer/block_{i}"),
    Rule("transformer.balance", "balance"),
)
MMACTION2_NORM = "transformer.norm"


def prepare(weights: Weights) -> Weights:
    """Strips prefixes."""
    return strip(weights, "module.", "backbone.")


ORIGINAL = Layout(
    name="OpenGVLab/UniFormerV2",
    key="original",
    marker=QUERY,
    prepare=prepare,
    restore=lambda weights: prefix(weights, "backbone."),
    rules=(*RULES, *norm("transformer.proj.0", "norm"), *dense("transformer.proj.2", "head")),
    fixed={"fusion": "sequential"},
    excludes=lambda entries, prepared: f"{MMACTION2_NORM}.weight" in prepared,
)
MMACTION2 = Layout(
    name="mmaction2's UniFormerV2",
    key="mmaction2",
    marker=f"{MMACTION2_NORM}.weight",
    prepare=prepare,
    restore=lambda weights: prefix(weights, "backbone.", "cls_head."),
    wrap=lambda content: {"state_dict": content},
    rules=(*RULES, *norm(MMACTION2_NORM, "norm"), *dense("cls_head.fc_cls", "head")),
    fixed={"fusion": "sequential", "frozen": False},
)

# What CLIP does not have, and what of it is not used. The video transformer's queries, its last layers and those of
# local aggregations start as zeros.
NEW = (
    "head/", "norm/", "balance", "video_transformer/", "fusion_projection/", "batch_stats/", f"{BLOCK}/local1/",
    f"{BLOCK}/local2/",
)  # fmt: skip
LEFT_OUT = ("head/", "norm_post/", "projection/", "time/")
OPENAI = Layout(
    name="OpenAI's CLIP",
    key="openai",
    marker="visual.class_embedding",
    prepare=prepare_openai_image,
    restore=None,
    rules=openai_image(fit=in_the_middle),
    optional=NEW,
    surplus=LEFT_OUT,
    excludes=lambda entries, prepared: any(name.endswith(QUERY) for name in entries),
)
HUGGING_FACE = replace(
    HUGGING_FACE_IMAGE, rules=hugging_face_image(fit=in_the_middle), restore=None, optional=NEW, surplus=LEFT_OUT
)

LAYOUTS = {UniFormerV2: (ORIGINAL, MMACTION2, OPENAI, HUGGING_FACE)}
