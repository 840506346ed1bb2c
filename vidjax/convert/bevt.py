"""Layouts of BEVT's pre-training: the original (xyzforever/BEVT), and its image stream alone, which it starts with."""

import numpy as np

from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.rules import Layout, Rule, Transform, dense, image_kernel, norm, prefix
from vidjax.convert.video_swin import PATCHES, of_video, prepare, rules, with_buffers
from vidjax.models.bevt import Pretraining


def _transposed(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (0, 1), (-2, -1))


def _back(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (-2, -1), (0, 1))


# PyTorch's transposed convolution `(in, out, ...)` to ours, `(t, h, w, in, out)`; an image's has no time axis.
TRANSPOSED = Transform(_transposed, _back)
IMAGE_TRANSPOSED = Transform(lambda value: _transposed(value)[None], lambda value: _back(value[0]))


def encoder(layout_rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Video Swin's rules, for the encoder."""
    return tuple(Rule(rule.source, f"encoder/{rule.target}", rule.transform, rule.fit) for rule in layout_rules)


def enlarging(source: str, target: str, transform: Transform = TRANSPOSED) -> tuple[Rule, ...]:
    """The two rules of a transposed convolution."""
    return Rule(f"{source}.weight", f"{target}/kernel", transform), Rule(f"{source}.bias", f"{target}/bias")


IMAGE_STREAM = (
    Rule("mask_token", "mask_token"),
    *enlarging("fpn.0", "image_enlarging", IMAGE_TRANSPOSED),
    *dense("lm_down", "image_joining"),
)


def layouts(model: Pretraining) -> tuple[Layout, ...]:
    """The layouts in which weights of the model are published."""

    def restore(weights: Weights) -> Weights:
        return prefix(with_buffers(weights, model.window), "backbone.", "cls_head.")

    original = Layout(
        name="xyzforever/BEVT",
        key="original",
        marker="patch_embed_2d.proj.weight",
        rules=(
            *encoder(rules(of_video)),
            *dense("patch_embed_2d.proj", "image_embedding", inflate, image_kernel),
            *norm("patch_embed_2d.norm", "image_embedding_norm"),
            *IMAGE_STREAM,
            *enlarging("fpn_s.0", "video_enlarging"),
            *dense("lm_down_st.0", "video_joining"),
            *enlarging("fpn_t.0", "time_enlarging"),
            *dense("cls_head.lm_head", "token_head"),
        ),
        prepare=prepare,
        restore=restore,
        optional=(),
        surplus=(),
        wrap=lambda content: {"state_dict": content},
    )
    # As in the original: the video stream gets the patch embedding, inflated, and the tables, repeated over time.
    image = Layout(
        name="BEVT's image stream",
        key="image",
        marker=PATCHES,
        rules=(
            *encoder(rules(table("half_pixel_cubic", image=True))),
            *dense("patch_embed.proj", "image_embedding", inflate, image_kernel),
            *norm("patch_embed.norm", "image_embedding_norm"),
            *IMAGE_STREAM,
            *dense("lm_head", "token_head"),
        ),
        prepare=prepare,
        excludes=lambda entries, prepared: "patch_embed_2d.proj.weight" in prepared,
        restore=None,
        optional=("video_enlarging/", "video_joining/", "time_enlarging/", "token_head/", "image_enlarging/",
                  "image_joining/", "mask_token"),
        surplus=(),
    )  # fmt: skip
    return original, image


LAYOUTS = {Pretraining: layouts}
