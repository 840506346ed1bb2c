"""Layouts of VidTr: the authors' (amazon-science/gluonmm), and image ViTs to start from, as in their code."""

import numpy as np

from vidjax.convert.blocks import packed_attention, timm_block
from vidjax.convert.fits import Shape, inflate
from vidjax.convert.rules import (
    Inflation,
    Layout,
    Rule,
    Transform,
    dense,
    first_axis,
    fold_layer_scale,
    norm,
    prefix,
    strip,
)
from vidjax.models.vidtr import VidTr

SECOND_AXIS = Transform(lambda value: value[:, 0], lambda value: value[:, None])  # published with an axis of size 1

ORIGINAL = Layout(
    name="amazon-science/gluonmm",
    key="original",
    marker="encoder.layers.0.self_attn.in_proj_weight",
    prepare=lambda weights: strip(weights, "module."),
    restore=lambda weights: prefix(weights, "module."),  # expected by their code, which ignores other names
    wrap=lambda content: {"model": content, "epoch": 0},
    rules=(
        *dense("conv_stem", "patch_embedding"),
        Rule("cls", "class_token", first_axis),
        Rule("cls_t", "place_token", first_axis),
        Rule("cls_s", "frame_token", SECOND_AXIS),
        Rule("pos_embedding", "position", first_axis),
        *packed_attention("encoder.layers.{i}.self_attn", "block_{i}/attention"),
        *(rule for n in (1, 2) for rule in norm(f"encoder.layers.{{i}}.norm{n}", f"block_{{i}}/norm{n}")),
        *(rule for n in (1, 2) for rule in dense(f"encoder.layers.{{i}}.linear{n}", f"block_{{i}}/mlp/fc{n}")),
        *norm("encoder.norm", "norm"),
        *dense("fc", "head"),
    ),
)


def repeated(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """Rows of an image's table for each row of frames; the first row, of the class, once if it is not in the table."""
    if value.shape[1:] != shape[1:]:
        return value
    if (rows := shape[0]) % len(value) == 0:
        return np.tile(value, (rows // len(value), 1))
    if (rows - 1) % (len(value) - 1) == 0:
        return np.concatenate([value[:1], np.tile(value[1:], ((rows - 1) // (len(value) - 1), 1))])
    return value


IMAGE = Layout(
    name="timm's ViT of images",
    key="timm",
    marker="blocks.0.attn.qkv.weight",
    prepare=lambda weights: fold_layer_scale(strip(weights, "module.")),
    restore=None,  # weights to start from: the head is another
    rules=(
        *dense("patch_embed.proj", "patch_embedding", inflate),
        *(Rule("cls_token", f"{name}_token", first_axis, repeated) for name in ("class", "place", "frame")),
        Rule("pos_embed", "position", first_axis, repeated),
        *timm_block("blocks.{i}", "block_{i}"),
        *norm("norm", "norm"),
    ),
)

LAYOUTS = {VidTr: (ORIGINAL, IMAGE)}
