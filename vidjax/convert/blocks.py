"""Rules of transformer blocks and position tables, for the naming schemes that several publishers share."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vidjax.convert.files import Weights
from vidjax.convert.rules import Fit, Rule, Transform, dense, kernel_rows, norm

PARTS = ("query", "key", "value")

# Names of a block's first and second norm and of its MLP's first and second linear layer.
TIMM_NAMES = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
HUGGING_FACE_NAMES = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")


def block(source: str, target: str, attention: tuple[Rule, ...], names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    """Rules of a block with one attention layer and one MLP.

    Args:
      attention: rules of the attention layer.
      names: names of the other parts, in the order of `TIMM_NAMES`.
    """
    norm1, norm2, fc1, fc2 = (f"{source}.{name}" for name in names)
    return (
        *norm(norm1, f"{target}/norm1"),
        *attention,
        *norm(norm2, f"{target}/norm2"),
        *dense(fc1, f"{target}/mlp/fc1"),
        *dense(fc2, f"{target}/mlp/fc2"),
    )


def separate_attention(target: str, **sources: str) -> tuple[Rule, ...]:
    """Attention with separate linear layers: `query`, `key`, `value` and `out` with their published names."""
    return tuple(rule for part, source in sources.items() for rule in dense(source, f"{target}/{part}"))


def fused_attention(source: str, target: str, out: str = "proj") -> tuple[Rule, ...]:
    """timm's attention: query, key and value in one linear layer `qkv`, then `proj`."""
    return (*fused_rows(f"{source}.qkv.", target), *dense(f"{source}.{out}", f"{target}/out"))


def packed_attention(source: str, target: str) -> tuple[Rule, ...]:
    """`torch.nn.MultiheadAttention`: query, key and value packed into `in_proj_weight` and `in_proj_bias`."""
    return (*fused_rows(f"{source}.in_proj_", target), *dense(f"{source}.out_proj", f"{target}/out"))


def fused_rows(source: str, target: str, parts: Sequence[str] = PARTS) -> tuple[Rule, ...]:
    """Linear layers stored as one, `source` with `weight` and `bias`, whose rows are those of these parts in turn."""
    return tuple(
        Rule(source + entry, f"{target}/{part}/{parameter}", kernel_rows(number, len(parts)))
        for number, part in enumerate(parts)
        for entry, parameter in (("weight", "kernel"), ("bias", "bias"))
    )


def timm_block(source: str, target: str) -> tuple[Rule, ...]:
    """A standard block with timm's names."""
    return block(source, target, fused_attention(f"{source}.attn", f"{target}/attention"), TIMM_NAMES)


def hugging_face_block(source: str, target: str) -> tuple[Rule, ...]:
    """A standard block with the names of Hugging Face's ViT and ViViT."""
    parts = {part: f"{source}.attention.attention.{part}" for part in PARTS}
    attention = separate_attention(f"{target}/attention", **parts, out=f"{source}.attention.output.dense")
    return block(source, target, attention, HUGGING_FACE_NAMES)


def score_predictor(source: str, target: str) -> tuple[Rule, ...]:
    """The scores of tokens in DynamicViT and STTS."""
    return (
        *norm(f"{source}.in_conv.0", f"{target}/norm"),
        *dense(f"{source}.in_conv.1", f"{target}/fc0"),
        *(
            rule
            for n, part in enumerate((0, 2, 4), 1)
            for rule in dense(f"{source}.out_conv.{part}", f"{target}/fc{n}")
        ),
    )


CLASS_POSITION = Transform(lambda value: value[:, :1], lambda value: value, 0, axis=1)
PATCH_POSITIONS = Transform(
    lambda value: value[0, 1:], lambda table: table.reshape(1, -1, table.shape[-1]), 1, axis=1
)  # fmt: skip
# The same for a table without a class token.
ALL_POSITIONS = Transform(lambda value: value[0], lambda table: table.reshape(1, -1, table.shape[-1]))


def positions(source: str, target: str, fit: Fit) -> tuple[Rule, ...]:
    """A position table `(1, 1 + n, d)` whose first entry is that of the class token."""
    return (
        Rule(source, f"{target}class_position", CLASS_POSITION),
        Rule(source, f"{target}position/table", PATCH_POSITIONS, fit),
    )


def unstack(weights: Weights, layers: str) -> Weights:
    """The entries of each layer of stacks in one array: `layers/a` becomes `layers_0/a`, `layers_1/a`, ..."""
    entries = {}
    for name, value in weights.items():
        if f"/{layers}/" in name:
            entries |= {name.replace(f"/{layers}/", f"/{layers}_{i}/"): layer for i, layer in enumerate(value)}
        else:
            entries[name] = value
    return entries


def stack(weights: Weights, layers: str) -> Weights:
    """The inverse of `unstack`."""
    entries, stacks = {}, defaultdict(dict)
    for name, value in weights.items():
        if match := re.search(rf"/{layers}_(\d+)/", name):
            stacks[name.replace(match[0], f"/{layers}/")][int(match[1])] = value
        else:
            entries[name] = value
    return entries | {name: np.stack([each[i] for i in sorted(each)]) for name, each in stacks.items()}
