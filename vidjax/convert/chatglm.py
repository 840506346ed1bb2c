"""Layouts of ChatGLM-6B and VisualGLM-6B in Hugging Face directories, and their configurations.

The image encoder of VisualGLM has the names of SwissArmyTransformer (THUDM/SwissArmyTransformer), in which every block
begins with a norm. In the Q-Former, which is post-norm, it is that of the block before, or of the embeddings.
"""

from functools import partial

import flax.linen as nn
import numpy as np

from vidjax.convert.blocks import PARTS, block, fused_rows, positions
from vidjax.convert.files import Weights
from vidjax.convert.fits import inflate, table
from vidjax.convert.hub import expect
from vidjax.convert.rules import Layout, Rule, dense, image_kernel, norm
from vidjax.convert.vit import square
from vidjax.errors import UserError
from vidjax.models.blip2 import CARD, Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.qformer import QFormer
from vidjax.models.vit import ViT

WORDS, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"  # the same values
ENCODER = "image_encoder."
TABLES = tuple(f"{ENCODER}vit.transformer.{kind}_embeddings.weight" for kind in ("word", "position"))
"""The class token and the positions, which other publishers store with a leading axis."""
NAMES = ("input_layernorm", "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def attention_rules(source: str, target: str) -> tuple[Rule, ...]:
    """Self-attention."""
    return (*fused_rows(f"{source}.query_key_value.", target), *dense(f"{source}.dense", f"{target}/out"))


def pre_norm_block(source: str, target: str) -> tuple[Rule, ...]:
    """A block that begins with a norm."""
    return block(source, target, attention_rules(f"{source}.attention", f"{target}/attention"), NAMES)


def rules(target: str = "") -> tuple[Rule, ...]:
    """The language model; `target` is the prefix of our paths."""
    return (
        Rule(WORDS, f"{target}token_embedding/embedding"),
        *pre_norm_block("transformer.layers.{i}", f"{target}transformer/block_{{i}}"),
        *norm("transformer.final_layernorm", f"{target}norm"),
    )


def image_rules() -> tuple[Rule, ...]:
    """The image tower."""
    source = f"{ENCODER}vit."
    return (
        Rule(TABLES[0], "video/class_token"),
        *positions(TABLES[1], "video/", table("cubic")),
        *dense(f"{source}mixins.patch_embedding.proj", "video/patch_embedding", inflate, image_kernel),
        *pre_norm_block(f"{source}transformer.layers.{{i}}", "video/transformer/block_{i}"),
        *norm(f"{source}mixins.cls.ln_vision", "video/norm"),
    )


def qformer_rules(depth: int) -> tuple[Rule, ...]:
    """The Q-Former of this depth, and the layer after it."""
    source = f"{ENCODER}qformer.transformer."
    layer, ours = f"{source}layers.{{i}}", "qformer/block_{i}"
    after = [*(f"layers.{number}.input_layernorm" for number in range(1, depth)), "final_layernorm"]
    return (
        Rule(f"{source}word_embeddings.weight", "qformer/query"),
        *norm(f"{source}layers.0.input_layernorm", "qformer/embedding_norm"),
        *attention_rules(f"{layer}.attention", f"{ours}/attention"),
        *norm(f"{layer}.post_attention_layernorm", f"{ours}/norm1"),
        *dense(f"{layer}.cross_attention.query", f"{ours}/cross_attention/query"),
        *fused_rows(f"{layer}.cross_attention.key_value.", f"{ours}/cross_attention", PARTS[1:]),
        *dense(f"{layer}.cross_attention.dense", f"{ours}/cross_attention/out"),
        *norm(f"{layer}.post_cross_attention_layernorm", f"{ours}/cross_norm"),
        *dense(f"{layer}.mlp.dense_h_to_4h", f"{ours}/query_mlp/fc1"),
        *dense(f"{layer}.mlp.dense_4h_to_h", f"{ours}/query_mlp/fc2"),
        *(rule for i, name in enumerate(after) for rule in norm(source + name, f"qformer/block_{i}/query_norm2")),
        *dense(f"{ENCODER}glm_proj", "projection"),
    )


def row_order(count: int, heads: int) -> np.ndarray:
    """The published number of each of our rows of queries, keys and values in one layer.

    The published rows are those of head after head, each with query, key and value. Two channels that are rotated
    together are apart there, and next to one another here.
    """
    rows = np.arange(count).reshape(heads, len(PARTS), 2, 2, -1)  # head, part, half, channel of a pair, pair
    turned, values = rows[:, :2].transpose(1, 0, 2, 4, 3), rows[:, 2]
    return np.concatenate([turned.ravel(), values.ravel()])


def is_reordered(name: str) -> bool:
    """Whether the entry has the rows that `row_order` is about."""
    return name.startswith("transformer.layers.") and ".attention.query_key_value." in name


def prepare(heads: int, weights: Weights) -> Weights:
    """Our order of rows, without the repeated embeddings and frequencies."""
    prepared = {}
    for name, value in weights.items():
        if name == HEAD or name.endswith(".inv_freq"):
            continue
        value = value[row_order(len(value), heads)] if is_reordered(name) else value
        prepared[name] = value[None] if name in TABLES else value
    return prepared


def restore(heads: int, weights: Weights) -> Weights:
    """The inverse of `prepare`, without frequencies, which the publisher's code does not read."""
    restored = {HEAD: weights[WORDS]} if WORDS in weights else {}
    for name, value in weights.items():
        value = value[np.argsort(row_order(len(value), heads))] if is_reordered(name) else value
        restored[name] = value[0] if name in TABLES else value
    return restored


layout = partial(Layout, key="transformers", format="safetensors", optional=(), surplus=())


def layouts(model: ChatGLM) -> tuple[Layout, ...]:
    """Hugging Face's."""
    return (
        layout(
            name="Hugging Face's ChatGLM",
            marker=WORDS,
            prepare=partial(prepare, model.heads),
            restore=partial(restore, model.heads),
            rules=rules(),
        ),
    )


def visual_layouts(model: Blip2Language) -> tuple[Layout, ...]:
    """Hugging Face's of VisualGLM, which has a Q-Former without words."""
    if model.qformer.vocabulary is not None:
        return ()
    heads = model.language.heads
    return (
        layout(
            name="Hugging Face's VisualGLM",
            marker=TABLES[0],
            prepare=partial(prepare, heads),
            restore=partial(restore, heads),
            rules=(*image_rules(), *qformer_rules(model.qformer.depth), *rules("language/")),
        ),
    )


EVA = {
    "num_layers": 39, "hidden_size": 1408, "num_attention_heads": 16, "inner_hidden_size": 6144,
    "layernorm_epsilon": 1e-6, "image_size": [224, 224], "patch_size": 14,
}  # fmt: skip
QFORMER = {
    "num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "inner_hidden_size": 3072, "vocab_size": 32,
    "layernorm_epsilon": 1e-12,
}  # fmt: skip


def from_config(config: dict) -> ChatGLM | Blip2Language:
    """The model of a configuration: a VisualGLM if it describes an image encoder."""
    if "inner_hidden_size" not in config:
        raise UserError("it is a later ChatGLM, which is another model: only ChatGLM-6B and VisualGLM-6B are supported")
    for field, value in (("position_encoding_2d", True), ("pre_seq_len", None), ("quantization_bit", 0)):
        expect(config, field, value)
    width, start = config["hidden_size"], config["bos_token_id"]
    language = ChatGLM(
        config["vocab_size"],
        config["max_sequence_length"],
        width,
        config["num_layers"],
        config["num_attention_heads"],
        config.get("gmask_token_id", start - 3),  # files of the first release do not have it
        start,
        config["eos_token_id"],
        config["inner_hidden_size"] / width,
        config["layernorm_epsilon"],
    )
    if "eva_config" not in config:
        return language
    eva, queries = EVA | config["eva_config"], QFORMER | (config.get("qformer_config") or {})
    expect(queries, "layernorm_epsilon", 1e-12)
    video = ViT(
        eva["hidden_size"],
        eva["num_layers"],
        eva["num_attention_heads"],
        eva["inner_hidden_size"] / eva["hidden_size"],
        (1, eva["patch_size"], eva["patch_size"]),
        image_size=eva["image_size"][0],
        epsilon=eva["layernorm_epsilon"],
    )
    qformer = QFormer(
        queries["vocab_size"],
        None,
        width=queries["hidden_size"],
        depth=queries["num_layers"],
        heads=queries["num_attention_heads"],
        mlp_ratio=queries["inner_hidden_size"] / queries["hidden_size"],
        writes=False,
    )
    expect(queries, "is_decoder", [number % qformer.every == 0 for number in range(qformer.depth)])
    return Blip2Language(video, qformer, language, CARD)


def to_config(model: ChatGLM) -> dict:
    """The inverse of `from_config`, of a language model."""
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "vocab_size": model.vocabulary,
        "max_sequence_length": model.context,
        "hidden_size": model.width,
        "num_layers": model.depth,
        "num_attention_heads": model.heads,
        "inner_hidden_size": round(model.width * model.mlp_ratio),
        "layernorm_epsilon": model.epsilon,
        "position_encoding_2d": True,
        "gmask_token_id": model.mask_token,
        "bos_token_id": model.start_token,
        "eos_token_id": model.end_token,
    }


def _stack(model: nn.Module) -> dict:
    return {
        "num_layers": model.depth,
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "inner_hidden_size": round(model.width * model.mlp_ratio),
    }


def visual_to_config(model: Blip2Language) -> dict:
    """The inverse of `from_config`, of a VisualGLM."""
    video, qformer = model.video, model.qformer
    return to_config(model.language) | {
        "image_length": qformer.queries,
        "eva_config": {
            **_stack(video),
            "layernorm_epsilon": video.epsilon,
            "layernorm_order": "pre",
            "image_size": [video.image_size] * 2,
            "patch_size": square(video.patch_size, frames=1),
            "vocab_size": 1,
            "use_final_layernorm": False,
        },
        "qformer_config": {
            **_stack(qformer),
            "layernorm_epsilon": 1e-12,
            "layernorm_order": "post",
            "vocab_size": qformer.queries,
            "is_decoder": [number % qformer.every == 0 for number in range(qformer.depth)],
            "cross_attn_hidden_size": video.width,
        },
    }


LAYOUTS = {ChatGLM: layouts}
CONFIGS = {"chatglm": from_config}
TO_CONFIGS = {ChatGLM: to_config}
