"""Evaluations during training, `(state, step) -> metrics`, for `training.loop.fit`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vidjax.evaluation.features import collect_features
from vidjax.evaluation.knn import knn_accuracy
from vidjax.evaluation.linear_probe import linear_probe
from vidjax.evaluation.multi_label import multi_label
from vidjax.evaluation.recognition import recognition
from vidjax.evaluation.retrieval import retrieval
from vidjax.evaluation.zero_shot import zero_shot
from vidjax.objectives.classification import targets_of
from vidjax.objectives.multi_task import own_logits, parts
from vidjax.runs.joint import Joint
from vidjax.runs.run import Run
from vidjax.runs.video_text import clip_encoder, text_encoder
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import TrainState

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer

SHOWN = 24
"""Number of videos in the image of the similarity matrix."""

Validator = Callable[[TrainState, int], dict[str, float]]


def recognition_validator(run: Run, joint: Joint | None = None, fields: Sequence[str] = ()) -> Validator:
    """Accuracy on all validation videos (central clip and crop) of the weights and of their moving average.

    With heads, a video counts in that of its data set, and there are the accuracies of each too. With hashtags, the
    most probable class is right if it is one of those of the video, and there is the mean average precision too.

    Args:
      joint: how the model sees images, if there are any.
      fields: `("hashtags",)` if videos have several labels.
    """
    from vidjax.data.batches import select

    model = run.model
    sizes = model.card.head_sizes or (model.num_classes,)

    @partial(jit_on_mesh, mesh=run.mesh)
    def predict(weights: dict[str, Any], state: TrainState, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        video, model_state = model.card.preprocess(batch["video"]), state.model_state
        models = [run.merge(params, state.frozen) for params in weights.values()]
        see = partial(joint.evaluate, labels=batch["label"]) if joint else model.apply
        logits = [see({"params": params, **model_state}, video) for params in models]
        logits = [own_logits(each.astype(jnp.float32), batch["label"], sizes) for each in logits]
        columns = [jax.nn.softmax(each) for each in logits] + ([targets_of(batch, model.num_classes)] if fields else [])
        return jnp.concatenate(columns, axis=-1), batch["label"], batch["valid"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        weights = {"": state.params} | ({} if state.ema is None else {"ema_": state.ema})
        batches = select(run.validation_batches(fields=fields), "video", "label", "valid", *fields)
        batches = (put_batch(batch, run.mesh) for batch in batches)
        columns, labels = collect_features(partial(predict, weights, state), batches)
        columns, metrics = np.split(columns, len(weights) + len(fields), axis=1), {}
        for prefix, probabilities in zip(weights, columns, strict=False):  # the targets are last
            numbers = of_hashtags(probabilities, columns[-1]) if fields else of_labels(probabilities, labels)
            correct = probabilities.argmax(axis=1) == labels
            for head, part in zip(model.card.heads, parts(sizes), strict=False):
                if (own := (labels >= part.start) & (labels < part.stop)).any():
                    numbers[f"{head}_top1"] = float(correct[own].mean())
            metrics |= {f"{prefix}{name}": number for name, number in numbers.items()}
        return metrics

    return validate


def of_labels(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, "n"]) -> dict[str, float]:
    """`top1`, `top5` and `loss` of videos with one label each."""
    result = recognition(probabilities, labels)
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {"top1": result.top1, "top5": result.top5, "loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean())}


def of_hashtags(probabilities: Float[np.ndarray, "n c"], targets: Float[np.ndarray, "n c"]) -> dict[str, float]:
    """`top1`, `top5`, `map` and `loss` of videos with several labels, whose targets are those of training."""
    result = multi_label(probabilities, targets > 0)
    loss = -(targets * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1).mean()
    return {"top1": result.top1, "top5": result.top5, "map": result.mean_average_precision, "loss": float(loss)}


def describe_accuracy(run: Run, chosen: str) -> tuple[list[str], dict[str, float]]:
    """The accuracy on the validation videos, at the last step and at the best one; empty if there was no validation.

    Args:
      chosen: the metric of `recognition_validator` that selects the best step, `top1` or `ema_top1`.

    Returns:
      A line for the summary of the run, in a list, and `top1`, `best_top1`, `top5` and, of hashtags, `map`.
    """
    validated = {step: numbers for step, numbers in run.evaluations().items() if chosen in numbers}
    if not validated:
        return [], {}
    step, best = max(validated.items(), key=lambda entry: entry[1][chosen])
    last = validated[max(validated)]
    numbers = {"top1": last[chosen], "best_top1": best[chosen], "top5": last[chosen.replace("top1", "top5")]}
    line = f"accuracy  top-1 {last[chosen]:.1%}, top-5 {numbers['top5']:.1%} at the last step; best top-1 "
    line += f"{best[chosen]:.1%} at step {step}" + (" (moving average)" if "ema" in chosen else "")
    if (of_map := chosen.replace("top1", "map")) in last:
        numbers["map"] = last[of_map]
        return [line, f"hashtags  mean average precision {last[of_map]:.1%} at the last step"], numbers
    names = {head: chosen.replace("top1", f"{head}_top1") for head in run.model.card.heads}
    each = ", ".join(f"{head} {best[name]:.1%}" for head, name in names.items() if name in best)
    return [line, f"heads     {each} at this step"] if each else [line], numbers


def pair_validator(run: Run, tokenizer: "Tokenizer") -> Validator:
    """Retrieval on the validation videos and their captions, and zero-shot classification if they have classes.

    `score` is the mean R@1 of both directions of retrieval, or the top-1 accuracy if captions are made from classes.
    """
    from vidjax.data.prompts import fill, read_templates

    source, templates = run.sources["validation"], run.config.data.templates
    embed_clips, embed_texts = clip_encoder(run.model, run.mesh), text_encoder(run.model, tokenizer, run.mesh)
    prompts = fill(read_templates(templates or "plain"), source.class_names) if source.class_names else []

    def recognize(variables: dict[str, Any], video: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        texts = embed_texts(variables, [prompt for row in prompts for prompt in row])
        texts, labelled = texts.reshape(len(prompts), len(source.class_names), -1), labels >= 0
        result = recognition(zero_shot(video[labelled], texts, "probabilities"), labels[labelled])
        return {"top1": result.top1, "top5": result.top5}

    def retrieve(variables: dict[str, Any], video: np.ndarray, captions: Sequence[Any], step: int) -> dict[str, float]:
        owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
        texts = embed_texts(variables, [text for each in captions for text in each])
        result = retrieval(video, texts, owner)
        if is_main_process():
            from vidjax.visualize.similarity import save_similarity  # imports Matplotlib

            first = np.unique(owner, return_index=True)[1][:SHOWN]
            names = [captions[i][0] for i in range(len(first))]
            path = run.workdir / "similarity" / f"step_{step:07d}.png"
            path.parent.mkdir(exist_ok=True)
            save_similarity(path, texts[first] @ video[: len(first)].T, names)
        recalls = {"text_to_video_r1": result.text_to_video.r1, "video_to_text_r1": result.video_to_text.r1}
        return {**recalls, "score": sum(recalls.values()) / 2}

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params, **state.model_state}
        batches = run.validation_batches(view_counts=(1, 1))
        video, labels, index, valid = embed_clips(variables, batches)
        video, labels, index = video[valid, 0], labels[valid], index[valid]
        metrics = recognize(variables, video, labels) if prompts else {}
        if templates is not None:
            return metrics | {"score": metrics["top1"]}
        return metrics | retrieve(variables, video, [source.captions(int(i)) for i in index], step)

    return validate


def probe_labels(run: Run, trained: Any, count: int) -> dict[str, float]:
    """Linear probe and kNN accuracy of the encoder, trained and untrained, on the labels of the training source.

    Features are the mean and the std of the tokens: the mean alone hides small moving objects.

    Args:
      trained: trained parameters.
      count: number of clips; one half is for fitting, the other for scoring.

    Returns:
      `trained`, `trained_knn`, `untrained`, `untrained_knn` and `chance`; empty without labels or with too few clips.
    """
    from vidjax.data.batches import select

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
    # The untrained parameters are initialised again: a copy would occupy memory during the whole training.
    for name, params_of in (("trained", lambda: trained), ("untrained", lambda: run.new_variables()["params"])):
        batches = select(run.evaluation_batches(source, indices=chosen), "video", "label", "valid")
        batches = (put_batch(batch, run.mesh) for batch in batches)
        features, labels = collect_features(partial(encode, params_of()), batches)
        half = len(labels) // 2
        halves = features[:half], labels[:half], features[half:], labels[half:], classes
        accuracy |= {name: linear_probe(*halves), f"{name}_knn": knn_accuracy(*halves)}
    return accuracy | {"chance": 1 / classes}
