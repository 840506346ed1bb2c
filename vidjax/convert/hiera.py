"""Layouts of Hiera: the original (facebookresearch/hiera), and Hugging Face's of the image models."""

import re
from itertools import accumulate

import flax.linen as nn
import numpy as np

from vidjax.convert.blocks import ALL_POSITIONS, TIMM_NAMES, block, fused_attention
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, Transform, dense, image_kernel, kernel, norm, prefix, rename, strip
from vidjax.convert.vit import EXACT_GELU
from vidjax.errors import UserError
from vidjax.models.hiera import IMAGE, Hiera
from vidjax.models.hiera_mae import Pretraining

TRANSFORMERS_NAMES = ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2")
SPACE, TIME = table("half_pixel_cubic"), table("half_pixel_linear")


def blocks(encoder: str, names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    """The encoder's blocks; `names` are those of the norms and of the MLP's linear layers."""
    source, target = "blocks.{i}", f"{encoder}block_{{i}}"
    norm1, norm2, fc1, fc2 = (f"{source}.{name}" for name in names)
    return (
        *norm(norm1, f"{target}/norm1"),
        *fused_attention(f"{source}.attn", f"{target}/attention"),
        *norm(norm2, f"{target}/norm2"),
        *dense(fc1, f"{target}/fc1"),
        *dense(fc2, f"{target}/fc2"),
        *dense(f"{source}.proj", f"{target}/shortcut"),
    )


def channels_last(channels: int) -> Transform:
    """The last layer of an image decoder, whose outputs are published in the order `(channel row column)`."""

    def forward(value: np.ndarray) -> np.ndarray:
        value = kernel(value)
        return value.reshape(*value.shape[:-1], channels, -1).swapaxes(-1, -2).reshape(value.shape)

    def inverse(value: np.ndarray) -> np.ndarray:
        value = np.asarray(value)
        return kernel.inverse(value.reshape(*value.shape[:-1], -1, channels).swapaxes(-1, -2).reshape(value.shape))

    return Transform(forward, inverse)


def decoder(model: Pretraining, names: dict[str, str], block_names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    """The parts of a masked autoencoder after the encoder's blocks.

    Args:
      names: published names of the parts, by ours.
      block_names: see `blocks`.
    """
    convolution = image_kernel if model.images else kernel
    outputs = channels_last(model.channels) if model.images else kernel
    source, target = f"{names['blocks']}.{{i}}", "decoder/transformer/block_{i}"
    return (
        *norm("encoder_norm", "norm"),
        *dense(f"{names['fusion']}.{{i}}", "fusion_{i}", inflate, convolution),
        *dense(names["embedding"], "decoder/embedding"),
        Rule(names["mask_token"], "decoder/mask_token"),
        Rule(names["position"], "decoder/position/table", ALL_POSITIONS, SPACE),
        *block(source, target, fused_attention(f"{source}.attn", f"{target}/attention"), block_names),
        *norm(names["norm"], "decoder/norm"),
        Rule(f"{names['head']}.weight", "decoder/head/kernel", outputs),
        Rule(f"{names['head']}.bias", "decoder/head/bias", outputs),
    )


ORIGINAL_DECODER = {
    "fusion": "multi_scale_fusion_heads", "embedding": "decoder_embed", "mask_token": "mask_token",
    "position": "decoder_pos_embed", "blocks": "decoder_blocks", "norm": "decoder_norm", "head": "decoder_pred",
}  # fmt: skip
TRANSFORMERS_DECODER = {
    "fusion": "multiscale_fusion.multi_scale_fusion_heads", "embedding": "decoder.decoder_embeddings",
    "mask_token": "decoder.mask_token", "position": "decoder.decoder_position_embeddings",
    "blocks": "decoder.decoder_block.layers", "norm": "decoder.decoder_norm", "head": "decoder.decoder_pred",
}  # fmt: skip
# Fine-tuning starts with a new head and norm, and without the autoencoder's other parts.
CLASSIFIER = {"optional": ("head/", "norm/"), "surplus": ("head/", "norm/")}
PRETRAINING = {"optional": ("decoder/", "fusion_{i}/", "norm/"), "surplus": ()}


def original(model: Hiera | Pretraining) -> Layout:
    """The names of facebookresearch/hiera."""
    encoder = "encoder/" if isinstance(model, Pretraining) else ""
    convolution = image_kernel if model.images else kernel
    positions = (Rule("pos_embed", f"{encoder}spatial_position/table", ALL_POSITIONS, SPACE),)
    if not model.images:
        positions = (
            Rule("pos_embed_spatial", f"{encoder}spatial_position/table", ALL_POSITIONS, SPACE),
            Rule("pos_embed_temporal", f"{encoder}temporal_position/table", ALL_POSITIONS, TIME),
        )
    parts = (
        decoder(model, ORIGINAL_DECODER, TIMM_NAMES)
        if isinstance(model, Pretraining)
        else (*norm("norm", "norm"), *dense("head.projection", "head"))
    )
    return Layout(
        name=f"facebookresearch/hiera ({'images' if model.images else 'video'})",
        key="original",
        marker="pos_embed" if model.images else "pos_embed_spatial",
        wrap=lambda content: {"model_state": content},
        rules=(
            *positions,
            *dense("patch_embed.proj", f"{encoder}patch_embedding", inflate, convolution),
            *blocks(encoder, TIMM_NAMES),
            *parts,
        ),
        **(PRETRAINING if isinstance(model, Pretraining) else CLASSIFIER),
    )


def transformers(model: Hiera | Pretraining) -> Layout:
    """Hugging Face's names, which count the blocks of each stage."""
    encoder = "encoder/" if isinstance(model, Pretraining) else ""
    starts = (0, *accumulate(model.depths))
    places = [(stage, layer) for stage, depth in enumerate(model.depths) for layer in range(depth)]

    def prepare(weights: Weights) -> Weights:
        def new_name(name: str) -> str:
            match = re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", name)
            if match is None or int(match[1]) >= len(model.depths):
                return name
            return f"blocks.{starts[int(match[1])] + int(match[2])}.{match[3]}"

        return rename(strip(weights, "module.", "hiera."), new_name)

    def restore(weights: Weights) -> Weights:
        def new_name(name: str) -> str:
            if match := re.match(r"blocks\.(\d+)\.(.*)", name):
                stage, layer = places[int(match[1])]
                return f"encoder.stages.{stage}.layers.{layer}.{match[2]}"
            return name

        kept = ("classifier.", "encoder_norm.", "multiscale_fusion.", "decoder.")
        return prefix(rename(weights, new_name), "hiera.", *kept)

    parts = (
        decoder(model, TRANSFORMERS_DECODER, TRANSFORMERS_NAMES)
        if isinstance(model, Pretraining)
        else (*norm("pooler.layernorm", "norm"), *dense("classifier", "head"))
    )
    return Layout(
        name="Hugging Face's Hiera",
        key="transformers",
        marker="embeddings.position_embeddings",
        prepare=prepare,
        restore=restore,
        format="safetensors",
        rules=(
            Rule("embeddings.position_embeddings", f"{encoder}spatial_position/table", ALL_POSITIONS, SPACE),
            *dense("embeddings.patch_embeddings.projection", f"{encoder}patch_embedding", inflate, image_kernel),
            *blocks(encoder, TRANSFORMERS_NAMES),
            *parts,
        ),
        **(PRETRAINING if isinstance(model, Pretraining) else CLASSIFIER),
    )


def own_pretraining(model: Hiera) -> Layout:
    """A checkpoint of our own pre-training: our names with the prefix `encoder`."""
    return Layout(
        name="vidjax's own pre-training",
        key="vidjax_pretraining",
        restore=None,
        marker="params/encoder/patch_embedding/kernel",
        rules=tuple(
            Rule(f"params/encoder/{target}", target, fit=fit)
            for target, fit in sorted({rule.target: rule.fit for rule in original(model).rules}.items())
        ),
        **CLASSIFIER,
    )


def layouts(model: Hiera | Pretraining) -> tuple[Layout, ...]:
    """The layouts of the model's weights: those in which they are published, and of our own pre-training."""
    published = (original(model), transformers(model)) if model.images else (original(model),)
    return published if isinstance(model, Pretraining) else (*published, own_pretraining(model))


def from_config(config: dict) -> nn.Module:
    """The model of a Hugging Face configuration; for HieraForPreTraining, a `Pretraining`."""
    depths = tuple(config["depths"])
    expect(config, "hidden_act", *EXACT_GELU)
    expect(config, "layer_norm_eps", 1e-6)
    expect(config, "embed_dim_multiplier", 2.0)
    for name, value in published(depths).items():
        expect(config, name, value)
    if config["num_heads"] != [config["num_heads"][0] * 2**stage for stage in range(len(depths))]:
        raise UserError(f"num_heads is {config['num_heads']}, but this model doubles it from stage to stage")
    fields = {
        "depths": depths,
        "width": config["embed_dim"],
        "heads": config["num_heads"][0],
        "images": True,
        "poolings": config.get("num_query_pool", 3),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "channels": config.get("num_channels", 3),
        "num_frames": 1,
        "image_size": config["image_size"][0],
        "card": IMAGE,
    }
    if "HieraForPreTraining" in (config.get("architectures") or ()):
        names = ("decoder_hidden_size", "decoder_depth", "decoder_num_heads")
        width, depth, heads = (config[name] for name in names)
        return Pretraining(**fields, decoder_width=width, decoder_depth=depth, decoder_heads=heads)
    return Hiera(**fields)


def published(depths: tuple[int, ...]) -> dict:
    """Fields of transformers' configuration that our model fixes."""
    side = 2 ** (len(depths) - 1)
    return {
        "patch_size": [7, 7],
        "patch_stride": [4, 4],
        "patch_padding": [3, 3],
        "query_stride": [2, 2],
        "masked_unit_size": [side, side],
        "masked_unit_attention": [stage < 2 for stage in range(len(depths))],
    }


def to_config(model: Hiera | Pretraining) -> dict:
    """The inverse of `from_config`."""
    config = {
        "model_type": "hiera",
        "embed_dim": model.width,
        "image_size": [model.image_size] * 2,
        **published(model.depths),
        "mlp_ratio": model.mlp_ratio,
        "depths": list(model.depths),
        "num_heads": [model.heads * 2**stage for stage in range(len(model.depths))],
        "embed_dim_multiplier": 2.0,
        "num_query_pool": model.poolings,
        "num_channels": model.channels,
        "hidden_act": EXACT_GELU[0],
        "layer_norm_eps": 1e-6,
    }
    if isinstance(model, Hiera):
        kind = "HieraModel" if model.num_classes is None else "HieraForImageClassification"
        return {**config, "architectures": [kind]}
    return {
        **config,
        "architectures": ["HieraForPreTraining"],
        "decoder_hidden_size": model.decoder_width,
        "decoder_depth": model.decoder_depth,
        "decoder_num_heads": model.decoder_heads,
    }


LAYOUTS = {Hiera: layouts, Pretraining: layouts}
CONFIGS = {"hiera": from_config}
TO_CONFIGS = {Hiera: to_config, Pretraining: to_config}
