"""Layouts of InternVideo: the towers of its first stage, CLIP's to start them from, and its retrieval transformer.

The towers' released file also has the decoder of captions, whose blocks differ from ours, and the embedding of masked
words; both are left out. It was not opened: that the towers' names start with `clip.`, under `state_dict`, is how the
publisher's loader reads it (`InternVideo1/Pretrain/Multi-Modalities-Pretraining/InternVideo/internvideo.py`). Any pair
of a UniFormerV2 and a causal text tower has these layouts.
"""

from dataclasses import replace

from vidjax.convert import clip, uniformerv2
from vidjax.convert.clip import (
    BIAS,
    SCALE,
    check_heads,
    hugging_face_image,
    hugging_face_text,
    of_openai,
    openai_block,
    openai_image,
    openai_text,
)
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout, Rule, dense, norm
from vidjax.models.internvideo import CrossEncoder
from vidjax.models.text import TextTower
from vidjax.models.uniformerv2 import UniFormerV2
from vidjax.models.video_text import Projected, VideoText

WHOLE, TOWERS = "cross.", "clip."


def part_of(weights: Weights, prefix: str) -> Weights:
    """Only the entries with this prefix, without it; all of them if there are none."""
    part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return part or weights


def prepare(weights: Weights) -> Weights:
    """Only the entries of the retrieval transformer, if the whole model's are given."""
    return part_of(weights, WHOLE)


INTERNVIDEO = Layout(
    name="InternVideo's retrieval",
    key="internvideo1",
    marker="embeddings.position_embeddings.weight",
    prepare=prepare,
    rules=(
        Rule("embeddings.position_embeddings.weight", "position"),
        *openai_block("transformer.resblocks.{i}", "transformer/block_{i}"),
        *norm("pooler.ln_pool", "norm"),
        *dense("pooler.dense", "pool"),
    ),
    optional=(),
    surplus=(),
)

TOWER, PROJECTION = "video/tower/", "video/projection/"


def prepare_pair(weights: Weights) -> Weights:
    """Only the entries of the two towers."""
    return {name: value for name, value in part_of(weights, TOWERS).items() if name != "text_mask_embedding"}


def check_pair(model: VideoText) -> None:
    """Checks the heads of both towers."""
    check_heads("heads of the video tower", model.video.tower.heads, model.video.tower.width)
    check_heads("heads of the text tower", model.text.heads, model.text.width)


def image_in_tower(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of CLIP's image tower, whose last norm and projection follow the video token."""
    places = {f"{TOWER}norm_post/": f"{TOWER}norm/", f"{TOWER}projection/": PROJECTION}

    def place(target: str) -> str:
        return next((new + target.removeprefix(old) for old, new in places.items() if target.startswith(old)), target)

    return tuple(replace(rule, target=place(rule.target)) for rule in rules)


PAIR = Layout(
    name="OpenGVLab/InternVideo",
    key="internvideo1",
    marker="visual_proj",
    prepare=prepare_pair,
    rules=(
        *(
            replace(rule, source=f"visual.{rule.source}", target=TOWER + rule.target)
            for rule in uniformerv2.RULES
            if not rule.target.startswith("batch_stats/")
        ),
        *norm("visual_ln_post", f"{TOWER}norm"),
        Rule("visual_proj", f"{PROJECTION}kernel"),
        *openai_text(target="text/"),
        SCALE,
    ),
    optional=(BIAS,),
    surplus=(),
    check=check_pair,
)
# What of UniFormerV2 is not in CLIP.
NEW = (
    f"{TOWER}balance", f"{TOWER}video_transformer/", f"{TOWER}fusion_projection/", "batch_stats/", BIAS,
    *(f"{TOWER}{uniformerv2.BLOCK}/{name}/" for name in ("local1", "local2")),
)  # fmt: skip
FROM_OPENAI = replace(
    clip.OPENAI,
    rules=(
        *image_in_tower(openai_image(target=TOWER, fit=uniformerv2.in_the_middle)),
        *openai_text(target="text/"),
        SCALE,
    ),
    optional=NEW,
    restore=None,
)
FROM_HUGGING_FACE = replace(
    clip.HUGGING_FACE,
    rules=(
        *image_in_tower(hugging_face_image(TOWER, uniformerv2.in_the_middle)),
        *hugging_face_text("text/"),
        SCALE,
    ),
    optional=NEW,
    restore=None,
)


def layouts(model: VideoText) -> tuple[Layout, ...]:
    """The layouts of a pair of a UniFormerV2 and a causal text tower; none for other projected towers."""
    if not isinstance(model.video.tower, UniFormerV2) or not isinstance(model.text, TextTower):
        return ()
    fixed = {"video.tower.local": False, "video.tower.fusion": "sequential", "video.tower.frozen": False}
    return replace(PAIR, fixed=fixed | of_openai(model.text, "text.")), FROM_OPENAI, FROM_HUGGING_FACE


LAYOUTS = {CrossEncoder: (INTERNVIDEO,), (VideoText, Projected): layouts}
