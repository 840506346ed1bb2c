"""Rules of the bottleneck blocks of Slow, SlowFast, X3D and CSN, in the names of SlowFast, PyTorchVideo and mmaction2.

`source` and `ours` are the names of a block there and here, in which `{i}` stands for its number.
"""

from dataclasses import replace

from vidjax.convert.caffe2 import slowfast_names
from vidjax.convert.fits import inflate
from vidjax.convert.rules import Fit, Layout, Rule, batch_norm, dense, image_kernel, kernel

STAGES = range(4)
Names = tuple[str, str]  # of a convolution, and of the batch norm after it


def unit(conv: str, norm: str, target: str, target_norm: str) -> tuple[Rule, ...]:
    """A convolution without bias, and the batch norm after it."""
    return Rule(f"{conv}.weight", f"{target}/kernel", kernel, inflate), *batch_norm(norm, target_norm)


def image_convolution(source: str, target: str, fit: Fit = inflate) -> Rule:
    """A convolution of images without bias."""
    return Rule(f"{source}.weight", f"{target}/kernel", image_kernel, fit)


def block(ours: str, shortcut: Names, *convolutions: Names) -> tuple[Rule, ...]:
    """A block, given the published names of the shortcut and of the convolutions in order."""
    rules = list(unit(*shortcut, f"{ours}/shortcut", f"{ours}/shortcut_norm"))
    for n, names in enumerate(convolutions, 1):
        rules += unit(*names, f"{ours}/conv{n}", f"{ours}/norm{n}")
    return tuple(rules)


def slowfast_block(source: str, ours: str) -> tuple[Rule, ...]:
    """SlowFast's names of a block."""
    convolutions = ((f"{source}.branch2.{letter}", f"{source}.branch2.{letter}_bn") for letter in "abc")
    return block(ours, (f"{source}.branch1", f"{source}.branch1_bn"), *convolutions)


def pytorchvideo_block(source: str, ours: str) -> tuple[Rule, ...]:
    """PyTorchVideo's names of a block."""
    convolutions = ((f"{source}.branch2.conv_{letter}", f"{source}.branch2.norm_{letter}") for letter in "abc")
    return block(ours, (f"{source}.branch1_conv", f"{source}.branch1_norm"), *convolutions)


def mmaction2_block(source: str, ours: str) -> tuple[Rule, ...]:
    """mmaction2's names of a block."""
    convolutions = ((f"{source}.conv{n}.conv", f"{source}.conv{n}.bn") for n in (1, 2, 3))
    return block(ours, (f"{source}.downsample.conv", f"{source}.downsample.bn"), *convolutions)


def slowfast_stem(pathway: int, target: str) -> tuple[Rule, ...]:
    """SlowFast's names of a stem."""
    source = f"s1.pathway{pathway}_stem"
    return unit(f"{source}.conv", f"{source}.bn", f"{target}/conv", f"{target}/norm")


def slowfast_stage(stage: int, pathway: int, target: str) -> tuple[Rule, ...]:
    """SlowFast's names of a stage, counted from zero, with its non-local blocks."""
    source, attention = (f"s{stage + 2}.pathway{pathway}_{kind}{{i}}" for kind in ("res", "nonlocal"))
    return (
        *slowfast_block(source, f"{target}/block_{{i}}"),
        *(
            rule
            for part in ("theta", "phi", "g", "out")
            for rule in dense(f"{attention}.conv_{part}", f"{target}/nonlocal_{{i}}/{part}")
        ),
        *batch_norm(f"{attention}.bn", f"{target}/nonlocal_{{i}}/norm"),
    )


def pytorchvideo_stage(source: str, target: str) -> tuple[Rule, ...]:
    """PyTorchVideo's names of a stage, which has no non-local blocks."""
    return pytorchvideo_block(f"{source}.res_blocks.{{i}}", f"{target}/block_{{i}}")


def mmaction2_stage(source: str, target: str) -> tuple[Rule, ...]:
    """mmaction2's names of a stage, whose non-local blocks pool."""
    attention = mmcv_nonlocal(f"{source}.{{i}}.non_local_block.", f"{target}/nonlocal_{{i}}/", pool=True)
    return (*mmaction2_block(f"{source}.{{i}}", f"{target}/block_{{i}}"), *attention)


def mmcv_nonlocal(source: str, target: str, pool: bool) -> tuple[Rule, ...]:
    """mmcv's names of a non-local block, which depend on whether it pools the keys."""
    keys = "0.conv" if pool else "conv"
    return (
        *dense(f"{source}theta.conv", f"{target}theta"),
        *dense(f"{source}phi.{keys}", f"{target}phi"),
        *dense(f"{source}g.{keys}", f"{target}g"),
        *dense(f"{source}conv_out.conv", f"{target}out"),
        *batch_norm(f"{source}conv_out.bn", f"{target}norm"),
    )


def in_caffe2(slowfast: Layout) -> Layout:
    """The same weights in the Caffe2 files of SlowFast's model zoo."""
    return replace(
        slowfast,
        name=f"{slowfast.name} in Caffe2",
        prepare=slowfast_names,
        restore=None,  # SlowFast writes no such files any more
        excludes=lambda entries, prepared: "conv1_w" not in entries,
    )
