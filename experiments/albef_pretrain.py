"""Pre-train ALBEF (Li et al. 2021, arXiv:2107.07651) on captioned images or videos.

Three losses: contrast of image and text embeddings, whether an image and a text match, and masked words. A momentum
copy of the parameters, the run's moving average, gives soft targets and keys, of which queues keep the last ones.

A tiny model on rendered videos, minutes on a laptop: python experiments/albef_pretrain.py

ALBEF-B, from the weights of DeiT and BERT: python experiments/albef_pretrain.py albef_base \
    --init_video_from deit_base_patch16_224.pth --init_text_from google-bert/bert-base-uncased \
    --tokenizer google-bert/bert-base-uncased --mask_token 103 --data.source captions.jsonl

Running the same command again resumes the run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import recipes.albef_pretrain
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.errors import UserError
from vidjax.fields import require_not_negative
from vidjax.models import create_model, example_inputs
from vidjax.models.albef import Albef
from vidjax.objectives import contrastive, language_modeling, matching
from vidjax.runs.config import CaptionedConfig
from vidjax.runs.pairs import CaptionCounter, start_towers
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.validation import pair_validator
from vidjax.runs.video_text import keep_tokenizer, load_tokenizer
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux


@dataclasses.dataclass(frozen=True)
class Config(CaptionedConfig):
    """A pre-training run of ALBEF."""

    model: str = "albef_base"
    """albef_tiny or albef_base."""
    queue_size: int | None = None
    """Earlier embeddings that new ones are compared with, a multiple of the batch (default: the model's)."""
    mask_token: int | None = None
    """Id of the tokeniser's mask token, 103 in BERT's (default: a new one after the tokeniser's)."""
    mask_ratio: float = 0.15
    """Fraction of words that are masked."""
    alpha: float = 0.4
    """Weight of the momentum model's predictions in the targets of contrast and of masked words."""
    alpha_epochs: float = 1.0
    """Epochs over which this weight grows from 0."""
    workdir: str = "runs/albef_pretrain"
    ema_decay: float | None = 0.995
    optim: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, warmup_epochs=1, beta2=0.999, weight_decay=0.02)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "mask_token", "alpha", "alpha_epochs", "mask_ratio")
        if self.ema_decay is None:
            raise UserError("ema_decay is None: the momentum model is a moving average, give its decay")
        if max(self.alpha, self.mask_ratio) > 1:
            raise UserError(f"alpha is {self.alpha} and mask_ratio {self.mask_ratio}: both are at most 1")
        self.refuse_repeats("ALBEF")


RECIPES = {name: Config(**values) for name, values in recipes.albef_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, tokenizer: Any) -> Albef:
    """The model for these clips and this tokeniser."""
    text = {"vocabulary": tokenizer.vocabulary + (config.mask_token is None)}
    text |= {} if config.context is None else {"context": config.context}
    fields = {"num_frames": config.data.frames, "image_size": config.data.size, "text": text}
    fields |= {} if config.queue_size is None else {"queue_size": config.queue_size}
    model = create_model(config.model, **fields, **runs.computing_fields(config, config.model))
    if not isinstance(model, Albef):
        raise UserError(f"model {config.model} is not an ALBEF: choose albef_tiny or albef_base")
    if model.queue_size % config.batch_size:
        raise UserError(f"a batch of {config.batch_size} does not divide the queue of {model.queue_size}: change one")
    if config.mask_token is not None and config.mask_token >= tokenizer.vocabulary:
        raise UserError(f"mask_token is {config.mask_token}, the tokenizer has {tokenizer.vocabulary} ids: omit it")
    return model.clone(card=runs.trained_card(model.card, config.data))


def make_loss(config: Config, model: Albef, alpha_steps: float) -> Callable:
    """The loss function: contrast, matching and masked words.

    Args:
      alpha_steps: number of steps over which the weight of the soft targets grows.
    """
    mask_token = model.text.vocabulary - 1 if config.mask_token is None else config.mask_token

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys, ids, valid = jax.random.split(key, 8), batch["ids"], batch["valid"]
        clips, queue = model.card.preprocess(batch["video"]), aux.model_state["queue"]
        frozen = jax.lax.stop_gradient(aux.ema)
        alpha = config.alpha * jnp.minimum(1.0, aux.step / jnp.maximum(alpha_steps, 1))

        def apply(params: Any, method: str, key: jax.Array, *inputs: jax.Array) -> Any:
            return model.apply(
                {"params": params}, *inputs, True, method=method, rngs={"dropout": key, "drop_path": key}
            )

        video, seen, text, read = apply(params, "align", keys[0], clips, ids)
        video_keys, seen_by_copy, text_keys, _ = apply(frozen, "align", keys[1], clips, ids)
        contrast = (contrastive.clamp_temperature(params["temperature"]), alpha, valid)
        to_text, text_logits = contrastive.momentum_info_nce(
            video, video_keys, text_keys, queue["text_keys"], *contrast
        )
        to_video, video_logits = contrastive.momentum_info_nce(
            text, text_keys, video_keys, queue["video_keys"], *contrast
        )

        other_video, has_video = matching.hard_negatives(keys[2], video_logits, valid)
        other_text, has_text = matching.hard_negatives(keys[3], text_logits, valid)
        texts = (jnp.concatenate([x, x, x[other_text]]) for x in (read, ids))
        match = apply(params, "match", keys[4], *texts, jnp.concatenate([seen, seen[other_video], seen]))
        counted = jnp.concatenate([valid, valid & has_video, valid & has_text])
        itm = matching.matching_loss(match, jnp.arange(len(match)) < len(ids), counted)

        masked, chosen = language_modeling.mask_words(
            keys[5], ids, mask_token, model.text.vocabulary, config.mask_ratio
        )
        words = apply(params, "words", keys[6], masked, seen)
        words_of_copy = apply(frozen, "words", keys[7], masked, seen_by_copy)
        mlm = language_modeling.masked_word_loss(words, words_of_copy, ids, chosen & valid[:, None], alpha)

        itc = (to_text + to_video) / 2
        queue = {
            "video_keys": contrastive.enqueue(queue["video_keys"], queue["position"], video_keys, valid),
            "text_keys": contrastive.enqueue(queue["text_keys"], queue["position"], text_keys, valid),
            "position": (queue["position"] + len(ids)) % model.queue_size,
        }
        metrics = {"itc_loss": itc, "itm_loss": itm, "mlm_loss": mlm, "temperature": contrast[0], "alpha": alpha}
        return itc + itm + mlm, ({**aux.model_state, "queue": queue}, metrics)

    return loss_fn


def summarize(run: Run, result: FitResult, captions: list[str]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, last = [], next(reversed(run.evaluations().values()), {})
    if "score" in last:
        lines.append(f"retrieval R@1 of the momentum model, mean of both directions: {last['score']:.1%}")
    advice = {"in your own code": f"model, variables = vidjax.load_pretrained({str(run.workdir)!r})"}
    return run.finish(result, "evaluation/score", lines + captions, advice) | last


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the validation metrics, or the memory of a dry run."""
    run = Run(config, mesh)
    tokenizer = load_tokenizer(config.tokenizer)
    model = make_model(config, tokenizer)
    context = model.text.context
    source, validation = open_captioned(config.data, config.seed, config.batch_size)
    run.plan(source=source, validation=validation)
    loss_fn = make_loss(config, model, config.alpha_epochs * len(source) / config.batch_size)
    run.build(model, example_inputs(model), loss_fn, numbers={"ids": (context,)})
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if not run.has_begun and config.init_from:
        variables, _ = runs.start_from(config.init_from, model, variables)
    elif not run.has_begun:
        variables = start_towers(model, variables, config.init_video_from, config.init_text_from)
    state = run.begin(variables)
    del variables  # the state has its own copy
    if is_main_process():
        keep_tokenizer(config.tokenizer, run.workdir)
    run.announce(text=f"{tokenizer.name}: {context} tokens per caption", queue=f"{model.queue_size:,} embeddings")
    captions = CaptionCounter(context)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in run.batches(first, tokenizer=tokenizer, context=context):
            captions.count(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "valid")}

    result = run.fit(state, batches_from, pair_validator(run, tokenizer) if validation else None, best="score")
    return summarize(run, result, captions.describe()) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
