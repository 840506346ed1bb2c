"""ActionCLIP's release (sallymmx/ActionCLIP), mmaction2's, and CLIP's weights to start from.

A file of the release holds two state dicts, which `convert.files` joins under `model.` (CLIP, as OpenAI names it) and
`fusion.` (the temporal head). mmaction2 calls them `clip.` and `adapter.`, and its table of frame positions is as long
as its clips, which `head_context` of the model must be too.
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
from vidjax.convert.rules import Layout, Rule, kernel, norm, rename
from vidjax.errors import UserError
from vidjax.models.actionclip import VideoTower
from vidjax.models.video_text import VideoText

IMAGE, HEAD = "video/image/", "video/temporal/"
MARKER = "model.visual.proj"  # the release's


def encoder_layer(source: str, target: str) -> tuple[Rule, ...]:
    """PyTorch's encoder layer."""
    attention = packed_attention(f"{source}.self_attn", f"{target}/attention")
    return block(source, target, attention, ("norm1", "norm2", "linear1", "linear2"))


BLOCKS = {  # of the heads that have any, by their names
    "transf": openai_block("fusion.transformer.resblocks.{i}", f"{HEAD}transformer/block_{{i}}"),
    "transf_cls": encoder_layer("fusion.transformer.transformer_enc.layers.{i}", f"{HEAD}transformer/block_{{i}}"),
}
HEADS = (
    Rule("fusion.frame_position_embeddings.weight", f"{HEAD}frame_position"),
    Rule("fusion.lstm_visual.weight_ih_l0", f"{HEAD}input_kernel", kernel),
    Rule("fusion.lstm_visual.weight_hh_l0", f"{HEAD}state_kernel", kernel),
    Rule("fusion.lstm_visual.bias_ih_l0", f"{HEAD}input_bias"),
    Rule("fusion.lstm_visual.bias_hh_l0", f"{HEAD}state_bias"),
    Rule("fusion.transformer.cls_token", f"{HEAD}class_token"),
    *positions("fusion.transformer.pos_embed", HEAD, table("linear")),
    *BLOCKS["transf"],
    *BLOCKS["transf_cls"],
    *norm("fusion.transformer.transformer_enc.norm", f"{HEAD}norm"),
)


def prepare(weights: Weights, tower: VideoTower) -> Weights:
    """The release's entries without what its wrappers add to their names.

    Args:
      tower: of the model: whether it shifts its tokens, for which there is no parameter, and its head.

    Raises:
      UserError: the weights are of another model: they shift and the model does not or the other way round, their head
        has more or fewer frame positions, or is the one that the release computes otherwise than we do.
    """
    weights = {name.replace("fusion.module.", "fusion."): value for name, value in weights.items()}
    if MARKER in weights:
        if "fusion.shift.weight" in weights:
            raise UserError(
                "these are weights of the release's head Conv_1D, which mixes channels and frames by a mistaken "
                "reshape: no convolution over time has them; leave out what begins with fusion., and train a head"
            )
        shifted, shift = any(".net." in name for name in weights), tower.image.shift
        if shifted != shift:
            raise UserError(
                f"the weights are of an image tower with shift={shifted}, the model's has "
                f"shift={shift}: choose one alike"
            )
        table = weights.get("fusion.frame_position_embeddings.weight")
        if table is not None and len(table) != tower.head_context:
            raise UserError(
                f"the weights' head has {len(table)} frame positions and the model's {tower.head_context}: "
                f"set head_context to {len(table)}"
            )
    return {name.replace(".net.", "."): value for name, value in weights.items()}


def prepare_mmaction2(weights: Weights, tower: VideoTower) -> Weights:
    """The same, of mmaction2's entries under the release's names; none where these are the release's already."""
    if MARKER in weights:
        return {}
    return prepare(rename(weights, lambda name: re.sub("^clip", "model", re.sub("^adapter", "fusion", name))), tower)


def mmaction2_names(weights: Weights) -> Weights:
    """The inverse."""
    return rename(weights, lambda name: re.sub("^model", "clip", re.sub("^fusion", "adapter", name)))


def shifted(weights: Weights, shift: bool) -> Weights:
    """The inverse of `prepare`: a shifted block of the image tower has a level more."""
    within = re.compile(r"(model\.visual\.transformer\.resblocks\.\d+\.)")
    return {within.sub(r"\1net.", name) if shift else name: value for name, value in weights.items()}


def two_dicts(content: dict) -> dict:
    """The release's file: CLIP's state dict, and that of the temporal head within `DataParallel`."""
    clip, fusion = (
        {name.removeprefix(part): value for name, value in content.items() if name.startswith(part)}
        for part in PARTS.values()
    )
    content = (clip, {f"module.{name}": value for name, value in fusion.items()})
    return dict(zip(PARTS, content, strict=True))


def check(model: VideoText) -> None:
    """Refuses other numbers of attention heads than the release derives from its widths."""
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
# The rest is what ActionCLIP starts from: a pair that knows images.
NEW = (f"{IMAGE}{TIME}", BIAS, HEAD)
FROM_OPENAI = replace(
    OPENAI, rules=(*openai_image(target=IMAGE), *openai_text(target="text/"), SCALE), optional=NEW, restore=None
)
FROM_HUGGING_FACE = replace(
    HUGGING_FACE, rules=(*hugging_face_image(IMAGE), *hugging_face_text("text/"), SCALE), optional=NEW, restore=None
)


def layouts(model: VideoText) -> tuple[Layout, ...]:
    """What this model's weights are published in."""
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
