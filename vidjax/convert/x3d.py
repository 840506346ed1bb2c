"""Weights of X3D: SlowFast's, PyTorchVideo's and mmaction2's.

A model loads the layout of its `dialect`, as the heads of the others compute something else. PyTorchVideo calls the
spatial convolution of the stem `conv_t` and the temporal one `conv_xy`.
"""

from vidjax.convert.bottlenecks import STAGES, block, mmaction2_block, slowfast_block, unit
from vidjax.convert.rules import MMACTION2_RESNET, Layout, Rule, Transform, dense, kernel
from vidjax.models.x3d import X3D

# A pointwise convolution, which is a linear layer in our model (and in mmaction2's head).
POINTWISE = Transform(
    lambda value: kernel(value.reshape(value.shape[:2])), lambda value: kernel.inverse(value)[..., None, None, None]
)


def slowfast_stage(stage: int) -> tuple[Rule, ...]:
    """SlowFast's names of a stage, counted from zero."""
    source, ours = f"s{stage + 2}.pathway0_res{{i}}", f"group_{stage}_{{i}}"
    return (
        *slowfast_block(source, ours),
        *dense(f"{source}.branch2.se.fc1", f"{ours}/squeeze/reduce"),
        *dense(f"{source}.branch2.se.fc2", f"{ours}/squeeze/expand"),
    )


def pytorchvideo_stage(stage: int) -> tuple[Rule, ...]:
    """PyTorchVideo's names of a stage, counted from zero."""
    source, ours = f"blocks.{stage + 1}.res_blocks.{{i}}", f"group_{stage}_{{i}}"
    branch = f"{source}.branch2"
    norms = (("a", "a"), ("b", "b.0"), ("c", "c"))
    convolutions = ((f"{branch}.conv_{conv}", f"{branch}.norm_{norm}") for conv, norm in norms)
    return (
        *block(ours, (f"{source}.branch1_conv", f"{source}.branch1_norm"), *convolutions),
        *dense(f"{branch}.norm_b.1.block.0", f"{ours}/squeeze/reduce"),
        *dense(f"{branch}.norm_b.1.block.2", f"{ours}/squeeze/expand"),
    )


SLOWFAST = Layout(
    name="SlowFast's X3D",
    key="slowfast",
    wrap=lambda content: {"model_state": content},
    marker="s1.pathway0_stem.conv_xy.weight",
    rules=(
        Rule("s1.pathway0_stem.conv_xy.weight", "stem_spatial/kernel", kernel),
        *unit("s1.pathway0_stem.conv", "s1.pathway0_stem.bn", "stem_temporal", "stem_norm"),
        *(rule for stage in STAGES for rule in slowfast_stage(stage)),
        *unit("head.conv_5", "head.conv_5_bn", "head_conv", "head_norm"),
        Rule("head.lin_5.weight", "head_hidden/kernel", POINTWISE),
        *dense("head.projection", "head"),
    ),
)

PYTORCHVIDEO = Layout(
    name="PyTorchVideo's X3D",
    key="pytorchvideo",
    wrap=lambda content: {"model_state": content},
    marker="blocks.0.conv.conv_t.weight",
    rules=(
        Rule("blocks.0.conv.conv_t.weight", "stem_spatial/kernel", kernel),
        *unit("blocks.0.conv.conv_xy", "blocks.0.norm", "stem_temporal", "stem_norm"),
        *(rule for stage in STAGES for rule in pytorchvideo_stage(stage)),
        *unit("blocks.5.pool.pre_conv", "blocks.5.pool.pre_norm", "head_conv", "head_norm"),
        Rule("blocks.5.pool.post_conv.weight", "head_hidden/kernel", POINTWISE),
        *dense("blocks.5.proj", "head"),
    ),
)

BLOCK, OURS = "layer{g}.{i}", "group_{g}_{i}"

MMACTION2 = Layout(
    name="mmaction2's X3D",
    **MMACTION2_RESNET,
    card={"mean": (114.75 / 255,) * 3, "std": (57.38 / 255,) * 3},
    marker="conv1_s.conv.weight",
    rules=(
        Rule("conv1_s.conv.weight", "stem_spatial/kernel", kernel),
        *unit("conv1_t.conv", "conv1_t.bn", "stem_temporal", "stem_norm"),
        *mmaction2_block(BLOCK, OURS),
        *dense(f"{BLOCK}.se_module.fc1", f"{OURS}/squeeze/reduce"),
        *dense(f"{BLOCK}.se_module.fc2", f"{OURS}/squeeze/expand"),
        *unit("conv5.conv", "conv5.bn", "head_conv", "head_norm"),
        Rule("cls_head.fc1.weight", "head_hidden/kernel", kernel),
        *dense("cls_head.fc2", "head"),
    ),
)


def layouts(model: X3D) -> tuple[Layout, ...]:
    """The layout in which weights of the model are published."""
    return ({"slowfast": SLOWFAST, "pytorchvideo": PYTORCHVIDEO, "mmaction2": MMACTION2}[model.dialect],)


LAYOUTS = {X3D: layouts}
