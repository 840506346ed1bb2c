"""Layouts of ActionCLIP: its release (sallymmx/ActionCLIP), mmaction2's, and those of CLIP for initialisation.

A file of the release contains two state dicts, which `convert.files` merges with the prefixes `model.` (CLIP with
OpenAI's names) and `fusion.` (the temporal head). mmaction2's prefixes are `clip.` and `adapter.`, and its table of
frame positions is as long as the clip, so that the model's `head_context` must be, too.
"""

import re
from dataclasses import replace
from functools import partial

from vidjax.convert.blocks import block, packed_attention, positions
from vidjax.convert.clip import (
    BIAS,
    HUGGING_FACE,
    OPENAI,
    SCALE,
    TIME,
    check_heads,
    hugging_face_image,
    hugging_face_text,
    of_openai,
    openai_block,
    openai_image,
    openai_text,
)
from vidjax.convert.files import PARTS, Weights
from vidjax.convert.fits import table
from vidjax.convert.rules import Layout, Rule, norm, recurrent, rename
from vidjax.errors import UserError
from vidjax.models.actionclip import VideoTower
from vidjax.models.video_text import VideoText

IMAGE, HEAD = "video/image/", "video/temporal/"
MARKER = "model.visual.proj"  # in the release


def encoder_layer(source: str, target: str) -> tuple[Rule, ...]:
    """A `torch.nn.TransformerEncoderLayer`."""
    attention = packed_attention(f"{source}.self_attn", f"{target}/attention")
    return block(source, target, attention, ("norm1", "norm2", "linear1", "linear2"))


BLOCKS = {  # rules of the transformer blocks, by the name of the head
    "transf": openai_block("fusion.transformer.resblocks.{i}", f"{HEAD}transformer/block_{{i}}"),
    "transf_cls": encoder_layer("fusion.transformer.transformer_enc.layers.{i}", f"{HEAD}transformer/block_{{i}}"),
}
HEADS = (
    Rule("fusion.frame_position_embeddings.weight", f"{HEAD}frame_position"),
    *recurrent("fusion.lstm_visual.", HEAD),
    Rule("fusion.transformer.cls_token", f"{HEAD}class_token"),
    *positions("fusion.transformer.pos_embed", HEAD, table("linear")),
    *BLOCKS["transf"],
    *BLOCKS["transf_cls"],
    *norm("fusion.transformer.transformer_enc.norm", f"{HEAD}norm"),
)


def prepare(weights: Weights, tower: VideoTower) -> Weights:
    """Removes what wrappers add to the release's names.

    Args:
      weights: the entries of the file.
      tower: the model's video tower, whose head and token shift (which has no parameters) must match the weights.

    Raises:
      UserError: only one of weights and model shifts tokens, the head has another number of frame positions, or it is
        the head that the release computes differently from ours.
    """
    weights = {name.replace("fusion.module.", "fusion."): value for name, value in weights.items()}
    if MARKER in weights:
        if "fusion.shift.weight" in weights:
            raise UserError(
                "the weights are those of the release's Conv_1D head, whose reshape mixes up channels and frames, so "
                "that no temporal convolution computes the same: remove the entries fusion.* and train a new head"
            )
        shifted, shift = any(".net." in name for name in weights), tower.image.shift
        if shifted != shift:
            raise UserError(
                f"the weights are of an image tower with shift={shifted}, the model's has "
                f"shift={shift}: choose a model with the same shift"
            )
        table = weights.get("fusion.frame_position_embeddings.weight")
        if table is not None and len(table) != tower.head_context:
            raise UserError(
                f"the weights' head has {len(table)} frame positions and the model's {tower.head_context}: "
                f"set head_context to {len(table)}"
            )
    return {name.replace(".net.", "."): value for name, value in weights.items()}


def prepare_mmaction2(weights: Weights, tower: VideoTower) -> Weights:
    """As `prepare`, after renaming mmaction2's entries as in the release; empty if they have the release's names."""
    if MARKER in weights:
        return {}
    return prepare(rename(weights, lambda name: re.sub("^clip", "model", re.sub("^adapter", "fusion", name))), tower)


def mmaction2_names(weights: Weights) -> Weights:
    """The inverse of `prepare_mmaction2`."""
    return rename(weights, lambda name: re.sub("^model", "clip", re.sub("^fusion", "adapter", name)))


def shifted(weights: Weights, shift: bool) -> Weights:
    """The inverse of `prepare`: adds the extra level to the names of shifted blocks in the image tower."""
    block_prefix = re.compile(r"(model\.visual\.transformer\.resblocks\.\d+\.)")
    return {block_prefix.sub(r"\1net.", name) if shift else name: value for name, value in weights.items()}


def two_dicts(content: dict) -> dict:
    """The content of the release's file: the state dict of CLIP, and that of the temporal head in `DataParallel`."""
    clip, fusion = (
        {name.removeprefix(part): value for name, value in content.items() if name.startswith(part)}
        for part in PARTS.values()
    )
    content = (clip, {f"module.{name}": value for name, value in fusion.items()})
    return dict(zip(PARTS, content, strict=True))


def check(model: VideoText) -> None:
    """Raises `UserError` if the numbers of attention heads are not those that the release derives from its widths."""
    image, text = model.video.image, model.text
    check_heads("heads of the image tower", image.heads, image.width)
    check_heads("heads of the text tower", text.heads, text.width)
    if model.video.head == "transf":
        check_heads("head_heads", model.video.head_heads, text.width)


RELEASE = Layout(
    name="ActionCLIP's release",
    key="original",
    wrap=two_dicts,
    marker=MARKER,
    rules=(
        *openai_image("model.visual.", IMAGE),
        *openai_text("model.", "text/"),
        replace(SCALE, source="model.logit_scale"),
        *HEADS,
    ),
    optional=(BIAS,),
    surplus=(),
    check=check,
)
# Layouts for initialising ActionCLIP from image-text weights.
NEW = (f"{IMAGE}{TIME}", BIAS, HEAD)
FROM_OPENAI = replace(
    OPENAI, rules=(*openai_image(target=IMAGE), *openai_text(target="text/"), SCALE), optional=NEW, restore=None
)
FROM_HUGGING_FACE = replace(
    HUGGING_FACE, rules=(*hugging_face_image(IMAGE), *hugging_face_text("text/"), SCALE), optional=NEW, restore=None
)


def layouts(model: VideoText) -> tuple[Layout, ...]:
    """The layouts of this model's weights."""
    fixed = of_openai(model.video.image, "video.image.") | of_openai(model.text, "text.")
    others = [rule for head, rules in BLOCKS.items() if head != model.video.head for rule in rules]
    release = replace(
        RELEASE,
        rules=tuple(rule for rule in RELEASE.rules if rule not in others),
        prepare=partial(prepare, tower=model.video),
        restore=partial(shifted, shift=model.video.image.shift),
        fixed=fixed,
    )
    mmaction2 = replace(
        release,
        name="mmaction2's ActionCLIP",
        key="mmaction2",
        prepare=partial(prepare_mmaction2, tower=model.video),
        restore=mmaction2_names,
        wrap=lambda content: {"state_dict": content},
        fixed=fixed | {"video.image.joint": False, "video.image.shift": False, "video.head": "transf"},
    )
    return release, mmaction2, FROM_OPENAI, FROM_HUGGING_FACE


LAYOUTS = {(VideoText, VideoTower): layouts}
