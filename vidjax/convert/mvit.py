"""Weights of MViT and MViTv2: SlowFast's, PyTorchVideo's, torchvision's and mmaction2's.

Position tables are resized for other clips as in SlowFast's loader: linearly in time and for relative positions, and
bicubically in space.
"""

from collections.abc import Callable

from vidjax.convert.blocks import ALL_POSITIONS, PARTS, fused_attention, separate_attention
from vidjax.convert.files import Weights
from vidjax.convert.fits import table
from vidjax.convert.rules import Layout, Rule, Transform, dense, kernel, norm, prefix, same, strip
from vidjax.models.mvit import MViT

BLOCK, OURS = "blocks.{i}", "block_{i}"

# The same in torchvision's files, without leading axes.
VECTOR = Transform(lambda value: value[None, None], lambda value: value[0, 0])
ROWS = Transform(lambda value: value, lambda table: table.reshape(-1, table.shape[-1]))


def positions(source: str, names: tuple[str, str, str, str], vector: Transform, rows: Transform) -> tuple[Rule, ...]:
    """The class token, and MViTv1's positions of the class token, in time and in space.

    Args:
      names: their published names, after `source`.
      vector, rows: transforms of the first two and of the last two.
    """
    token, single, time, space = (source + name for name in names)
    return (
        Rule(token, "class_token", vector),
        Rule(single, "class_position", vector),
        Rule(time, "temporal_position/table", rows, table("half_pixel_linear")),
        Rule(space, "spatial_position/table", rows, table("half_pixel_cubic")),
    )


def blocks(
    attention: tuple[Rule, ...],
    fc1: str = "mlp.fc1",
    fc2: str = "mlp.fc2",
    shortcut: str = "proj",
    pool: Callable[[str], str] = "pool_{}.weight".format,
    pool_norm: Callable[[str], str] = "norm_{}".format,
) -> tuple[Rule, ...]:
    """A block, given the rules of its linear layers of attention, and the names of its other parts.

    Args:
      pool, pool_norm: names of the pooling kernel and norm of `q`, `k` and `v`.
    """
    fit = table("half_pixel_linear")
    return (
        *norm(f"{BLOCK}.norm1", f"{OURS}/norm1"),
        *attention,
        *(Rule(f"{BLOCK}.attn.{pool(part[0])}", f"{OURS}/attention/pool_{part}/kernel", kernel) for part in PARTS),
        *(r for part in PARTS for r in norm(f"{BLOCK}.attn.{pool_norm(part[0])}", f"{OURS}/attention/norm_{part}")),
        *(
            Rule(f"{BLOCK}.attn.rel_pos_{axis[0]}", f"{OURS}/attention/relative_{axis}", same, fit)
            for axis in ("time", "height", "width")
        ),
        *norm(f"{BLOCK}.norm2", f"{OURS}/norm2"),
        *dense(f"{BLOCK}.{fc1}", f"{OURS}/fc1"),
        *dense(f"{BLOCK}.{fc2}", f"{OURS}/fc2"),
        *dense(f"{BLOCK}.{shortcut}", f"{OURS}/shortcut"),
    )


FUSED = fused_attention(f"{BLOCK}.attn", f"{OURS}/attention")
ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "proj"}
SEPARATE = separate_attention(f"{OURS}/attention", **{ours: f"{BLOCK}.attn.{name}" for ours, name in ATTENTION.items()})

SLOWFAST = Layout(
    name="SlowFast's MViT",
    key="slowfast",
    wrap=lambda content: {"model_state": content},
    marker="patch_embed.proj.weight",
    rules=(
        *dense("patch_embed.proj", "patch_embedding"),
        *positions(
            "", ("cls_token", "pos_embed_class", "pos_embed_temporal", "pos_embed_spatial"), same, ALL_POSITIONS
        ),
        *blocks(FUSED),
        *norm("norm", "norm"),
        *dense("head.projection", "head"),
    ),
)


def without_copies(weights: Weights) -> Weights:
    """Removes the second entry of every pooling kernel and norm; PyTorchVideo's loader overwrites it with the first."""
    return {name: value for name, value in weights.items() if "._attention_pool_" not in name}


def with_copies(weights: Weights) -> Weights:
    """The inverse of `without_copies`: `attn.pool_q.weight` also as `attn._attention_pool_q.pool.weight`, and so on."""
    copies = {}
    for name, value in weights.items():
        layer = name.split(".")[-2] if ".attn." in name else ""
        kind, _, part = layer.partition("_")
        if part in ("q", "k", "v"):
            copies[name.replace(layer, f"_attention_pool_{part}.{kind}")] = value
    return weights | copies


PYTORCHVIDEO = Layout(
    name="PyTorchVideo's MViT",
    key="pytorchvideo",
    wrap=lambda content: {"model_state": content},
    marker="patch_embed.patch_model.weight",
    prepare=without_copies,
    restore=with_copies,
    rules=(
        *dense("patch_embed.patch_model", "patch_embedding"),
        *positions(
            "cls_positional_encoding.",
            ("cls_token", "pos_embed_class", "pos_embed_temporal", "pos_embed_spatial"), same, ALL_POSITIONS,
        ),
        *blocks(SEPARATE),
        *norm("norm_embed", "norm"),
        *dense("head.proj", "head"),
    ),
)  # fmt: skip

TORCHVISION = Layout(
    name="torchvision's MViT",
    key="torchvision",
    marker="conv_proj.weight",
    rules=(
        *dense("conv_proj", "patch_embedding"),
        *positions("pos_encoding.", ("class_token", "class_pos", "temporal_pos", "spatial_pos"), VECTOR, ROWS),
        *blocks(
            fused_attention(f"{BLOCK}.attn", f"{OURS}/attention", "project.0"),
            "mlp.0", "mlp.3", "project", "pool_{}.pool.weight".format, "pool_{}.norm_act.0".format,
        ),
        *norm("norm", "norm"),
        *dense("head.1", "head"),
    ),
)  # fmt: skip


def mmaction2(scales: int) -> Layout:
    """mmaction2's names, whose final norm has the number of the last scale."""
    return Layout(
        name="mmaction2's MViT",
        key="mmaction2",
        wrap=lambda content: {"state_dict": content},
        marker="patch_embed.projection.weight",
        prepare=lambda weights: strip(weights, "backbone."),
        restore=lambda weights: prefix(weights, "backbone.", "cls_head."),
        rules=(
            *dense("patch_embed.projection", "patch_embedding"),
            Rule("cls_token", "class_token"),
            *blocks(FUSED),
            *norm(f"norm{scales - 1}", "norm"),
            *dense("cls_head.fc_cls", "head"),
        ),
    )


def layouts(model: MViT) -> tuple[Layout, ...]:
    """The layouts in which weights of the model are published."""
    return SLOWFAST, TORCHVISION, mmaction2(len(model.depths)) if model.relative else PYTORCHVIDEO


LAYOUTS = {MViT: layouts}
