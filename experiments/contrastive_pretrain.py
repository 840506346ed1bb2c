"""Pre-train a video and a text tower together on captioned videos (CLIP, arXiv:2103.00020; ActionCLIP, 2109.08472).

Tiny towers on rendered videos, minutes on a laptop: python experiments/contrastive_pretrain.py

Any video model of the library with a text tower of CLIP's size, from scratch:
python experiments/contrastive_pretrain.py --video_model vivit_base_16x2_factorized_encoder --text_model clip_base \
    --tokenizer bpe_simple_vocab_16e6.txt.gz --data.source captions.jsonl --workdir runs/c

ActionCLIP on labelled videos, from CLIP's weights: python experiments/contrastive_pretrain.py actionclip_base_16_k400 \
    --init_from openai/clip-vit-base-patch16 --tokenizer openai/clip-vit-base-patch16 --data.source k400.csv

InternVideo's towers, from CLIP's weights: python experiments/contrastive_pretrain.py internvideo_base \
    --init_from openai/clip-vit-base-patch16 --tokenizer openai/clip-vit-base-patch16 --data.source captions.jsonl

Running the same command again resumes the run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import recipes.contrastive_pretrain
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.errors import UserError
from vidjax.layers.normalization import valid_clips
from vidjax.models import example_inputs
from vidjax.models.video_text import VideoText
from vidjax.objectives import contrastive
from vidjax.runs.pairs import CaptionCounter, PairConfig, make_pair, start_pair, trained_mask
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.validation import pair_validator
from vidjax.runs.video_text import load_tokenizer
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux


@dataclasses.dataclass(frozen=True)
class Config(PairConfig):
    """A contrastive pre-training run."""

    freeze: Literal["none", "video", "text"] = "none"
    """Tower whose parameters are not trained."""
    objective: Literal["info_nce", "sigmoid", "kl", "kl_normalized"] = "info_nce"
    """CLIP's, SigLIP's, or ActionCLIP's for labels as in its code (targets softmax(10 gt)) or its paper (gt / sum)."""
    head_factor: float = 1.0
    """Learning rate factor of ActionCLIP's temporal head."""
    workdir: str = "runs/contrastive_pretrain"
    optim: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, final_learning_rate=1e-7, warmup_epochs=1, beta2=0.98, weight_decay=0.2
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objective.startswith("kl"):
            self.refuse_repeats(self.objective)
        elif self.data.templates is None:
            raise UserError(f"objective {self.objective} compares labels: give --data.templates, such as actionclip")


RECIPES = {name: Config(**values) for name, values in recipes.contrastive_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, tokenizer: Any) -> VideoText:
    """The model for these clips and this tokeniser."""
    fields = runs.computing_fields(config, config.video_model)
    fields |= {"num_frames": config.data.frames, "image_size": config.data.size, "features": config.features}
    fields |= {"context": config.context, "bias": -10.0 if config.objective == "sigmoid" else None}
    model = make_pair(config.video_model, config.text_model, tokenizer, **fields)
    return model.clone(card=runs.trained_card(model.card, config.data))


def make_loss(config: Config, model: VideoText) -> Callable:
    """The loss function: the contrastive objective of the config."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
        if config.freeze != "none":
            params = params | {config.freeze: jax.lax.stop_gradient(params[config.freeze])}
        apply = partial(model.apply, {"params": params, **aux.model_state}, rngs=keys)
        clips, mutable, valid = model.card.preprocess(batch["video"]), list(aux.model_state), batch["valid"]
        with valid_clips(valid):
            video, changed = apply(clips, config.freeze != "video", method="embed_video", mutable=mutable)
        text = apply(batch["ids"], config.freeze != "text", method="embed_text")
        scale, settings = contrastive.clamp_scale(params["logit_scale"]), {"valid": valid, "chunk": config.chunk}
        if config.objective == "info_nce":
            loss = contrastive.info_nce(video, text, scale, **settings)
        elif config.objective == "sigmoid":
            loss = contrastive.sigmoid(video, text, scale, params["logit_bias"], **settings)
        else:
            settings["normalized"] = config.objective == "kl_normalized"
            loss = contrastive.multi_positive_kl(video, text, scale, batch["label"], **settings)
        return loss, ({**aux.model_state, **changed}, {"logit_scale": scale})

    return loss_fn


def summarize(run: Run, result: FitResult, captions: list[str]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, last = [], next(reversed(run.evaluations().values()), {})
    if "text_to_video_r1" in last:
        recalls = f"text to video {last['text_to_video_r1']:.1%}, video to text {last['video_to_text_r1']:.1%}"
        lines.append(f"retrieval R@1: {recalls}")
    if "top1" in last:
        lines.append(f"zero-shot top-1 {last['top1']:.1%}, top-5 {last['top5']:.1%} on the validation videos")
    advice = {
        "zero-shot classification": f"python experiments/zero_shot.py --run {run.workdir} --data.source VIDEOS",
        "text-to-video retrieval": f"python experiments/retrieve.py --run {run.workdir} --data.source VIDEOS",
        "in your own code": f"model, variables = vidjax.load_pretrained({str(run.workdir)!r})",
    }
    return run.finish(result, "evaluation/score", lines + captions, advice) | last


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the validation metrics, or the memory of a dry run."""
    run, tokenizer = Run(config, mesh), load_tokenizer(config.tokenizer)
    model = make_model(config, tokenizer)
    distinct = 0 if config.objective.startswith("kl") else config.batch_size
    source, validation = open_captioned(config.data, config.seed, distinct)
    run.plan(source=source, validation=validation)
    inputs = example_inputs(model)
    settings = {"trained": trained_mask(config.freeze, model), "factors": {"video/temporal/": config.head_factor}}
    numbers = {"ids": (model.text.context,), "label": ()}
    run.build(model, inputs, make_loss(config, model), **settings, numbers=numbers)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if not run.has_begun:
        variables = start_pair(model, variables, config.init_from, config.init_video_from, config.init_text_from)
    state = run.begin(variables)
    del variables  # the state has its own copy
    if is_main_process():
        keep_tokenizer(config.tokenizer, run.workdir)
    context = f"{tokenizer.vocabulary:,} ids, {model.text.context} tokens per caption"
    run.announce(
        text=f"{tokenizer.name}: {context}; first caption: {source.captions(0)[0]!r}",
        train="both towers" if config.freeze == "none" else f"all but the {config.freeze} tower",
        objective=f"{config.objective}; {run.describe_validation()}",
    )
    captions = CaptionCounter(model.text.context)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in run.batches(first, tokenizer=tokenizer, context=model.text.context):
            captions.count(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "label", "valid")}

    result = run.fit(state, batches_from, pair_validator(run, tokenizer) if validation else None, best="score")
    return summarize(run, result, captions.describe()) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
