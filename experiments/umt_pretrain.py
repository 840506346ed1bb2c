"""Pre-train a video encoder with a frozen CLIP as its teacher (UMT, Li et al. 2023, arXiv:2303.16058).

The student sees the tokens to which the teacher attends, and its last layers match the teacher's there.

With OpenAI's CLIP on a folder of videos:
python experiments/umt_pretrain.py videos --teacher clip_base_16_openai --data.source FOLDER --workdir runs/mine

Running the same command again resumes the run.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import recipes.umt_pretrain
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import DataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative, require_positive
from vidjax.layers import patches
from vidjax.objectives import unmasked
from vidjax.runs.config import TrainConfig
from vidjax.runs.run import Run
from vidjax.runs.unmasked import load_clip, see
from vidjax.runs.validation import probe_labels
from vidjax.training.sharding import is_main_process
from vidjax.training.state import Aux
from vidjax.training.step import valid_mean


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run of alignment with a teacher."""

    model: str = "umt_base"
    """umt_tiny, _base or _large."""
    teacher: str = ""
    """A CLIP: a run or a published checkpoint (always needed)."""
    data: DataConfig = recipes.umt_pretrain.SEGMENTS
    """The training videos."""
    layers: int = 6
    """Number of the student's and the teacher's last layers that are matched."""
    mask_ratio: float = 0.8
    """Fraction of each frame's tokens that the student does not see."""
    drop_path: float = 0.1
    """Rate of the last block."""
    probe_clips: int = 1024
    """Labelled clips for the linear probe at the end, half for fitting and half for scoring; 0 disables it."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/umt_pretrain"
    epochs: float = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "layers")
        require_not_negative(self, "probe_clips")
        if not 0 <= self.mask_ratio < 1:
            raise UserError(f"mask_ratio is {self.mask_ratio}: it must be at least 0 and below 1")


RECIPES = {name: Config(**values) for name, values in recipes.umt_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, features: int) -> nn.Module:
    """The student, with a map to the teacher's features from each of its last layers."""
    name = f"{config.model}_pretrain"
    if name not in (names := vidjax.list_models("umt_")):
        raise UserError(f"model {config.model} is no student: choose one of {', '.join(names[::2])}")
    fields = {"layers": config.layers, "features": features, "drop_path": config.drop_path}
    return vidjax.create_model(name, **runs.computing_fields(config, name), **fields)


def make_loss(config: Config, model: nn.Module, teacher: nn.Module) -> Callable:
    """The loss function: both encode the clip, the student only what the teacher's attention drew."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mask_key, drop_key = jax.random.split(key)
        targets, attention = see(teacher, aux.frozen, batch["video"], config.layers)
        kept = unmasked.draw_attended(mask_key, attention, config.mask_ratio)
        video, rngs = model.card.preprocess(batch["video"]), {"drop_path": drop_key}
        matched = model.apply({"params": params}, video, kept, train=True, rngs=rngs)
        losses = unmasked.alignment_loss(matched, jnp.take_along_axis(targets, kept[None, ..., None], axis=2))
        return valid_mean(losses, batch["valid"]), (aux.model_state, {})

    return loss_fn


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the probe's accuracies, or the memory of a dry run."""
    from vidjax.data.sources import open_source

    if not config.teacher:
        raise UserError("teacher is missing: give a CLIP, a run or a published one such as clip_base_16_openai")
    run, data = Run(config, mesh), config.data
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.float32)
    teacher, frozen, seen = load_clip(config.teacher, clip, config.layers)
    model = make_model(config, teacher.video.features)
    if (grid := patches.grid(clip.shape[1:4], model.patch_size)) != seen:
        raise UserError(f"the teacher's tokens lie on a grid of {seen}, the model's on {grid}: choose another")
    run.plan(source=open_source(data.source, data.split, data.square_pixels))
    t, n = grid[0], grid[1] * grid[2]
    kept = jax.ShapeDtypeStruct((1, t * (n - int(n * config.mask_ratio))), jnp.int32)
    run.build(model, (clip, kept), make_loss(config, model, teacher), frozen=frozen)
    if config.dry_run:
        return run.dry_run()
    tokens = f"{t * n} per clip, {kept.shape[1]} visible, {config.layers} layers"
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables, _ = runs.start_from(config.init_from, model, variables)
    state = run.begin(variables, frozen)
    run.announce(teacher=config.teacher, tokens=tokens)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return ({name: batch[name] for name in ("video", "valid")} for batch in run.batches(first))

    result = run.fit(state, batches_from)
    if not result.finished:
        return {}
    accuracy = probe_labels(run, result.state.evaluated_params, config.probe_clips)
    if not is_main_process():
        return accuracy
    names = ("trained", "untrained", "chance")
    lines = ["probe     " + ", ".join(f"{accuracy[name]:.1%} {name}" for name in names)] if accuracy else []
    advice = {"fine-tuning": f"python experiments/finetune.py --model {config.model} --init_from {run.workdir}"}
    return run.finish(result, "evaluation/loss", lines, advice) | accuracy


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
