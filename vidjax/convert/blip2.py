"""Layouts of BLIP-2: the release's first stage, and Hugging Face's of both stages and of InstructBLIP for videos.

Those of VisualGLM are in `chatglm`.
"""

from functools import partial

from vidjax.convert import chatglm, t5
from vidjax.convert.blip import hugging_face_image
from vidjax.convert.blip2_config import CONFIGS, TO_CONFIGS
from vidjax.convert.blocks import PARTS, positions, separate_attention
from vidjax.convert.files import Weights
from vidjax.convert.fits import first, inflate, table
from vidjax.convert.language import opt_rules
from vidjax.convert.rules import Layout, Rule, dense, first_axis, image_kernel, norm, strip
from vidjax.convert.videomae import original_blocks
from vidjax.models.blip2 import Blip2, Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.t5 import T5

__all__ = ["CONFIGS", "LAYOUTS", "TO_CONFIGS"]

LANGUAGE = "language_model."


def qformer_rules(layers: str, embeddings: str, normed: str, inner: str) -> tuple[Rule, ...]:
    """The Q-Former.

    Args:
      layers: prefix of the published names of its blocks.
      embeddings: prefix of those of words and positions.
      normed: name of the norm of the embeddings.
      inner: name of the module of queries, keys and values in an attention layer.
    """
    layer, ours = f"{layers}layer.{{i}}", "qformer/block_{i}"
    attentions = (("attention", "attention", "norm1"), ("crossattention", "cross_attention", "cross_norm"))
    mlps = (
        ("intermediate", "output", "mlp", "norm2"),
        ("intermediate_query", "output_query", "query_mlp", "query_norm2"),
    )
    rules = [
        Rule("query_tokens", "qformer/query", first_axis),
        Rule(f"{embeddings}word_embeddings.weight", "qformer/token_embedding/embedding"),
        Rule(f"{embeddings}position_embeddings.weight", "qformer/position", fit=first),
        *norm(normed, "qformer/embedding_norm"),
    ]
    for theirs, name, normed_by in attentions:
        parts = {part: f"{layer}.{theirs}.{inner}.{part}" for part in PARTS}
        rules += separate_attention(f"{ours}/{name}", **parts, out=f"{layer}.{theirs}.output.dense")
        rules += norm(f"{layer}.{theirs}.output.LayerNorm", f"{ours}/{normed_by}")
    for first_layer, second, name, normed_by in mlps:
        rules += dense(f"{layer}.{first_layer}.dense", f"{ours}/{name}/fc1")
        rules += dense(f"{layer}.{second}.dense", f"{ours}/{name}/fc2")
        rules += norm(f"{layer}.{second}.LayerNorm", f"{ours}/{normed_by}")
    return tuple(rules)


LAVIS_HEAD = "Qformer.cls.predictions"
LAVIS = (
    Rule("visual_encoder.cls_token", "video/class_token"),
    *positions("visual_encoder.pos_embed", "video/", table("half_pixel_cubic")),
    *dense("visual_encoder.patch_embed.proj", "video/patch_embedding", inflate, image_kernel),
    *original_blocks("visual_encoder.blocks", "video/transformer"),
    *norm("ln_vision", "video/norm"),
    *qformer_rules(
        "Qformer.bert.encoder.", "Qformer.bert.embeddings.", "Qformer.bert.embeddings.LayerNorm", inner="self"
    ),
    *dense(f"{LAVIS_HEAD}.transform.dense", "qformer/word_head/dense"),
    *norm(f"{LAVIS_HEAD}.transform.LayerNorm", "qformer/word_head/norm"),
    Rule(f"{LAVIS_HEAD}.bias", "qformer/word_head/bias"),
    *dense("vision_proj", "video_projection"),
    *dense("text_proj", "text_projection"),
    *dense("itm_head", "match_head"),
    Rule("temp", "temperature"),
)


def prepare_lavis(weights: Weights) -> Weights:
    """Removes repeated entries and indices."""
    weights = {name: value for name, value in strip(weights, "module.").items() if not name.endswith("position_ids")}
    return {name: value for name, value in weights.items() if not name.startswith(f"{LAVIS_HEAD}.decoder.")}


def restore_lavis(weights: Weights) -> Weights:
    """The inverse of `prepare_lavis`."""
    if f"{LAVIS_HEAD}.bias" not in weights:
        return weights
    return weights | {
        f"{LAVIS_HEAD}.decoder.bias": weights[f"{LAVIS_HEAD}.bias"],
        f"{LAVIS_HEAD}.decoder.weight": weights["Qformer.bert.embeddings.word_embeddings.weight"],
    }


ORIGINAL = Layout(
    name="salesforce/LAVIS",
    key="original",
    marker="Qformer.bert.embeddings.LayerNorm.weight",
    prepare=prepare_lavis,
    restore=restore_lavis,
    rules=LAVIS,
    optional=("video/", "qformer/word_head/"),  # files without the frozen image tower
    surplus=("qformer/word_head/",),
    absent=("video/transformer/block_{i}/attention/key/bias",),  # which would have no effect
    wrap=lambda weights: {"model": weights},
)

hugging_face = partial(Layout, key="transformers", format="safetensors", optional=(), surplus=())
HUGGING_FACE = hugging_face(
    name="Hugging Face's BLIP-2 for retrieval",
    marker="qformer.layernorm.weight",
    prepare=lambda weights: {name: value for name, value in weights.items() if not name.endswith("position_ids")},
    rules=(
        *hugging_face_image(),
        *qformer_rules("qformer.encoder.", "embeddings.", "qformer.layernorm", inner="attention"),
        *dense("vision_projection", "video_projection"),
        *dense("text_projection", "text_projection"),
        *dense("itm_head", "match_head"),
    ),
    absent=("temperature",),
)


def without_repeats(weights: Weights) -> Weights:
    """The entries without those of the language model that repeat its embeddings, and without indices."""
    causal = f"{LANGUAGE}model.decoder.embed_tokens.weight" in weights
    repeats = tuple(LANGUAGE + name for name in ((t5.HEAD,) if causal else t5.UNUSED))
    return {name: value for name, value in weights.items() if name not in repeats and not name.endswith("position_ids")}


def language_layouts(model: Blip2Language) -> tuple[Layout, ...]:
    """Hugging Face's, of its OPT, its T5 with a last layer of its own and its ChatGLM."""
    if isinstance(model.language, ChatGLM):
        return chatglm.visual_layouts(model)
    if isinstance(model.language, T5):
        if model.language.tied:
            return ()
        language = t5.rules(model.language.gated, LANGUAGE, "language/")
    elif model.language.offset:
        language = opt_rules(f"{LANGUAGE}model.", "language/")
    else:
        return ()
    reads = model.qformer.vocabulary is not None
    normed = "qformer.embeddings.layernorm" if reads else "qformer.layernorm"
    return (
        hugging_face(
            name=f"Hugging Face's {'InstructBLIP for videos' if reads else 'BLIP-2'}",
            marker=f"{normed}.weight",
            prepare=without_repeats,
            rules=(
                *hugging_face_image(),
                *qformer_rules("qformer.encoder.", "qformer.embeddings.", normed, inner="attention"),
                *dense("language_projection", "projection"),
                *language,
            ),
        ),
    )


LAYOUTS = {
    Blip2: lambda model: (ORIGINAL,) if model.qformer.writes else (ORIGINAL, HUGGING_FACE),
    Blip2Language: language_layouts,
}
