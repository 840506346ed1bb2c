"""Pre-train a VideoMAE (Tong et al. 2022, arXiv:2203.12602) on videos without labels.

A tiny model on rendered videos, minutes on a laptop: python experiments/mae_pretrain.py

VideoMAE-B on a folder of videos: python experiments/mae_pretrain.py --data.source FOLDER --workdir runs/mine

A published recipe: python experiments/mae_pretrain.py k400_base_1600 --data.source k400.csv --workdir runs/b

The same command again goes on where the run stopped. Expected results: docs/results.md.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.convert.checkpoint import write_model
from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.errors import UserError
from vidjax.evaluation.features import collect_features
from vidjax.evaluation.knn import knn_accuracy
from vidjax.evaluation.linear_probe import linear_probe
from vidjax.fields import check_values, free, initial
from vidjax.layers import patches
from vidjax.objectives import masking, reconstruction
from vidjax.report import describe_losses, describe_run, describe_speed, describe_starvation, tell_notes
from vidjax.training.checkpoint import has_checkpoint
from vidjax.training.cost import count_macs
from vidjax.training.loop import FitResult, LoopConfig, fit
from vidjax.training.memory import dry_run
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.sharding import (
    check_batch_size,
    jit_on_mesh,
    jit_step,
    put_batch,
    replicated,
    state_sharding,
    this_process,
)
from vidjax.training.state import TrainState, create_state
from vidjax.training.step import make_train_step
from vidjax.visualize.curves import save_curves
from vidjax.visualize.reconstruction import save_reconstructions

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Config:
    """A masked pre-training run."""

    model: str = "videomae_base"
    """videomae_tiny, _small, _base, _large or _huge."""
    workdir: str = "runs/mae_pretrain"
    """Where everything goes; the same command again resumes."""
    data: DataConfig = DataConfig()
    """The videos."""
    mask: Literal["tube", "random", "frame"] = "tube"
    """Which tokens the encoder does not see: the same places in all frames, any tokens, or whole times."""
    mask_ratio: float = 0.9
    """Share of tokens that the encoder does not see."""
    decoder_mask: Literal["none", "running_cell"] = "none"
    """Let the decoder predict half of the tokens only (VideoMAE v2)."""
    normalize_target: bool = True
    """Predict patches normalised by their own mean and deviation."""
    batch_size: int = 64
    """Clips a step, over all devices; the learning rate is scaled by it."""
    epochs: float = 800
    """Passes over the source."""
    steps: int | None = None
    """Steps in all, instead of epochs."""
    optim: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    loop: LoopConfig = free(LoopConfig())
    """Logging, saving, stopping."""
    accumulation: int = 1
    """Micro-batches a step, to save memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation (parameters are float32): auto is bfloat16, on a CPU float32."""
    remat: Literal["none", "dots", "blocks"] = free("none")
    """What the backward pass computes again to save memory."""
    scan: bool = free(False)
    """Compile one block for all and run it in a loop, at the cost of a copy of the parameters."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay."""
    fsdp: int = free(1)
    """Devices that share one copy of the parameters."""
    sequence: int = free(1)
    """Devices that share the tokens of one clip, for clips too long for one (ring attention)."""
    init_from: str | None = initial(None)
    """Start from the weights of a run's work directory or of a published checkpoint (file, directory or hub id)."""
    probe_clips: int = 1024
    """Labelled clips for the linear probe at the end, half to fit and half to score; 0 leaves it out."""
    picture_clips: int = 4
    """Clips in the reconstruction pictures."""
    dry_run: bool = free(False)
    """Only say how much memory each device needs, from the compiled step; nothing is loaded or written."""
    distributed: bool = free(False)
    """Join the other processes of a cluster (jax.distributed); all are given the same command."""
    accept_changes: bool = False
    """Go on with a begun run although flags that change its numbers are other ones; metrics.jsonl says since when."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        for name in ("batch_size", "accumulation", "epochs", "steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}: it must be above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: it must lie between 0 and 1")
        if min(self.seed, self.probe_clips, self.picture_clips) < 0:
            raise UserError(
                f"seed is {self.seed}, probe_clips {self.probe_clips} and picture_clips {self.picture_clips}: "
                "each must be 0 or more"
            )


DEMO = Config(
    model="videomae_tiny",
    data=DataConfig(frames=8, size=48, short_side=48, stride=2, augment=AugmentConfig(crop="center")),
    mask="random",  # so small a model learns sooner from it than from tubes
    mask_ratio=0.75,
    batch_size=16,
    epochs=10,
    optim=OptimizerConfig(learning_rate=1.6e-2, final_learning_rate=1.6e-4, warmup_epochs=0.2, clip_norm=1.0),
    loop=LoopConfig(log_every=50, save_every=500, evaluate_every=500),
    probe_clips=2048,
)
K400 = Config(batch_size=2048, epochs=1600, loop=LoopConfig(log_every=50, save_every=1000, evaluate_every=5000))
SSV2 = dataclasses.replace(K400, data=DataConfig(stride=2), epochs=2400)

# Published recipes (MCG-NJU/VideoMAE, scripts/pretrain and MODEL_ZOO.md), with top-1 after their fine-tuning.
RECIPES = {
    "demo": DEMO,
    "videos": Config(),  # one's own: the published optimiser at a batch for one accelerator
    "k400_small_1600": dataclasses.replace(K400, model="videomae_small", batch_size=1024),  # 79.0
    "k400_base_800": dataclasses.replace(K400, epochs=800),  # 81.0
    "k400_base_1600": K400,  # 81.5
    "k400_large_1600": dataclasses.replace(K400, model="videomae_large"),  # 85.2
    "k400_huge_1600": dataclasses.replace(K400, model="videomae_huge"),  # 86.6
    "ssv2_small_2400": dataclasses.replace(SSV2, model="videomae_small", batch_size=1024),  # 66.8
    "ssv2_base_800": dataclasses.replace(SSV2, epochs=800),  # 69.6
    "ssv2_base_2400": SSV2,  # 70.8
}


def default_recipe(argv: list[str]) -> str:
    """Without a recipe's name: `videos` for one's own source, `demo` for the embedded one."""
    return "videos" if any(word.split("=")[0] == "--data.source" for word in argv) else "demo"


def make_loss(config: Config, model: nn.Module, grid: masking.Grid) -> Callable:
    """The one place where model and objective meet."""

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mask_key, drop_key = jax.random.split(key)
        video = batch["video"].astype(jnp.float32) / 255
        kept, predicted, counted = masking.draw(
            mask_key, len(video), grid, config.mask, config.mask_ratio, config.decoder_mask
        )
        target = reconstruction.pixel_targets(video, model.patch_size, config.normalize_target)
        target = jnp.take_along_axis(target, predicted[..., None], axis=1)
        variables = {"params": params, **model_state}
        output = model.apply(
            variables, model.card.normalize(video), kept, predicted, train=True, rngs={"drop_path": drop_key}
        )
        loss = reconstruction.reconstruction_loss(output, target, counted)
        loss = jnp.where(batch["valid"], loss, 0).sum() / jnp.maximum(batch["valid"].sum(), 1)
        return loss, (model_state, {})

    return loss_fn


def make_painter(config: Config, model: nn.Module, grid: masking.Grid, clips: np.ndarray, mesh: Mesh) -> Callable:
    """An evaluation that reconstructs the same clips `b t h w c` behind the same masks each time, and paints them."""
    clips = jax.device_put(clips, replicated(mesh))

    @partial(jit_on_mesh, mesh=mesh)
    def reconstruct(params: Any, clips: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        video = clips.astype(jnp.float32) / 255
        kept, masked, _ = masking.draw(key, len(clips), grid, config.mask, config.mask_ratio)
        output = model.apply({"params": params}, model.card.normalize(video), kept, masked)
        target = reconstruction.pixel_targets(video, model.patch_size, config.normalize_target)
        loss = reconstruction.reconstruction_loss(output, jnp.take_along_axis(target, masked[..., None], axis=1))
        painted = reconstruction.paint(video, output, masked, model.patch_size, config.normalize_target)
        hidden = reconstruction.paint(video, jnp.full_like(output, 0.5), masked, model.patch_size, normalized=False)
        return video, hidden, painted, loss

    def paint(state: TrainState, step: int) -> dict[str, float]:
        *rows, loss = jax.device_get(reconstruct(state.evaluated_params, clips, jax.random.key(config.seed)))
        if jax.process_index() == 0:
            note = f"step {step}, {config.mask} mask {config.mask_ratio:.0%}"
            if config.normalize_target:
                note += "; the true mean and deviation are given back to each patch"
            save_reconstructions(Path(config.workdir) / "reconstructions" / f"step_{step:07d}", rows, note)
        return {"reconstruction_loss": float(loss.mean())}

    return paint


def probe(config: Config, model: nn.Module, source: "Source", mesh: Mesh, encoders: dict[str, Any]) -> dict[str, float]:
    """Linear-probe and kNN accuracy of each encoder on the source's own labels, and chance; {} without labels.

    Features are the mean and the deviation of the tokens: the mean alone hides a small thing that moves.
    """
    from vidjax.data.pipeline import evaluation_batches, select

    classes = len(source.class_names)
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: config.probe_clips]
    if classes < 2 or len(chosen) < 4 * classes:
        return {}

    @partial(jit_on_mesh, mesh=mesh)
    def encode(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        video = model.card.preprocess(batch["video"])
        tokens = model.apply({"params": params}, video, method="tokens")
        features = jnp.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=-1)
        return features.astype(jnp.float32), batch["label"], batch["valid"]

    accuracy = {}
    for name, params in encoders.items():
        size = config.batch_size // config.accumulation  # what has room in training has room here
        batches = evaluation_batches(source, config.data, batch_size=size, indices=chosen, **this_process())
        batches = (put_batch(batch, mesh) for batch in select(batches, "video", "label", "valid"))
        features, labels = collect_features(partial(encode, params), batches)
        half = len(labels) // 2
        halves = features[:half], labels[:half], features[half:], labels[half:], classes
        accuracy |= {name: linear_probe(*halves), f"{name}_knn": knn_accuracy(*halves)}
    return accuracy | {"chance": 1 / classes}


def summarize(config: Config, result: FitResult, macs: int, accuracy: dict[str, float]) -> dict[str, float]:
    """Says what was made, where it is, and what to try next."""
    workdir = Path(config.workdir)
    entries = read_metrics(workdir)
    save_curves(
        workdir / "curves.png", entries, ("loss", "evaluation/reconstruction_loss", "learning_rate"), config.model
    )
    losses, numbers = describe_losses(entries)
    print(f"\nloss      {losses}")
    if result.steps_taken:
        print("speed     " + describe_speed(result, macs))
    if accuracy:
        print(
            f"probe     {accuracy['trained']:.1%} of clips classified by a linear probe of the trained encoder, "
            f"{accuracy['untrained']:.1%} of the untrained one, {accuracy['chance']:.1%} by chance\n"
            f"kNN       {accuracy['trained_knn']:.1%} by their nearest neighbours with the trained encoder, "
            f"{accuracy['untrained_knn']:.1%} with the untrained one"
        )
    if (bad := workdir / "bad_files.jsonl").exists():
        print(f"bad files {len(bad.read_text().splitlines())} could not be read: {bad} says why")
    print(
        f"\nMade in {workdir}: reconstructions/ (look at the newest PNG first), curves.png, metrics.jsonl,\n"
        "tensorboard/, config.json, and checkpoints/ with the weights. What to try next:\n"
        "  your own videos            python experiments/mae_pretrain.py --data.source FOLDER --workdir runs/mine\n"
        f"  starting from these weights  --init_from {workdir} --workdir runs/next\n"
        "  looking at a source first  python experiments/check_data.py FOLDER"
    )
    return {**numbers, **accuracy}


def main(config: Config) -> dict[str, float]:
    """Runs the whole job; returns the first and last loss and the probe's accuracies, of a dry run the bytes."""
    return runs.on_mesh(config, train)


def train(config: Config, mesh: Mesh) -> dict[str, float]:
    """The job on this mesh, which is also that in context where devices share a clip's tokens."""
    from vidjax.data.pipeline import BadFiles, evaluation_batches, train_batches
    from vidjax.data.sources import open_source

    chief, data = jax.process_index() == 0, config.data

    # Whatever is wrong with the config or the source is said here, before anything is made.
    check_batch_size(config.batch_size, config.accumulation, data.repeats, config.sequence)
    name = f"{config.model}_pretrain"
    if name not in (known := vidjax.list_models("_pretrain")):
        known = ", ".join(each.removesuffix("_pretrain") for each in known)
        raise UserError(f"model {config.model} has no decoder to be pre-trained with: choose one of {known}")
    model = vidjax.create_model(name, **runs.computing_fields(config, name))
    grid = patches.grid((data.frames, data.size, data.size), model.patch_size)
    draw = partial(masking.draw, grid=grid, mask=config.mask, ratio=config.mask_ratio, decoder_mask=config.decoder_mask)
    masks = jax.eval_shape(partial(draw, clips=1), jax.random.key(0))
    runs.require_source("init_from", config.init_from)
    source = open_source(data.source, data.split, data.square_pixels)
    if chief:
        tell_notes(source)

    per_epoch = len(source) * data.repeats / config.batch_size
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    schedule = config.optim.schedule(config.batch_size, steps, per_epoch)
    tx = make_optimizer(config.optim, schedule)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.float32)

    def init(key: jax.Array) -> TrainState:
        init_key, mask_key, run_key = jax.random.split(key, 3)
        variables = model.init(init_key, jnp.zeros(clip.shape), *draw(mask_key, clips=1)[:2])
        return create_state(variables, tx, run_key, ema=config.ema_decay is not None)

    shapes = jax.eval_shape(init, jax.random.key(config.seed))
    sharding = state_sharding(mesh, shapes)
    step = make_train_step(make_loss(config, model, grid), tx, config.accumulation, config.ema_decay)
    step = jit_step(step, sharding, mesh)
    if config.dry_run:
        batch = {
            "video": jax.ShapeDtypeStruct((config.batch_size, *clip.shape[1:]), jnp.uint8),
            "valid": jax.ShapeDtypeStruct((config.batch_size,), bool),
        }
        return dry_run(config, step, shapes, sharding, batch, mesh)
    state = jax.jit(init, out_shardings=sharding)(jax.random.key(config.seed))
    report = None
    if config.init_from and not has_checkpoint(Path(config.workdir)):
        params, report = runs.start_from(config.init_from, model, state.params)
        params = jax.device_put(params, sharding.params)
        state = state.replace(params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params))
    workdir = runs.open_workdir(config, shapes, source=source)
    macs = count_macs(model.apply, {"params": shapes.params}, clip, *masks[:2])
    if chief:
        write_model(workdir, model)
        tokens, (kept, predicted, _) = math.prod(grid), masks
        visible = f"{tokens} a clip: {kept.shape[1]} visible, {tokens - kept.shape[1]} masked, "
        visible += f"{predicted.shape[1]} predicted ({config.mask} mask {config.mask_ratio:.0%})"
        print(describe_run(config, source, shapes.params, macs, steps, {"tokens": visible}), flush=True)
        if report is not None:
            print(f"weights   from {config.init_from}: {report}")

    name = "bad_files.jsonl" if chief else f"bad_files_{jax.process_index()}.jsonl"
    bad_files = BadFiles(source, data.max_bad_share, workdir / name)

    def batches_from(n: int) -> Iterator[dict[str, np.ndarray]]:
        settings = {"batch_size": config.batch_size, "seed": config.seed, "first_batch": n, "bad_files": bad_files}
        for batch in train_batches(source, data, **settings, **this_process()):
            yield {name: batch[name] for name in ("video", "valid")}

    shown = np.arange(min(config.picture_clips, len(source)))
    shown = next(evaluation_batches(source, data, batch_size=len(shown), indices=shown)) if len(shown) else None
    paint = shown is not None and shown["valid"].any()
    result = fit(
        step,
        state,
        batches_from,
        steps=steps,
        workdir=workdir,
        mesh=mesh,
        loop=config.loop,
        config=cli.as_dict(config),
        schedule=schedule,
        evaluate=make_painter(config, model, grid, shown["video"][shown["valid"]], mesh) if paint else None,
        advise=partial(describe_starvation, source.name, data.workers),
    )
    if not result.finished:
        if chief:
            print(f"stopped by SIGTERM with step {int(result.state.step)} saved: the same command goes on from there")
        return {}
    accuracy = {}
    if config.probe_clips:
        # Made again rather than kept: a copy would take the parameters' memory all the while.
        untrained = jax.jit(lambda key: init(key).params, out_shardings=sharding.params)(jax.random.key(config.seed))
        encoders = {"trained": result.state.evaluated_params, "untrained": untrained}
        accuracy = probe(config, model, source, mesh, encoders)
    return summarize(config, result, macs, accuracy) if chief else accuracy


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, default_recipe)
