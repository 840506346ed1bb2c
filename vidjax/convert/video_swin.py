"""Layouts of Video Swin: the original, mmaction2's and torchvision's, and Swin of images to start from.

Tables of relative positions are published flat, `(2t-1)(2h-1)(2w-1)` distances by heads. The distances themselves and
the masks of shifted windows are buffers of the originals: they are dropped here, and the former are written on export,
as torchvision requires them. An image model's table is repeated over the distances in time and, if its window has
another size, resized as in the original by PyTorch's bicubic interpolation.
"""

from functools import partial

import numpy as np

from vidjax.convert.blocks import timm_block
from vidjax.convert.files import Weights
from vidjax.convert.fits import Shape, inflate, table
from vidjax.convert.rules import Fit, Inflation, Layout, Rule, Transform, dense, kernel, norm, prefix, rename, strip
from vidjax.models.video_swin import VideoSwin, distances

BUFFERS = ("relative_position_index", "attn_mask")
TABLE = "attn.relative_position_bias_table"
PATCHES = "patch_embed.proj.weight"
HEAD = dense("cls_head.fc_cls", "head")

FLAT = Transform(lambda value: value, lambda value: value.reshape(-1, value.shape[-1]))


def of_video(value: np.ndarray, shape: Shape, inflation: Inflation, native: Shape | None = None) -> np.ndarray:
    """A flat table on the grid of our distances, if it has as many."""
    return value.reshape(shape) if value.size == np.prod(shape) else value


def rules(fit: Fit, last_norm: str = "norm") -> tuple[Rule, ...]:
    """The rules of all layouts but for the head."""
    block, ours = "layers.{s}.blocks.{i}", "stage_{s}/block_{i}"
    return (
        *dense("patch_embed.proj", "patch_embedding", inflate),
        *norm("patch_embed.norm", "patch_embedding_norm"),
        *timm_block(block, ours),
        Rule(f"{block}.{TABLE}", f"{ours}/relative_position", FLAT, fit),
        Rule("layers.{s}.downsample.reduction.weight", "merging_{s}/reduction/kernel", kernel),
        *norm("layers.{s}.downsample.norm", "merging_{s}/norm"),
        *norm(last_norm, "norm"),
    )


def without_buffers(weights: Weights) -> Weights:
    """The weights without what the originals derive from the sizes."""
    return {name: value for name, value in weights.items() if not name.endswith(BUFFERS)}


def with_buffers(weights: Weights, window: tuple[int, int, int]) -> Weights:
    """The weights and the distances in each block's window, as the originals store them."""
    indices = distances(window).astype(np.int64)
    blocks = (name.removesuffix(TABLE) for name in weights if name.endswith(TABLE))
    return weights | {f"{block}attn.relative_position_index": indices for block in blocks}


def prepare(weights: Weights) -> Weights:
    """Strips prefixes and drops buffers."""
    return without_buffers(strip(weights, "module.", "backbone."))


def restore(weights: Weights, model: VideoSwin) -> Weights:
    """The inverse of `prepare`."""
    return prefix(with_buffers(weights, model.window), "backbone.", "cls_head.")


def is_image(entries: Weights, prepared: Weights) -> bool:
    """Whether the entries are those of an image model, which have the original's names."""
    return np.ndim(prepared.get(PATCHES)) == 4


# torchvision numbers stages and mergings together, and the linear layers of an MLP by their place in it.
def from_torchvision(name: str) -> str:
    """The original's name of torchvision's entry."""
    if not name.startswith("features."):
        return name
    _, number, *rest = name.split(".")
    stage, merges = divmod(int(number), 2)
    rest = ["downsample", *rest] if merges else ["blocks", *rest]
    name = ".".join(["layers", str(stage), *rest])
    return name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")


def to_torchvision(name: str) -> str:
    """The inverse of `from_torchvision`."""
    if not name.startswith("layers."):
        return name
    _, stage, part, *rest = name.split(".")
    name = ".".join(["features", str(2 * int(stage) + (part == "downsample")), *rest])
    return name.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")


IMAGE = Layout(
    name="Swin of images",
    key="image",
    marker=PATCHES,
    rules=rules(table("half_pixel_cubic", image=True)),
    prepare=prepare,
    excludes=lambda entries, prepared: not is_image(entries, prepared),
    restore=None,  # weights to start from: the head is another
)


# A checkpoint of our own pre-training (`models.bevt`): our names with the prefix `encoder`.
OURS = Layout(
    name="vidjax's own pre-training",
    key="vidjax_pretraining",
    marker="params/encoder/patch_embedding/kernel",
    rules=tuple(
        Rule(f"params/encoder/{path}", path) for path in sorted({rule.target for rule in (*rules(of_video), *HEAD)})
    ),
    restore=None,
)


def layouts(model: VideoSwin) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    original = Layout(
        name="SwinTransformer/Video-Swin-Transformer",
        key="original",
        marker="layers.0.blocks.0.norm1.weight",
        rules=(*rules(of_video), *HEAD),
        prepare=prepare,
        restore=partial(restore, model=model),
        excludes=lambda entries, prepared: is_image(entries, prepared) or "norm3.weight" in prepared,
        wrap=lambda content: {"state_dict": content},
    )
    mmaction2 = Layout(
        name="mmaction2's Video Swin",
        key="mmaction2",
        marker="norm3.weight",
        rules=(*rules(of_video, "norm3"), *HEAD),
        prepare=prepare,
        restore=partial(restore, model=model),
        wrap=lambda content: {"state_dict": content},
    )
    torchvision = Layout(
        name="torchvision's Video Swin",
        key="torchvision",
        marker="layers.0.blocks.0.norm1.weight",
        rules=(*rules(of_video), *dense("head", "head")),
        prepare=lambda weights: rename(without_buffers(strip(weights, "module.")), from_torchvision),
        restore=lambda weights: rename(with_buffers(weights, model.window), to_torchvision),
        excludes=lambda entries, prepared: not any("features." in name for name in entries),
        card={"crop_ratio": 224 / 256, "protocol": "mmaction2"},
    )
    return original, mmaction2, torchvision, IMAGE, OURS


LAYOUTS = {VideoSwin: layouts}
