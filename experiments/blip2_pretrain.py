"""Pre-train BLIP-2 (Li et al. 2023, arXiv:2301.12597) on captioned images or videos, stage by stage.

1: a Q-Former on a frozen encoder, by contrast, matching with hard negatives, and captions. 2: what its queries see, in
front of captions, for a frozen language model. `language` trains a small language model on the captions alone.

All three on rendered videos, with the encoder of the first command:
python experiments/finetune.py demo_attributes
python experiments/blip2_pretrain.py

On one's own captions, from published weights (untried at this size):
python experiments/blip2_pretrain.py blip2_stage1 --video_model vit_large_16 --data.source captions.jsonl \
    --init_video_from google/vit-large-patch16-224 --tokenizer google-bert/bert-base-uncased --workdir runs/stage1
python experiments/blip2_pretrain.py blip2_stage2 --init_from runs/stage1 --init_language_from facebook/opt-2.7b \
    --tokenizer facebook/opt-2.7b --data.source captions.jsonl --workdir runs/stage2

Running the same command again resumes the run.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import recipes.blip2_pretrain
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.data.config import CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.fields import initial, require_positive
from vidjax.models import example_inputs
from vidjax.runs import blip2
from vidjax.runs.captions import caption_validator
from vidjax.runs.config import TrainConfig
from vidjax.runs.frozen import FrozenParts, FrozenType
from vidjax.runs.pairs import CaptionCounter, start_towers
from vidjax.runs.preferences import Attribute
from vidjax.runs.run import Run
from vidjax.runs.sources import open_captioned
from vidjax.runs.video_text import load_tokenizer
from vidjax.runs.workdir import keep_tokenizer
from vidjax.training.loop import FitResult
from vidjax.training.sharding import is_main_process


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A stage of BLIP-2, or all of them."""

    stage: Literal["all", "language", "1", "2"] = "1"
    """1: Q-Former; 2: prompts for a language model; language: a small one; all: these in order, below the workdir."""
    model: str = "blip2_giant"
    """The first stage, such as blip2_giant, whose run the second follows from; of stage 2 only in a dry run without."""
    video_model: str | None = None
    """A video model instead of the image tower, which sees each frame alone: one of vidjax.list_models()."""
    language_model: str = "opt_tiny"
    """What stage language trains: opt_tiny, gpt2_tiny, t5_tiny or a larger one."""
    init_video_from: str | None = initial(None)
    """The frozen encoder of stage 1: another run or a published checkpoint of its family."""
    init_language_from: str | None = initial(None)
    """The frozen language model of stage 2: a run of stage language, or a published OPT, GPT-2 or T5."""
    frozen_type: FrozenType = "auto"
    """How frozen kernels and tables are kept: auto is bfloat16 on accelerators, float32 on a CPU; int8 with scales."""
    tokenizer: str = "bytes"
    """bytes, CLIP's vocabulary (file or directory), or any tokenizer.json; in stage 2 the language model's."""
    context: int = 32
    """Tokens per caption, with start and end; longer captions are truncated."""
    caption_examples: int = 64
    """Validation videos that are described at every evaluation of stage 2."""
    attributes: tuple[str, ...] = ()
    """What captions name by one of several phrases, as NAME=PHRASE|PHRASE: evaluated in stage 2."""
    data: CaptionedDataConfig = CaptionedDataConfig()
    """The videos and their captions."""
    workdir: str = "runs/blip2_pretrain"
    batch_size: int = 256
    epochs: float = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "caption_examples")
        if self.batch_size < 2 or self.data.repeats > 1:
            raise UserError("batch_size must be 2 or more and data.repeats 1: stage 1 contrasts different videos")
        if self.context < 3:
            raise UserError(f"context is {self.context}: it must be 3 or more, for a start, a token and an end")
        if self.optim.layer_decay != 1:
            raise UserError("optim.layer_decay is not supported with several towers: omit it")
        if self.sequence > 1 or self.distributed:
            raise UserError("sequence and distributed are not supported: queries see all tokens, in one process")
        if self.stage == "all" and (self.dry_run or self.init_from or self.init_language_from):
            raise UserError("stage all trains what it starts from: omit dry_run and init_from, or give one --stage")


RECIPES = {name: Config(**values) for name, values in recipes.blip2_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def summarize(run: Run, result: FitResult, captions: list[str]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    last, lines = next(reversed(run.evaluations().values()), {}), []
    if "itm_accuracy" in last:
        ways = (f"{way.replace('_', ' ')} {last[f'{way}_r1']:.1%}" for way in ("text_to_video", "video_to_text"))
        lines = ["R@1       " + ", ".join(ways), f"matching  {last['itm_accuracy']:.1%} of pairs are told apart"]
    if "caption_exact" in last:
        named = "".join(f", {name} {share:.1%}" for name, share in last.items() if not name.startswith("caption"))
        exact = f"{last['caption_exact']:.1%} equal one of the video's own, CIDEr-D {last.get('caption_cider', 0):.2f}"
        lines = [f"captions  {exact}{named}; see {run.workdir}/captions"]
    elif "caption_loss" in last:
        lines.append(f"words     {last['caption_loss']:.3f} nats each")
    script = "python experiments/blip2_pretrain.py"
    advice = {
        "language": {"stage 2": f"{script} videos --stage 2 --init_language_from {run.workdir} --init_from STAGE_1"},
        "1": {"stage 2": f"{script} videos --stage 2 --init_from {run.workdir} --init_language_from MODEL"},
        "2": {"captions of your videos": f"python experiments/caption.py --run {run.workdir} VIDEOS"},
    }[run.config.stage]
    plotted = "evaluation/caption_exact" if run.config.stage == "2" else "evaluation/caption_loss"
    curves = ("itc_loss", "itm_loss", "lm_loss", "evaluation/score") if run.config.stage == "1" else ()
    return run.finish(result, plotted, lines + captions, advice, curves) | last


def train(config: Config, mesh: Mesh) -> dict[str, float]:
    """Trains one stage."""
    run, tokenizer = Run(config, mesh), blip2.ending(load_tokenizer(config.tokenizer))
    source, validation = open_captioned(config.data, config.seed, config.batch_size if config.stage == "1" else 0)
    run.plan(source=source, validation=validation)
    context, given = config.context, {}
    settings: dict[str, Any] = {"numbers": {"ids": (context,)}}
    if config.stage == "language":
        model = blip2.make_language(config, tokenizer)
        loss_fn, settings = blip2.language_loss(model, tokenizer), {"example": blip2.caption_example(model, context)}
    elif config.stage == "1":
        model = blip2.make_first(config, tokenizer)
        loss_fn = blip2.first_loss(model)
    else:
        model, given = blip2.load_second(config, tokenizer)
        loss_fn = blip2.second_loss(model, tokenizer)
    if config.stage != "language":
        model = model.clone(card=runs.trained_card(model.card, config.data))
        settings["adapt"] = FrozenParts(model.frozen_parts, config.frozen_type, model.dtype)
    run.build(model, example_inputs(model), loss_fn, **settings)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if run.has_begun:
        variables = blip2.with_frozen(run, variables)
    elif config.stage == "2":
        variables = blip2.fill(variables, given)
    elif config.init_from:
        variables, _ = runs.start_from(config.init_from, model, variables)
    elif config.stage == "1":
        blip2.require_encoder(config.init_video_from, model)
        variables = start_towers(model, variables, config.init_video_from, None)
    state = run.begin(variables)
    del variables, given  # the state has its own copy
    if is_main_process():
        keep_tokenizer(config.tokenizer, run.workdir)
    kind = {"data": "captions alone"} if config.stage == "language" else {}
    run.announce(stage=config.stage, text=f"{tokenizer.name}: {context} tokens per caption", **kind)
    captions, evaluate = CaptionCounter(context), None
    attributes = [Attribute.read(text, tokenizer) for text in config.attributes]
    if validation and config.stage == "language":
        evaluate = blip2.language_validator(run, tokenizer, context, validation)
    elif validation and config.stage == "1":
        evaluate = blip2.first_validator(run, tokenizer, context)
    elif validation:
        evaluate = caption_validator(run, tokenizer, config.caption_examples, attributes)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        if config.stage == "language":
            yield from blip2.caption_batches(run, tokenizer, context, first)
        for batch in run.batches(first, tokenizer=tokenizer, context=context):
            captions.count(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "valid")}

    best = {"language": None, "1": "score", "2": "caption_exact"}[config.stage]
    result = run.fit(state, batches_from, evaluate, best=best)
    return summarize(run, result, captions.describe()) if result.finished and is_main_process() else {}


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the validation metrics, or the memory of a dry run."""
    if config.stage != "all":
        return train(config, mesh)
    language, first, second = (str(Path(config.workdir) / name) for name in ("language", "stage1", "stage2"))
    start = {"init_video_from": None}
    stages = {"language": (language, start), "1": (first, {}), "2": (second, start | {
        "init_from": first, "init_language_from": language})}  # fmt: skip
    numbers: dict[str, float] = {}
    for stage, (workdir, fields) in stages.items():
        numbers = train(dataclasses.replace(config, stage=stage, workdir=workdir, **fields), mesh)
        if not numbers:  # stopped
            break
    return numbers


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
