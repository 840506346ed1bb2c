"""Layouts of UniFormer: the original (Sense-X/UniFormer) for clips and for images, and mmaction2's."""

from vidjax.convert.blocks import fused_attention, timm_block
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate
from vidjax.convert.rules import (
    Layout,
    Rule,
    Transform,
    batch_norm,
    dense,
    fold_layer_scale,
    kernel,
    norm,
    prefix,
    strip,
)
from vidjax.models.uniformer import UniFormer

MARKER = "patch_embed1.proj.weight"
MMACTION2_HEAD = "cls_head.fc_cls.weight"


POINTWISE = Transform(
    lambda value: kernel(value.reshape(value.shape[:2])), lambda value: kernel.inverse(value)[..., None, None, None]
)


def pointwise(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a pointwise convolution, which is a linear layer in our model."""
    return Rule(f"{source}.weight", f"{target}/kernel", POINTWISE), Rule(f"{source}.bias", f"{target}/bias")


def local_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """Blocks of the first two stages."""
    return (
        *dense(f"{source}.pos_embed", f"{target}/position", inflate),
        *batch_norm(f"{source}.norm1", f"{target}/norm1"),
        *pointwise(f"{source}.conv1", f"{target}/value"),
        *dense(f"{source}.attn", f"{target}/affinity", inflate),
        *pointwise(f"{source}.conv2", f"{target}/out"),
        *batch_norm(f"{source}.norm2", f"{target}/norm2"),
        *pointwise(f"{source}.mlp.fc1", f"{target}/fc1"),
        *pointwise(f"{source}.mlp.fc2", f"{target}/fc2"),
    )


def global_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """Blocks of the last two stages; a model has either joint or split attention."""
    return (
        *dense(f"{source}.pos_embed", f"{target}/position", inflate),
        *norm(f"{source}.t_norm", f"{target}/temporal_norm"),
        *fused_attention(f"{source}.t_attn", f"{target}/temporal_attention"),
        *timm_block(source, f"{target}/joint"),
        *timm_block(source, target),
    )


RULES = (
    *(
        rule
        for i, blocks in enumerate((local_blocks, local_blocks, global_blocks, global_blocks))
        for rule in (
            *dense(f"patch_embed{i + 1}.proj", f"patch_embedding_{i}", inflate),
            *norm(f"patch_embed{i + 1}.norm", f"patch_norm_{i}"),
            *blocks(f"blocks{i + 1}.{{i}}", f"stage_{i}/block_{{i}}"),
        )
    ),
    *batch_norm("norm", "norm"),
)
# Split models may start from joint or image weights; their temporal attention is then new, and starts as zero.
OPTIONAL = ("head/", "stage_{s}/block_{i}/temporal_")


def prepare(weights: Weights) -> Weights:
    """Strips prefixes and folds layer scale."""
    return fold_layer_scale(strip(weights, "module.", "backbone."))


def is_other(entries: Weights, prepared: Weights) -> bool:
    """Whether the entries are those of an image model or of mmaction2's recognizer."""
    return prepared[MARKER].ndim == 4 or MMACTION2_HEAD in prepared


def prepare_image(weights: Weights) -> Weights:
    """As `prepare`, for an image model, which has 2-D kernels; empty for other weights."""
    weights = prepare(weights)
    return weights if MARKER in weights and weights[MARKER].ndim == 4 else {}


IMAGE = Layout(
    "Sense-X/UniFormer of images", MARKER, RULES, prepare_image, OPTIONAL, key="original_image", restore=None
)
ORIGINAL = Layout(
    "Sense-X/UniFormer", MARKER, (*RULES, *dense("head", "head")), prepare, OPTIONAL, key="original", excludes=is_other
)
MMACTION2 = Layout(
    name="mmaction2's UniFormer",
    key="mmaction2",
    wrap=lambda content: {"state_dict": content},
    marker=MMACTION2_HEAD,
    prepare=prepare,
    restore=lambda weights: prefix(weights, "backbone.", "cls_head."),
    rules=(*RULES, *dense("cls_head.fc_cls", "head")),
    optional=OPTIONAL,
    card={"protocol": "mmaction2"},
)

LAYOUTS = {UniFormer: (ORIGINAL, MMACTION2, IMAGE)}
