"""Fine-tune a model on labelled videos: from scratch, from a run, or from published weights.

A tiny model on rendered videos, minutes on a laptop: python experiments/finetune.py

From a pre-training run of one's own:
python experiments/finetune.py --model videomae_base --init_from runs/b --data.train train.csv --data.validation val.csv

A published recipe: python experiments/finetune.py videomae_base_k400 --init_from checkpoint.pth --data.train k400.csv

The same command again goes on where the run stopped. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import recipes.finetune
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.errors import UserError
from vidjax.fields import initial, require_not_negative
from vidjax.layers.normalization import valid_clips
from vidjax.objectives.classification import mix_clips
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.sources import open_labelled
from vidjax.runs.validation import recognition_validator
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig, trained_parameters
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A supervised training run."""

    model: str = "videomae_base"
    """One of vidjax.list_models()."""
    keep_head: bool = initial(False)
    """Keep the head of the weights of init_from, whose classes must be the same; without it the head is new."""
    data: LabelledDataConfig = LabelledDataConfig(augment=AugmentConfig(crop="random_resized"))
    """The videos."""
    tune: Literal["full", "partial", "linear_probe"] = "full"
    """Train everything; the last blocks, norms and head; or the head alone, on the encoder as it is."""
    tuned_blocks: int = 2
    """Blocks that a partial run trains, counted from the end."""
    drop_path: float | None = None
    """Rate of the last block (the model's own when not given)."""
    dropout: float | None = None
    """Of the feature before the head (the model's own when not given)."""
    mixup: float = 0.8
    """Alpha of mixup, 0 = off."""
    cutmix: float = 1.0
    """Alpha of CutMix, 0 = off; where both are on, each is used for half of the batches."""
    label_smoothing: float = 0.1
    """Fraction of a label that is spread over all classes."""
    train_accuracy: bool = False
    """Log the accuracy on the training clips too; it needs hard labels, that is no mixup and no CutMix."""
    accumulation: int = 1
    """Micro-batches a step, to save memory."""
    workdir: str = "runs/finetune"
    epochs: float = 50
    optim: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-4, final_learning_rate=1e-6, warmup_epochs=5, beta2=0.999, layer_decay=0.75
    )

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        super().__post_init__()
        for name in ("drop_path", "dropout", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} is {value}: it must be at least 0 and below 1")
        require_not_negative(self, "mixup", "cutmix")
        if self.train_accuracy and (self.mixup or self.cutmix):
            raise UserError("train_accuracy needs hard labels: set --mixup 0 --cutmix 0, or leave it out")
        if self.keep_head and not self.init_from:
            raise UserError("keep_head is about the weights of init_from: give them, or leave it out")


RECIPES = {name: Config(**values) for name, values in recipes.finetune.RECIPES.items()}
default_recipe = partial(cli.demo_without, "--data.train")


def make_model(config: Config, class_names: tuple[str, ...]) -> nn.Module:
    """The model for these classes and clips, with their names on its card."""
    fields = {"num_classes": len(class_names), "num_frames": config.data.frames, "image_size": config.data.size}
    fields |= {name: value for name in ("drop_path", "dropout") if (value := getattr(config, name)) is not None}
    if "num_classes" not in vidjax.create_model(config.model).__dataclass_fields__:
        name = config.model.removesuffix("_pretrain")
        other = name if name != config.model else "one that has"
        raise UserError(f"model {config.model} has no classes: choose {other}")
    model = vidjax.create_model(config.model, **fields, **runs.computing_fields(config, config.model))
    return model.clone(card=dataclasses.replace(model.card, class_names=class_names))


def choose_trained(config: Config, params: Any) -> Any:
    """Which parameters are trained; None for all."""
    if config.tune == "full":
        return None
    if config.tune == "partial":
        return trained_parameters(params, config.tuned_blocks)
    return {name: jax.tree.map(lambda _, head=name == "head": head, part) for name, part in params.items()}


def make_loss(config: Config, model: nn.Module, trained: Any) -> Callable:
    """The one place where model and objective meet."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mix_key, dropout_key, path_key = jax.random.split(key, 3)
        if trained is not None:
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)
        labels, valid = batch["label"], batch["valid"]
        targets = optax.smooth_labels(jax.nn.one_hot(labels, model.num_classes), config.label_smoothing)
        pixels = model.card.scale(batch["video"])
        pixels, targets = mix_clips(mix_key, pixels, targets, valid, config.mixup, config.cutmix)
        with valid_clips(valid):
            logits, changed = model.apply(
                {"params": params, **aux.model_state},
                model.card.normalize(pixels),
                train=config.tune != "linear_probe",
                mutable=list(aux.model_state),
                rngs={"dropout": dropout_key, "drop_path": path_key},
            )
        correct = valid_mean(logits.argmax(axis=-1) == labels, valid)
        losses = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
        metrics = {"accuracy": correct} if config.train_accuracy else {}
        return valid_mean(losses, valid), ({**aux.model_state, **changed}, metrics)

    return loss_fn


def summarize(run: Run, result: FitResult, chosen: str) -> dict[str, float]:
    """Says what was reached, where it is, and what to do with it."""
    validated = {step: numbers for step, numbers in run.evaluations().items() if chosen in numbers}
    lines, numbers = [], {}
    if validated:
        step, best = max(validated.items(), key=lambda entry: entry[1][chosen])
        last = validated[max(validated)]
        numbers = {"top1": last[chosen], "best_top1": best[chosen], "top5": last[chosen.replace("top1", "top5")]}
        lines = [
            f"accuracy  top-1 {last[chosen]:.1%}, top-5 {numbers['top5']:.1%} at the last step; best top-1 "
            f"{best[chosen]:.1%} at step {step}" + (" (moving average)" if "ema" in chosen else "")
        ]
    advice = {
        "test with many views": f"python experiments/evaluate.py --run {run.workdir} --data.source VIDEOS --views 4x3",
        "name what is seen": f"python experiments/predict.py --run {run.workdir} clip.mp4",
        "in your own code": f"model, variables = vidjax.load_pretrained({str(run.workdir)!r})",
    }
    return run.finish(result, f"evaluation/{chosen}", lines, advice) | numbers


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the whole job; returns the first and last loss and the accuracies, of a dry run the bytes."""
    run, data = Run(config, mesh), config.data
    source, validation = open_labelled(data, config.seed)
    run.plan(train=source, validation=validation)
    model = make_model(config, source.class_names)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, len(model.card.mean)), jnp.float32)
    trained = choose_trained(config, jax.eval_shape(model.init, jax.random.key(0), clip)["params"])
    run.build(model, [clip], make_loss(config, model, trained), trained=trained)
    if config.dry_run:
        return run.dry_run(label=())
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables = runs.start_classifier(config.init_from, model, variables, config.keep_head)
    state = run.begin(variables)
    del variables  # the state has its own
    classes = f"{len(source.class_names)}; {run.describe_validation()}"
    run.announce(tune=f"{config.tune}: {run.trained:,} parameters", classes=classes)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in run.batches(first):
            valid = batch["valid"] & (batch["label"] >= 0)
            yield {"video": batch["video"], "label": batch["label"], "valid": valid}

    chosen = "ema_top1" if config.ema_decay else "top1"
    result = run.fit(state, batches_from, recognition_validator(run) if validation else None, best=chosen)
    if not result.finished or not is_main_process():
        return {}
    return summarize(run, result, chosen)


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, default_recipe)
