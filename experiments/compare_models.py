"""Three studies on the embedded data set, each one command, with a table and a plot at its end.

    python experiments/compare_models.py               # which models see motion
    python experiments/compare_models.py pretraining   # does pre-training pay where labels are few
    python experiments/compare_models.py captions      # does it pay where videos are matched with captions

The embedded videos are labelled by the direction of motion, which no single frame tells: a model that looks at each
frame for itself stays near the 12.5 % of chance, however well it sees. `families` trains a tiny member of every family
on the same clips by finetune.py; VideoMAE is pre-trained by mae_pretrain.py first, at its own size. `pretraining`
fine-tunes VideoMAE on few labelled clips from scratch and from that pre-training, with equal steps, over three seeds.
`captions` trains it likewise as the video tower of contrastive_pretrain.py, on sentences that tell the motion.

Each training is a process of its own with a work directory in WORKDIR; one that is there already is not repeated, one
that was interrupted goes on. What came of them is printed and written: STUDY.md, STUDY.json and STUDY.png. Half an
hour to an hour each on two cores; expected results: docs/results.md.
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
PRETRAINED = "--data.frames 8 --data.size 48 --data.short_side 48 --data.stride 2"  # as mae_pretrain's demo has them
TRANSFORMER = "--optim.learning_rate 0.016 --optim.beta2 0.95 --label_smoothing 0"

PAIRED = (
    f"demo --video_model videomae_tiny {PRETRAINED} --data.split train --data.validation_split validation "
    "--data.templates 'a shape moves {}' --objective kl --batch_size 32 --steps 384 --loop.evaluate_every 32 "
    "--optim.learning_rate 8e-3 --optim.final_learning_rate 8e-5"
)
FEW = f"--model videomae_tiny --data.train_examples 256 --steps 512 --loop.evaluate_every 64 {TRANSFORMER} {PRETRAINED}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which study, and where."""

    study: Positional[Literal["families", "pretraining", "captions"]] = "families"
    """Which models see motion, or what pre-training is worth with labels or with captions."""
    workdir: str = "runs/compare"
    """Where trainings and results go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the pre-training studies; the first one is that of the families."""
    models: tuple[str, ...] = ()
    """Families to compare (default: all)."""
    flags: str = ""
    """More flags for finetune.py or contrastive_pretrain.py, such as fewer --steps for a trial."""
    pretraining_flags: str = ""
    """More flags for mae_pretrain.py."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        if unknown := [name for name in self.models if name not in FAMILIES]:
            raise UserError(f"models has {unknown[0]}: choose from {', '.join(FAMILIES)}")
        if not self.seeds:
            raise UserError("seeds is empty: give one or more")


def train(script: str, flags: Sequence[str], workdir: Path) -> None:
    """Runs a training in a process of its own; what it says goes to a log beside its work directory.

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
    """The work directory of a pre-training."""
    workdir = Path(config.workdir) / f"pretrained_{seed}"
    train("mae_pretrain.py", ["demo", "--seed", str(seed), *shlex.split(config.pretraining_flags)], workdir)
    return str(workdir)


def spread_times(config: Config, name: str, seed: int) -> str:
    """A checkpoint of a new model whose time positions lie along a line, as far apart as its tokens.

    TimeSformer's starts at zero, as it is meant for weights of images and for many epochs: in a few minutes a model
    from scratch learns the line along which a shape moves, but not which way, as frames without positions have no
    order.
    """
    out = Path(config.workdir) / f"{name}_start_{seed}"
    if not out.exists():
        unfinished = out.with_name(f"{out.name}_unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a time when this was interrupted
        model = vidjax.create_model(name, num_classes=8)
        variables = model.init(jax.random.key(seed), jnp.zeros(example_inputs(model)[0].shape))
        frames, width = variables["params"]["time"]["table"].shape
        direction = jax.random.normal(jax.random.key(seed), (width,))
        variables["params"]["time"]["table"] = jnp.linspace(-1, 1, frames)[:, None] * direction
        save_pretrained(unfinished, model, variables)
        unfinished.rename(out)
    return str(out)


FAMILIES = {  # model: (what it makes of time, flags, what it starts from)
    "r3d_tiny": ("3-D convolutions", "--steps 512", None),
    "r2plus1d_tiny": ("2-D and 1-D convolutions in turn", "--steps 512", None),
    "uniformer_tiny": ("local, then global space-time relations", f"--steps 1024 {TRANSFORMER}", None),
    "vivit_tiny_factorized_encoder": ("a transformer over space, one over time", f"--steps 1024 {TRANSFORMER}", None),
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
    """Fine-tunes; returns the accuracy, how it went up, and what the training cost."""
    workdir = Path(config.workdir) / name
    given = f"demo --seed {seed} --data.validation_examples 1024 {flags} {config.flags}"
    train("finetune.py", shlex.split(given), workdir)
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
        "training_gmacs": 3 * macs * clips / 1e9,  # forward once, backward twice as much
        "seconds": clips / rate,
        "top1": validated[-1][1],
        "curve": validated,
    }


def compare_families(config: Config) -> tuple[dict[str, Any], str]:
    """A row a model, from the least to the most accurate."""
    seed, found = config.seeds[0], {}
    for name in config.models or FAMILIES:
        time, flags, start = FAMILIES[name]
        flags = f"--model {name} {CLIPS} {flags}"
        if start is not None:
            flags += f" --init_from {shlex.quote(start(config, name, seed))}"
        found[name] = {"time": time, **finetune(config, name, flags, seed)}
        print(f"  top-1 {found[name]['top1']:.1%}", flush=True)
    rows = sorted(found.items(), key=lambda item: item[1]["top1"])
    points = {name: (row["training_gmacs"] / 1e3, row["top1"]) for name, row in rows}
    lines = {"chance": CHANCE}
    save_points(Path(config.workdir) / "families.png", points, "training cost in 10^12 multiply-adds", "top-1", lines)
    table = ["| model | time | parameters | GMACs a clip | steps | training | top-1 |", "|---|---|---|---|---|---|---|"]
    table += [
        f"| `{name}` | {row['time']} | {row['parameters']:,} | {row['gmacs']:.3f} | {row['steps']:,} "
        f"| {row['training_gmacs'] / 1e3:.2f} TMACs, {clock(row['seconds'])} | {row['top1']:.1%} |"
        for name, row in rows
    ]
    return found, "\n".join(table)


def train_pair(config: Config, name: str, flags: str, seed: int) -> dict[str, Any]:
    """Trains two towers; returns the zero-shot accuracy of motion words, and how it went up."""
    workdir = Path(config.workdir) / name
    train("contrastive_pretrain.py", shlex.split(f"{flags} --seed {seed} {config.flags}"), workdir)
    curve = [(e["step"], e["evaluation/top1"]) for e in read_metrics(workdir) if "evaluation/top1" in e]
    return {"top1": curve[-1][1], "curve": curve}


def compare_starts(config: Config) -> tuple[dict[str, Any], str]:
    """From scratch against pre-trained, over seeds."""
    with_captions = config.study == "captions"
    found: dict[str, list] = {"from scratch": [], "pre-trained": []}
    for seed in config.seeds:
        source = pretrain(config, "videomae_tiny", seed)
        for start, results in found.items():
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
        for start, results in found.items()
    }
    save_bands(Path(config.workdir) / f"{config.study}.png", curves, "step", "top-1", {"chance": CHANCE})
    goal = min(result["top1"] for result in found["from scratch"])
    head = f"steps to {goal:.1%}"
    table = [f"| start | top-1 of each seed | mean | standard deviation | {head} |", "|---|---|---|---|---|"]
    for start, results in found.items():
        steps = ", ".join(str(next((step for step, top1 in r["curve"] if top1 >= goal), "-")) for r in results)
        values = np.array([result["top1"] for result in results])
        shown = ", ".join(f"{value:.1%}" for value in values)
        spread = f"{values.std(ddof=1):.1%}" if len(values) > 1 else "-"
        table.append(f"| {start} | {shown} | {values.mean():.1%} | {spread} | {steps} |")
    return found, "\n".join(table)


def main(config: Config) -> dict[str, Any]:
    """Trains what is not trained yet; prints, writes and returns the results."""
    found, table = (compare_families if config.study == "families" else compare_starts)(config)
    out = Path(config.workdir) / config.study
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}\n\nwritten to {out}.md, {out}.json and {out}.png")
    return found


if __name__ == "__main__":
    cli.run(main, Config)
