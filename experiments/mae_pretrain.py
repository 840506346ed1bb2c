"""Pre-train a VideoMAE (arXiv:2203.12602), a VideoMAE V2 (2303.16727) or a Hiera (2306.00989) on videos without labels.

A tiny model on rendered videos, minutes on a laptop: python experiments/mae_pretrain.py

VideoMAE-B on a folder of videos: python experiments/mae_pretrain.py --data.source FOLDER --workdir runs/mine

A published recipe: python experiments/mae_pretrain.py k400_base_1600 --data.source k400.csv --workdir runs/b

A masked autoencoder of Hiera: add --model hiera_b --mask random (its training was not released, so it has no recipe).

The recipes hybrid_* are those of V2. Running the same command again resumes the run. Expected results: docs/results.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import recipes.mae_pretrain
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import DataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative
from vidjax.models import hiera_mae
from vidjax.runs.config import TrainConfig
from vidjax.runs.masked import MaskedPatches, MaskedUnits
from vidjax.runs.run import Run
from vidjax.runs.validation import probe_labels
from vidjax.training.loop import FitResult
from vidjax.training.sharding import is_main_process, jit_on_mesh, replicated
from vidjax.training.state import Aux, TrainState
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A masked pre-training run."""

    model: str = "videomae_base"
    """videomae_tiny, _small, _base, _large or _huge, videomae_v2_giant, or hiera_tiny, _b, _bplus, _l or _h."""
    data: DataConfig = DataConfig()
    """The training videos."""
    mask: Literal["tube", "random", "frame"] = "tube"
    """Which tokens are masked: the same positions in all frames, random tokens (Hiera: units), or whole frames."""
    mask_ratio: float = 0.9
    """Fraction of tokens that are masked."""
    decoder_mask: Literal["none", "running_cell"] = "none"
    """Let the decoder predict only half of the tokens (VideoMAE V2)."""
    normalize_target: bool = True
    """Predict patches normalised by their own mean and std."""
    target_epsilon: float = 1e-6
    """Added to this std: with more, patches of low contrast count for less."""
    probe_clips: int = 1024
    """Labelled clips for the linear probe at the end, half for fitting and half for scoring; 0 disables it."""
    picture_clips: int = 4
    """Clips in the images of reconstructions."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/mae_pretrain"
    epochs: float = 800

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "probe_clips", "picture_clips", "target_epsilon")
        if self.target_epsilon != 1e-6 and not self.normalize_target:
            raise UserError("target_epsilon has no effect on raw pixels: omit --no_normalize_target")


RECIPES = {name: Config(**values) for name, values in recipes.mae_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config) -> nn.Module:
    """The encoder with its decoder."""
    names = [each for each in vidjax.list_models("videomae") if each.endswith("_pretrain")]
    names += [each for each in vidjax.list_models("hiera") if each.endswith("_mae")]
    known = {each.removesuffix("_pretrain").removesuffix("_mae"): each for each in names}
    if config.model not in known:
        raise UserError(f"model {config.model} has no decoder for pre-training: choose one of {', '.join(known)}")
    name = known[config.model]
    return vidjax.create_model(name, **runs.computing_fields(config, name))


def make_task(config: Config, model: nn.Module) -> MaskedPatches | MaskedUnits:
    """What the model sees and predicts."""
    shape = (config.data.frames, config.data.size, config.data.size)
    targets = (config.normalize_target, config.target_epsilon)
    if not isinstance(model, hiera_mae.Pretraining):
        return MaskedPatches(model, shape, config.mask, config.mask_ratio, config.decoder_mask, *targets)
    if (config.mask, config.decoder_mask, *targets) != ("random", "none", True, 1e-6):
        raise UserError(
            f"{config.model} masks units at random and normalises targets as published: add --mask random, with "
            "--target_epsilon 1e-6 for the demo, and neither --decoder_mask nor --no_normalize_target"
        )
    return MaskedUnits(model, shape, config.mask_ratio)


def make_loss(model: nn.Module, task: MaskedPatches | MaskedUnits) -> Callable:
    """The loss function: masked reconstruction of pixels."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mask_key, drop_key = jax.random.split(key)
        apply = partial(model.apply, {"params": params, **aux.model_state}, train=True, rngs={"drop_path": drop_key})
        losses = task.losses(apply, model.card.scale(batch["video"]), mask_key)
        return valid_mean(losses, batch["valid"]), (aux.model_state, {})

    return loss_fn


def make_painter(config: Config, run: Run, task: MaskedPatches | MaskedUnits) -> Callable | None:
    """An evaluation that writes images of reconstructions, always of the same clips with the same masks."""
    model, indices = run.model, np.arange(min(config.picture_clips, len(run.source)))
    settings = {"batch_size": len(indices), "indices": indices, "process_index": 0, "process_count": 1}
    batch = next(run.evaluation_batches(run.source, **settings)) if len(indices) else {"valid": np.zeros(0, bool)}
    if not batch["valid"].any():
        return None
    clips = jax.device_put(batch["video"][batch["valid"]], replicated(run.mesh))

    @partial(jit_on_mesh, mesh=run.mesh)
    def reconstruct(params: Any, clips: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        return task.show(partial(model.apply, {"params": params}), model.card.scale(clips), key)

    def paint(state: TrainState, step: int) -> dict[str, float]:
        *rows, loss = jax.device_get(reconstruct(state.evaluated_params, clips, jax.random.key(config.seed)))
        if is_main_process():
            from vidjax.visualize.reconstruction import save_reconstructions  # imports Matplotlib

            note = f"step {step}, {config.mask} mask {config.mask_ratio:.0%}"
            if config.normalize_target:
                note += "; each patch has its true mean and std"
            save_reconstructions(run.workdir / "reconstructions" / f"step_{step:07d}", rows, note)
        return {"reconstruction_loss": float(loss.mean())}

    return paint


def summarize(run: Run, result: FitResult, accuracy: dict[str, float]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    lines = []
    if accuracy:
        lines = [
            f"probe     {accuracy['trained']:.1%} linear probe accuracy of the trained encoder, "
            f"{accuracy['untrained']:.1%} of the untrained encoder, {accuracy['chance']:.1%} by chance",
            f"kNN       {accuracy['trained_knn']:.1%} nearest-neighbour accuracy of the trained encoder, "
            f"{accuracy['untrained_knn']:.1%} of the untrained encoder",
        ]
    advice = {
        "your own videos": "python experiments/mae_pretrain.py --data.source FOLDER --workdir runs/mine",
        "starting from these weights": f"--init_from {run.workdir} --workdir runs/next",
        "checking a source first": "python experiments/check_data.py FOLDER",
    }
    return run.finish(result, "evaluation/reconstruction_loss", lines, advice) | accuracy


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the probe's accuracies, or the memory of a dry run."""
    from vidjax.data.sources import open_source

    run, data = Run(config, mesh), config.data
    model = make_model(config)
    task = make_task(config, model)
    inputs = task.inputs()
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.float32)
    run.plan(source=open_source(data.source, data.split, data.square_pixels))
    # The second of three keys is unused: it was once used for a mask, and splitting two would change all results.
    init_key, _, run_key = jax.random.split(jax.random.key(config.seed), 3)
    run.build(model, (clip, *inputs), make_loss(model, task), (init_key, run_key))
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables, _ = runs.start_from(config.init_from, model, variables)
    state = run.begin(variables)
    del variables  # the state has its own copy
    run.announce(tokens=task.describe())

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return ({name: batch[name] for name in ("video", "valid")} for batch in run.batches(first))

    result = run.fit(state, batches_from, make_painter(config, run, task))
    if not result.finished:
        return {}
    accuracy = probe_labels(run, result.state.evaluated_params, config.probe_clips)
    return summarize(run, result, accuracy) if is_main_process() else accuracy


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
