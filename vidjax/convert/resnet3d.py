"""Layouts of the R(2+1)D family: torchvision, VMZ, mmaction2, and 2-D ResNets for initialisation.

Layouts are recognised by their names, and a network with other numbers of channels is rejected by its shapes:
torchvision's R(2+1)D needs `midplanes="per_block"`. VMZ (facebookresearch/VMZ, moabitcoin/ig65m-pytorch) has
torchvision's names, the paper's channels and `epsilon=1e-3`, which the weights do not record, as in `r2plus1d_34`.
mmaction2 has factorised shortcuts. torchvision's other models have 3-D stems. A (2+1)-D convolution cannot be
initialised from a 2-D network, whose max pool is `stem_pool=True` here; nor can the first convolution of folded frames,
of which no weights are published.
"""

from dataclasses import replace

from vidjax.convert.fits import inflate
from vidjax.convert.rules import (
    MMACTION2_RESNET,
    Layout,
    Rule,
    batch_norm,
    counted_from_one,
    counted_from_zero,
    dense,
    kernel,
)
from vidjax.models.resnet3d import ResNet3D


def single(source: str, target: str) -> tuple[Rule, ...]:
    """The rule of a convolution without bias."""
    return (Rule(f"{source}.weight", f"{target}/kernel", kernel, inflate),)


BLOCK, OURS = "layer{g}.{i}", "group_{g}_{i}"

TORCHVISION_BLOCKS = (
    *(
        rule
        for n in (1, 2)
        for rule in (
            *single(f"{BLOCK}.conv{n}.0", f"{OURS}/conv{n}/full"),
            *single(f"{BLOCK}.conv{n}.0.0", f"{OURS}/conv{n}/spatial"),
            *batch_norm(f"{BLOCK}.conv{n}.0.1", f"{OURS}/conv{n}/norm"),
            *single(f"{BLOCK}.conv{n}.0.3", f"{OURS}/conv{n}/temporal"),
            *batch_norm(f"{BLOCK}.conv{n}.1", f"{OURS}/norm{n}"),
        )
    ),
    *single(f"{BLOCK}.downsample.0", f"{OURS}/shortcut/full"),
    *batch_norm(f"{BLOCK}.downsample.1", f"{OURS}/shortcut_norm"),
    *dense("fc", "head"),
)

FACTORIZED = Layout(
    name="torchvision's R(2+1)D",
    key="torchvision",
    fixed={"epsilon": 1e-5, "inner_epsilon": None, "stem_pool": False, "fold_frames": False},
    marker="stem.3.weight",
    prepare=counted_from_zero,
    restore=counted_from_one,
    rules=(
        *single("stem.0", "stem/spatial"),
        *batch_norm("stem.1", "stem/norm"),
        *single("stem.3", "stem/temporal"),
        *batch_norm("stem.4", "stem_norm"),
        *TORCHVISION_BLOCKS,
    ),
)

TORCHVISION = Layout(
    name="torchvision",
    key="torchvision",
    fixed=FACTORIZED.fixed,
    marker="stem.0.weight",
    prepare=counted_from_zero,
    restore=counted_from_one,
    rules=(*single("stem.0", "stem/full"), *batch_norm("stem.1", "stem_norm"), *TORCHVISION_BLOCKS),
)


VMZ = replace(FACTORIZED, name="VMZ's R(2+1)D", key="vmz", fixed=FACTORIZED.fixed | {"epsilon": 1e-3})


def mmaction2_convolution(source: str, target: str, norm: str) -> tuple[Rule, ...]:
    """A (2+1)-D convolution and the norm after it."""
    return (
        *single(f"{source}.conv.conv_s", f"{target}/spatial"),
        *batch_norm(f"{source}.conv.bn_s", f"{target}/norm"),
        *single(f"{source}.conv.conv_t", f"{target}/temporal"),
        *batch_norm(f"{source}.bn", norm),
    )


MMACTION2 = Layout(
    name="mmaction2's R(2+1)D",
    **MMACTION2_RESNET,
    fixed={"epsilon": 1e-3, "inner_epsilon": 1e-5, "stem_pool": True, "fold_frames": False},
    marker="conv1.conv.conv_s.weight",
    rules=(
        *mmaction2_convolution("conv1", "stem", "stem_norm"),
        *mmaction2_convolution(f"{BLOCK}.conv1", f"{OURS}/conv1", f"{OURS}/norm1"),
        *mmaction2_convolution(f"{BLOCK}.conv2", f"{OURS}/conv2", f"{OURS}/norm2"),
        *mmaction2_convolution(f"{BLOCK}.downsample", f"{OURS}/shortcut", f"{OURS}/shortcut_norm"),
        *dense("cls_head.fc_cls", "head"),
    ),
)

IMAGE = Layout(
    name="torchvision's 2-D ResNet",
    key="torchvision_image",
    marker="conv1.weight",
    prepare=counted_from_zero,
    restore=None,  # only for initialisation: the head is not loaded, and kernels may be inflated
    rules=(
        *single("conv1", "stem/full"),
        *batch_norm("bn1", "stem_norm"),
        *(
            rule
            for n in (1, 2)
            for rule in (
                *single(f"{BLOCK}.conv{n}", f"{OURS}/conv{n}/full"),
                *batch_norm(f"{BLOCK}.bn{n}", f"{OURS}/norm{n}"),
            )
        ),
        *single(f"{BLOCK}.downsample.0", f"{OURS}/shortcut/full"),
        *batch_norm(f"{BLOCK}.downsample.1", f"{OURS}/shortcut_norm"),
    ),
)


def layouts(model: ResNet3D) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    if model.groups[0] == "2plus1d":
        if model.factorized_shortcut:
            return (MMACTION2,)
        return (FACTORIZED,) if model.midplanes == "per_block" else (VMZ,)
    torchvision = (TORCHVISION,) if model.groups[0] == "3d" else ()
    image = () if model.fold_frames or "2plus1d" in model.groups else (IMAGE,)
    return torchvision + image


LAYOUTS = {ResNet3D: layouts}
