"""Train a classifier on labelled videos: from scratch, from a run, or from published weights.

A tiny model on rendered videos, minutes on a laptop: python experiments/finetune.py
From your own pre-training run:
python experiments/finetune.py --model videomae_base --init_from runs/b --data.train train.csv --data.validation val.csv
A published recipe: python experiments/finetune.py videomae_base_k400 --init_from checkpoint.pth --data.train k400.csv

Running the same command again resumes the run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import recipes.finetune
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.errors import UserError
from vidjax.fields import initial, require_not_negative
from vidjax.objectives.classification import evidential, mix_clips, targets_of
from vidjax.objectives.multi_task import own_logits, smooth_labels, sum_of_tasks
from vidjax.runs.adapting import AdaptConfig, choose_trained
from vidjax.runs.hashtags import HashtagConfig, hashtag_shapes
from vidjax.runs.head_start import measure_head
from vidjax.runs.joint import Joint
from vidjax.runs.run import Run
from vidjax.runs.sources import open_labelled
from vidjax.runs.teacher import Teacher, distill, load_teacher
from vidjax.runs.validation import describe_accuracy, recognition_validator
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(HashtagConfig):
    """A supervised training run."""

    model: str = "videomae_base"
    """One of vidjax.list_models()."""
    keep_head: bool = initial(False)
    """Also load the head from init_from, the rows for the classes of the data; otherwise it is newly initialised."""
    data: LabelledDataConfig = LabelledDataConfig(augment=AugmentConfig(crop="random_resized"))
    """The training and validation videos."""
    tune: Literal["full", "partial", "linear_probe"] = "full"
    """Train all parameters that the model does not freeze; the last blocks, norms and head; or only the head."""
    tuned_blocks: int = 2
    """Number of last blocks to train if tune is partial."""
    adapt: AdaptConfig = AdaptConfig()
    """Train few parameters beside those of init_from instead; --adapt lora is short for --adapt.method lora."""
    drop_path: float | None = None
    """Drop path rate of the last block (default: the model's)."""
    dropout: float | None = None
    """Dropout rate before the head (default: the model's)."""
    mixup: float = 0.8
    """Alpha of mixup; 0 disables it."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 disables it. If both are enabled, each is applied to half of the batches."""
    objective: Literal["cross_entropy", "evidential"] = "cross_entropy"
    """Softmax cross-entropy, or the evidential loss of open-set recognition (DEAR, InternVideo; label_smoothing 0)."""
    label_smoothing: float = 0.1
    """Fraction of a label that is spread over all classes."""
    head_factor: float = 1.0
    """Learning rate factor of the head."""
    train_accuracy: bool = False
    """Also log the accuracy on the training clips; requires hard labels (no mixup, no CutMix)."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/finetune"
    epochs: float = 50
    optim: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-4, final_learning_rate=1e-6, warmup_epochs=5, beta2=0.999, layer_decay=0.75
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("drop_path", "dropout", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} is {value}: it must be at least 0 and below 1")
        require_not_negative(self, "mixup", "cutmix", "head_factor")
        if self.train_accuracy and (self.mixup or self.cutmix):
            raise UserError("train_accuracy needs hard labels: set --mixup 0 --cutmix 0, or omit --train_accuracy")
        if self.objective == "evidential" and self.label_smoothing:
            raise UserError(
                "objective evidential: label_smoothing would ask for evidence of every class in every clip, give "
                "--label_smoothing 0"
            )
        if self.heads and (self.objective != "cross_entropy" or len({*self.heads}) < len(self.heads)):
            raise UserError(f"heads are {', '.join(self.heads)}: give different names, and --objective cross_entropy")
        if self.heads and self.accumulation > 1:
            raise UserError("heads are weighed by their clips in a batch, not in parts of one: omit --accumulation")
        if self.keep_head and not self.init_from:
            raise UserError("keep_head needs the weights of init_from: give --init_from, or omit --keep_head")
        self.adapt.check(self)


RECIPES = {name: Config(**values) for name, values in recipes.finetune.RECIPES.items()}
DATA_FLAG = "--data.train"


def make_model(config: Config, class_names: tuple[str, ...]) -> nn.Module:
    """The model for these classes and clips, which are also on its card."""
    fields = {"num_classes": len(class_names), "num_frames": config.data.frames, "image_size": config.data.size}
    fields |= {name: value for name in ("drop_path", "dropout") if (value := getattr(config, name)) is not None}
    named, short = vidjax.create_model(config.model), config.model.removesuffix("_pretrain")
    chooses = any(hasattr(named, each) for each in ("search", "masked", "regions"))  # what it computes
    if chooses or "num_classes" not in named.__dataclass_fields__:
        why = "chooses what it computes, see adaptive.py" if chooses else "has no classes"
        raise UserError(f"model {config.model} {why}: choose {'a classifier' if short == config.model else short}")
    fields |= config.adapt.fields(config.model, config.init_from) | runs.computing_fields(config, config.model)
    model = vidjax.create_model(config.model, **fields)
    card = runs.trained_card(model.card, config.data, class_names, config.heads, config.stills)
    return model.clone(card=card)


def make_loss(config: Config, model: nn.Module, trained: Any, teacher: Teacher | None = None) -> Callable:
    """The loss function: the objective of the config with mixup, CutMix, label smoothing and a teacher."""
    loss_of = evidential if config.objective == "evidential" else optax.losses.softmax_cross_entropy
    sizes, joint = model.card.head_sizes or (model.num_classes,), Joint(config, model)

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mix_key, dropout_key, path_key = jax.random.split(key, 3)
        if trained is not None:
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)
        pixels, labels, valid = model.card.scale(batch["video"]), batch["label"], batch["valid"]
        targets = smooth_labels(targets_of(batch, model.num_classes), config.label_smoothing, sizes)
        mix = partial(mix_clips, mix_key, targets=targets, valid=valid, mixup=config.mixup, cutmix=config.cutmix)
        pixels, targets = mix(pixels)
        variables, rngs = {"params": params, **aux.model_state}, {"dropout": dropout_key, "drop_path": path_key}
        settings = {"train": config.tune != "linear_probe", "mutable": list(aux.model_state), "rngs": rngs}
        (logits, changed), features = joint.train(variables, model.card.normalize(pixels), batch, **settings)
        logits, metrics = logits.astype(jnp.float32), {}
        if config.train_accuracy:
            metrics["accuracy"] = valid_mean(own_logits(logits, labels, sizes).argmax(axis=-1) == labels, valid)
        losses = sum_of_tasks(logits, targets, valid, sizes) if config.heads else loss_of(logits, targets)
        if teacher is not None:
            distilled, more = distill(teacher, aux.frozen, batch, mix, logits, features)
            losses, metrics = config.label_weight * losses + distilled, metrics | more
        return valid_mean(losses, valid), ({**aux.model_state, **changed}, metrics)

    return loss_fn


def summarize(run: Run, result: FitResult, chosen: str) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines, numbers = describe_accuracy(run, chosen)
    head = " --head HEAD" if run.config.heads else " --hashtags" if run.config.hashtags is not None else ""
    advice = {
        "many views": f"python experiments/evaluate.py --run {run.workdir} --data.source VIDEOS --views 4x3{head}",
        "classifying videos": f"python experiments/predict.py --run {run.workdir} clip.mp4",
        "in your own code": f"model, variables = vidjax.load_pretrained({str(run.workdir)!r})",
    }
    return run.finish(result, f"evaluation/{chosen}", lines, advice) | numbers


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the accuracies, or the memory of a dry run."""
    run, data = Run(config, mesh), config.data
    source, validation = open_labelled(data, config.seed, config.heads, config.hashtags, config.hashtag_sampling)
    run.plan(train=source, validation=validation)
    model = make_model(config, source.class_names)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, len(model.card.mean)), jnp.float32)
    trained = choose_trained(config, model)
    tags = hashtag_shapes(config.hashtags, source)
    settings = {"trained": trained, "factors": {"head/": config.head_factor}, "numbers": {"label": (), **tags}}
    teacher, frozen = load_teacher(config, model, source) if config.teacher else (None, None)
    settings |= {"frozen": frozen, "fields": teacher.shapes(data) if teacher else {}, "adapt": config.adapt}
    settings["standardized"] = config.adapt.used or config.tune == "linear_probe"  # which train little beside the head
    run.build(model, [clip], make_loss(config, model, trained, teacher), **settings)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if config.init_from and (not run.has_begun or config.adapt.used):
        variables = runs.start_classifier(config.init_from, model, variables, config.keep_head, config.adapt)
    state = measure_head(run, run.begin(variables, frozen))
    del variables, frozen  # the state has its own copies
    tune = f"{config.adapt.method if config.adapt.used else config.tune}: {run.trained:,} parameters"
    run.announce(tune=tune, classes=f"{len(source.class_names)}; {run.describe_validation()}")
    chosen = "ema_top1" if config.ema_decay else "top1"
    batches = partial(run.labelled_batches, fields=(*tags, *(teacher.fields if teacher else ())))
    validate = recognition_validator(run, Joint(config, model), fields=tuple(tags)) if validation else None
    result = run.fit(state, batches, validate, best=chosen)
    return summarize(run, result, chosen) if result.finished and is_main_process() else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
