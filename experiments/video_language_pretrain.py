"""Pre-train a video and a text tower by contrast, and a decoder of captions on both (InternVideo, arXiv:2212.03191).

Align, then fuse, as ALBEF does: clips and captions are compared in a joint space, and a decoder on the causal text
tower, whose blocks also attend to the tokens of the video tower, predicts each caption word by word.

Tiny towers on rendered videos, minutes on a laptop: python experiments/video_language_pretrain.py

InternVideo's recipe from CLIP's weights: python experiments/video_language_pretrain.py internvideo_base \
    --init_from openai/clip-vit-base-patch16 --tokenizer openai/clip-vit-base-patch16 --data.source captions.jsonl

After a contrastive run: --init_from runs/c. Running the same command again resumes the run.
Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import recipes.video_language_pretrain
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.fields import require_positive
from vidjax.layers.normalization import valid_clips
from vidjax.models import example_inputs
from vidjax.models.video_text import VideoText
from vidjax.objectives import contrastive
from vidjax.objectives.language_modeling import caption_loss
from vidjax.runs.captions import caption_validator
from vidjax.runs.pairs import CaptionCounter, PairConfig, make_pair, start_pair, trained_mask, with_decoder
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.validation import pair_validator
from vidjax.runs.video_text import load_tokenizer
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux, TrainState


@dataclasses.dataclass(frozen=True)
class Config(PairConfig):
    """A pre-training run with contrast and captions."""

    decoder_depth: int = 6
    """Blocks of the decoder, which has the width of the text tower."""
    decoder_factor: float = 1.0
    """Learning rate factor of the decoder and of UniFormerV2's global blocks; above 1 if the rest is pre-trained."""
    caption_examples: int = 64
    """Validation videos that are described at every evaluation."""
    workdir: str = "runs/video_language_pretrain"
    optim: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, warmup_epochs=1, beta2=0.98, weight_decay=0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "decoder_depth", "decoder_factor", "caption_examples")
        self.refuse_repeats("the contrastive loss")


NEW = ("decoder/", "video/tower/video_transformer/", "video/tower/balance")
"""Beginnings of the paths of what `decoder_factor` applies to."""
RECIPES = {name: Config(**values) for name, values in recipes.video_language_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, tokenizer: Any) -> VideoText:
    """The towers and the decoder for these clips and this tokeniser."""
    fields = runs.computing_fields(config, config.video_model)
    computing = {name: fields[name] for name in ("dtype", "remat", "scan") if name in fields}
    fields |= {"num_frames": config.data.frames, "image_size": config.data.size}
    pair = make_pair(
        config.video_model, config.text_model, tokenizer, features=config.features, context=config.context, **fields
    )
    pair = pair.clone(card=runs.trained_card(pair.card, config.data))
    return with_decoder(pair, config.decoder_depth, **computing)


def make_loss(config: Config, model: VideoText) -> Callable:
    """The loss function: the sum of InfoNCE and the cross-entropy of the captions' words."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
        apply = partial(model.apply, {"params": params, **aux.model_state}, rngs=keys)
        clips, ids, valid = model.card.preprocess(batch["video"]), batch["ids"], batch["valid"]
        with valid_clips(valid):
            aligned, changed = apply(clips, ids, True, method="align", mutable=list(aux.model_state))
        video, seen, text, read = aligned
        scale = contrastive.clamp_scale(params["logit_scale"])
        contrast = contrastive.info_nce(video, text, scale, valid=valid, chunk=config.chunk)
        words = caption_loss(apply(read, seen, True, method="words"), ids, valid)
        metrics = {"contrastive_loss": contrast, "caption_loss": words, "logit_scale": scale}
        return contrast + words, ({**aux.model_state, **changed}, metrics)

    return loss_fn


def make_validator(config: Config, run: Run, tokenizer: Any) -> Callable:
    """An evaluation of retrieval, and of captions that are written."""
    retrieve, describe = pair_validator(run, tokenizer), caption_validator(run, tokenizer, config.caption_examples)

    def validate(state: TrainState, step: int) -> dict[str, float]:
        return retrieve(state, step) | describe(state, step)

    return validate


def summarize(run: Run, result: FitResult, captions: list[str]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, last = [], next(reversed(run.evaluations().values()), {})
    if "text_to_video_r1" in last:
        directions = {"text to video": "text_to_video_r1", "video to text": "video_to_text_r1"}
        lines.append("R@1       " + ", ".join(f"{name} {last[key]:.1%}" for name, key in directions.items()))
    if "caption_exact" in last:
        lines.append(f"captions  {last['caption_exact']:.1%} equal one of the video's own, see {run.workdir}/captions")
    advice = {
        "captions of your videos": f"python experiments/caption.py --run {run.workdir} VIDEOS",
        "retrieval by text": f"python experiments/retrieve.py --run {run.workdir} --data.source VIDEOS",
    }
    return run.finish(result, "evaluation/caption_exact", lines + captions, advice) | last


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the validation metrics, or the memory of a dry run."""
    run, tokenizer = Run(config, mesh), load_tokenizer(config.tokenizer)
    model = make_model(config, tokenizer)
    context = model.text.context
    source, validation = open_captioned(config.data, config.seed, config.batch_size)
    run.plan(source=source, validation=validation)
    factors, numbers = dict.fromkeys(NEW, config.decoder_factor), {"ids": (context,)}
    settings = {"trained": trained_mask("none", model), "factors": factors, "numbers": numbers}
    run.build(model, example_inputs(model), make_loss(config, model), **settings)
    if config.dry_run:
        return run.dry_run()
    variables, sources = run.new_variables(), (config.init_from, config.init_video_from, config.init_text_from)
    if not run.has_begun:
        variables = start_pair(model, variables, *sources)
    state = run.begin(variables)
    del variables  # the state has its own copy
    if is_main_process():
        keep_tokenizer(config.tokenizer, run.workdir)
    example = f"first caption: {source.captions(0)[0]!r}"
    run.announce(text=f"{tokenizer.name}: {context} tokens per caption; {example}", loss=run.describe_validation())
    captions = CaptionCounter(context)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in run.batches(first, tokenizer=tokenizer, context=context):
            captions.count(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "valid")}

    validate = make_validator(config, run, tokenizer) if validation else None
    result = run.fit(state, batches_from, validate, best="score")
    return summarize(run, result, captions.describe()) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
