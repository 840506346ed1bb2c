"""What VATT's script needs: a model for a tokeniser and clips, retrieval between sounds and videos, and probes."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from vidjax.data.config import CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.evaluation.linear_probe import linear_probe
from vidjax.evaluation.retrieval import retrieval
from vidjax.models.vatt_pretraining import Vatt
from vidjax.runs.run import Run
from vidjax.runs.validation import Validator
from vidjax.training.sharding import jit_on_mesh, put_batch
from vidjax.training.state import TrainState

if TYPE_CHECKING:  # the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer


def make_vatt(name: str, tokenizer: "Tokenizer", data: CaptionedDataConfig, context: int | None, **fields: Any) -> Vatt:
    """The pre-training model of a video model, for this tokeniser and these clips.

    Raises:
      UserError: it has none, or clips do not last as long as the sound that it hears.
    """
    full = f"{name}_pretrain"
    if full not in (names := vidjax.list_models("vatt_")):
        known = ", ".join(each.removesuffix("_pretrain") for each in names if each.endswith("_pretrain"))
        raise UserError(f"model {name} is no VATT: choose one of {known}")
    text = {"vocabulary": tokenizer.vocabulary} | ({} if context is None else {"context": context})
    clip = {"num_frames": data.frames, "image_size": data.size}
    model = vidjax.create_model(full, **clip, text=text, **fields)
    seconds, rate = model.sound.samples / model.sound.rate, data.frames * model.sound.rate / model.sound.samples
    if data.sampling != "dense" or data.fps is None or abs(data.frames / data.fps - seconds) > 1e-3:
        raise UserError(
            f"{name} hears {seconds:g} s of sound, which must be those of the clip: give --data.sampling dense and "
            f"--data.fps {rate:g}"
        )
    return model


def embed_all(run: Run, variables: dict[str, Any], batches: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Embeddings of the readable clips by the names of `Vatt`, `seen` and `heard_features` before the head, and labels.

    Args:
      batches: with `video`, `sound`, `sound_valid`, `label`, `ids` and `valid`.
    """
    model = run.model

    @partial(jit_on_mesh, mesh=run.mesh)
    def encode(variables: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def before_head(model: Vatt, *inputs: jax.Array) -> dict[str, jax.Array]:
            video, sound, ids = inputs
            return model(video, sound, ids) | {"seen": model.video(video), "heard": model.hear(sound)}

        inputs = model.card.preprocess(batch["video"]), batch["sound"][..., 0], batch["ids"]
        embedded = model.apply(variables, *inputs, method=before_head)
        embedded = {name: each.astype(jnp.float32) for name, each in embedded.items()}
        return embedded | {name: batch[name] for name in ("label", "valid", "sound_valid")}

    names = ("video", "sound", "sound_valid", "label", "ids", "valid")
    used = ({name: batch[name] for name in names} for batch in batches)
    parts = [jax.device_get(encode(variables, put_batch(batch, run.mesh))) for batch in used]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: each[whole["valid"]] for name, each in whole.items()}


def sound_validator(run: Run, tokenizer: "Tokenizer") -> Validator:
    """Retrieval between the validation videos and their sounds, and between videos and captions.

    Videos without sound are not among the first, and counted as `without_sound`. `score` is the mean R@1 of sounds and
    videos in both directions.
    """

    def validate(state: TrainState, step: int) -> dict[str, float]:
        settings = {"tokenizer": tokenizer, "context": run.model.text.context, "fields": ("sound",)}
        variables = {"params": state.evaluated_params, **state.model_state}
        rows = embed_all(run, variables, run.validation_batches(**settings))
        heard = rows["sound_valid"]
        metrics = {"without_sound": float((~heard).sum()), "score": float("nan")}  # unless some are heard
        if heard.any():
            both = retrieval(rows["video_of_sound"][heard], rows["sound"][heard])
            metrics |= {"sound_to_video_r1": both.text_to_video.r1, "video_to_sound_r1": both.video_to_text.r1}
            metrics |= {
                "sound_to_video_r10": both.text_to_video.r10,
                "score": (both.text_to_video.r1 + both.video_to_text.r1) / 2,
            }
        read = retrieval(rows["video_of_text"], rows["text"])
        return metrics | {"text_to_video_r1": read.text_to_video.r1}

    return validate


def probe_towers(run: Run, variables: dict[str, Any], tokenizer: "Tokenizer", count: int) -> dict[str, float]:
    """Accuracy of linear probes on the labels of the training videos, from their picture and from their sound.

    Args:
      count: number of clips; one half is for fitting, the other for scoring.

    Returns:
      `video`, `sound` and `chance`; empty without labels, or with too few clips that have sound.
    """
    source, classes = run.source, len(run.source.class_names)
    chosen = np.random.default_rng(run.config.seed).permutation(len(source))[:count]
    if classes < 2 or len(chosen) < 4 * classes:
        return {}
    settings = {"tokenizer": tokenizer, "context": run.model.text.context, "fields": ("sound",)}
    rows = embed_all(run, variables, run.evaluation_batches(source, indices=chosen, **settings))
    kept = rows["sound_valid"] & (rows["label"] >= 0)
    labels, half = rows["label"][kept], kept.sum() // 2
    if half < 2 * classes:
        return {}
    accuracy = {}
    for name, key in (("video", "seen"), ("sound", "heard")):
        features = rows[key][kept]
        accuracy[name] = linear_probe(features[:half], labels[:half], features[half:], labels[half:], classes)
    return accuracy | {"chance": 1 / classes}
