"""Hugging Face's configurations of BLIP-2 and of InstructBLIP for videos."""

import flax.linen as nn

from vidjax.convert import chatglm, language, t5
from vidjax.convert.blip_config import image_from_config, image_to_config
from vidjax.convert.hub import expect
from vidjax.errors import UserError
from vidjax.models.blip2 import CARD, Blip2, Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.qformer import QFormer
from vidjax.models.t5 import T5

IMAGE = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
QFORMER = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
}  # fmt: skip
RETRIEVAL = "Blip2ForImageTextRetrieval"
LANGUAGE_MODELS = {
    "opt": language.opt_from_config, "t5": t5.from_config,
}  # fmt: skip


def qformer_from_config(config: dict, queries: int, reads: bool) -> QFormer:
    """The Q-Former of a configuration."""
    config = QFORMER | config
    expect(config, "hidden_act", "gelu")
    expect(config, "layer_norm_eps", 1e-12)
    return QFormer(
        queries,
        config["vocab_size"] if reads else None,
        config["max_position_embeddings"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"] / config["hidden_size"],
        writes=False,
        every=config["cross_attention_frequency"],
    )


def qformer_to_config(model: QFormer, image_width: int) -> dict:
    """The inverse of `qformer_from_config`."""
    reads = model.vocabulary is not None
    return {
        **({"vocab_size": model.vocabulary, "use_qformer_text_input": True} if reads else {}),
        "max_position_embeddings": model.context,
        "hidden_size": model.width,
        "encoder_hidden_size": image_width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": round(model.width * model.mlp_ratio),
        "cross_attention_frequency": model.every,
    }


def from_config(config: dict) -> nn.Module:
    """The model of a configuration, of the first stage if its architecture is that for retrieval."""
    instructed = config["model_type"] == "instructblipvideo"
    retrieves = (config.get("architectures") or [""])[0] == RETRIEVAL
    video = image_from_config(config.get("vision_config") or {}, IMAGE)
    qformer = qformer_from_config(
        config.get("qformer_config") or {}, config.get("num_query_tokens", 32), instructed or retrieves
    )
    if retrieves:
        return Blip2(video, qformer, config.get("image_text_hidden_size", 256))
    text = config.get("text_config") or {}
    kind = text.get("model_type", "opt")
    if kind not in LANGUAGE_MODELS:
        raise UserError(f"its language model is a {kind}: {', '.join(LANGUAGE_MODELS)} are supported")
    return Blip2Language(video, qformer, LANGUAGE_MODELS[kind](text), CARD)


def to_config(model: Blip2 | Blip2Language) -> dict:
    """The inverse of `from_config`, and of `chatglm.from_config`."""
    if isinstance(model, Blip2Language) and isinstance(model.language, ChatGLM):
        return chatglm.visual_to_config(model)
    config = {
        "architectures": [RETRIEVAL],
        "model_type": "blip-2",
        "num_query_tokens": model.qformer.queries,
        "vision_config": {"model_type": "blip_2_vision_model"} | image_to_config(model.video),
        "qformer_config": {"model_type": "blip_2_qformer"} | qformer_to_config(model.qformer, model.video.width),
    }
    if isinstance(model, Blip2):
        return config | {"image_text_hidden_size": model.features}
    to_language = t5.to_config if isinstance(model.language, T5) else language.to_config
    config |= {"architectures": ["Blip2ForConditionalGeneration"], "text_config": to_language(model.language)}
    if model.qformer.vocabulary is None:
        return config | {"image_token_index": model.place_token}
    kinds = {"vision_config": "instructblipvideo_vision_model", "qformer_config": "instructblipvideo_qformer"}
    return config | {
        "architectures": ["InstructBlipVideoForConditionalGeneration"],
        "model_type": "instructblipvideo",
        "video_token_index": model.place_token,
        **{part: config[part] | {"model_type": kind} for part, kind in kinds.items()},
    }


CONFIGS = {"blip-2": from_config, "instructblipvideo": from_config}
TO_CONFIGS = {Blip2: to_config, Blip2Language: to_config}
