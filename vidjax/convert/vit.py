"""Weights of image ViTs: timm's and Hugging Face's, into our ViT; and what video transformers take from timm's."""

import flax.linen as nn

from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, dense, fold_layer_scale, fused_attention, norm, strip
from vidjax.layers.card import Card
from vidjax.models.vit import ViT

EXACT_GELU = ("gelu", "gelu_python")  # Hugging Face's names of it, and of its approximation by tanh
TANH_GELU = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")


def timm_block(source: str, target: str) -> tuple[Rule, ...]:
    """A standard block as timm names it."""
    return (
        *norm(f"{source}.norm1", f"{target}/norm1"),
        *fused_attention(f"{source}.attn", f"{target}/attention"),
        *norm(f"{source}.norm2", f"{target}/norm2"),
        *dense(f"{source}.mlp.fc1", f"{target}/mlp/fc1"),
        *dense(f"{source}.mlp.fc2", f"{target}/mlp/fc2"),
    )


def hugging_face_block(source: str, target: str) -> tuple[Rule, ...]:
    """A standard block as Hugging Face's ViT and ViViT name it."""
    attention = f"{source}.attention.attention"
    return (
        *norm(f"{source}.layernorm_before", f"{target}/norm1"),
        *(
            rule
            for part in ("query", "key", "value")
            for rule in dense(f"{attention}.{part}", f"{target}/attention/{part}")
        ),
        *dense(f"{source}.attention.output.dense", f"{target}/attention/out"),
        *norm(f"{source}.layernorm_after", f"{target}/norm2"),
        *dense(f"{source}.intermediate.dense", f"{target}/mlp/fc1"),
        *dense(f"{source}.output.dense", f"{target}/mlp/fc2"),
    )


def transformers_block(source: str, target: str) -> tuple[Rule, ...]:
    """The same as transformers 5 names it in memory; the files that it writes keep the names above."""
    attention = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "out"))
    return (
        *norm(f"{source}.layernorm_before", f"{target}/norm1"),
        *(
            rule
            for theirs, ours in attention
            for rule in dense(f"{source}.attention.{theirs}", f"{target}/attention/{ours}")
        ),
        *norm(f"{source}.layernorm_after", f"{target}/norm2"),
        *dense(f"{source}.mlp.fc1", f"{target}/mlp/fc1"),
        *dense(f"{source}.mlp.fc2", f"{target}/mlp/fc2"),
    )


def positions(source: str) -> tuple[Rule, ...]:
    """A table `(1, 1 + n, d)` whose first entry is the class token's."""
    return (
        Rule(source, "class_position", lambda value: value[:, :1]),
        Rule(source, "position/table", lambda value: value[0, 1:], table("cubic")),
    )


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration."""
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "qkv_bias", True)
    return ViT(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"] / config["hidden_size"],
        (1, config["patch_size"], config["patch_size"]),
        channels=config.get("num_channels", 3),
        image_size=config["image_size"],
        epsilon=config.get("layer_norm_eps", 1e-12),
        card=Card((0.5,) * 3, (0.5,) * 3, source="Hugging Face's ViT"),
    )


TIMM = Layout(
    name="timm",
    sign="blocks.0.attn.qkv.weight",
    prepare=lambda weights: fold_layer_scale(strip(weights, "module.")),
    rules=(
        Rule("cls_token", "class_token"),
        *positions("pos_embed"),
        *dense("patch_embed.proj", "patch_embedding", inflate),
        *timm_block("blocks.{i}", "transformer/block_{i}"),
        *norm("norm", "norm"),
        *dense("head", "head"),
    ),
)

HUGGING_FACE = Layout(
    name="Hugging Face's ViT",
    sign="embeddings.position_embeddings",
    prepare=lambda weights: strip(weights, "vit."),
    rules=(
        Rule("embeddings.cls_token", "class_token"),
        *positions("embeddings.position_embeddings"),
        *dense("embeddings.patch_embeddings.projection", "patch_embedding", inflate),
        *hugging_face_block("encoder.layer.{i}", "transformer/block_{i}"),
        *transformers_block("layers.{i}", "transformer/block_{i}"),
        *norm("layernorm", "norm"),
        *dense("classifier", "head"),
    ),
)

LAYOUTS = {ViT: (TIMM, HUGGING_FACE)}
CONFIGS = {"vit": from_config}
