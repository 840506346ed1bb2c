"""Layout of torchvision's RAFT."""

from vidjax.convert.fits import inflate
from vidjax.convert.rules import Layout, Rule, batch_norm, image_kernel
from vidjax.models.raft import RAFT


def convolution(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a convolution of images."""
    kernel = Rule(f"{source}.weight", f"{target}/kernel", image_kernel, inflate)
    return kernel, Rule(f"{source}.bias", f"{target}/bias")


def _normed(source: str, target: str) -> tuple[Rule, ...]:
    return (*convolution(f"{source}.0", f"{target}/conv"), *batch_norm(f"{source}.1", f"{target}/norm"))


def _encoder(name: str) -> tuple[Rule, ...]:
    block, ours = f"{name}.layer{{g}}.{{i}}", f"{name}/layer{{g}}_{{i}}"
    return (
        *_normed(f"{name}.convnormrelu", f"{name}/stem"),
        *_normed(f"{block}.convnormrelu{{n}}", f"{ours}/conv{{n}}"),
        *_normed(f"{block}.downsample", f"{ours}/shortcut"),
        *convolution(f"{name}.conv", f"{name}/output"),
    )


_MOTION, _GRU = "update_block.motion_encoder", "update_block.recurrent_block.convgru{i}"

LAYOUTS = {
    RAFT: (
        Layout(
            name="torchvision's RAFT",
            key="torchvision",
            marker="update_block.motion_encoder.convcorr1.0.weight",
            rules=(
                *_encoder("feature_encoder"),
                *_encoder("context_encoder"),
                *convolution(f"{_MOTION}.convcorr{{n}}.0", "update/correlation{n}"),
                *convolution(f"{_MOTION}.convflow{{n}}.0", "update/flow{n}"),
                *convolution(f"{_MOTION}.conv.0", "update/motion"),
                *convolution(f"{_GRU}.convz", "update/gru{i}/update"),
                *convolution(f"{_GRU}.convr", "update/gru{i}/reset"),
                *convolution(f"{_GRU}.convq", "update/gru{i}/new"),
                *convolution("update_block.flow_head.conv{n}", "update/head{n}"),
                *convolution("mask_predictor.convrelu.0", "mask1"),
                *convolution("mask_predictor.conv", "mask2"),
            ),
            optional=(),
            surplus=(),
        ),
    ),
}
