"""Weights of TSN and TSM: mmaction2's, those of MIT (mit-han-lab/temporal-shift-module), and torchvision's 2-D ResNet.

TSM wraps the first convolution of a shifted block, and `temporal_pool` the second group: both add `net` to the names.
The direction of the shift is not recorded. MIT's TSN has torchvision's names, except for its head `new_fc`.
"""

from vidjax.convert.bottlenecks import image_convolution
from vidjax.convert.files import Weights
from vidjax.convert.fits import across_modalities
from vidjax.convert.rules import (
    MMACTION2_RESNET,
    Layout,
    Rule,
    batch_norm,
    counted_from_one,
    counted_from_zero,
    dense,
    prefix,
)
from vidjax.models.tsn import SegmentNetwork


def blocks(model: SegmentNetwork, conv: str, norm: str, shortcut: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules of all blocks.

    Args:
      conv, norm: published names within a block, in which `{n}` is 1 to 3.
      shortcut: published names of the convolution and the norm of the shortcut.
    """
    rules = []
    for group, depth in enumerate(model.depths):
        source = f"layer{group}.net" if model.temporal_pool and group == 1 else f"layer{group}"
        for i in range(depth):
            wrapped = model.shift != "none" and i % model.shift_every == 0
            first = conv.format(n=1) + (".net" if wrapped else "")
            rules.append(image_convolution(f"{source}.{i}.{first}", f"group_{group}_{i}/conv1"))
        source, target = f"{source}.{{i}}", f"group_{group}_{{i}}"
        rules += [image_convolution(f"{source}.{conv.format(n=n)}", f"{target}/conv{n}") for n in (2, 3)]
        rules += [rule for n in (1, 2, 3) for rule in batch_norm(f"{source}.{norm.format(n=n)}", f"{target}/norm{n}")]
        rules.append(image_convolution(f"{source}.{shortcut[0]}", f"{target}/shortcut"))
        rules += batch_norm(f"{source}.{shortcut[1]}", f"{target}/shortcut_norm")
    return tuple(rules)


def with_module(weights: Weights) -> Weights:
    """The names of MIT's checkpoints, which were saved from several devices."""
    named = prefix(counted_from_one(weights), "base_model.", "new_fc.")
    return {f"module.{name}": value for name, value in named.items()}


def layouts(model: SegmentNetwork) -> tuple[Layout, ...]:
    """The layouts in which weights of the model are published."""
    name, net = ("TSN", "") if model.shift == "none" else ("TSM", ".net")
    block = "layer1.net.0" if model.temporal_pool else "layer1.0"  # in the second group, counted from zero
    mmaction2 = Layout(
        name=f"mmaction2's {name}",
        **MMACTION2_RESNET,
        marker=f"{block}.conv1.conv{net}.weight",
        rules=(
            image_convolution("conv1.conv", "stem"),
            *batch_norm("conv1.bn", "stem_norm"),
            *blocks(model, "conv{n}.conv", "conv{n}.bn", ("downsample.conv", "downsample.bn")),
            *dense("cls_head.fc_cls", "head"),
        ),
    )
    mit = Layout(
        name=f"MIT's {name}",
        key="mit",
        wrap=lambda content: {"state_dict": content},
        marker=f"{block}.conv1{net}.weight",
        prepare=lambda weights: counted_from_zero(weights, "base_model."),
        restore=with_module,
        excludes=lambda entries, prepared: not any("base_model." in name for name in entries),  # torchvision's
        rules=(
            image_convolution("conv1", "stem"),
            *batch_norm("bn1", "stem_norm"),
            *blocks(model, "conv{n}", "bn{n}", ("downsample.0", "downsample.1")),
            *dense("new_fc", "head"),
        ),
    )
    image = Layout(
        name="torchvision's ResNet of images",
        key="torchvision_image",
        marker="layer1.0.conv3.weight",
        prepare=counted_from_zero,
        restore=None,  # weights to start from: the head is another
        rules=(
            image_convolution("conv1", "stem", across_modalities),
            *batch_norm("bn1", "stem_norm"),
            *blocks(
                model.clone(shift="none", temporal_pool=False), "conv{n}", "bn{n}", ("downsample.0", "downsample.1")
            ),
        ),
    )
    return mmaction2, mit, image


LAYOUTS = {SegmentNetwork: layouts}
