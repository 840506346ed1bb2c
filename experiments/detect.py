"""Train a detector of actions: which actions does the person in each box perform? (SlowFast, Feichtenhofer et al. 2019)

A tiny model on rendered videos of several shapes, minutes on a laptop: python experiments/detect.py

On AVA's form of annotations, a .csv of key frames with boxes, and video files named by the ids in it:
python experiments/detect.py videos --init_from slowfast.pkl --data.train train.csv --data.validation val.csv
--data.videos /videos --workdir runs/boxes

A published recipe: python experiments/detect.py ava_slowfast_50_8x8 --init_from slowfast_50_8x8_k400 --data.train ...

Running the same command again resumes the run. Then detect_predict.py draws the actions in a video.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import recipes.detect
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import AugmentConfig, DetectionConfig
from vidjax.errors import UserError
from vidjax.evaluation.detection import Dialect
from vidjax.fields import initial, require_positive
from vidjax.layers.normalization import valid_clips
from vidjax.models.detector import Detector
from vidjax.runs import detection
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run of spatio-temporal detection: the boxes are given."""

    model: str = "slowfast_50_8x8"
    """The backbone, one of vidjax.list_models() with stages or tokens on a grid."""
    dilated: bool = True
    """The last stage of SlowFast and Slow keeps the size of the one before, as on AVA; others cannot be dilated."""
    stage: int = 1
    """The stage whose map the head sees, counted from the last one."""
    bins: int = 7
    """Rows and columns into which boxes are divided (RoIAlign)."""
    aligned: bool = True
    """Pixel and cell centres coincide; the weights that SlowFast published for AVA need False."""
    dropout: float = 0.5
    """Dropout rate before the last layer of the head."""
    keep_head: bool = initial(False)
    """Also load the head from init_from, of a detector with the same classes."""
    objective: detection.Objective = "sigmoid"
    """Any number of actions per box (sigmoid cross-entropy, AVA), or exactly one (softmax)."""
    data: DetectionConfig = DetectionConfig(augment=AugmentConfig(flip=True))
    """The key frames, and how their clips are sampled and cropped."""
    crops: int = 3
    """Squares along the longer side in validation; a box is classified in the one that shows most of it."""
    dialect: Dialect = "slowfast"
    """Whose evaluation program is followed where they differ."""
    workdir: str = "runs/detect"
    batch_size: int = 64
    epochs: float = 20
    optim: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "stage", "bins", "crops")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.keep_head and not self.init_from:
            raise UserError("keep_head needs the weights of init_from: give --init_from, or omit --keep_head")


RECIPES = {name: Config(**values) for name, values in recipes.detect.RECIPES.items()}
DATA_FLAG = "--data.train"


def make_model(config: Config, class_names: tuple[str, ...]) -> Detector:
    """The detector of these classes and clips, which are also on its card."""
    dtype = runs.computing_type(config.dtype)
    fields = {"num_frames": config.data.frames, "image_size": config.data.size}
    known = vidjax.create_model(config.model).__dataclass_fields__
    fields |= {name: value for name, value in (("num_classes", None), ("dilated", config.dilated)) if name in known}
    backbone = vidjax.create_model(config.model, **fields, **runs.computing_fields(config, config.model))
    head = (config.stage, config.bins, config.aligned, config.dropout)
    return Detector(
        backbone, len(class_names), *head, runs.trained_card(backbone.card, config.data, class_names), dtype
    )


def make_loss(config: Config, model: nn.Module) -> Callable:
    """The loss function: the mean over the boxes in the batch that are not padding."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        boxes, actions = batch["boxes"], batch["actions"].astype(jnp.float32)
        with valid_clips(batch["valid"]):
            logits, changed = model.apply(
                {"params": params, **aux.model_state},
                model.card.preprocess(batch["video"]),
                boxes,
                train=True,
                mutable=list(aux.model_state),
                rngs=dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True)),
            )
        logits, shown = logits.astype(jnp.float32), detection.shown_boxes(boxes) & batch["valid"][:, None]
        if config.objective == "sigmoid":
            losses = optax.losses.sigmoid_binary_cross_entropy(logits, actions).mean(axis=-1)
        else:
            total = actions.sum(axis=-1, keepdims=True)
            losses = optax.losses.softmax_cross_entropy(logits, actions / jnp.maximum(total, 1))
            shown &= total[..., 0] > 0
        return valid_mean(losses, shown), ({**aux.model_state, **changed}, {"boxes": shown.sum()})

    return loss_fn


def summarize(run: Run, result: FitResult) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, numbers = detection.describe_boxes(run)
    advice = {
        "drawing actions": f"python experiments/detect_predict.py video.mp4 --run {run.workdir} --boxes boxes.csv"
    }
    return run.finish(result, "evaluation/map_50", lines, advice) | numbers


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the mAP, or the memory of a dry run."""
    from vidjax.data.key_frames import open_key_frames

    run, data = Run(config, mesh), config.data
    opened, validation = open_key_frames(data)
    run.plan(train=opened.source, validation=validation and validation.source)
    model = make_model(config, opened.source.class_names)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, len(model.card.mean)), jnp.float32)
    inputs = [clip, jax.ShapeDtypeStruct((1, opened.most, 4), jnp.float32)]
    fields = {"boxes": (inputs[1].shape[1:], jnp.float32), "actions": ((opened.most, model.num_classes), jnp.uint8)}
    run.build(model, inputs, make_loss(config, model), fields=fields)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables = detection.start_detector(config.init_from, model, variables, config.keep_head)
    state = run.begin(variables)
    del variables  # the state has its own copy
    (run.workdir / "action_ids.json").write_text(json.dumps(opened.ids) + "\n")
    boxes = sum(len(frame.boxes) for frame in opened.frames)
    run.announce(
        data=f"each a clip of {data.frames} frames, {data.size} pixels, around a key frame; {boxes:,} boxes, at most "
        f"{opened.most} in one",
        classes=f"{model.num_classes}; {run.describe_validation()}",
    )

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return detection.select_batches(run.batches(first, fields=("boxes", "actions")))

    settings = (config.objective, config.crops)
    evaluate = validation and detection.box_validator(run, validation, *settings, config.dialect)
    result = run.fit(state, batches_from, evaluate, best="map_50")
    if result.finished and validation:
        detection.save_examples(run, validation, result.state, *settings)
    return summarize(run, result) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
