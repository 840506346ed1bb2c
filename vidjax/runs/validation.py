"""What training scripts measure while they train: `(state, step) -> numbers`, for `training.loop.fit`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from vidjax.evaluation.features import collect_features
from vidjax.evaluation.knn import knn_accuracy
from vidjax.evaluation.linear_probe import linear_probe
from vidjax.evaluation.recognition import recognition
from vidjax.evaluation.retrieval import retrieval
from vidjax.evaluation.zero_shot import zero_shot
from vidjax.matching import clip_encoder, text_encoder
from vidjax.runs.run import Run
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import TrainState
from vidjax.visualize.similarity import save_similarity

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.text import Tokenizer

SHOWN = 24
"""Videos in the image of similarities."""

Validator = Callable[[TrainState, int], dict[str, float]]


def recognition_validator(run: Run) -> Validator:
    """Accuracy on all validation videos, middle clip and crop, with the weights and with their moving average."""
    from vidjax.data.pipeline import select

    model = run.model

    @partial(jit_on_mesh, mesh=run.mesh)
    def predict(weights: dict[str, Any], model_state: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        video = model.card.preprocess(batch["video"])
        logits = [model.apply({"params": params, **model_state}, video) for params in weights.values()]
        probabilities = [jax.nn.softmax(each.astype(jnp.float32)) for each in logits]
        return jnp.concatenate(probabilities, axis=-1), batch["label"], batch["valid"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        weights = {"": state.params} | ({} if state.ema is None else {"ema_": state.ema})
        batches = select(run.validation_batches(), "video", "label", "valid")
        batches = (put_batch(batch, run.mesh) for batch in batches)
        both, labels = collect_features(partial(predict, weights, state.model_state), batches)
        numbers = {}
        for prefix, probabilities in zip(weights, np.split(both, len(weights), axis=1), strict=True):
            found = recognition(probabilities, labels)
            likelihood = probabilities[np.arange(len(labels)), labels]
            numbers |= {
                f"{prefix}top1": found.top1,
                f"{prefix}top5": found.top5,
                f"{prefix}loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
            }
        return numbers

    return validate


def pair_validator(run: Run, tokenizer: "Tokenizer") -> Validator:
    """Retrieval among the validation videos by captions of their own, and zero-shot recognition of their classes.

    `score` is the mean of both ways of retrieval, or top-1 where captions are made of the classes.
    """
    from vidjax.data.prompts import fill, read_templates

    source, given = run.sources["validation"], run.config.data.templates
    embed_clips, embed_texts = clip_encoder(run.model, run.mesh), text_encoder(run.model, tokenizer, run.mesh)
    prompts = fill(read_templates(given or "plain"), source.class_names) if source.class_names else []

    def recognize(variables: dict[str, Any], video: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        texts = embed_texts(variables, [prompt for row in prompts for prompt in row])
        texts, known = texts.reshape(len(prompts), len(source.class_names), -1), labels >= 0
        found = recognition(zero_shot(video[known], texts, "probabilities"), labels[known])
        return {"top1": found.top1, "top5": found.top5}

    def retrieve(variables: dict[str, Any], video: np.ndarray, captions: Sequence[Any], step: int) -> dict[str, float]:
        owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
        texts = embed_texts(variables, [text for each in captions for text in each])
        found = retrieval(video, texts, owner)
        if is_main_process():
            first = np.unique(owner, return_index=True)[1][:SHOWN]
            names = [captions[i][0] for i in range(len(first))]
            path = run.workdir / "similarity" / f"step_{step:07d}.png"
            path.parent.mkdir(exist_ok=True)
            save_similarity(path, texts[first] @ video[: len(first)].T, names)
        both = {"text_to_video_r1": found.text_to_video.r1, "video_to_text_r1": found.video_to_text.r1}
        return {**both, "score": sum(both.values()) / 2}

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params, **state.model_state}
        batches = run.validation_batches(view_counts=(1, 1))
        video, labels, index, valid = embed_clips(variables, batches)
        video, labels, index = video[valid, 0], labels[valid], index[valid]
        numbers = recognize(variables, video, labels) if prompts else {}
        if given is not None:
            return numbers | {"score": numbers["top1"]}
        return numbers | retrieve(variables, video, [source.captions(int(i)) for i in index], step)

    return validate


def probe_labels(run: Run, trained: Any, count: int) -> dict[str, float]:
    """Linear-probe and kNN accuracy of the encoder on the source's own labels, trained and untrained, and chance.

    Features are the mean and the standard deviation of the tokens: the mean alone hides a small thing that moves.

    Args:
      trained: parameters.
      count: of clips, half of them to fit and half to score.

    Returns:
      `trained`, `trained_knn`, `untrained`, `untrained_knn` and `chance`; nothing without labels or with too few clips.
    """
    from vidjax.data.pipeline import select

    source, classes = run.source, len(run.source.class_names)
    chosen = np.random.default_rng(run.config.seed).permutation(len(source))[:count]
    if classes < 2 or len(chosen) < 4 * classes:
        return {}

    @partial(jit_on_mesh, mesh=run.mesh)
    def encode(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        video = run.model.card.preprocess(batch["video"])
        tokens = run.model.apply({"params": params}, video, method="encode")
        tokens = tokens.reshape(len(tokens), -1, tokens.shape[-1])
        features = jnp.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=-1)
        return features.astype(jnp.float32), batch["label"], batch["valid"]

    accuracy = {}
    # The untrained parameters are made again rather than kept: a copy would take their memory all the while.
    for name, params_of in (("trained", lambda: trained), ("untrained", lambda: run.new_variables()["params"])):
        batches = select(run.evaluation_batches(source, indices=chosen), "video", "label", "valid")
        batches = (put_batch(batch, run.mesh) for batch in batches)
        features, labels = collect_features(partial(encode, params_of()), batches)
        half = len(labels) // 2
        halves = features[:half], labels[:half], features[half:], labels[half:], classes
        accuracy |= {name: linear_probe(*halves), f"{name}_knn": knn_accuracy(*halves)}
    return accuracy | {"chance": 1 / classes}
