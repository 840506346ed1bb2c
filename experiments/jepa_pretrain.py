"""Pre-train a V-JEPA 2 or 2.1 (arXiv:2506.09985, arXiv:2603.14482) on videos without labels, by latent prediction.

A tiny model on rendered videos, in about three minutes: python experiments/jepa_pretrain.py

On a folder of videos: python experiments/jepa_pretrain.py --data.source FOLDER --workdir runs/mine

With a frozen teacher instead of a moving average: add --teacher RUN_OR_NAME

Running the same command again resumes the run.
"""

import dataclasses
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import recipes.jepa_pretrain
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.data.config import DataConfig
from vidjax.errors import UserError
from vidjax.fields import require_positive
from vidjax.layers import patches
from vidjax.models import vjepa, vjepa21
from vidjax.objectives import latent, multi_block
from vidjax.runs.announce import require_length
from vidjax.runs.config import TrainConfig
from vidjax.runs.latent import context_weights, load_teacher, make_loss, make_observer, make_targets
from vidjax.runs.run import Run
from vidjax.runs.validation import probe_labels
from vidjax.training.loop import FitResult
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import is_main_process


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """A run of latent prediction."""

    model: str = "vjepa2_large"
    """vjepa2_tiny, _tiny_frames, _large, _huge, _giant, or vjepa2_1_tiny, _base, _large, _giant, _gigantic."""
    data: DataConfig = recipes.jepa_pretrain.CLIPS
    """The training videos."""
    teacher: str | None = None
    """Predict the tokens of this frozen encoder, a run or a published checkpoint, not those of the moving average."""
    teacher_layers: int | None = None
    """Predict the outputs of so many of its last blocks, each normalised, side by side (default: its tokens)."""
    predictor_width: int | None = None
    """Width of the predictor (default: the model's)."""
    short_blocks: int = 8
    """Number of blocks of the first mask."""
    short_scale: float = 0.15
    """Area of each as a fraction of the frame."""
    short_duration: float = 1.0
    """Duration of each as a fraction of the clip."""
    long_blocks: int = 2
    """Number of blocks of the second mask."""
    long_scale: float = 0.7
    """Area of each as a fraction of the frame."""
    long_duration: float = 1.0
    """Duration of each as a fraction of the clip."""
    mask_clips: int = 24
    """Up to this many clips share the size of their blocks and are cut to the fewest tokens among them."""
    final_ema_decay: float | None = None
    """Decay of the moving average at the end, to which it changes linearly (default: constant)."""
    context_weight: float = 0.5
    """V-JEPA 2.1: weight of the loss at tokens of the context next to predicted ones; less farther away."""
    context_warmup: tuple[float, float] = (1 / 9, 2 / 9)
    """Fractions of the run between which it grows from 0 (published: steps 15,000 and 30,000 of 135,000)."""
    probe_clips: int = 1024
    """Labelled clips for the linear probe at the end, half for fitting and half for scoring; 0 disables it."""
    observed_clips: int = 16
    """Clips whose targets and predictions are observed for a collapse."""
    accumulation: int = 1
    """Micro-batches per step, to save memory."""
    workdir: str = "runs/jepa_pretrain"
    ema_decay: float | None = 0.99925
    optim: OptimizerConfig = recipes.jepa_pretrain.CONSTANT

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "teacher_layers", "predictor_width", "mask_clips", "observed_clips")
        if self.ema_decay is None:
            raise UserError("ema_decay is None: the targets are a moving average's, give its decay")
        if self.teacher_layers and not self.teacher:
            raise UserError("teacher_layers are those of a teacher: give --teacher too")
        for name in ("short_duration", "long_duration", "final_ema_decay"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}: it must be above 0 and at most 1")
        if self.context_weight < 0:
            raise UserError(f"context_weight is {self.context_weight}: it must be 0 or more")
        if not 0 <= self.context_warmup[0] <= self.context_warmup[1] <= 1:
            raise UserError(f"context_warmup is {self.context_warmup}: give two fractions of the run in their order")

    @property
    def blocks(self) -> tuple[multi_block.Blocks, multi_block.Blocks]:
        """The blocks of both masks."""
        short = multi_block.Blocks(self.short_blocks, self.short_scale, duration=self.short_duration)
        return short, multi_block.Blocks(self.long_blocks, self.long_scale, duration=self.long_duration)


RECIPES = {name: Config(**values) for name, values in recipes.jepa_pretrain.RECIPES.items()}
DATA_FLAG = "--data.source"


def make_model(config: Config, target_width: int | None) -> nn.Module:
    """The encoder with its predictor."""
    variants = [*vjepa.VARIANTS, *vjepa21.VARIANTS]
    names = sorted(each.removesuffix("_pretrain") for each in variants if each.endswith("_pretrain"))
    if config.model not in names:
        raise UserError(f"model {config.model} has no predictor: choose one of {', '.join(names)}")
    name = f"{config.model}_pretrain"
    if config.teacher and f"{name}_distilled" in variants:  # published with a predictor of its own
        name = f"{name}_distilled"
    fields = {} if config.predictor_width is None else {"predictor_width": config.predictor_width}
    model = vidjax.create_model(name, **runs.computing_fields(config, name), **fields, target_width=target_width)
    width, heads = model.predictor_width, model.predictor_heads
    if width % heads or width < 6 * heads:
        raise UserError(f"predictor_width is {width}: its {heads} heads need 6 channels or more each, use {6 * heads}")
    return model


def summarize(run: Run, result: FitResult, accuracy: dict[str, float]) -> dict[str, float]:
    """Prints the results, the files written and suggested next steps."""
    curves = [f"evaluation/{name}" for name in latent.DIVERSITY]
    seen = next(reversed(run.evaluations().values()), {})
    lines = [f"targets   RankMe {seen['target_rank']:.1f}, std {seen['target_std']:.2f}"] if seen else []
    if accuracy:
        trained, untrained, chance = (accuracy[name] for name in ("trained", "untrained", "chance"))
        lines.append(f"probe     {trained:.1%} linear probe, {untrained:.1%} untrained, {chance:.1%} by chance")
    advice = {"fine-tuning": f"python experiments/finetune.py --model {run.config.model} --init_from {run.workdir}"}
    return run.finish(result, "evaluation/latent_loss", lines, advice, curves) | accuracy


@runs.on_mesh
def main(config: Config, mesh: Mesh) -> dict[str, float]:
    """Runs the job; returns the first and last loss and the probe's accuracies, or the memory of a dry run."""
    from vidjax.data.sources import open_source

    run, data = Run(config, mesh), config.data
    clip, layers = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.float32), config.teacher_layers
    teacher, frozen, tokens = load_teacher(config.teacher, clip, layers) if config.teacher else (None, None, None)
    model = make_model(config, tokens and tokens[-1])
    grid = patches.grid(clip.shape[1:4], model.patch_size)
    if tokens and tokens[:3] != grid:
        raise UserError(f"the teacher's tokens lie on a grid of {tokens[:3]}, the model's on {grid}: choose another")
    group = multi_block.largest_group(clips := config.batch_size // config.accumulation, config.mask_clips)
    shapes = [multi_block.several_sizes(group, grid, blocks, model, clips // group) for blocks in config.blocks]

    def draw(key: jax.Array, clips: int) -> list[multi_block.Mask]:
        keys, each = jax.random.split(key), multi_block.largest_group(clips, group)
        pairs = zip(keys, config.blocks, shapes, strict=True)
        return [multi_block.draw(key, clips, grid, blocks, shape[-1], each) for key, blocks, shape in pairs]

    run.plan(source=open_source(data.source, data.split, data.square_pixels))
    require_length(data, run.source)
    decay = None if config.final_ema_decay is None else (config.ema_decay, config.final_ema_decay, run.steps)
    targets = make_targets(model, teacher, layers)
    first, last = (share * run.steps for share in config.context_warmup)
    weights = context_weights(model, grid, config.context_weight, (first, last))
    inputs = [jax.ShapeDtypeStruct((1, size), jnp.int32) for size in shapes[0][-1]]
    run.build(
        model, (clip, *inputs), make_loss(model, targets, draw, shapes, weights), frozen=frozen,
        ema_decay=decay and optax.linear_schedule(*decay),
    )  # fmt: skip
    if config.dry_run:
        return run.dry_run()
    variables = run.new_variables()
    if config.init_from and not run.has_begun:
        variables, _ = runs.start_from(config.init_from, model, variables)
    state = run.begin(variables, frozen)
    del variables, frozen  # the state has its own copies
    counts = " and ".join(f"up to {kept} of them predict {predicted}" for *_, (kept, predicted) in shapes)
    origin = config.teacher or f"a moving average, {config.ema_decay} to {config.final_ema_decay or config.ema_decay}"
    run.announce(tokens=f"{math.prod(grid)} per clip: {counts}", targets=f"of {origin}")

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        return ({name: batch[name] for name in ("video", "valid")} for batch in run.batches(first))

    result = run.fit(state, batches_from, make_observer(run, targets, draw, config.observed_clips, weights))
    if not result.finished:
        return {}
    accuracy = probe_labels(run, result.state.ema, config.probe_clips)
    return summarize(run, result, accuracy) if is_main_process() else accuracy


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, DATA_FLAG)
