"""Weights of TSN and TSM: mmaction2's, and a 2-D ResNet's of torchvision to start from."""

from vidjax.convert.fits import inflate
from vidjax.convert.rules import (
    Layout,
    Rule,
    batch_norm,
    counted_from_one,
    counted_from_zero,
    dense,
    image_kernel,
    prefix,
)
from vidjax.models.tsn import SegmentNetwork

BLOCK, OURS = "layer{g}.{i}", "group_{g}_{i}"


def convolution(source: str, target: str) -> Rule:
    """A kernel of images without bias."""
    return Rule(f"{source}.weight", f"{target}/kernel", image_kernel, inflate)


def mmaction2(shift: bool) -> Layout:
    """mmaction2's names; those of TSM wrap the first convolution of a block."""
    first = f"{BLOCK}.conv1.conv.net" if shift else f"{BLOCK}.conv1.conv"
    return Layout(
        name=f"mmaction2's {'TSM' if shift else 'TSN'}",
        key="mmaction2",
        wrap=lambda content: {"state_dict": content},
        sign="layer1.0.conv1.conv.net.weight" if shift else "layer1.0.conv1.conv.weight",
        prepare=lambda weights: counted_from_zero(weights, "backbone."),
        restore=lambda weights: prefix(counted_from_one(weights), "backbone.", "cls_head."),
        rules=(
            convolution("conv1.conv", "stem"),
            *batch_norm("conv1.bn", "stem_norm"),
            convolution(first, f"{OURS}/conv1"),
            *(convolution(f"{BLOCK}.conv{n}.conv", f"{OURS}/conv{n}") for n in (2, 3)),
            *(rule for n in (1, 2, 3) for rule in batch_norm(f"{BLOCK}.conv{n}.bn", f"{OURS}/norm{n}")),
            convolution(f"{BLOCK}.downsample.conv", f"{OURS}/shortcut"),
            *batch_norm(f"{BLOCK}.downsample.bn", f"{OURS}/shortcut_norm"),
            *dense("cls_head.fc_cls", "head"),
        ),
    )


IMAGE = Layout(
    name="torchvision's ResNet of images",
    key="torchvision_image",
    sign="layer1.0.conv3.weight",
    prepare=counted_from_zero,
    restore=None,  # weights to start from: the head is another
    rules=(
        convolution("conv1", "stem"),
        *batch_norm("bn1", "stem_norm"),
        *(convolution(f"{BLOCK}.conv{n}", f"{OURS}/conv{n}") for n in (1, 2, 3)),
        *(rule for n in (1, 2, 3) for rule in batch_norm(f"{BLOCK}.bn{n}", f"{OURS}/norm{n}")),
        convolution(f"{BLOCK}.downsample.0", f"{OURS}/shortcut"),
        *batch_norm(f"{BLOCK}.downsample.1", f"{OURS}/shortcut_norm"),
    ),
)


def layouts(model: SegmentNetwork) -> tuple[Layout, ...]:
    """The layouts in which weights of the model are published."""
    return mmaction2(model.shift), IMAGE


LAYOUTS = {SegmentNetwork: layouts}
