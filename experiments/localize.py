"""Train an ActionFormer (Zhang et al. 2022, arXiv:2202.07925): which actions does a long video have, and when?

A tiny model on rendered videos, minutes on a laptop: python experiments/localize.py
(it trains an encoder on trimmed clips first, and writes the features of untrimmed videos with it)

On features of an encoder, from embed.py --window 16 --stride 8 --out features, with ActivityNet's form of annotations:
python experiments/localize.py --data.features features --data.annotations actions.json --workdir runs/actions

A published recipe: python experiments/localize.py thumos_i3d --data.features i3d --data.annotations thumos14.json

With an encoder that is trained too, on short videos: python experiments/localize.py demo_end_to_end
or --encoder NAME --init_encoder_from runs/b --data.videos FOLDER --data.fps 8 --data.frames 8 --data.stride 4

Running the same command again resumes the run. Then localize_predict.py finds actions in video files.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import recipes.localize
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.data.segments import SHAPES, SegmentConfig, SegmentSource, open_segments
from vidjax.errors import UserError
from vidjax.evaluation.localization import ACTIVITYNET, THUMOS, Dialect
from vidjax.evaluation.segments import Selection
from vidjax.fields import initial, require_not_negative, require_positive
from vidjax.models.actionformer import LOCALIZERS
from vidjax.objectives import localization as objective
from vidjax.runs import localization, localizer
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.untrimmed import make_demo_features
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux

THRESHOLDS = {"thumos": THUMOS, "activitynet": ACTIVITYNET}


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run of temporal action localisation."""

    model: str = "actionformer_thumos_i3d"
    """actionformer_thumos_i3d, actionformer_anet_i3d, actionformer_anet_tsp or actionformer_tiny."""
    channels: int | None = None
    """Width that the features must have (default: that of the files)."""
    max_length: int | None = None
    """Steps to which videos are cropped or padded (default: the model's)."""
    encoder: str | None = None
    """Train this encoder too, one of vidjax.list_models(), on windows of data.videos in place of features."""
    init_encoder_from: str | None = initial(None)
    """Start the encoder from another run's work directory or from a published checkpoint of its family."""
    encoder_factor: float = 1.0
    """Factor of the encoder's learning rate."""
    data: SegmentConfig = SegmentConfig()
    """The features or videos, and the annotated segments."""
    label_smoothing: float = 0.0
    """Fraction of a label that is spread over all classes."""
    offset_weight: float = 1.0
    """Weight of the loss of starts and ends."""
    positives: float = initial(100.0)
    """Number of positive points in a batch that the running mean, by which losses are divided, starts with."""
    selection: Selection = Selection()
    """How segments are selected from the outputs."""
    thresholds: Literal["thumos", "activitynet"] = "thumos"
    """Least temporal IoU of a hit: 0.3 to 0.7, or 0.5 to 0.95."""
    dialect: Dialect = "opentad"
    """Whose evaluation program is followed where they differ."""
    workdir: str = "runs/localize"
    batch_size: int = 16
    epochs: float = 35
    optim: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "channels", "max_length", "positives")
        require_not_negative(self, "offset_weight", "encoder_factor")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if self.model not in LOCALIZERS:
            raise UserError(f"there is no localiser '{self.model}': choose one of {', '.join(LOCALIZERS)}")
        if (self.encoder is None) != (self.data.videos is None):
            raise UserError("an encoder is trained on videos: give --encoder and --data.videos, or neither")
        if self.encoder is None and self.init_encoder_from:
            raise UserError("init_encoder_from is for an encoder that is trained: give --encoder too, or omit it")


RECIPES = {name: Config(**values) for name, values in recipes.localize.RECIPES.items()}
DATA_FLAG = "--data.features or --data.videos"


def make_model(config: Config, source: SegmentSource) -> nn.Module:
    """The model for these classes and features, or videos."""
    fields = {"num_classes": len(source.class_names), "channels": source.channels or 1}
    fields |= {} if config.max_length is None else {"max_length": config.max_length}
    model = LOCALIZERS[config.model](dtype=runs.computing_type(config.dtype), **fields)
    if model.max_length % model.strides[-1]:
        raise UserError(f"max_length is {model.max_length}: it must be a multiple of {model.strides[-1]}")
    model = model.clone(card=dataclasses.replace(model.card, class_names=source.class_names))
    return localizer.join_encoder(config, model) if config.encoder else model


def make_loss(config: Config, model: nn.Module) -> Callable:
    """The loss function: focal loss of the classes, and distance IoU loss of starts and ends, at all points."""
    points = objective.points(model.max_length, model.strides)

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        rngs = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
        statistics = {kind: tree for kind, tree in aux.model_state.items() if kind != "running"}
        outputs, changed = model.apply(
            {"params": params, **statistics}, batch["inputs"], batch["length"], True, rngs=rngs, mutable=[*statistics]
        )
        logits, offsets = (jnp.concatenate(levels, axis=1).astype(jnp.float32) for levels in outputs)
        segments = batch["segments"], batch["labels"], batch["annotated"]
        targets = objective.targets(points, *segments, model.num_classes)
        valid = jnp.concatenate(localization.level_masks(model, model.max_length, batch["length"]), axis=1)
        valid, positives = valid & batch["valid"][:, None], aux.model_state["running"]["positives"]
        classes, regression, positives = objective.localize(
            logits, offsets, targets, valid, positives, config.label_smoothing
        )
        metrics = {"class_loss": classes, "offset_loss": regression, "positives": positives}
        state = {**statistics, **changed, "running": {"positives": positives}}
        return classes + config.offset_weight * regression, (state, metrics)

    return loss_fn


def summarize(run: Run, result: FitResult) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, numbers = localization.describe_map(run.evaluations())
    advice = {"finding actions": f"python experiments/localize_predict.py --run {run.workdir} video.mp4"}
    curves = ["evaluation/map_50"] if numbers else []
    return run.finish(result, "evaluation/average_map", lines, advice, curves) | numbers


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the best evaluation, or the memory of a dry run."""
    if config.data.annotations == SHAPES and config.data.features is config.data.videos is None:
        encoder, place = recipes.localize.ENCODER, Path(__file__).parent
        made = make_demo_features(encoder, place, config.workdir, config.seed, "localize.py")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, features=made))
    run, data = Run(config, mesh), config.data
    source = open_segments(data, data.train, config.channels)
    validation = data.validation and open_segments(data, data.validation, source.channels)
    run.plan(train=source, validation=validation)
    model = make_model(config, source)
    example = localization.example_arrays(model, source)
    state = {"running": {"positives": jnp.float32(config.positives)}}
    loss_fn, factors = make_loss(config, model), {"encoder/": config.encoder_factor}
    run.build(model, model.example_inputs(), loss_fn, factors=factors, example=example, model_state=state)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if not run.has_begun:
        variables = localizer.start_weights(config, model, variables)
    state = run.begin(variables)
    localization.keep_description(data.features, run.workdir)
    del variables  # the state has its own copy
    segments = sum(len(video.labels) for video in source.videos)
    run.announce(
        data=f"{segments:,} segments; {localizer.describe_steps(model)}, at most {model.max_length} steps",
        classes=f"{model.num_classes}; {run.describe_validation()}",
    )
    batches = partial(localization.train_batches, source, model, data, batch_size=config.batch_size, seed=config.seed)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return batches(first=first)

    evaluate = validation and localization.segment_validator(
        validation,
        model,
        data,
        config.selection,
        THRESHOLDS[config.thresholds],
        mesh,
        config.batch_size,
        config.dialect,
    )
    result = run.fit(state, batches_from, evaluate, best="average_map")
    if result.finished and validation:
        localization.save_examples(run, validation, result.state)
    return summarize(run, result) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
