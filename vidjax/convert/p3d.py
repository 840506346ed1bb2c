"""Weights of P3D as qijiezhao/pseudo-3d-pytorch names them; the kernels of its last group are 2-D."""

from vidjax.convert.fits import inflate
from vidjax.convert.rules import Layout, Rule, batch_norm, counted_from_zero, dense, kernel
from vidjax.models.p3d import P3D

PARTS = (  # ours, their convolution and their norm; space is called otherwise in the last group
    ("reduce", "conv1", "bn1"),
    ("spatial", "conv2", "bn2"),
    ("temporal", "conv3", "bn3"),
    ("spatial", "conv_normal", "bn_normal"),
    ("expand", "conv4", "bn4"),
    ("shortcut", "downsample.0", "downsample.1"),
)


PORT = Layout(
    name="pseudo-3d-pytorch",
    sign="conv1_custom.weight",
    prepare=counted_from_zero,
    rules=(
        Rule("conv1_custom.weight", "stem/kernel", kernel),
        *batch_norm("bn1", "stem_norm"),
        *(
            rule
            for ours, conv, norm in PARTS
            for rule in (
                Rule(f"layer{{g}}.{{i}}.{conv}.weight", f"group_{{g}}_{{i}}/{ours}/kernel", kernel, inflate),
                *batch_norm(f"layer{{g}}.{{i}}.{norm}", f"group_{{g}}_{{i}}/{ours}_norm"),
            )
        ),
        *dense("fc", "head"),
    ),
)

LAYOUTS = {P3D: (PORT,)}
