"""Layout of ActionFormer's released checkpoints (happyharrycn/actionformer_release)."""

import numpy as np

from vidjax.convert.rules import Layout, Rule, Transform, kernel, prefix, strip
from vidjax.models.actionformer import ActionFormer

# Norms and scales are published as `1 c 1`, linear layers as convolutions of size 1.
CHANNELS = Transform(lambda value: value.reshape(-1), lambda value: value.reshape(1, -1, 1))
POINTWISE = Transform(lambda value: kernel(value[..., 0]), lambda value: kernel.inverse(value)[..., None])


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return Rule(f"{source}.weight", f"{target}/scale", CHANNELS), Rule(f"{source}.bias", f"{target}/bias", CHANNELS)


def _pointwise(source: str, target: str) -> tuple[Rule, ...]:
    return Rule(f"{source}.weight", f"{target}/kernel", POINTWISE), Rule(f"{source}.bias", f"{target}/bias")


def _block(source: str, target: str) -> tuple[Rule, ...]:
    rules = [
        *_norm(f"{source}.ln1", f"{target}/norm1"),
        *_norm(f"{source}.ln2", f"{target}/norm2"),
        *_pointwise(f"{source}.attn.proj", f"{target}/attention/out"),
        *_pointwise(f"{source}.mlp.0", f"{target}/fc1"),
        *_pointwise(f"{source}.mlp.3", f"{target}/fc2"),
        Rule(f"{source}.drop_path_attn.scale", f"{target}/attention_scale", CHANNELS),
        Rule(f"{source}.drop_path_mlp.scale", f"{target}/mlp_scale", CHANNELS),
    ]
    for name in ("query", "key", "value"):
        ours, theirs = f"{target}/attention/{name}", f"{source}.attn.{name}"
        rules += [
            Rule(f"{theirs}_conv.conv.weight", f"{ours}_conv/kernel", kernel),
            *_norm(f"{theirs}_norm", f"{ours}_norm"),
            *_pointwise(theirs, ours),
        ]
    return tuple(rules)


def _head(source: str, last: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.head.{{i}}.conv.weight", f"{target}/conv_{{i}}/kernel", kernel),
        *_norm(f"{source}.norm.{{i}}", f"{target}/norm_{{i}}"),
        Rule(f"{source}.{last}.conv.weight", f"{target}/out/kernel", kernel),
        Rule(f"{source}.{last}.conv.bias", f"{target}/out/bias"),
    )


SCALAR = Transform(np.squeeze, np.asarray)
LAYOUTS = {
    ActionFormer: (
        Layout(
            name="happyharrycn/actionformer_release",
            key="original",
            marker="backbone.embd.0.conv.weight",
            prepare=lambda weights: {
                name: value
                for name, value in strip(weights, "module.").items()
                if not name.startswith("point_generator.")
            },
            restore=lambda weights: prefix(weights, "module."),
            wrap=lambda content: {"epoch": 0, "state_dict": content, "state_dict_ema": content},
            rules=(
                Rule("backbone.embd.{i}.conv.weight", "embed_{i}/kernel", kernel),
                *_norm("backbone.embd_norm.{i}", "embed_norm_{i}"),
                *_block("backbone.stem.{i}", "stem_{i}"),
                *_block("backbone.branch.{i}", "branch_{i}"),
                Rule("neck.lateral_convs.{i}.conv.weight", "lateral_{i}/kernel", POINTWISE),
                Rule("neck.fpn_convs.{i}.conv.weight", "smooth_{i}/kernel", kernel),
                *_norm("neck.fpn_norms.{i}", "neck_norm_{i}"),
                *_head("cls_head", "cls_head", "classes"),
                *_head("reg_head", "offset_head", "offsets"),
                Rule("reg_head.scale.{i}.scale", "offset_scale_{i}", SCALAR),
            ),
            optional=(),
            surplus=(),
        ),
    ),
}
