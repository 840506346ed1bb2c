"""Layouts of VideoPrism: the original's NumPy files (google-deepmind/videoprism) and Hugging Face's directories.

The original stores the layers of a stack in one array, and attention with an axis for the heads. Both store the scale
of a norm minus one.
"""

import flax.linen as nn
import numpy as np

from vidjax.convert.blocks import ALL_POSITIONS, PARTS, stack, unstack
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, Transform, dense, prefix, strip
from vidjax.errors import UserError
from vidjax.models.video_text import VideoText
from vidjax.models.videoprism import CAP, CARD, TextTower, VideoPrism, VideoTower, sinusoids

TABLE = table("antialiased_linear")
PLUS_ONE = Transform(lambda value: value + np.float32(1), lambda value: value - np.float32(1))
ROWS = Transform(lambda value: value, lambda value: value.reshape(-1, value.shape[-1]))
TOKEN = Transform(lambda value: value.reshape(1, 1, -1), lambda value: value)
QUERY = Transform(TOKEN.forward, lambda value: value[0])


def norm(source: str, target: str, scale: str = "weight", separator: str = ".") -> tuple[Rule, ...]:
    """A norm whose scale is stored minus one."""
    return (
        Rule(f"{source}{separator}{scale}", f"{target}/scale", PLUS_ONE),
        Rule(f"{source}{separator}bias", f"{target}/bias"),
    )


# Hugging Face's names


def projections(source: str, target: str) -> tuple[Rule, ...]:
    """Query, key, value and output of attention or of the pooling."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    return tuple(rule for part, name in names.items() for rule in dense(f"{source}.{name}", f"{target}/{part}"))


def transformers_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """A stack of blocks."""
    source, target = f"{source}.{{i}}", f"{target}/block_{{i}}"
    return (
        *norm(f"{source}.layernorm_before", f"{target}/norm1"),
        *projections(f"{source}.attention", f"{target}/attention"),
        *norm(f"{source}.layernorm_after", f"{target}/norm2"),
        *dense(f"{source}.mlp.fc1", f"{target}/mlp/fc1"),
        *dense(f"{source}.mlp.fc2", f"{target}/mlp/fc2"),
    )


def transformers_encoder(source: str, target: str) -> tuple[Rule, ...]:
    """VideoPrismVisionModel."""
    space, times = f"{source}spatial_embeddings", f"{source}temporal_embeddings"
    return (
        *dense(f"{space}.patch_embeddings.projection", f"{target}patch_embedding", inflate),
        Rule(f"{space}.position_embeddings", f"{target}position/table", ALL_POSITIONS, TABLE),
        *transformers_blocks(f"{source}spatial_layers", f"{target}spatial_transformer"),
        *norm(f"{source}layernorm1", f"{target}spatial_norm"),
        Rule(f"{times}.position_embeddings", f"{target}temporal_position/table", ALL_POSITIONS, TABLE),
        *transformers_blocks(f"{source}temporal_layers", f"{target}temporal_transformer"),
        *norm(f"{source}layernorm2", f"{target}norm"),
    )  # fmt: skip


def transformers_pool(source: str, target: str) -> tuple[Rule, ...]:
    """The pooling and its norm."""
    return (
        Rule(f"{source}head.pooling_attention_query", f"{target}head_pool/token", TOKEN),
        Rule(f"{source}head.per_dim_scale", f"{target}head_pool/scale"),
        *projections(f"{source}head", f"{target}head_pool"),
        *norm(f"{source}head_layernorm", f"{target}head_pool/norm"),
    )


CLASSIFIER = {"optional": ("head/", "head_pool/"), "surplus": ("head/", "head_pool/")}
TRANSFORMERS_ENCODER = Layout(
    name="Hugging Face's VideoPrism",
    key="transformers",
    marker="spatial_embeddings.position_embeddings",
    prepare=lambda weights: strip(weights, "module.", "vision_model."),
    # A bare encoder has no prefix.
    restore=lambda weights: (
        prefix(weights, "vision_model.", "head", "classifier.") if "classifier.weight" in weights else weights
    ),
    format="safetensors",
    rules=(
        *transformers_encoder("", ""),
        *transformers_pool("", ""),
        *dense("classifier", "head"),
    ),
    **CLASSIFIER,
)
POSITIONS, IDS = (f"text_model.embeddings.{name}" for name in ("position_embedding", "position_ids"))


def transformers_pair(model: VideoText) -> Layout:
    """VideoPrismClipModel, whose files have the sinusoids of the text tower."""
    text = model.text
    ours = sinusoids(text.context, text.width, text.frequencies)

    def prepare(weights: Weights) -> Weights:
        weights = {name: value for name, value in strip(weights, "module.").items() if name != IDS}
        positions = weights.pop(POSITIONS, None)
        if positions is not None:
            shared = min(len(positions), len(ours))
            if positions.shape[1:] == ours.shape[1:] and not np.allclose(positions[:shared], ours[:shared], atol=1e-4):
                raise UserError(
                    f"the sinusoids of the text tower are not those of frequencies='{text.frequencies}': give "
                    "text={'frequencies': ...} with the other value, original or transformers"
                )
        return weights

    def restore(weights: Weights) -> Weights:
        return weights | {POSITIONS: ours, IDS: np.arange(text.context)[None]}

    return Layout(
        name="Hugging Face's VideoPrism",
        key="transformers",
        marker="text_model.embeddings.cls_emb",
        prepare=prepare,
        restore=restore,
        format="safetensors",
        rules=(
            *transformers_encoder("video_model.vision_model.", "video/encoder/"),
            *transformers_blocks("video_model.auxiliary_layers", "video/joint_transformer"),
            *transformers_pool("video_model.", "video/"),
            Rule("text_model.embeddings.token_embedding.weight", "text/token_embedding/embedding"),
            Rule("text_model.embeddings.cls_emb", "text/class_token"),
            *transformers_blocks("text_model.layers", "text/transformer"),
            *norm("text_model.layernorm", "text/norm"),
        ),
        optional=("logit_bias",),
        surplus=(),
        absent=("logit_scale",),
    )


# The original's names


def original_attention(source: str, target: str, heads: int) -> tuple[Rule, ...]:
    """Kernels `(d, heads, head width)`, of which that of the output is applied from the right."""
    kernel = Transform(
        lambda value: value.reshape(value.shape[0], -1), lambda value: value.reshape(value.shape[0], heads, -1)
    )
    bias = Transform(np.ravel, lambda value: value.reshape(heads, -1))
    out = Transform(
        lambda value: value.reshape(value.shape[0], -1).T, lambda value: value.T.reshape(value.shape[1], heads, -1)
    )
    return (
        *(Rule(f"{source}/{part}/w", f"{target}/{part}/kernel", kernel) for part in PARTS),
        *(Rule(f"{source}/{part}/b", f"{target}/{part}/bias", bias) for part in PARTS),
        Rule(f"{source}/post/w", f"{target}/out/kernel", out),
        Rule(f"{source}/post/b", f"{target}/out/bias"),
    )


def original_norm(source: str, target: str) -> tuple[Rule, ...]:
    """A norm."""
    return norm(source, target, "scale", "/")


def original_dense(source: str, target: str) -> tuple[Rule, ...]:
    """A linear layer, stored as ours."""
    return (
        Rule(f"{source}/linear/kernel", f"{target}/kernel"),
        Rule(f"{source}/linear/bias", f"{target}/bias"),
    )


def original_blocks(source: str, target: str, heads: int) -> tuple[Rule, ...]:
    """A stack of blocks, after `unstack`."""
    source, target = f"{source}/x_layers_{{i}}", f"{target}/block_{{i}}"
    return (
        *original_norm(f"{source}/layer_norm", f"{target}/norm1"),
        *original_attention(f"{source}/self_attention", f"{target}/attention", heads),
        *original_norm(f"{source}/ff_layer/layer_norm", f"{target}/norm2"),
        *original_dense(f"{source}/ff_layer/ffn_layer1", f"{target}/mlp/fc1"),
        *original_dense(f"{source}/ff_layer/ffn_layer2", f"{target}/mlp/fc2"),
    )


def original_encoder(model: VideoPrism | VideoTower, source: str, target: str) -> tuple[Rule, ...]:
    """The encoder."""
    patches = Transform(
        lambda value: value.reshape(*model.patch_size, model.channels, -1),
        lambda value: value.reshape(-1, value.shape[-1]),
    )
    return (
        Rule(f"{source}patch_projection/linear/kernel", f"{target}patch_embedding/kernel", patches),
        Rule(f"{source}patch_projection/linear/bias", f"{target}patch_embedding/bias"),
        Rule(f"{source}spatial_pos_emb/emb_var", f"{target}position/table", ROWS, TABLE),
        *original_blocks(
            f"{source}spatial_encoder/transformers_stack", f"{target}spatial_transformer", model.heads
        ),
        *original_norm(f"{source}spatial_ln", f"{target}spatial_norm"),
        Rule(f"{source}temporal_pos_emb/emb_var", f"{target}temporal_position/table", ROWS, TABLE),
        *original_blocks(
            f"{source}temporal_encoder/transformers_stack", f"{target}temporal_transformer", model.heads
        ),
        *original_norm(f"{source}temporal_ln", f"{target}norm"),
    )  # fmt: skip


ORIGINAL = {
    "name": "google-deepmind/videoprism",
    "key": "original",
    "prepare": lambda weights: unstack(strip(weights, "params/"), "x_layers"),
    "restore": lambda weights: stack(prefix(weights, "params/"), "x_layers"),
    "format": "npz",
}


def original(model: VideoPrism) -> Layout:
    """A bare encoder."""
    rules = original_encoder(model, "", "")
    return Layout(**ORIGINAL, marker="spatial_pos_emb/emb_var", rules=rules, **CLASSIFIER)


def original_pair(model: VideoText) -> Layout:
    """The video-text models."""
    video, text, pool = model.video, model.text, "contrastive_vision_pooler/pooling_attention"
    return Layout(
        **ORIGINAL,
        marker="text_encoder/cls_emb",
        rules=(
            *original_encoder(video, "vision_encoder/", "video/encoder/"),
            *original_blocks("auxiliary_encoder/transformers_stack", "video/joint_transformer", video.heads),
            Rule(f"{pool}_query", "video/head_pool/token", QUERY),
            Rule(f"{pool}/per_dim_scale/per_dim_scale", "video/head_pool/scale"),
            *original_attention(pool, "video/head_pool", video.heads),
            *original_norm(f"{pool}_layer_norm", "video/head_pool/norm"),
            Rule("text_encoder/token_emb/emb_var", "text/token_embedding/embedding"),
            Rule("text_encoder/cls_emb", "text/class_token", TOKEN),
            *original_blocks("text_encoder/unimodal_transformer", "text/transformer", text.heads),
            *original_norm("text_encoder/unimodal_ln", "text/norm"),
        ),
        optional=("logit_bias",),
        surplus=(),
        absent=("logit_scale",),
        fixed={"text.frequencies": "original"},
    )


# Configurations

SAME = {"hidden_act": "gelu_python", "layer_norm_eps": 1e-6, "qkv_bias": True, "attn_logit_softcapping": CAP}
SAME_TEXT = SAME | {"hidden_act": "relu"}


def video_fields(config: dict) -> dict:
    """Fields of the encoder of either kind."""
    for field, value in SAME.items():
        expect(config, field, *((value, "gelu") if field == "hidden_act" else (value,)))
    return {
        "width": config.get("hidden_size", 768),
        "depth": config.get("num_spatial_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "temporal_depth": config.get("num_temporal_layers", 4),
        "mlp_ratio": config.get("intermediate_size", 3072) / config.get("hidden_size", 768),
        "patch_size": tuple(config.get("tubelet_size", (1, 18, 18))),
        "channels": config.get("num_channels", 3),
        "num_frames": config.get("num_frames", 16),
        "image_size": config.get("image_size", 288),
    }


def encoder_from_config(config: dict) -> nn.Module:
    """The encoder of a configuration of VideoPrismVisionModel or VideoPrismForVideoClassification."""
    return VideoPrism(**video_fields(config), card=CARD)


def from_config(config: dict) -> nn.Module:
    """The pair of a configuration of VideoPrismClipModel."""
    video, text = (config.get(f"{name}_config") or {} for name in ("vision", "text"))
    for part in (video, text):
        expect(part, "apply_l2norm", True)
    for field, value in SAME_TEXT.items():
        expect(text, field, value)
    tower = TextTower(
        text.get("vocab_size", 32000),
        text.get("max_position_embeddings", 64),
        text.get("hidden_size", 768),
        text.get("num_hidden_layers", 12),
        text.get("num_attention_heads", 12),
        text.get("intermediate_size", 3072) / text.get("hidden_size", 768),
        frequencies="transformers",
    )
    return VideoText(VideoTower(**video_fields(video), joint_depth=video.get("num_auxiliary_layers", 2)), tower, CARD)


def video_config(model: VideoPrism | VideoTower) -> dict:
    """The inverse of `video_fields`."""
    return {
        **SAME,
        "model_type": "videoprism_vision_model",
        "hidden_size": model.width,
        "num_spatial_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_temporal_layers": model.temporal_depth,
        "intermediate_size": round(model.width * model.mlp_ratio),
        "tubelet_size": list(model.patch_size),
        "num_channels": model.channels,
        "num_frames": model.num_frames,
        "image_size": model.image_size,
    }


def encoder_to_config(model: VideoPrism) -> dict:
    """The inverse of `encoder_from_config`."""
    kind = "VideoPrismVisionModel" if model.num_classes is None else "VideoPrismForVideoClassification"
    return {"architectures": [kind], **video_config(model)}


def to_config(model: VideoText) -> dict:
    """The inverse of `from_config`."""
    text = {
        **SAME_TEXT,
        "model_type": "videoprism_text_model",
        "vocab_size": model.text.vocabulary,
        "max_position_embeddings": model.text.context,
        "hidden_size": model.text.width,
        "num_hidden_layers": model.text.depth,
        "num_attention_heads": model.text.heads,
        "intermediate_size": round(model.text.width * model.text.mlp_ratio),
    }
    video = {**video_config(model.video), "num_auxiliary_layers": model.video.joint_depth}
    return {
        "architectures": ["VideoPrismClipModel"],
        "model_type": "videoprism",
        "vision_config": video,
        "text_config": text,
    }


PAIR = (VideoText, VideoTower)
LAYOUTS = {
    VideoPrism: lambda model: (original(model), TRANSFORMERS_ENCODER),
    PAIR: lambda model: (original_pair(model), transformers_pair(model)),
}
CONFIGS = {"videoprism": from_config, "videoprism_vision_model": encoder_from_config}
TO_CONFIGS = {VideoPrism: encoder_to_config, PAIR: to_config}
