"""Join two trained classifiers by cross-attention, as in the third stage of InternVideo (arXiv:2212.03191).

One is a masked autoencoder's (videomae_*), the other that of an encoder trained with texts, or any other transformer.
Both must be fine-tuned on the same classes, with clips of the same size. They stay frozen; the attention between them,
their heads and the weights of their scores are trained.

Tiny models on rendered videos, minutes on a laptop:
python experiments/finetune.py demo --model videomae_tiny --data.size 48 --data.short_side 48 --workdir runs/masked
python experiments/finetune.py demo --model vivit_tiny_joint --data.size 48 --data.short_side 48 --workdir runs/contrast
python experiments/cross_model.py --init_masked_from runs/masked --init_contrastive_from runs/contrast

Running the same command again resumes the run.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
import recipes.cross_model
from jax.sharding import Mesh

from vidjax import cli, runs
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.errors import UserError
from vidjax.fields import free, initial
from vidjax.models import example_inputs
from vidjax.models.internvideo import CrossModel
from vidjax.runs.config import TrainConfig
from vidjax.runs.cross_model import make_cross_model, read_classifier, start_encoders, trained_parts, unnamed_heads
from vidjax.runs.run import Run
from vidjax.runs.sources import open_labelled
from vidjax.runs.validation import describe_accuracy, recognition_validator
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A cross-model training run."""

    init_masked_from: str | None = initial(None)
    """The masked autoencoder's classifier: a run's work directory, or a published checkpoint (directory or hub id)."""
    init_contrastive_from: str | None = initial(None)
    """The other classifier, or a video-text model, whose video tower gets a new head."""
    depths: tuple[int, ...] | None = None
    """Blocks of the masked encoder after which it attends to the other, from 1 (default: four in its second half)."""
    data: LabelledDataConfig = LabelledDataConfig(augment=AugmentConfig(crop="random_resized"))
    """The training and validation videos."""
    label_smoothing: float = 0.1
    """Fraction of a label that is spread over all classes."""
    remat: Literal["none", "dots", "blocks"] = free("blocks")
    """What the backward pass recomputes of the masked encoder: with blocks, no activations of it are kept."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/cross_model"
    epochs: float = 10
    optim: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-6, warmup_epochs=1, beta2=0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if self.optim.layer_decay != 1:
            raise UserError("optim.layer_decay is not supported with two encoders: omit it")
        if self.scan or self.sequence > 1:
            raise UserError("scan and sequence are not supported with attention between two encoders: omit them")
        if self.init_from:
            raise UserError("init_from: give the two encoders, --init_masked_from and --init_contrastive_from")

    @property
    def model(self) -> str:
        """The name of the joint model in reports."""
        return f"{self.init_masked_from} and {self.init_contrastive_from}"


RECIPES = {name: Config(**values) for name, values in recipes.cross_model.RECIPES.items()}
DATA_FLAG = "--data.train"


def make_model(config: Config, class_names: tuple[str, ...]) -> CrossModel:
    """The joint model, for these classes and clips."""
    sources = {"masked": config.init_masked_from, "contrastive": config.init_contrastive_from}
    if None in sources.values():
        raise UserError("give --init_masked_from and --init_contrastive_from, two classifiers of the data's classes")
    masked, contrastive = (read_classifier(kind, source, class_names) for kind, source in sources.items())
    model = make_cross_model(masked, contrastive, config.depths, class_names, dtype=runs.computing_type(config.dtype))
    card = runs.trained_card(model.card, config.data, class_names)
    model = model.clone(masked=model.masked.clone(remat=config.remat), card=card)
    for name, size in (("frames", model.num_frames), ("size", model.image_size)):
        if (given := getattr(config.data, name)) != size:
            raise UserError(f"data.{name} is {given}, but both encoders take {size}: give --data.{name} {size}")
    return model


def make_loss(config: Config, model: CrossModel, trained: Any) -> Callable:
    """The loss function: cross-entropy of the combined score."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        del key  # nothing is random: the encoders are frozen
        params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)
        variables, labels, valid = {"params": params, **aux.model_state}, batch["label"], batch["valid"]
        logits = model.apply(variables, model.card.preprocess(batch["video"]))
        targets = optax.smooth_labels(jax.nn.one_hot(labels, model.num_classes), config.label_smoothing)
        weights = dict(zip(("masked_weight", "contrastive_weight"), params["score_weights"], strict=True))
        metrics = {"accuracy": valid_mean(logits.argmax(axis=-1) == labels, valid), **weights}
        return valid_mean(optax.losses.softmax_cross_entropy(logits, targets), valid), (aux.model_state, metrics)

    return loss_fn


def summarize(run: Run, result: FitResult, chosen: str) -> dict[str, float]:
    """Prints the results, the gates, the files written and suggested next steps."""
    lines, numbers = describe_accuracy(run, chosen)
    params = result.state.params
    parts = {name: part for name, part in params.items() if name.startswith(("inward", "outward"))}
    gates = {name: (part["attention_gate"], part["mlp_gate"]) for name, part in parts.items()}
    gates, weights = jax.device_get((gates, params["score_weights"]))  # other parameters may be split over processes
    opened = [f"{name} {math.tanh(one):.3f} and {math.tanh(other):.3f}" for name, (one, other) in gates.items()]
    lines.append(f"gates     attention and MLP: {', '.join(opened)}")
    lines.append("scores    {:.3f} masked + {:.3f} contrastive".format(*weights))
    advice = {
        "evaluation": f"python experiments/evaluate.py --run {run.workdir} --data.source VIDEOS --views 4x3",
        "prediction": f"python experiments/predict.py --run {run.workdir} clip.mp4",
        "in your own code": f"model, variables = vidjax.load_pretrained({str(run.workdir)!r})",
    }
    return run.finish(result, f"evaluation/{chosen}", lines, advice) | numbers


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the accuracies, or the memory of a dry run."""
    run = Run(config, mesh)
    source, validation = open_labelled(config.data, config.seed)
    run.plan(train=source, validation=validation)
    model = make_model(config, source.class_names)
    trained = trained_parts(model)
    run.build(model, example_inputs(model), make_loss(config, model, trained), trained=trained, numbers={"label": ()})
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if not run.has_begun:
        variables = start_encoders(model, variables, config.init_masked_from, config.init_contrastive_from)
    state = run.begin(variables)
    del variables  # the state has its own copy
    depths = ", ".join(map(str, model.depths))
    classes = f"{len(source.class_names)}; {run.describe_validation()}"
    if unnamed := unnamed_heads(model):
        classes += f"; by position for the {' and the '.join(unnamed)} head, without class names in its weights"
    run.announce(train=f"{run.trained:,} parameters; attention after the blocks {depths}", classes=classes)
    chosen = "ema_top1" if config.ema_decay else "top1"
    result = run.fit(state, run.labelled_batches, recognition_validator(run) if validation else None, best=chosen)
    return summarize(run, result, chosen) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
