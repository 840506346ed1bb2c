"""Three studies on rendered videos, each with a table and a plot.

    python experiments/compare_models.py               # which models recognise motion
    python experiments/compare_models.py pretraining   # does pre-training help with few labels
    python experiments/compare_models.py captions      # does pre-training help in contrastive training

The rendered videos are labelled by the direction of motion, which no single frame shows: models that process each frame
separately stay near chance, 12.5 %. `families` trains a tiny model of each family on the same clips with finetune.py;
VideoMAE is first pre-trained by mae_pretrain.py, at its own size. `pretraining` fine-tunes VideoMAE on few labelled
clips, from scratch and pre-trained, with equal steps and three seeds. `captions` does the same with VideoMAE as the
video tower of contrastive_pretrain.py, on captions that describe the motion.

Each training runs in a separate process with a work directory in WORKDIR; completed trainings are not repeated, and
interrupted ones resume. The results are printed and written to STUDY.md, STUDY.json and STUDY.png. Each study takes
half an hour to an hour on two cores; expected results: docs/results.md.
"""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

import vidjax
from vidjax import cli, runs
from vidjax.convert import save_pretrained
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.models import example_inputs
from vidjax.training.cost import count_macs
from vidjax.training.metrics import clock, read_metrics
from vidjax.visualize.curves import save_bands, save_points

CHANCE = 1 / 8
CLIPS = "--data.frames 8 --data.size 32 --data.short_side 32 --data.stride 2"
PRETRAINED = "--data.frames 8 --data.size 48 --data.short_side 48 --data.stride 2"  # as in mae_pretrain's demo
TRANSFORMER = "--optim.learning_rate 0.016 --optim.beta2 0.95 --label_smoothing 0"

PAIRED = (
    f"demo --video_model videomae_tiny {PRETRAINED} --data.split train --data.validation_split validation "
    "--data.templates 'a shape moves {}' --objective kl --batch_size 32 --steps 384 --loop.evaluate_every 32 "
    "--optim.learning_rate 8e-3 --optim.final_learning_rate 8e-5"
)
FEW = f"--model videomae_tiny --data.train_examples 256 --steps 512 --loop.evaluate_every 64 {TRANSFORMER} {PRETRAINED}"


@dataclasses.dataclass(frozen=True)
class Config:
    """A study."""

    study: Positional[Literal["families", "pretraining", "captions"]] = "families"
    """Compare families of models, or VideoMAE with and without pre-training, on labels or on captions."""
    workdir: str = "runs/compare"
    """Directory for the work directories and the results."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of the pre-training studies; the study of families uses the first."""
    models: tuple[str, ...] = ()
    """Models of the study of families (default: all)."""
    flags: str = ""
    """Additional flags for finetune.py or contrastive_pretrain.py, such as fewer --steps for a trial."""
    pretraining_flags: str = ""
    """Additional flags for mae_pretrain.py."""

    def __post_init__(self) -> None:
        """Checks the values."""
        check_values(self)
        if unknown := [name for name in self.models if name not in FAMILIES]:
            raise UserError(f"models has {unknown[0]}: choose from {', '.join(FAMILIES)}")
        if not self.seeds:
            raise UserError("seeds is empty: give one or more")


def train(script: str, flags: Sequence[str], workdir: Path) -> None:
    """Runs a training script in a separate process, with its output in a log beside the work directory.

    Raises:
      UserError: it failed.
    """
    log = workdir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{script} {shlex.join(flags)}  > {log}", flush=True)
    command = [sys.executable, str(Path(__file__).with_name(script)), *flags, "--workdir", str(workdir)]
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        raise UserError(f"{script} ended with status {done.returncode}, see {log}: {' '.join(last)}")


def pretrain(config: Config, _: str, seed: int) -> str:
    """Pre-trains a model; returns the work directory."""
    workdir = Path(config.workdir) / f"pretrained_{seed}"
    train("mae_pretrain.py", ["demo", "--seed", str(seed), *shlex.split(config.pretraining_flags)], workdir)
    return str(workdir)


def spread_times(config: Config, name: str, seed: int) -> str:
    """Writes a checkpoint of a new model whose time embeddings lie on a line, with the scale of its tokens.

    TimeSformer's time embeddings are initialised with zeros, which suits pre-trained image weights and many epochs.
    Trained from scratch for a few minutes, such a model learns the axis of the motion but not its direction, because
    frames with equal embeddings have no order.
    """
    out = Path(config.workdir) / f"{name}_start_{seed}"
    if not out.exists():
        unfinished = out.with_name(f"{out.name}_unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # left by an interrupted call
        model = vidjax.create_model(name, num_classes=8)
        variables = model.init(jax.random.key(seed), jnp.zeros(example_inputs(model)[0].shape))
        frames, width = variables["params"]["time"]["table"].shape
        direction = jax.random.normal(jax.random.key(seed), (width,))
        variables["params"]["time"]["table"] = jnp.linspace(-1, 1, frames)[:, None] * direction
        save_pretrained(unfinished, model, variables)
        unfinished.rename(out)
    return str(out)


FAMILIES = {  # model: (treatment of time, flags, initial weights)
    "r3d_tiny": ("3-D convolutions", "--steps 512", None),
    "r2plus1d_tiny": ("alternating 2-D and 1-D convolutions", "--steps 512", None),
    "uniformer_tiny": ("local, then global space-time attention", f"--steps 1024 {TRANSFORMER}", None),
    "vivit_tiny_factorized_encoder": ("a spatial and a temporal transformer", f"--steps 1024 {TRANSFORMER}", None),
    "timesformer_tiny_divided": (
        "attention over time, then space",
        f"--steps 3072 --drop_path 0 {TRANSFORMER}",
        spread_times,
    ),
    "videomae_tiny": ("joint attention, pre-trained", f"--steps 1024 {TRANSFORMER} {PRETRAINED}", pretrain),
    "fr2d_tiny": ("frame by frame, averaged", "--steps 512", None),
    "timesformer_tiny_space": ("frame by frame, averaged", f"--steps 1024 {TRANSFORMER}", None),
    "vit_tiny": ("frame by frame, averaged", f"--steps 1024 {TRANSFORMER}", None),
}


def finetune(config: Config, name: str, flags: str, seed: int) -> dict[str, Any]:
    """Fine-tunes a model; returns the accuracy, its curve, and the cost of the training."""
    workdir = Path(config.workdir) / name
    command = f"demo --seed {seed} --data.validation_examples 1024 {flags} {config.flags}"
    train("finetune.py", shlex.split(command), workdir)
    entries, trained = read_metrics(workdir), runs.read_config(workdir)
    steps = [entry for entry in entries if entry.get("clips_per_second")]
    rate = len(steps) / sum(1 / entry["clips_per_second"] for entry in steps)
    validated = [(entry["step"], entry["evaluation/top1"]) for entry in entries if "evaluation/top1" in entry]
    model, _ = vidjax.load_pretrained(workdir, verbose=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    macs = count_macs(model.apply, shapes, *example_inputs(model))
    clips = trained["steps"] * trained["batch_size"]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
        "gmacs": macs / 1e9,
        "steps": trained["steps"],
        "training_gmacs": 3 * macs * clips / 1e9,  # the backward pass costs twice the forward pass
        "seconds": clips / rate,
        "top1": validated[-1][1],
        "curve": validated,
    }


def compare_families(config: Config) -> tuple[dict[str, Any], str]:
    """The results of each model and a table, sorted by accuracy."""
    seed, results = config.seeds[0], {}
    for name in config.models or FAMILIES:
        time, flags, start = FAMILIES[name]
        flags = f"--model {name} {CLIPS} {flags}"
        if start is not None:
            flags += f" --init_from {shlex.quote(start(config, name, seed))}"
        results[name] = {"time": time, **finetune(config, name, flags, seed)}
        print(f"  top-1 {results[name]['top1']:.1%}", flush=True)
    rows = sorted(results.items(), key=lambda item: item[1]["top1"])
    points = {name: (row["training_gmacs"] / 1e3, row["top1"]) for name, row in rows}
    lines = {"chance": CHANCE}
    save_points(Path(config.workdir) / "families.png", points, "training cost in 10^12 multiply-adds", "top-1", lines)
    table = [
        "| model | time | parameters | GMACs per clip | steps | training | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    table += [
        f"| `{name}` | {row['time']} | {row['parameters']:,} | {row['gmacs']:.3f} | {row['steps']:,} "
        f"| {row['training_gmacs'] / 1e3:.2f} TMACs, {clock(row['seconds'])} | {row['top1']:.1%} |"
        for name, row in rows
    ]
    return results, "\n".join(table)


def train_pair(config: Config, name: str, flags: str, seed: int) -> dict[str, Any]:
    """Trains two towers; returns the zero-shot accuracy on directions of motion, and its curve."""
    workdir = Path(config.workdir) / name
    train("contrastive_pretrain.py", shlex.split(f"{flags} --seed {seed} {config.flags}"), workdir)
    curve = [(e["step"], e["evaluation/top1"]) for e in read_metrics(workdir) if "evaluation/top1" in e]
    return {"top1": curve[-1][1], "curve": curve}


def compare_starts(config: Config) -> tuple[dict[str, Any], str]:
    """The results and a table of training from scratch and pre-trained, over the seeds."""
    with_captions = config.study == "captions"
    all_results: dict[str, list] = {"from scratch": [], "pre-trained": []}
    for seed in config.seeds:
        source = pretrain(config, "videomae_tiny", seed)
        for start, results in all_results.items():
            name = f"{'pair' if with_captions else 'few'}_{start.replace(' ', '_')}_{seed}"
            flag = f"--init_{'video_' if with_captions else ''}from {shlex.quote(source)}"
            flag = "" if start == "from scratch" else flag
            if with_captions:
                results.append(train_pair(config, name, f"{PAIRED} {flag}", seed))
            else:
                results.append(finetune(config, name, f"{FEW} {flag}", seed))
            print(f"  {start}, seed {seed}: top-1 {results[-1]['top1']:.1%}", flush=True)
    curves = {
        start: ([step for step, _ in results[0]["curve"]], [[top1 for _, top1 in r["curve"]] for r in results])
        for start, results in all_results.items()
    }
    save_bands(Path(config.workdir) / f"{config.study}.png", curves, "step", "top-1", {"chance": CHANCE})
    goal = min(result["top1"] for result in all_results["from scratch"])
    head = f"steps to {goal:.1%}"
    table = [f"| start | top-1 of each seed | mean | std | {head} |", "|---|---|---|---|---|"]
    for start, results in all_results.items():
        steps = ", ".join(str(next((step for step, top1 in r["curve"] if top1 >= goal), "-")) for r in results)
        values = np.array([result["top1"] for result in results])
        shown = ", ".join(f"{value:.1%}" for value in values)
        std = f"{values.std(ddof=1):.1%}" if len(values) > 1 else "-"
        table.append(f"| {start} | {shown} | {values.mean():.1%} | {std} | {steps} |")
    return all_results, "\n".join(table)


def main(config: Config) -> dict[str, Any]:
    """Runs the missing trainings; prints, writes and returns the results."""
    results, table = (compare_families if config.study == "families" else compare_starts)(config)
    out = Path(config.workdir) / config.study
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}\n\nwritten to {out}.md, {out}.json and {out}.png")
    return results


if __name__ == "__main__":
    cli.run(main, Config)
