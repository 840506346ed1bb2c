"""Pre-train ALBEF (Li et al. 2021, arXiv:2107.07651) or BLIP (2022, arXiv:2201.12086) on captioned images or videos.

Objectives by name: contrast of video and text embeddings (itc), whether a video and a text match (itm), masked words
(mlm, ALBEF) and captions (lm, BLIP). A momentum copy of the parameters, the run's moving average, gives soft targets
and keys, of which queues keep the last ones.

A tiny BLIP on rendered videos: python experiments/vision_language_pretrain.py
A tiny ALBEF: python experiments/vision_language_pretrain.py demo_albef

ALBEF-B, from the weights of DeiT and BERT: python experiments/vision_language_pretrain.py albef_base \
    --init_video_from deit_base_patch16_224.pth --init_text_from google-bert/bert-base-uncased \
    --tokenizer google-bert/bert-base-uncased --mask_token 103 --data.source captions.jsonl

BLIP on videos, from its published weights: python experiments/vision_language_pretrain.py blip_base \
    --init_from model_base.pth --tokenizer google-bert/bert-base-uncased --data.source captions.jsonl --data.frames 8

Running the same command again resumes the run.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import recipes.vision_language_pretrain
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.errors import UserError
from vidjax.fields import require_not_negative, require_positive
from vidjax.models import create_model, example_inputs
from vidjax.models.albef import Albef
from vidjax.models.aligned import Joining
from vidjax.models.blip import Blip
from vidjax.runs.captions import caption_validator
from vidjax.runs.config import CaptionedConfig
from vidjax.runs.matching import match_validator
from vidjax.runs.pairs import CaptionCounter, start_towers, trained_mask
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.validation import pair_validator
from vidjax.runs.video_text import load_tokenizer
from vidjax.runs.vision_language import Objective, check_model, check_objectives, make_loss, video_tokens
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Config(CaptionedConfig):
    """A pre-training run of ALBEF or BLIP."""

    model: str = "albef_base"
    """albef_* for itc, itm and mlm, or blip_* for itc, itm and lm."""
    objectives: tuple[Objective, ...] = ("itc", "itm", "mlm")
    """Contrast, matching, and masked words or captions; their losses are added."""
    video_model: str | None = None
    """A video model instead of the image tower, which sees each frame alone: one of vidjax.list_models()."""
    frame_tokens: Joining = "concatenated"
    """What texts attend to: the tokens of all frames, their mean over the frames, or the mean token of each frame."""
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
    matched_examples: int = 64
    """Validation videos whose captions are told apart at every evaluation (itm)."""
    candidates: int = 16
    """Nearest ones among them that matching ranks again."""
    caption_examples: int = 64
    """Validation videos that are described at every evaluation (lm)."""
    workdir: str = "runs/vision_language_pretrain"
    ema_decay: float | None = 0.995
    optim: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, warmup_epochs=1, beta2=0.999, weight_decay=0.02)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "mask_token", "alpha", "alpha_epochs", "mask_ratio")
        require_positive(self, "matched_examples", "candidates", "caption_examples", "queue_size")
        check_objectives(self.objectives)
        if self.ema_decay is None:
            raise UserError("ema_decay is None: the momentum model is a moving average, give its decay")
        if max(self.alpha, self.mask_ratio) > 1:
            raise UserError(f"alpha is {self.alpha} and mask_ratio {self.mask_ratio}: both are at most 1")
        self.refuse_repeats("the contrastive loss")


RECIPES = {name: Config(**values) for name, values in recipes.vision_language_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, tokenizer: Any) -> Albef | Blip:
    """The model for these clips and this tokeniser."""
    clips = {"num_frames": config.data.frames, "image_size": config.data.size}
    model = create_model(config.model, **clips, **runs.computing_fields(config, config.model))
    check_model(config.model, model, config.objectives)
    added = 2 if isinstance(model, Blip) else int(config.mask_token is None)  # [DEC] and [ENC], or a mask token
    given = {"context": config.context, "queue_size": config.queue_size}
    given = {name: value for name, value in given.items() if value is not None}
    text = model.text.clone(vocabulary=tokenizer.vocabulary + added, context=given.pop("context", model.text.context))
    model = model.clone(text=text, frame_tokens=config.frame_tokens, **given)
    if config.video_model:
        video = video_tokens(config.video_model, **clips, **runs.computing_fields(config, config.video_model))
        model = model.clone(video=video, card=video.tower.card)
    if model.queue_size % config.batch_size:
        raise UserError(f"a batch of {config.batch_size} does not divide the queue of {model.queue_size}: change one")
    if config.mask_token is not None and config.mask_token >= tokenizer.vocabulary:
        raise UserError(f"mask_token is {config.mask_token}, the tokenizer has {tokenizer.vocabulary} ids: omit it")
    return model.clone(card=runs.trained_card(model.card, config.data))


def make_validator(config: Config, run: Run, tokenizer: Any) -> Callable:
    """An evaluation of retrieval, of matching, and of captions that are written, as far as they are trained."""
    parts = [pair_validator(run, tokenizer)]
    if "itm" in config.objectives:
        parts.append(match_validator(run, tokenizer, config.matched_examples, config.candidates))
    if "lm" in config.objectives:
        parts.append(caption_validator(run, tokenizer, config.caption_examples))

    def validate(state: TrainState, step: int) -> dict[str, float]:
        return {name: value for part in parts for name, value in part(state, step).items()}

    return validate


def summarize(run: Run, result: FitResult, captions: list[str]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, last = [], next(reversed(run.evaluations().values()), {})
    if "text_to_video_r1" in last:
        ways = (f"{way.replace('_', ' ')} {last[f'{way}_r1']:.1%}" for way in ("text_to_video", "video_to_text"))
        lines.append("R@1       " + ", ".join(ways))
    if "itm_accuracy" in last:
        lines.append(
            f"matching  {last['itm_accuracy']:.1%} of pairs are told apart; R@1 among "
            f"{run.config.matched_examples} videos {last['itc_r1']:.1%}, ranked again {last['itm_r1']:.1%}"
        )
    if "caption_exact" in last:
        lines.append(f"captions  {last['caption_exact']:.1%} equal one of the video's own, see {run.workdir}/captions")
    advice = {"retrieval by text": f"python experiments/retrieve.py --run {run.workdir} --data.source VIDEOS"}
    if "itm" in run.config.objectives:
        advice["the same, ranked again by matching"] = f"{advice['retrieval by text']} --rerank 16"
    if "lm" in run.config.objectives:
        advice["captions of your videos"] = f"python experiments/caption.py --run {run.workdir} VIDEOS"
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
    steps = config.alpha_epochs * len(source) / config.batch_size
    loss_fn = make_loss(model, config.objectives, steps, config.alpha, config.mask_token, config.mask_ratio)
    trained = trained_mask("none", model)
    run.build(model, example_inputs(model), loss_fn, trained=trained, numbers={"ids": (context,)})
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
    names, queue = " + ".join(config.objectives), f"{model.queue_size:,} embeddings"
    run.announce(text=f"{tokenizer.name}: {context} tokens per caption", loss=names, queue=queue)
    captions = CaptionCounter(context)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in run.batches(first, tokenizer=tokenizer, context=context):
            captions.count(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "valid")}

    evaluate = make_validator(config, run, tokenizer) if validation else None
    result = run.fit(state, batches_from, evaluate, best="score")
    return summarize(run, result, captions.describe()) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
