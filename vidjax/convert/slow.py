"""Weights of C2D, I3D-ResNet and Slow: SlowFast's, PyTorchVideo's, mmaction2's, and a 2-D ResNet's to start from.

SlowFast's older files are Caffe2's, see `convert.caffe2`. A model loads the layouts of its `dialect`: the heads of the
others compute something else.
"""

from vidjax.convert.bottlenecks import (
    STAGES,
    image_convolution,
    in_caffe2,
    mmaction2_stage,
    pytorchvideo_stage,
    slowfast_stage,
    slowfast_stem,
    unit,
)
from vidjax.convert.rules import MMACTION2_RESNET, Layout, batch_norm, counted_from_zero, dense
from vidjax.layers.card import IMAGENET_MEAN, IMAGENET_STD
from vidjax.models.slow import SlowNetwork

PIXELS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "rate": None, "protocol": "mmaction2"}  # mmaction2's

SLOWFAST = Layout(
    name="SlowFast's ResNet",
    key="slowfast",
    wrap=lambda content: {"model_state": content},
    marker="s1.pathway0_stem.conv.weight",
    rules=(
        *slowfast_stem(0, "stem"),
        *(rule for stage in STAGES for rule in slowfast_stage(stage, 0, f"stage_{stage}")),
        *dense("head.projection", "head"),
    ),
)
CAFFE2 = in_caffe2(SLOWFAST)


def pytorchvideo(pool: bool) -> Layout:
    """PyTorchVideo's names; its pool after the first stage is a numbered block."""
    first, *others = STAGES
    numbers = {first: 1} | {stage: stage + (2 if pool else 1) for stage in others}
    return Layout(
        name="PyTorchVideo's ResNet",
        key="pytorchvideo",
        wrap=lambda content: {"model_state": content},
        marker="blocks.0.conv.weight",
        rules=(
            *unit("blocks.0.conv", "blocks.0.norm", "stem/conv", "stem/norm"),
            *(rule for stage, n in numbers.items() for rule in pytorchvideo_stage(f"blocks.{n}", f"stage_{stage}")),
            *dense(f"blocks.{numbers[3] + 1}.proj", "head"),
        ),
    )


MMACTION2 = Layout(
    name="mmaction2's ResNet3d",
    **MMACTION2_RESNET,
    card=PIXELS,
    marker="conv1.conv.weight",
    rules=(
        *unit("conv1.conv", "conv1.bn", "stem/conv", "stem/norm"),
        *(rule for stage in STAGES for rule in mmaction2_stage(f"layer{stage}", f"stage_{stage}")),
        *dense("cls_head.fc_cls", "head"),
    ),
)

BLOCK, OURS = "layer{g}.{i}", "stage_{g}/block_{i}"


IMAGE = Layout(
    name="torchvision's ResNet of images",
    key="torchvision_image",
    marker="conv1.weight",
    prepare=counted_from_zero,
    restore=None,  # weights to start from: the head is another
    optional=("head/", "stage_{g}/nonlocal_", "batch_stats/stage_{g}/nonlocal_"),
    rules=(
        image_convolution("conv1", "stem/conv"),
        *batch_norm("bn1", "stem/norm"),
        *(image_convolution(f"{BLOCK}.conv{n}", f"{OURS}/conv{n}") for n in (1, 2, 3)),
        *(rule for n in (1, 2, 3) for rule in batch_norm(f"{BLOCK}.bn{n}", f"{OURS}/norm{n}")),
        image_convolution(f"{BLOCK}.downsample.0", f"{OURS}/shortcut"),
        *batch_norm(f"{BLOCK}.downsample.1", f"{OURS}/shortcut_norm"),
    ),
)


def layouts(model: SlowNetwork) -> tuple[Layout, ...]:
    """The layouts in which weights of the model are published."""
    if model.dialect == "slowfast":
        return SLOWFAST, CAFFE2, IMAGE
    if model.dialect == "mmaction2":
        return MMACTION2, IMAGE
    # PyTorchVideo has no non-local blocks
    return (IMAGE,) if any(model.nonlocal_after) else (pytorchvideo(model.pool), IMAGE)


LAYOUTS = {SlowNetwork: layouts}
