"""Fine-tune a model on labelled videos: from scratch, from a run, or from published weights.

A tiny model on rendered videos, minutes on a laptop: python experiments/finetune.py

From a pre-training run of one's own:
python experiments/finetune.py --model videomae_base --init_from runs/b --data.train train.csv --data.validation val.csv

A published recipe: python experiments/finetune.py videomae_base_k400 --init_from checkpoint.pth --data.train k400.csv

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
import optax
from jax.sharding import Mesh

import vidjax
from vidjax import cli, runs
from vidjax.convert.checkpoint import write_model
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.errors import UserError
from vidjax.evaluation.features import collect_features
from vidjax.evaluation.recognition import recognition
from vidjax.fields import check_values, free, initial
from vidjax.layers.normalization import valid_clips
from vidjax.objectives.classification import mix_clips
from vidjax.report import describe_losses, describe_run, describe_span, describe_speed, describe_starvation, tell_notes
from vidjax.training.checkpoint import has_checkpoint
from vidjax.training.cost import count_macs
from vidjax.training.loop import FitResult, LoopConfig, fit
from vidjax.training.memory import dry_run
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig, make_optimizer, trained_parameters
from vidjax.training.sharding import (
    check_batch_size,
    jit_on_mesh,
    jit_step,
    put_batch,
    state_sharding,
    this_process,
)
from vidjax.training.state import TrainState, create_state
from vidjax.training.step import make_train_step
from vidjax.visualize.curves import save_curves

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Config:
    """A supervised training run."""

    model: str = "videomae_base"
    """One of vidjax.list_models()."""
    init_from: str | None = initial(None)
    """Start from the weights of a run's work directory or of a published checkpoint (file, directory or hub id)."""
    keep_head: bool = initial(False)
    """Keep the head of those weights, whose classes must be the same; without it the head is new."""
    workdir: str = "runs/finetune"
    """Where everything goes; the same command again resumes."""
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
    """Share of a label that is spread over all classes."""
    train_accuracy: bool = False
    """Log the accuracy on the training clips too; it needs hard labels, that is no mixup and no CutMix."""
    batch_size: int = 64
    """Clips a step, over all devices; the learning rate is scaled by it."""
    epochs: float = 50
    """Passes over the training videos."""
    steps: int | None = None
    """Steps in all, instead of epochs."""
    optim: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-4, final_learning_rate=1e-6, warmup_epochs=5, beta2=0.999, layer_decay=0.75
    )
    """Optimiser and schedule."""
    loop: LoopConfig = free(LoopConfig())
    """Logging, saving, validating, stopping."""
    accumulation: int = 1
    """Micro-batches a step, to save memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation (parameters are float32): auto is bfloat16, on a CPU float32."""
    remat: Literal["none", "dots", "blocks"] = free("none")
    """What the backward pass computes again to save memory."""
    scan: bool = free(False)
    """Compile one block for all and run it in a loop, at the cost of a copy of the parameters."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay; it is validated beside them, and chosen by."""
    fsdp: int = free(1)
    """Devices that share one copy of the parameters."""
    sequence: int = free(1)
    """Devices that share the tokens of one clip, for clips too long for one (ring attention)."""
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
        for name in ("drop_path", "dropout", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} is {value}: it must be at least 0 and below 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: it must lie between 0 and 1")
        if min(self.mixup, self.cutmix, self.seed) < 0:
            raise UserError(f"mixup is {self.mixup}, cutmix {self.cutmix} and seed {self.seed}: each must be 0 or more")
        if self.train_accuracy and (self.mixup or self.cutmix):
            raise UserError("train_accuracy needs hard labels: set --mixup 0 --cutmix 0, or leave it out")
        if self.keep_head and not self.init_from:
            raise UserError("keep_head is about the weights of init_from: give them, or leave it out")


DEMO = Config(
    model="r2plus1d_tiny",
    data=LabelledDataConfig(
        frames=8,
        size=32,
        short_side=32,
        stride=2,
        augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes",
        validation_examples=512,
    ),
    batch_size=16,
    epochs=2,
    mixup=0.0,
    cutmix=0.0,
    train_accuracy=True,
    optim=OptimizerConfig(learning_rate=3e-2, final_learning_rate=1e-4, warmup_epochs=0.1, beta2=0.999, clip_norm=1.0),
    loop=LoopConfig(log_every=50, save_every=256, evaluate_every=256),
)

# Published recipes. Learning rates are for a batch of 256 clips, counting each repeat.
STRONG = AugmentConfig(
    crop="random_resized", flip=True, rand_augment_ops=4, rand_augment_magnitude=7, random_erasing=0.25
)
LONG = LoopConfig(log_every=50)
# MCG-NJU/VideoMAE, scripts/kinetics and scripts/ssv2: 64 GPUs of 6 (B) or 2 (L) videos, each twice.
VIDEOMAE_BASE = Config(
    model="videomae_base",
    data=LabelledDataConfig(frames=16, stride=4, short_side=256, augment=STRONG, repeats=2),
    drop_path=0.1,
    batch_size=768,
    epochs=75,
    optim=OptimizerConfig(
        learning_rate=2.5e-4, warmup_learning_rate=5e-7, final_learning_rate=5e-7, warmup_epochs=5, beta2=0.999,
        layer_decay=0.75,
    ),
    loop=LONG,
)  # fmt: skip
VIDEOMAE_LARGE = dataclasses.replace(
    VIDEOMAE_BASE,
    model="videomae_large",
    batch_size=256,
    epochs=35,
    optim=dataclasses.replace(VIDEOMAE_BASE.optim, learning_rate=1e-3),
)
SSV2 = LabelledDataConfig(
    frames=16, sampling="segments", short_side=256, augment=dataclasses.replace(STRONG, flip=False), repeats=2
)
# facebookresearch/TimeSformer, configs/Kinetics: SGD, 0.005 for 8 clips. Its crop is a random one of 256 to 320 pixels;
# it decays biases and norms too, which here nothing does.
TIMESFORMER = Config(
    model="timesformer_base_divided",
    data=LabelledDataConfig(frames=8, stride=32, augment=AugmentConfig(flip=True)),
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
    batch_size=8,
    epochs=15,
    optim=OptimizerConfig(
        kind="sgd", learning_rate=0.16, warmup_epochs=0, milestones=(11, 14), weight_decay=1e-4
    ),
    loop=LONG,
)  # fmt: skip
# google-research/scenic, projects/vivit/configs: SGD, 0.05 and 0.4 for 64 clips, no weight decay.
VIVIT = Config(
    model="vivit_base_16x2_factorized_encoder",
    data=LabelledDataConfig(frames=32, stride=2, augment=AugmentConfig(flip=True, color_jitter=0.4, grey=0.1)),
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
    batch_size=64,
    epochs=30,
    optim=OptimizerConfig(
        kind="sgd", learning_rate=0.2, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=2.5,
        weight_decay=0.0, clip_norm=1.0,
    ),
    loop=LONG,
)  # fmt: skip
# Sense-X/UniFormer, exp/*/run.sh: 1e-4 for 32 videos, each twice. Their colour jitter is set, but no loader reads it.
UNIFORMER = Config(
    model="uniformer_small_16",
    data=LabelledDataConfig(frames=16, stride=4, augment=STRONG, repeats=2),
    drop_path=0.1,
    batch_size=64,
    epochs=110,
    optim=OptimizerConfig(
        learning_rate=4e-4, warmup_learning_rate=4e-6, final_learning_rate=4e-6, warmup_epochs=10, beta2=0.999
    ),
    loop=LONG,
)
# arXiv:1711.11248 and torchvision's reference: 0.01 for 32 clips, a tenth every 10 of 45 epochs; five clips of each
# video make one of its epochs.
R2PLUS1D = Config(
    model="r2plus1d_18",
    data=LabelledDataConfig(frames=16, size=112, short_side=128, stride=2, augment=AugmentConfig(flip=True)),
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
    batch_size=256,
    epochs=225,
    optim=OptimizerConfig(
        kind="sgd", learning_rate=0.08, warmup_epochs=50, milestones=(100, 150, 200), weight_decay=1e-4
    ),
    loop=LONG,
)

RECIPES = {
    "demo": DEMO,
    "videos": Config(),  # one's own: the recipe of VideoMAE-B at a batch for one accelerator
    "videomae_base_k400": VIDEOMAE_BASE,  # 81.5 after 1600 epochs of pre-training, 5x3 views
    "videomae_large_k400": VIDEOMAE_LARGE,  # 85.2, 5x3 views
    "videomae_base_ssv2": dataclasses.replace(VIDEOMAE_BASE, data=SSV2, epochs=30),  # 70.8, 2x3 views
    "videomae_large_ssv2": dataclasses.replace(VIDEOMAE_LARGE, data=SSV2, epochs=30),  # by B's rule
    "timesformer_base_k400": TIMESFORMER,  # 77.9 from ImageNet-21k, 1x3 views
    "vivit_base_fe_k400": VIVIT,  # 78.4 from ImageNet-21k, 4x3 views
    "vivit_large_fe_ssv2": dataclasses.replace(
        VIVIT,
        model="vivit_large_16x2_factorized_encoder",
        # Scenic's RandAugment magnitude of 20 is beyond its scale's end, 10.
        data=LabelledDataConfig(
            frames=32, stride=1, size=256, short_side=288,
            augment=AugmentConfig(rand_augment_ops=2, rand_augment_magnitude=10),
        ),
        drop_path=0.3,
        mixup=0.3,
        label_smoothing=0.3,
        epochs=35,
        optim=dataclasses.replace(VIVIT.optim, learning_rate=1.6),
    ),
    "uniformer_small_k400": UNIFORMER,  # 80.8, 4x1 views
    "uniformer_base_k400": dataclasses.replace(UNIFORMER, model="uniformer_base_16", drop_path=0.3),  # 82.0, 4x1 views
    "uniformer_small_ssv2": dataclasses.replace(
        UNIFORMER,
        data=SSV2,
        drop_path=0.3,
        epochs=50,
        optim=dataclasses.replace(UNIFORMER.optim, learning_rate=8e-4, warmup_epochs=5),
    ),  # 67.7 from K400, 1x3 views
    "uniformer_base_ssv2": dataclasses.replace(
        UNIFORMER,
        model="uniformer_base_16",
        data=SSV2,
        drop_path=0.4,
        batch_size=80,
        epochs=50,
        optim=dataclasses.replace(UNIFORMER.optim, learning_rate=8e-4, warmup_epochs=5),
    ),  # 70.4 from K400, 1x3 views; 2.5e-4 for 40 videos
    "r2plus1d_18_k400": R2PLUS1D,  # 67.5 (torchvision), 5x1 views
}  # fmt: skip


def default_recipe(argv: list[str]) -> str:
    """Without a recipe's name: `videos` for one's own source, `demo` for the embedded one."""
    return "videos" if any(word.split("=")[0] == "--data.train" for word in argv) else "demo"


def make_model(config: Config, class_names: tuple[str, ...]) -> nn.Module:
    """The model for these classes and clips, with their names on its card."""
    fields = {
        "num_classes": len(class_names),
        "num_frames": config.data.frames,
        "image_size": config.data.size,
    }
    fields |= {name: value for name in ("drop_path", "dropout") if (value := getattr(config, name)) is not None}
    if "num_classes" not in vidjax.create_model(config.model).__dataclass_fields__:
        name = config.model.removesuffix("_pretrain")
        other = name if name != config.model else "one that has"
        raise UserError(f"model {config.model} has no classes: choose {other}")
    model = vidjax.create_model(config.model, **fields, **runs.computing_fields(config, config.model))
    return model.clone(card=dataclasses.replace(model.card, class_names=class_names))


def open_sources(config: Config) -> tuple["Source", "Source | None"]:
    """Training and validation videos, labelled by the training videos' classes."""
    from vidjax.data.sources import draw, open_source, require_labels, with_classes

    data = config.data
    train = open_source(data.train, data.train_split, data.square_pixels)
    if len(train.class_names) < 2:
        raise UserError(
            f"data.train {data.train} has {len(train.class_names)} classes: it needs labels of two or more, "
            "in folders of their names or in the manifest's label column"
        )
    require_labels(train)
    if data.validation is None:
        return draw(train, data.train_examples, config.seed), None
    validation = with_classes(
        open_source(data.validation, data.validation_split, data.square_pixels), train.class_names
    )
    require_labels(validation)
    return draw(train, data.train_examples, config.seed), draw(validation, data.validation_examples, config.seed)


def choose_trained(config: Config, params: Any) -> Any:
    """Which parameters are trained; None for all."""
    if config.tune == "full":
        return None
    if config.tune == "partial":
        return trained_parameters(params, config.tuned_blocks)
    return {name: jax.tree.map(lambda _, head=name == "head": head, part) for name, part in params.items()}


def make_loss(config: Config, model: nn.Module, trained: Any) -> Callable:
    """The one place where model and objective meet."""

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        mix_key, dropout_key, path_key = jax.random.split(key, 3)
        if trained is not None:
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)
        video, labels, valid = batch["video"].astype(jnp.float32) / 255, batch["label"], batch["valid"]
        targets = optax.smooth_labels(jax.nn.one_hot(labels, model.num_classes), config.label_smoothing)
        video, targets = mix_clips(mix_key, video, targets, valid, config.mixup, config.cutmix)
        with valid_clips(valid):
            logits, changed = model.apply(
                {"params": params, **model_state},
                model.card.normalize(video),
                train=config.tune != "linear_probe",
                mutable=list(model_state),
                rngs={"dropout": dropout_key, "drop_path": path_key},
            )

        def mean(values: jax.Array) -> jax.Array:
            return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)

        metrics = {"accuracy": mean(logits.argmax(axis=-1) == labels)} if config.train_accuracy else {}
        losses = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
        return mean(losses), ({**model_state, **changed}, metrics)

    return loss_fn


def make_validator(config: Config, model: nn.Module, source: "Source", bad_files: Any, mesh: Mesh) -> Callable:
    """Accuracy on all validation videos, middle clip and crop, with the weights and with their moving average."""
    from vidjax.data.pipeline import evaluation_batches, select

    @partial(jit_on_mesh, mesh=mesh)
    def predict(weights: dict[str, Any], model_state: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        video = model.card.preprocess(batch["video"])
        logits = [model.apply({"params": params, **model_state}, video) for params in weights.values()]
        probabilities = [jax.nn.softmax(each.astype(jnp.float32)) for each in logits]
        return jnp.concatenate(probabilities, axis=-1), batch["label"], batch["valid"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        weights = {"": state.params} | ({} if state.ema is None else {"ema_": state.ema})
        size = config.batch_size // config.accumulation  # what has room in training has room here
        settings = {"batch_size": size, "bad_files": bad_files, **this_process()}
        batches = select(evaluation_batches(source, config.data, **settings), "video", "label", "valid")
        batches = (put_batch(batch, mesh) for batch in batches)
        both, labels = collect_features(partial(predict, weights, state.model_state), batches)
        numbers = {}
        for prefix, probabilities in zip(weights, np.split(both, len(weights), axis=1), strict=True):
            found = recognition(probabilities, labels)
            likelihood = probabilities[np.arange(len(labels)), labels]
            numbers |= {
                f"{prefix}top1": found.top1,
                f"{prefix}top5": found.top5,
                f"{prefix}loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
            }
        return numbers

    return validate


def start(config: Config, model: nn.Module, variables: dict) -> dict:
    """The variables with the weights of `init_from` in their place."""
    fresh = () if config.keep_head else ("head/",)
    theirs = runs.class_names(config.init_from) if config.keep_head else ()
    if theirs and theirs != model.card.class_names:
        raise UserError(
            f"keep_head: the head in {config.init_from} is of other classes "
            f"({', '.join(theirs[:3])}, ...): leave it out"
        )
    variables, report = runs.start_from(config.init_from, model, variables, fresh=fresh)
    if config.keep_head and any(path.startswith("head/") for path in report.fresh):
        raise UserError(
            f"keep_head: the head in {config.init_from} is not of the {model.num_classes} classes here: leave it out"
        )
    if jax.process_index() == 0:
        print(f"weights   from {config.init_from}: {report}")
    return variables


def summarize(config: Config, result: FitResult, macs: int) -> dict[str, float]:
    """Says what was reached, where it is, and what to do with it."""
    workdir = Path(config.workdir)
    entries = read_metrics(workdir)
    chosen = "evaluation/ema_top1" if config.ema_decay else "evaluation/top1"
    save_curves(workdir / "curves.png", entries, ("loss", chosen, "learning_rate"), config.model)
    losses, numbers = describe_losses(entries)
    print(f"\nloss      {losses}")
    if result.steps_taken:
        print("speed     " + describe_speed(result, macs))
    validated = [entry for entry in entries if entry.get(chosen) is not None]
    if validated:
        best, last = max(validated, key=lambda entry: entry[chosen]), validated[-1]
        numbers |= {"top1": last[chosen], "best_top1": best[chosen], "top5": last[chosen.replace("top1", "top5")]}
        print(
            f"accuracy  top-1 {last[chosen]:.1%}, top-5 {numbers['top5']:.1%} at the last step; best top-1 "
            f"{best[chosen]:.1%} at step {best['step']}" + (" (moving average)" if config.ema_decay else "")
        )
    if (bad := workdir / "bad_files.jsonl").exists():
        print(f"bad files {len(bad.read_text().splitlines())} could not be read: {bad} says why")
    print(
        f"\nMade in {workdir}: curves.png, metrics.jsonl, tensorboard/, config.json, vidjax.json and the weights, "
        f"checkpoints/ (the last){' and best/' if validated else ''}.\nWhat to do with it:\n"
        f"  test with many views  python experiments/evaluate.py --run {workdir} --data.source VIDEOS --views 4x3\n"
        f"  name what is seen     python experiments/predict.py --run {workdir} clip.mp4\n"
        f"  in your own code      model, variables = vidjax.load_pretrained({str(workdir)!r})"
    )
    return numbers


def main(config: Config) -> dict[str, float]:
    """Runs the whole job; returns the first and last loss and the accuracies, of a dry run the bytes."""
    return runs.on_mesh(config, train)


def train(config: Config, mesh: Mesh) -> dict[str, float]:
    """The job on this mesh, which is also that in context where devices share a clip's tokens."""
    from vidjax.data.pipeline import BadFiles, train_batches

    chief, data = jax.process_index() == 0, config.data

    # Whatever is wrong with the config or the source is said here, before anything is made.
    check_batch_size(config.batch_size, config.accumulation, data.repeats, config.sequence)
    runs.require_source("init_from", config.init_from)
    source, validation = open_sources(config)
    if chief:
        tell_notes(source, validation)
    model = make_model(config, source.class_names)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, len(model.card.mean)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)
    trained = choose_trained(config, shapes["params"])
    macs = count_macs(model.apply, shapes, clip)

    per_epoch = len(source) * data.repeats / config.batch_size
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    schedule = config.optim.schedule(config.batch_size, steps, per_epoch)
    tx = make_optimizer(config.optim, schedule, trained)
    keys = jax.random.split(jax.random.key(config.seed))

    def create(variables: dict) -> TrainState:
        return create_state(variables, tx, keys[1], ema=config.ema_decay is not None)

    state_shapes = jax.eval_shape(create, shapes)
    sharding = state_sharding(mesh, state_shapes)
    step = make_train_step(make_loss(config, model, trained), tx, config.accumulation, config.ema_decay)
    step = jit_step(step, sharding, mesh)
    if config.dry_run:
        batch = {
            "video": jax.ShapeDtypeStruct((config.batch_size, *clip.shape[1:]), jnp.uint8),
            "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
            "valid": jax.ShapeDtypeStruct((config.batch_size,), bool),
        }
        return dry_run(config, step, state_shapes, sharding, batch, mesh)
    if validation is not None:
        describe_span(data, validation)  # that it can be read should not come out after hours
    began = has_checkpoint(Path(config.workdir))
    if began and (before := runs.class_names(config.workdir)) not in ((), source.class_names):
        raise UserError(
            f"{config.workdir} was begun with the classes {', '.join(before[:5])}, {data.train} now has "
            f"{', '.join(source.class_names[:5])}: give the videos of then, or another --workdir"
        )
    variables = jax.jit(model.init)(keys[0], jnp.zeros(clip.shape))
    if config.init_from and not began:
        variables = start(config, model, variables)
    sources = {"train": source} | ({} if validation is None else {"validation": validation})
    workdir = runs.open_workdir(config, state_shapes, **sources)
    if chief:
        write_model(workdir, model)
        counted = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        if trained is not None:
            chosen = zip(jax.tree.leaves(shapes["params"]), jax.tree.leaves(trained), strict=True)
            counted = sum(leaf.size for leaf, is_trained in chosen if is_trained)
        held = f"{len(validation):,} videos of {validation.name}" if validation else "none"
        more = {
            "tune": f"{config.tune}: {counted:,} parameters",
            "classes": f"{len(source.class_names)}; validate {held}",
        }
        print(describe_run(config, source, shapes["params"], macs, steps, more), flush=True)

    state = jax.jit(create, out_shardings=sharding)(variables)
    del variables  # the state has its own
    suffix = "" if chief else f"_{jax.process_index()}"
    bad_files = BadFiles(source, data.max_bad_share, workdir / f"bad_files{suffix}.jsonl")

    def batches_from(n: int) -> Iterator[dict[str, np.ndarray]]:
        settings = {"batch_size": config.batch_size, "seed": config.seed, "first_batch": n, "bad_files": bad_files}
        for batch in train_batches(source, data, **settings, **this_process()):
            valid = batch["valid"] & (batch["label"] >= 0)
            yield {"video": batch["video"], "label": batch["label"], "valid": valid}

    validate = None
    if validation is not None:
        bad = BadFiles(validation, data.max_bad_share, workdir / f"bad_validation_files{suffix}.jsonl")
        validate = make_validator(config, model, validation, bad, mesh)
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
        evaluate=validate,
        best=None if validate is None else ("ema_top1" if config.ema_decay else "top1"),
        advise=partial(describe_starvation, source.name, data.workers),
    )
    if not result.finished:
        if chief:
            print(f"stopped by SIGTERM with step {int(result.state.step)} saved: the same command goes on from there")
        return {}
    return summarize(config, result, macs) if chief else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, default_recipe)
