"""Weights of SlowFast networks: SlowFast's, also in Caffe2's files (`convert.caffe2`), PyTorchVideo's and mmaction2's.

A model loads the layouts of its `dialect`: the heads of the others compute something else.
"""

from collections.abc import Callable

import numpy as np

from vidjax.convert.bottlenecks import (
    STAGES,
    in_caffe2,
    mmaction2_stage,
    pytorchvideo_stage,
    slowfast_stage,
    slowfast_stem,
    unit,
)
from vidjax.convert.rules import Layout, Rule, Transform, dense, kernel, prefix, strip
from vidjax.convert.slow import PIXELS
from vidjax.models.slowfast import SlowFast

PATHWAYS = ("slow", "fast")


def of_pathways(stage_rules: Callable[[int, int, str], tuple[Rule, ...]]) -> tuple[Rule, ...]:
    """The rules of all stages, given those of a stage, a pathway (0 is the slow one) and our name."""
    return tuple(
        rule
        for stage in STAGES
        for pathway, name in enumerate(PATHWAYS)
        for rule in stage_rules(stage, pathway, f"stage_{stage}_{name}")
    )


def lateral(source: str, norm: str, stage: int) -> tuple[Rule, ...]:
    """The lateral convolution before a stage, and its norm."""
    return unit(source, norm, f"lateral_{stage}/conv", f"lateral_{stage}/norm")


SLOWFAST = Layout(
    name="SlowFast",
    key="slowfast",
    wrap=lambda content: {"model_state": content},
    marker="s1.pathway1_stem.conv.weight",
    rules=(
        *slowfast_stem(0, "slow_stem"),
        *slowfast_stem(1, "fast_stem"),
        *(rule for stage in STAGES for rule in lateral(f"s{stage + 1}_fuse.conv_f2s", f"s{stage + 1}_fuse.bn", stage)),
        *of_pathways(slowfast_stage),
        *dense("head.projection", "head"),
    ),
)
CAFFE2 = in_caffe2(SLOWFAST)

PYTORCHVIDEO = Layout(
    name="PyTorchVideo's SlowFast",
    key="pytorchvideo",
    wrap=lambda content: {"model_state": content},
    marker="blocks.0.multipathway_blocks.0.conv.weight",
    rules=(
        *(
            rule
            for pathway, name in enumerate(PATHWAYS)
            for stem in [f"blocks.0.multipathway_blocks.{pathway}"]
            for rule in unit(f"{stem}.conv", f"{stem}.norm", f"{name}_stem/conv", f"{name}_stem/norm")
        ),
        *(
            rule
            for stage in STAGES
            for fusion in [f"blocks.{stage}.multipathway_fusion"]
            for rule in lateral(f"{fusion}.conv_fast_to_slow", f"{fusion}.norm", stage)
        ),
        *of_pathways(lambda stage, p, name: pytorchvideo_stage(f"blocks.{stage + 1}.multipathway_blocks.{p}", name)),
        *dense("blocks.6.proj", "head"),
    ),
)


def slow_first(channel_ratio: int) -> Transform:
    """mmaction2's classifier, which reads the fast features first, to ours."""

    def forward(value: np.ndarray) -> np.ndarray:
        return np.roll(kernel.forward(value), -(value.shape[1] // (channel_ratio + 1)), axis=0)

    def inverse(value: np.ndarray) -> np.ndarray:
        return kernel.inverse(np.roll(value, len(value) // (channel_ratio + 1), axis=0))

    return Transform(forward, inverse)


def mmaction2(channel_ratio: int) -> Layout:
    """mmaction2's names."""
    before = ("conv1_lateral", *(f"layer{n}_lateral" for n in (1, 2, 3)))
    return Layout(
        name="mmaction2's SlowFast",
        key="mmaction2",
        card=PIXELS,
        wrap=lambda content: {"state_dict": content},
        marker="slow_path.conv1.conv.weight",
        prepare=lambda weights: strip(weights, "module.", "backbone."),
        restore=lambda weights: prefix(weights, "backbone.", "cls_head."),
        rules=(
            *(
                rule
                for name in PATHWAYS
                for stem in [f"{name}_path.conv1"]
                for rule in unit(f"{stem}.conv", f"{stem}.bn", f"{name}_stem/conv", f"{name}_stem/norm")
            ),
            *(
                rule
                for stage, name in enumerate(before)
                for rule in lateral(f"slow_path.{name}.conv", f"slow_path.{name}.bn", stage)
            ),
            *of_pathways(lambda stage, p, name: mmaction2_stage(f"{PATHWAYS[p]}_path.layer{stage + 1}", name)),
            *dense("cls_head.fc_cls", "head", transform=slow_first(channel_ratio)),
        ),
    )


def layouts(model: SlowFast) -> tuple[Layout, ...]:
    """The layouts in which weights of the model are published: none without lateral convolutions."""
    if model.lateral != "time_strided_convolution":
        return ()
    if model.dialect == "slowfast":
        return SLOWFAST, CAFFE2
    if any(model.nonlocal_after):
        return ()
    return (PYTORCHVIDEO if model.dialect == "pytorchvideo" else mmaction2(model.channel_ratio),)


LAYOUTS = {SlowFast: layouts}
