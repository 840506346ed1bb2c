"""Train a model that chooses what it computes for each clip, and measure what the choice saves and loses.

On rendered videos in which most frames say nothing, minutes on a laptop: python experiments/adaptive.py demo
From a classifier, such as a run of finetune.py with videomae_base:
python experiments/adaptive.py --model dynamicvit_videomae_base --init_from runs/b --data.train train.csv \
    --data.validation val.csv

DynamicViT drops tokens, STTS frames and regions, AdaViT patches, heads and branches, Ada3D frames and 3-D convolutions.
Without --init_from the network is first trained as a whole, in WORKDIR/full. Then it learns to choose by the published
objective of its family, and WORKDIR gets adaptive.md, .json and .png: accuracy over multiply-accumulates and over time
of the full network, of the choice, and of a random choice that uses as much.

Running the same command again resumes the run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import recipes.adaptive
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import LabelledDataConfig
from vidjax.errors import UserError
from vidjax.fields import free, require_positive
from vidjax.layers.normalization import valid_clips
from vidjax.models.ada3d import Ada3D
from vidjax.models.adavit import AdaViT
from vidjax.models.dynamicvit import DynamicViT
from vidjax.models.stts import STTS
from vidjax.runs import adaptive
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.sources import open_labelled
from vidjax.runs.validation import recognition_validator
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run of a model that chooses what it computes."""

    model: str = "dynamicvit_videomae_base"
    """A DynamicViT, STTS, AdaViT or Ada3D: see list_models.py."""
    budget: float = 0.5
    """Share of the full network's multiply-accumulates that the model learns to do with; Ada3D learns without one."""
    budgets: tuple[float, ...] = free((0.4, 0.5, 0.6, 0.8))
    """Shares to measure at; those that are too small for the model are left out."""
    data: LabelledDataConfig = LabelledDataConfig()
    """The training and validation videos."""
    full_steps: int = 1000
    """Steps of the full network's training, without init_from."""
    full_optim: OptimizerConfig = recipes.adaptive.OPTIMIZER
    """Optimiser of that training."""
    network_factor: float = 0.1
    """Factor of the network's learning rate; 1 is that of what chooses."""
    workdir: str = "runs/adaptive"
    epochs: float = 30
    optim: OptimizerConfig = recipes.adaptive.OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "full_steps", "network_factor")
        if not all(0 < budget <= 1 for budget in (self.budget, *self.budgets)) or not self.budgets:
            raise UserError(f"budget is {self.budget}, budgets {self.budgets}: give shares above 0 and at most 1")


RECIPES = {name: Config(**values) for name, values in recipes.adaptive.RECIPES.items()}
DATA_FLAG = "--data.train"


def make_model(config: Config, class_names: tuple[str, ...]) -> nn.Module:
    """The model for these classes and clips, which are also on its network's card."""
    fields = {"num_classes": len(class_names), "num_frames": config.data.frames, "image_size": config.data.size}
    model = vidjax.create_model(config.model)
    if not isinstance(model, DynamicViT | STTS | AdaViT | Ada3D):
        raise UserError(
            f"model {config.model} does not choose what it computes: give a DynamicViT, STTS, AdaViT or Ada3D"
        )
    fields |= runs.computing_fields(config, config.model)
    model = vidjax.create_model(config.model, **fields)
    card = runs.trained_card(model.model.card, config.data, class_names)
    return model.clone(card=card, model=model.model.clone(card=card))


def full_loss(network: nn.Module) -> Callable:
    """The loss function of the full network: cross-entropy."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        rngs = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
        with valid_clips(batch["valid"]):
            logits, changed = network.apply(
                {"params": params, **aux.model_state}, network.card.preprocess(batch["video"]), train=True,
                mutable=list(aux.model_state), rngs=rngs,
            )  # fmt: skip
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
        return valid_mean(losses, batch["valid"]), ({**aux.model_state, **changed}, {})

    return loss_fn


def choice_loss(model: nn.Module, share: float, steps: int) -> Callable:
    """The loss function of the choice: the objective of the model's family."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        valid, labels = batch["valid"], jnp.maximum(batch["label"], 0)
        losses, changed, logits = adaptive.losses_of(
            model, {"params": params, **aux.model_state}, aux.frozen, model.card.preprocess(batch["video"]), labels,
            valid, share, aux.step / steps, key,
        )  # fmt: skip
        metrics = {"accuracy": valid_mean(logits.argmax(axis=-1) == labels, valid)}
        return valid_mean(losses, valid), ({**aux.model_state, **changed}, metrics)

    return loss_fn


def train_full(config: Config, mesh: Mesh, sources: dict[str, Any], network: nn.Module, clip: Any) -> str | None:
    """Trains the full network in a work directory of its own, which is returned; None if it was interrupted."""
    own = {"steps": config.full_steps, "optim": config.full_optim, "workdir": str(Path(config.workdir) / "full")}
    run = Run(dataclasses.replace(config, **own), mesh)
    run.plan(**{name: dataclasses.replace(source, notes=()) for name, source in sources.items()})  # they were printed
    run.build(network, [clip], full_loss(network), numbers={"label": ()})
    state = run.begin(run.new_variables())
    run.announce(stage="the full network")
    result = run.fit(state, run.labelled_batches, recognition_validator(run), best="top1")
    return str(run.workdir) if result.finished else None


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Runs the job; returns the losses and the rows of the table, or the memory of a dry run."""
    run = Run(config, mesh)
    if config.data.validation is None:
        raise UserError("data.validation is missing: give labelled videos to measure the accuracy on")
    source, validation = open_labelled(config.data, config.seed)
    if config.init_from and runs.class_names(config.init_from) not in ((), source.class_names):
        raise UserError(f"init_from: {config.init_from} has other classes than the data: fine-tune it on these before")
    sources = {"train": source, "validation": validation}
    run.plan(**sources)
    model = make_model(config, source.class_names)
    cost = adaptive.Cost(model)
    cost.require(config.budget, config.model)
    if small := [f"{budget:g}" for budget in config.budgets if budget < cost.least]:
        print(f"note: budgets {', '.join(small)} are below the least, {cost.least:.3f}, and are left out")
    share = None if isinstance(model, Ada3D) else cost.share_for(config.budget)
    if isinstance(model, DynamicViT | STTS):
        model = adaptive.with_share(model, share)
    clip = jax.ShapeDtypeStruct((1, *cost.video.shape[1:]), jnp.float32)
    frozen = vidjax.models.variable_shapes(model.model)
    factors = {f"{name}/": config.network_factor for name in frozen["params"]}
    loss_fn = choice_loss(model, share, run.steps)
    run.build(model, [clip], loss_fn, numbers={"label": ()}, factors=factors, frozen=frozen)
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    start = config.init_from or train_full(config, mesh, sources, model.model, clip)
    if start is None:
        return {}
    chooses = [f"{name}/" for name in variables["params"] if name not in frozen["params"]]
    chooses += [f"batch_stats/{path}" for path in chooses]
    variables, _ = runs.start_from(start, model, variables, new=chooses)
    frozen = adaptive.part_of(variables, frozen)
    state = run.begin(variables, frozen)
    run.announce(budget=f"{config.budget:.1%} of {cost.full / 1e9:.3f} GMACs; the least is {cost.least:.1%}")
    result = run.fit(state, run.labelled_batches, recognition_validator(run), best="top1")
    if not result.finished:
        return {}
    chosen = {"params": result.state.evaluated_params, **result.state.model_state}
    rows = adaptive.measure(run, cost, {config.budget, *config.budgets}, {"full": result.state.frozen, "own": chosen})
    if not is_main_process():
        return {}
    table = adaptive.write(run.workdir, rows, config.model)
    advice = {"in your own code": f"model, variables = vidjax.load_pretrained({str(run.workdir)!r})"}
    return run.finish(result, "evaluation/top1", ["", *table], advice) | {"rows": rows}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
