"""Train a Moment-DETR (Lei et al. 2021, arXiv:2107.09609): when does a video show what a sentence says?

A tiny model on rendered videos, minutes on a laptop: python experiments/ground.py
(it trains an encoder and a text tower on trimmed clips first, and writes the features of untrimmed videos)

On features of an encoder, from embed.py --window 16 --stride 8 --out features, and sentences in QVHighlights',
Charades-STA's or ActivityNet Captions' form, whose features are those of the text tower of --text:
python experiments/ground.py --data.features features --data.train train.jsonl --data.validation val.jsonl \
    --text runs/c --workdir runs/moments

A published recipe: python experiments/ground.py qvhighlights --data.features slowfast_features clip_features \
    --data.text_features clip_text_features --data.train train.jsonl --data.validation val.jsonl

Running the same command again resumes the run. Then ground_predict.py asks a video file a sentence.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import recipes.ground
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.data.moments import SHAPES, MomentConfig, MomentSource, open_moments
from vidjax.errors import UserError
from vidjax.fields import require_positive
from vidjax.models.moment_detr import RETRIEVERS
from vidjax.objectives import moments as objective
from vidjax.runs import grounding, queries
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.untrimmed import make_demo_features
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run of moment retrieval and highlight detection."""

    model: str = "moment_detr_clip"
    """moment_detr_slowfast_clip, moment_detr_clip or moment_detr_tiny."""
    channels: int | None = None
    """Width that the features of all encoders must have together (default: that of the files)."""
    text_channels: int | None = None
    """Width that the features of the words must have (default: theirs)."""
    max_length: int = 75
    """Steps to which videos are padded; longer ones are stretched to it."""
    words: int | None = None
    """Words, or tokens, at which sentences are cut (default: the model's)."""
    align: int | None = None
    """Width of the projections that align moments with words by contrast (default: no alignment)."""
    rounded: bool = False
    """Round the times that are found to multiples of the stride of the features, as for QVHighlights."""
    text: str | None = None
    """A run or a published checkpoint whose text tower makes the features of sentences; the demo makes its own."""
    tokenizer: str | None = None
    """Its tokenizer, if neither the run nor the checkpoint contains one."""
    data: MomentConfig = MomentConfig()
    """The features and the sentences with their moments."""
    workdir: str = "runs/ground"
    batch_size: int = 32
    epochs: float = 200
    optim: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "channels", "text_channels", "max_length", "words", "align")
        if self.model not in RETRIEVERS:
            raise UserError(f"there is no model of moments '{self.model}': choose one of {', '.join(RETRIEVERS)}")
        if self.text is not None and self.data.text_features is not None:
            raise UserError("the sentences have features of text and of data.text_features: give one of them")


RECIPES = {name: Config(**values) for name, values in recipes.ground.RECIPES.items()}
DATA_FLAG = "--data.features"


def make_model(config: Config, source: MomentSource, text_channels: int) -> nn.Module:
    """The model for these features."""
    channels = sum(source.widths)
    for name, wanted, given in (("channels", config.channels, channels), ("text", config.text_channels, text_channels)):
        if wanted not in (None, given):
            raise UserError(f"the features have {given} {name}, the recipe is for {wanted}: give others, or a recipe")
    fields = {"video_channels": channels + 2, "text_channels": text_channels, "align": config.align}
    fields |= {} if config.words is None else {"words": config.words}
    return RETRIEVERS[config.model](dtype=runs.computing_type(config.dtype), **fields)


def make_loss(config: Config, model: nn.Module) -> Callable:
    """The loss function: spans and classes of matched queries after each layer, and the ranking of steps."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        inputs = batch["video"], batch["text"], batch["steps"], batch["words"]
        outputs = model.apply({"params": params}, *inputs, train=True, rngs={"dropout": key})
        outputs = jax.tree.map(lambda x: x.astype(jnp.float32), outputs)
        saliency = objective.rank_saliency(outputs.saliency, batch["positive"], batch["negative"])
        loss, annotated = saliency, batch["annotated"] & batch["valid"][:, None]
        for layer, (logits, spans) in enumerate(zip(outputs.logits, outputs.spans, strict=True)):
            query, matched = objective.match(logits, spans, batch["spans"], annotated)
            losses = objective.losses(logits, spans, batch["spans"], query, matched)
            loss += losses.total()
            if config.align is not None:
                taken = objective.is_taken(query, matched, logits.shape[1])
                loss += objective.ALIGN * objective.align(outputs.queries[layer], outputs.words, taken)
        metrics = {"span_loss": losses.span, "iou_loss": losses.iou, "class_loss": losses.label}
        return loss, ({}, metrics | {"saliency_loss": saliency})

    return loss_fn


def summarize(run: Run, result: FitResult) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, numbers = grounding.describe_evaluations(run.evaluations())
    advice = {"asking a video": f'python experiments/ground_predict.py VIDEO "a sentence" --run {run.workdir}'}
    curves = ["evaluation/r1_50"] if numbers else []
    return run.finish(result, "evaluation/average_map", lines, advice, curves) | numbers


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the best evaluation, or the memory of a dry run."""
    if config.data.train == SHAPES and not config.data.features:
        towers, place = recipes.ground.TOWERS, Path(__file__).parent
        made = make_demo_features(towers, place, config.workdir, config.seed, "ground.py")
        data, text = dataclasses.replace(config.data, features=(made,)), config.text or f"{config.workdir}/towers"
        config = dataclasses.replace(config, data=data, text=text)
    run, data, length = Run(config, mesh), config.data, config.max_length
    source, validation = open_moments(data)
    sources = [each for each in (source, validation) if each]
    tower = None
    if data.text_features is not None:
        texts = queries.published_features(data.text_features, sources)
    elif config.text is None:
        raise UserError(
            "nothing makes features of the sentences: give --text, a model with a text tower, a run or a file"
        )
    else:
        texts = tower = queries.open_tower(config.text, config.tokenizer)
    run.plan(train=source, validation=validation)
    model = make_model(config, source, texts.channels)
    example = grounding.example_arrays(model, length)
    run.build(model, model.example_inputs(), make_loss(config, model), example=example)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        loaded, _ = runs.start_from(config.init_from, model, {"params": variables["params"]})
        variables |= loaded
    state = run.begin(variables)
    grounding.keep_descriptions(data.features, run.workdir)
    del variables  # the state has its own copy
    if tower is not None:
        texts = queries.tower_features(tower, run.workdir, sources)
    run.announce(
        data=f"about {len(source.files):,} videos; {sum(source.widths):,} channels, at most {length} steps",
        text=f"{texts.channels} channels, at most {model.words} words; {run.describe_validation()}",
    )

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        order = {"batch_size": config.batch_size, "seed": config.seed, "first": first}
        return grounding.train_batches(source, texts, model, length, **order)

    settings = {"length": length, "rounded": config.rounded, "mesh": mesh, "batch_size": config.batch_size}
    evaluate = validation and grounding.moment_validator(validation, texts, model, **settings)
    result = run.fit(state, batches_from, evaluate, best="average_map")
    if result.finished and validation:
        grounding.save_examples(run, validation, texts, result.state)
    return summarize(run, result) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
