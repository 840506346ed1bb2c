"""Layout of P3D: qijiezhao/pseudo-3d-pytorch, in which the kernels of the last group are 2-D."""

from vidjax.convert.fits import inflate
from vidjax.convert.rules import (
    Layout,
    Rule,
    batch_norm,
    counted_from_one,
    counted_from_zero,
    dense,
    image_kernel,
    kernel,
)
from vidjax.models.p3d import P3D

PARTS = (  # our name of a unit, published names of its convolution and its norm
    ("reduce", "conv1", "bn1"),
    ("spatial", "conv2", "bn2"),
    ("temporal", "conv3", "bn3"),
    ("expand", "conv4", "bn4"),
    ("shortcut", "downsample.0", "downsample.1"),
)
PARTS_2D = (PARTS[0], ("spatial", "conv_normal", "bn_normal"), *PARTS[3:])  # in the last group


PORT = Layout(
    name="pseudo-3d-pytorch",
    key="pseudo_3d_pytorch",
    marker="conv1_custom.weight",
    prepare=counted_from_zero,
    restore=counted_from_one,
    rules=(
        Rule("conv1_custom.weight", "stem/kernel", kernel),
        *batch_norm("bn1", "stem_norm"),
        *(
            rule
            for group in range(4)
            for part, conv, norm in (PARTS if group < 3 else PARTS_2D)
            for rule in (
                Rule(
                    f"layer{group}.{{i}}.{conv}.weight",
                    f"group_{group}_{{i}}/{part}/kernel",
                    kernel if group < 3 else image_kernel,
                    None if group < 3 else inflate,
                ),
                *batch_norm(f"layer{group}.{{i}}.{norm}", f"group_{group}_{{i}}/{part}_norm"),
            )
        ),
        *dense("fc", "head"),
    ),
)

LAYOUTS = {P3D: (PORT,)}
