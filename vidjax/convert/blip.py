"""Layouts of BLIP: the release, the momentum copy in it, and Hugging Face's models for retrieval and captions.

The release repeats what encoder and decoder share under the decoder's names; the files of captioners have no encoder.
"""

from dataclasses import replace

from vidjax.convert.albef import POSITION
from vidjax.convert.blip_config import CONFIGS, TO_CONFIGS
from vidjax.convert.blocks import PARTS, block, fused_attention, positions, separate_attention, timm_block
from vidjax.convert.files import Weights
from vidjax.convert.fits import first, inflate, table
from vidjax.convert.rules import Layout, Rule, dense, image_kernel, kernel, norm, rename, strip
from vidjax.convert.text import post_norm_block
from vidjax.models.blip import Answerer, Blip, Captioner

__all__ = ["CONFIGS", "LAYOUTS", "TO_CONFIGS"]

COPIED = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
"""First names of what has a momentum copy, whose first names end in `_m`."""
DECODER = "text_decoder."
OWN = (".attention.", ".cls.predictions.transform.", ".cls.predictions.bias")
"""Parts of names of the decoder's entries that do not repeat the encoder's."""
HEAD = f"{DECODER}cls.predictions"
UNUSED = ("position_ids", "pooler.dense.weight", "pooler.dense.bias", "idx_queue")
"""Ends of names that nothing reads."""


def self_attention(source: str, target: str, kind: str = "") -> tuple[Rule, ...]:
    """Self-attention and its norm, with BERT's names; `kind` begins the names of ours."""
    parts = {part: f"{source}.attention.self.{part}" for part in PARTS}
    attention = separate_attention(f"{target}/{kind}attention", **parts, out=f"{source}.attention.output.dense")
    return (*attention, *norm(f"{source}.attention.output.LayerNorm", f"{target}/{kind}norm1"))


def shared_rules(source: str, target: str = "text") -> tuple[Rule, ...]:
    """What encoder and decoder share, and the self-attention of the encoder or, in a captioner, of the decoder."""
    layer, ours = f"{source}encoder.layer.{{i}}", f"{target}/block_{{i}}"
    parts = {part: f"{layer}.crossattention.self.{part}" for part in PARTS}
    decoder = source.startswith(DECODER)
    own = self_attention(layer, ours, "decoder_" if decoder else "")
    both = post_norm_block(layer, ours)
    return (
        Rule(f"{source}embeddings.word_embeddings.weight", f"{target}/token_embedding/embedding"),
        Rule(f"{source}embeddings.position_embeddings.weight", f"{target}/position", fit=first),
        *norm(f"{source}embeddings.LayerNorm", f"{target}/embedding_norm"),
        *own,
        *(rule for rule in both if "norm1" not in rule.target and "/attention/" not in rule.target),
        *separate_attention(f"{ours}/cross_attention", **parts, out=f"{layer}.crossattention.output.dense"),
        *norm(f"{layer}.crossattention.output.LayerNorm", f"{ours}/cross_norm"),
    )


def head_rules(target: str = "text") -> tuple[Rule, ...]:
    """The head that predicts words, without the embeddings that it shares."""
    return (
        *dense(f"{HEAD}.transform.dense", f"{target}/word_head/dense"),
        *norm(f"{HEAD}.transform.LayerNorm", f"{target}/word_head/norm"),
        Rule(f"{HEAD}.bias", f"{target}/word_head/bias"),
    )


DECODER_RULES = (*self_attention(f"{DECODER}bert.encoder.layer.{{i}}", "text/block_{i}", "decoder_"), *head_rules())
PROJECTIONS = (
    *dense("vision_proj", "video_projection"),
    *dense("text_proj", "text_projection"),
    *dense("itm_head", "match_head"),
)
TIMM = (
    Rule("visual_encoder.cls_token", "video/class_token"),
    *positions("visual_encoder.pos_embed", "video/", table("half_pixel_cubic")),
    *dense("visual_encoder.patch_embed.proj", "video/patch_embedding", inflate, image_kernel),
    *timm_block("visual_encoder.blocks.{i}", "video/transformer/block_{i}"),
    *norm("visual_encoder.norm", "video/norm"),
)


def hugging_face_image(source: str = "vision_model.", target: str = "video/") -> tuple[Rule, ...]:
    """The image tower of Hugging Face's BLIP and BLIP-2.

    Args:
      source: prefix of the published names.
      target: prefix of our paths.
    """
    layer, ours = f"{source}encoder.layers.{{i}}", f"{target}transformer/block_{{i}}"
    attention = fused_attention(f"{layer}.self_attn", f"{ours}/attention", "projection")
    return (
        Rule(f"{source}embeddings.class_embedding", f"{target}class_token"),
        *positions(f"{source}embeddings.position_embedding", target, table("cubic")),
        *dense(f"{source}embeddings.patch_embedding", f"{target}patch_embedding", inflate, image_kernel),
        *block(layer, ours, attention, ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")),
        *norm(f"{source}post_layernorm", f"{target}norm"),
    )


def with_tied_words(weights: Weights) -> Weights:
    """The entries without the head's that repeat others, or that nothing reads."""
    repeats = f"{HEAD}.decoder."
    return {n: value for n, value in weights.items() if not n.startswith(repeats) and not n.endswith(UNUSED)}


def without_repeats(weights: Weights) -> Weights:
    """`with_tied_words`, and without what the decoder shares with the encoder."""
    has_encoder = any(name.startswith("text_encoder.") for name in weights)
    return {
        name: value
        for name, value in with_tied_words(weights).items()
        if not (has_encoder and name.startswith(DECODER) and not any(part in name for part in OWN))
    }


def prepare(weights: Weights) -> Weights:
    """The model's entries."""
    copies = tuple(f"{name}_m." for name in COPIED)
    return without_repeats({n: value for n, value in strip(weights, "module.").items() if not n.startswith(copies)})


def prepare_momentum(weights: Weights) -> Weights:
    """The momentum copy's entries, under the model's names, and those of which there is no copy."""
    trained = tuple(f"{name}." for name in COPIED)
    own = {name: value for name, value in strip(weights, "module.").items() if not name.startswith(trained)}
    return without_repeats(rename(own, lambda name: name.replace("_m.", ".", 1)))


def restore(weights: Weights) -> Weights:
    """The inverse of `prepare`: the original's code expects the repeated entries."""
    encoder, bert = "text_encoder.", f"{DECODER}bert."
    repeated = {
        bert + name.removeprefix(encoder): value
        for name, value in weights.items()
        if f"{HEAD}.bias" in weights and name.startswith(encoder) and not any(part in name for part in OWN)
    }
    return restore_words(weights | repeated)


def restore_words(weights: Weights) -> Weights:
    """The inverse of `with_tied_words`."""
    if f"{HEAD}.bias" not in weights:
        return weights
    words = weights[f"{DECODER}bert.embeddings.word_embeddings.weight"]
    return weights | {f"{HEAD}.decoder.bias": weights[f"{HEAD}.bias"], f"{HEAD}.decoder.weight": words}


def restore_momentum(weights: Weights) -> Weights:
    """The inverse of `prepare_momentum`; the repeated entries are those of the model, not of its copy."""
    trained = tuple(f"{name}." for name in COPIED)
    return rename(weights, lambda name: name.replace(".", "_m.", 1) if name.startswith(trained) else name)


ORIGINAL = Layout(
    name="salesforce/BLIP",
    key="original",
    marker="visual_encoder.patch_embed.proj.weight",
    prepare=prepare,
    restore=restore,
    rules=(
        *TIMM,
        *shared_rules("text_encoder."),
        *DECODER_RULES,
        *PROJECTIONS,
        Rule("temp", "temperature"),
        Rule("image_queue", "queue/video_keys", kernel),
        Rule("text_queue", "queue/text_keys", kernel),
        Rule("queue_ptr", "queue/position", POSITION),
    ),
    optional=("queue/",),  # fine-tuned weights have others
    surplus=(),
    wrap=lambda weights: {"model": weights},
    fixed={"video.epsilon": 1e-6},
)
MOMENTUM = replace(
    ORIGINAL,
    name="the momentum copy of salesforce/BLIP",
    key="momentum",
    prepare=prepare_momentum,
    restore=restore_momentum,
    excludes=lambda entries, prepared: ORIGINAL.marker in entries,  # the file also contains the model
)


def of_retrieval(layout: Layout) -> Layout:
    """The layout of a model for retrieval, whose files have another name for the position in the queues."""
    rules = [replace(rule, source="ptr_queue") if rule.source == "queue_ptr" else rule for rule in layout.rules]
    return replace(layout, name=f"{layout.name} for retrieval", rules=tuple(rules))


CAPTIONS = replace(
    ORIGINAL,
    name="salesforce/BLIP's captioner",
    rules=(*TIMM, *shared_rules(f"{DECODER}bert."), *head_rules()),
    optional=(),
)

QUESTIONS = (
    *shared_rules("text_encoder."),
    *shared_rules(f"{DECODER}bert.", "decoder"),
    *head_rules("decoder"),
)
ANSWERS = replace(
    ORIGINAL,
    name="salesforce/BLIP's model of questions",
    prepare=lambda weights: with_tied_words(strip(weights, "module.")),
    restore=restore_words,
    rules=(*TIMM, *QUESTIONS),
    optional=(),
)

hugging_face = replace(
    ORIGINAL, key="transformers", marker="vision_model.embeddings.class_embedding", prepare=without_repeats,
    restore=dict, format="safetensors", wrap=dict, fixed={"video.epsilon": 1e-5}, optional=(),
)  # fmt: skip
HUGGING_FACE = replace(
    hugging_face,
    name="Hugging Face's BLIP for retrieval",
    rules=(*hugging_face_image(), *shared_rules("text_encoder."), *PROJECTIONS),
    absent=("temperature", "queue/video_keys", "queue/text_keys", "queue/position"),
)
HUGGING_FACE_CAPTIONS = replace(
    hugging_face,
    name="Hugging Face's BLIP for captions",
    rules=(*hugging_face_image(), *shared_rules(f"{DECODER}bert."), *head_rules()),
)
HUGGING_FACE_ANSWERS = replace(
    hugging_face,
    name="Hugging Face's BLIP for questions",
    prepare=with_tied_words,
    rules=(*hugging_face_image(), *QUESTIONS),
)


def layouts(model: Blip) -> tuple[Layout, ...]:
    """Hugging Face has no model with encoder and decoder."""
    original = (ORIGINAL, MOMENTUM)
    return original if model.writes else (*map(of_retrieval, original), HUGGING_FACE)


LAYOUTS = {
    Blip: layouts,
    Captioner: (CAPTIONS, HUGGING_FACE_CAPTIONS),
    Answerer: (ANSWERS, HUGGING_FACE_ANSWERS),
}
