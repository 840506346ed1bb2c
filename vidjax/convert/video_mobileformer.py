"""Weights of the image model Mobile-Former (AAboys/MobileFormer) to start from; those of clips are not published."""

from vidjax.convert.fits import inflate
from vidjax.convert.rules import Layout, Rule, batch_norm, dense, image_kernel, norm
from vidjax.models.video_mobileformer import VideoMobileFormer

BLOCK, OURS = "features.{i}", "block_{i}"


def convolution(source: str, target: str) -> Rule:
    """A kernel of images without bias."""
    return Rule(f"{source}.weight", f"{target}/kernel", image_kernel, inflate)


def to_global(source: str, target: str) -> tuple[Rule, ...]:
    """The bridge from features to tokens."""
    return (
        *dense(f"{source}.q", f"{target}/query"),
        *dense(f"{source}.alpha.0", f"{target}/gate"),
        *dense(f"{source}.proj", f"{target}/out"),
        *norm(f"{source}.layer_norm", f"{target}/norm"),
    )


IMAGE = Layout(
    name="AAboys/MobileFormer",
    key="image",
    marker="local_global.q.weight",
    restore=None,  # weights to start from: the head is another
    rules=(
        Rule("tokens.weight", "global_token"),
        convolution("stem.0", "stem_conv"),
        *batch_norm("stem.1", "stem_norm"),
        *(convolution(f"{BLOCK}.conv.{n}", f"{OURS}/conv{m}") for n, m in ((0, 1), (4, 2))),
        *(rule for n, m in ((1, 1), (5, 2)) for rule in batch_norm(f"{BLOCK}.conv.{n}", f"{OURS}/norm{m}")),
        *(convolution(f"{BLOCK}.conv{n}.0", f"{OURS}/conv{n}") for n in (1, 2, 3, 4)),
        *(rule for n in (1, 2, 3, 4) for rule in batch_norm(f"{BLOCK}.conv{n}.1", f"{OURS}/norm{n}")),
        *(rule for n in (1, 2, 3) for rule in dense(f"{BLOCK}.hyper{n}.hyper.0", f"{OURS}/relu{n}/squeeze")),
        *(rule for n in (1, 2, 3) for rule in dense(f"{BLOCK}.hyper{n}.hyper.2", f"{OURS}/relu{n}/slopes")),
        *to_global(f"{BLOCK}.local_global", f"{OURS}/to_global"),
        *dense(f"{BLOCK}.global_block.q", f"{OURS}/global/query"),
        *dense(f"{BLOCK}.global_block.channel_mlp", f"{OURS}/global/out"),
        *norm(f"{BLOCK}.global_block.layer_norm", f"{OURS}/global/norm1"),
        *dense(f"{BLOCK}.global_block.ffn.0", f"{OURS}/global/mlp/fc1"),
        *dense(f"{BLOCK}.global_block.ffn.2", f"{OURS}/global/mlp/fc2"),
        *norm(f"{BLOCK}.global_block.ffn_norm", f"{OURS}/global/norm2"),
        *dense(f"{BLOCK}.global_local.k", f"{OURS}/to_local/key"),
        *dense(f"{BLOCK}.global_local.proj", f"{OURS}/to_local/value"),
        *to_global("local_global", "head_bridge"),
        convolution("classifier.conv.1", "head_conv"),
        *batch_norm("classifier.conv.2", "head_conv_norm"),
        *dense("classifier.fc.0", "head_dense"),
        *batch_norm("classifier.fc.1", "head_dense_norm"),
    ),
)

LAYOUTS = {VideoMobileFormer: (IMAGE,)}
