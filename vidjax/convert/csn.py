"""Weights of CSN: PyTorchVideo's and mmaction2's, which also has VMZ's.

A model loads the layout of its `dialect`, as the other computes something else. mmaction2's depthwise convolution is
the last of a sequence of one (ir) or two (ip) convolutions.
"""

from vidjax.convert.bottlenecks import STAGES, block, pytorchvideo_block, unit
from vidjax.convert.rules import MMACTION2_RESNET, Layout, dense
from vidjax.models.csn import ChannelSeparatedNetwork

PYTORCHVIDEO = Layout(
    name="PyTorchVideo's CSN",
    key="pytorchvideo",
    wrap=lambda content: {"model_state": content},
    marker="blocks.0.conv.weight",
    rules=(
        *unit("blocks.0.conv", "blocks.0.norm", "stem", "stem_norm"),
        *(
            rule
            for stage in STAGES
            for rule in pytorchvideo_block(f"blocks.{stage + 1}.res_blocks.{{i}}", f"group_{stage}_{{i}}")
        ),
        *dense("blocks.5.proj", "head"),
    ),
)

BLOCK, OURS = "layer{g}.{i}", "group_{g}_{i}"


def mmaction2(kind: str) -> Layout:
    """mmaction2's names, by the kind of the network."""
    depthwise = 1 if kind == "ip" else 0  # its place in the sequence
    names = [f"{BLOCK}.{name}" for name in ("downsample", "conv1", f"conv2.{depthwise}", "conv3")]
    interaction = f"{BLOCK}.conv2.0.conv", f"{BLOCK}.conv2.0.bn"
    return Layout(
        name=f"mmaction2's {kind}-CSN",
        **MMACTION2_RESNET,
        marker=f"layer0.0.conv2.{depthwise}.conv.weight",
        rules=(
            *unit("conv1.conv", "conv1.bn", "stem", "stem_norm"),
            *block(OURS, *((f"{name}.conv", f"{name}.bn") for name in names)),
            *(unit(*interaction, f"{OURS}/interaction", f"{OURS}/interaction_norm") if kind == "ip" else ()),
            *dense("cls_head.fc_cls", "head"),
        ),
    )


def layouts(model: ChannelSeparatedNetwork) -> tuple[Layout, ...]:
    """The layout in which weights of the model are published."""
    return (PYTORCHVIDEO if model.dialect == "pytorchvideo" else mmaction2(model.kind),)


LAYOUTS = {ChannelSeparatedNetwork: layouts}
