"""Four studies on rendered videos, each with a table and a plot.

    python experiments/compare_models.py               # which models recognise motion
    python experiments/compare_models.py pretraining   # which pre-training helps most with few labels
    python experiments/compare_models.py captions      # does pre-training help in contrastive training
    python experiments/compare_models.py internvideo   # what each stage of InternVideo adds

The rendered videos are labelled by the direction of motion, which no single frame shows: models that process each frame
separately stay near chance, 12.5 %. `families` trains a tiny model of each family on the same clips with finetune.py;
VideoMAE is first pre-trained by mae_pretrain.py, at its own size. `--trajectories OUT` shows the accuracies of the
hand-made features of trajectories.py beside them. `pretraining` fine-tunes on few labelled clips, from scratch and
after VideoMAE, VideoMAE V2, latent prediction of a moving average and of a frozen teacher, and BEVT, each for equal
clips and for equal time, with three seeds. `captions` compares VideoMAE from scratch and pre-trained as the video
tower of contrastive_pretrain.py, on captions that describe the motion. `internvideo` pre-trains VideoMAE on videos and
UniFormerV2 on captions, fine-tunes both on few labelled clips, and joins them with cross_model.py.

Each training runs in a separate process with a work directory in WORKDIR; completed trainings are not repeated, and
interrupted ones resume. The results are printed and written to STUDY.md, STUDY.json and STUDY.png. On two cores expect
half an hour to an hour for each study, and hours for those of all families and of all pre-trainings; expected results:
docs/results.md.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tyro.conf import Positional

import vidjax
from studies import pretraining
from studies.pretraining import METHODS
from studies.starts import scale_kernels, spread_times, standardize_units
from vidjax import cli, runs
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.models import example_inputs, variable_shapes
from vidjax.training.cost import count_macs
from vidjax.training.metrics import clock, read_metrics
from vidjax.visualize.curves import save_bands, save_points

CHANCE = 1 / 8
CLIPS = "--data.frames 8 --data.size 32 --data.short_side 32 --data.stride 2"
PRETRAINED = "--data.frames 8 --data.size 48 --data.short_side 48 --data.stride 2"  # as in mae_pretrain's demo
FRAMES = "frame by frame, averaged"
TRANSFORMER = "--optim.learning_rate 0.016 --optim.beta2 0.95 --label_smoothing 0"

PAIRED = (
    f"demo --video_model videomae_tiny {PRETRAINED} --data.split train --data.validation_split validation "
    "--data.templates 'a shape moves {}' --objective kl --batch_size 32 --steps 384 --loop.evaluate_every 32 "
    "--optim.learning_rate 8e-3 --optim.final_learning_rate 8e-5"
)
FEW = f"--steps 512 --loop.evaluate_every 64 {PRETRAINED}"
MASKED = f"--model videomae_tiny {FEW} {TRANSFORMER}"
JOINT = f"{FEW} --steps 256"
UNTRAINED = f"{FEW} --steps 1 --optim.learning_rate 1e-12 --optim.final_learning_rate 1e-14"  # gates stay closed
CAPTIONED = f"demo --video_model uniformerv2_tiny --steps 340 --loop.evaluate_every 170 {PRETRAINED}"


@dataclasses.dataclass(frozen=True)
class Config:
    """A study."""

    study: Positional[Literal["families", "pretraining", "captions", "internvideo"]] = "families"
    """Compare families of models, pre-trainings (on few labels, or on captions), or the stages of InternVideo."""
    workdir: str = "runs/compare"
    """Directory for the work directories and the results."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of the pre-training studies; the study of families uses the first."""
    models: tuple[str, ...] = ()
    """Models of the study of families (default: all)."""
    trajectories: str | None = None
    """Also show these accuracies of hand-made features in the study of families: the --out of trajectories.py."""
    labels: int = 256
    """Labelled videos that pre-trained encoders are fine-tuned on."""
    methods: tuple[str, ...] = ()
    """Pre-trainings to compare with VideoMAE (default: all): videomae_v2, jepa, frozen_teacher, bevt."""
    clips: int = 16_384
    """Clips of each pre-training; its time is the other budget."""
    flags: str = ""
    """Additional flags for finetune.py or contrastive_pretrain.py, such as fewer --steps for a trial."""
    pretraining_flags: str = ""
    """Additional flags for mae_pretrain.py and the other pre-trainings."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "labels", "clips")
        if unknown := [name for name in self.models if name not in FAMILIES]:
            raise UserError(f"models has {unknown[0]}: choose from {', '.join(FAMILIES)}")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UserError(f"methods has {unknown[0]}: choose from {', '.join(METHODS)}")
        if self.trajectories and self.study != "families":
            raise UserError(f"trajectories are shown beside families, not by {self.study}: omit --trajectories")
        if not self.seeds:
            raise UserError("seeds is empty: give one or more")


def train(script: str, flags: Sequence[str], workdir: Path) -> None:
    """Runs a training script in a separate process, with its output in a log next to the work directory.

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


def pretrain(config: Config, seed: int) -> str:
    """Pre-trains a model; returns the work directory."""
    workdir = Path(config.workdir) / f"pretrained_{seed}"
    train("mae_pretrain.py", ["demo", "--seed", str(seed), *shlex.split(config.pretraining_flags)], workdir)
    return str(workdir)


CONV = "--steps 512"
LONGER = "--steps 1024 --data.frames 16 --data.stride 1"  # their least number of frames
SLOWLY = "--steps 1024"
DEEPVIDEO = "--steps 1024 --data.stride 1"
FAMILIES = {  # model: (treatment of time, flags, initial weights)
    "r3d_tiny": ("3-D convolutions", CONV, None),
    "r2plus1d_tiny": ("alternating 2-D and 1-D convolutions", CONV, None),
    "p3d_tiny": ("alternating 2-D and 1-D convolutions", LONGER, None),
    "s3d_tiny": ("alternating 2-D and 1-D convolutions", CONV, None),
    "i3d_tiny": ("3-D convolutions", CONV, None),
    "c3d_tiny": ("3-D convolutions", f"{LONGER} --dropout 0", scale_kernels),  # it has no norms
    "slow_tiny": ("1-D convolutions over time in the last stages", SLOWLY, None),
    "slow_tiny_nonlocal": ("frame by frame, with non-local blocks", SLOWLY, None),
    "slow_tiny_pytorchvideo": ("I3D: 1-D convolutions over time in every stage", SLOWLY, None),
    "slow_tiny_mmaction2": ("I3D with non-local blocks", SLOWLY, None),
    "slowfast_tiny": ("two frame rates, joined by convolutions", SLOWLY, None),
    "slowfast_tiny_time_to_channel": ("two frame rates, joined by time to channel", SLOWLY, None),
    "slowfast_tiny_sampling": ("two frame rates, joined by sampling", SLOWLY, None),
    "slowfast_tiny_nonlocal": ("two frame rates, with a non-local block", SLOWLY, None),
    "x3d_tiny": ("depthwise 3-D convolutions", "--steps 4096", None),
    "ircsn_tiny": ("depthwise 3-D convolutions", CONV, None),
    "ipcsn_tiny": ("depthwise 3-D convolutions", CONV, None),
    "tsm_tiny": ("channels shifted from both neighbouring frames", CONV, None),
    "tsm_tiny_online": ("channels shifted from the previous frame", CONV, None),
    "lrcn_tiny": (
        "frame by frame, then an LSTM",
        "--steps 1024 --data.frames 4 --data.stride 6 --data.size 99 --data.short_side 99",
        partial(standardize_units, image_size=99),
    ),
    "deepvideo_tiny_early": (
        "kernels over all frames in the first layer",
        f"{DEEPVIDEO} --data.frames 10",
        scale_kernels,
    ),
    "deepvideo_tiny_slow": ("kernels over time in three layers", f"{DEEPVIDEO} --data.frames 10", scale_kernels),
    "deepvideo_tiny_late": (
        "two frames, joined after the convolutions",
        "--steps 2048 --data.frames 16 --data.fps 32 --data.size 64 --data.short_side 64",
        partial(standardize_units, image_size=64),
    ),
    "video_mobileformer_tiny": ("depthwise 3-D convolutions and global tokens", CONV, None),
    "uniformer_tiny": ("local, then global space-time attention", f"--steps 1024 {TRANSFORMER}", None),
    "uniformerv2_tiny": ("frame by frame, then queries to all frames", f"--steps 1024 {TRANSFORMER}", None),
    "vivit_tiny_factorized_encoder": ("a spatial and a temporal transformer", f"--steps 1024 {TRANSFORMER}", None),
    "timesformer_tiny_divided": (
        "attention over time, then space",
        f"--steps 3072 --drop_path 0 {TRANSFORMER}",
        spread_times,
    ),
    "videomae_tiny": ("joint attention, pre-trained", f"--steps 1024 {TRANSFORMER} {PRETRAINED}", pretrain),
    "vidtr_tiny": ("attention over time and over space in each layer", f"--steps 1024 {TRANSFORMER}", None),
    "mvit_tiny": ("joint attention to pooled keys", f"--steps 512 {TRANSFORMER}", None),
    "mvitv2_tiny": ("joint attention to pooled keys, relative positions", f"--steps 512 {TRANSFORMER}", None),
    "video_swin_tiny": ("attention in shifted space-time windows", f"--steps 1024 {TRANSFORMER}", None),
    "fr2d_tiny": (FRAMES, CONV, None),
    "tsn_tiny": (FRAMES, CONV, None),
    "slow_tiny_c2d": (FRAMES, CONV, None),
    "deepvideo_tiny_single": ("one frame", DEEPVIDEO + " --data.frames 1", scale_kernels),
    "timesformer_tiny_space": (FRAMES, f"--steps 1024 {TRANSFORMER}", None),
    "vit_tiny": (FRAMES, f"--steps 1024 {TRANSFORMER}", None),
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
    shapes = variable_shapes(model)
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


HAND_MADE = {"dt": "dense trajectories", "idt": "improved ones, iDT", "tdd": "a network's maps along iDT, TDD"}


def read_trajectories(out: str | None) -> dict[str, float]:
    """The accuracy of each of the hand-made features in an output directory of trajectories.py.

    Raises:
      UserError: it has none.
    """
    paths = {name: Path(out or "") / name / "results.json" for name in HAND_MADE if out}
    found = {name: json.loads(path.read_text())["top1"] for name, path in paths.items() if path.is_file()}
    if out and not found:
        raise UserError(
            f"{out} has no results of {', '.join(HAND_MADE)}: give --trajectories an --out of trajectories.py"
        )
    return found


def lines_of(heights: dict[str, float]) -> dict[str, float]:
    """The names of the lines of a plot, those of equal height joined: their texts would cover one another."""
    return {", ".join(name for name in heights if heights[name] == each): each for each in heights.values()}


def compare_families(config: Config) -> tuple[dict[str, Any], str]:
    """The results of each model and a table, sorted by accuracy; hand-made features are its last rows."""
    seed, results, hand_made = config.seeds[0], {}, read_trajectories(config.trajectories)
    for name in config.models or FAMILIES:
        time, flags, start = FAMILIES[name]
        flags = f"--model {name} {CLIPS} {flags}"
        if start is not None:
            path = pretrain(config, seed) if start is pretrain else start(config.workdir, name, seed)
            flags += f" --init_from {shlex.quote(path)}"
        results[name] = {"time": time, **finetune(config, name, flags, seed)}
        print(f"  top-1 {results[name]['top1']:.1%}", flush=True)
    rows = sorted(results.items(), key=lambda item: item[1]["top1"])
    points = {name: (row["training_gmacs"] / 1e3, row["top1"]) for name, row in rows}
    lines = lines_of({"chance": CHANCE, **hand_made})
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
    for name, top1 in hand_made.items():
        results[name] = {"time": HAND_MADE[name], "top1": top1}
        table.append(f"| `{name}` | {HAND_MADE[name]} | | | | | {top1:.1%} |")
    return results, "\n".join(table)


def train_joint(config: Config, name: str, flags: str, seed: int) -> dict[str, Any]:
    """Joins the two pre-trained encoders of a seed; returns the accuracy, and its curve."""
    masked, contrastive = (Path(config.workdir) / f"{kind}_pre-trained_{seed}" for kind in ("masked", "contrastive"))
    encoders = f"--init_masked_from {shlex.quote(str(masked))} --init_contrastive_from {shlex.quote(str(contrastive))}"
    command = f"demo --seed {seed} --data.validation_examples 1024 {encoders} {flags} {config.flags}"
    workdir = Path(config.workdir) / name
    train("cross_model.py", shlex.split(command), workdir)
    curve = [(e["step"], e["evaluation/top1"]) for e in read_metrics(workdir) if "evaluation/top1" in e]
    return {"top1": curve[-1][1], "curve": curve}


def train_pair(config: Config, name: str, flags: str, seed: int) -> dict[str, Any]:
    """Trains two towers; returns the zero-shot accuracy on directions of motion, and its curve."""
    workdir = Path(config.workdir) / name
    train("contrastive_pretrain.py", shlex.split(f"{flags} --seed {seed} {config.flags}"), workdir)
    curve = [(e["step"], e["evaluation/top1"]) for e in read_metrics(workdir) if "evaluation/top1" in e]
    return {"top1": curve[-1][1], "curve": curve}


def seed_curves(results: Sequence[dict]) -> tuple[list[int], list[list[float]]]:
    """The steps of the evaluations, and the accuracies of each seed."""
    return [step for step, _ in results[0]["curve"]], [[top1 for _, top1 in r["curve"]] for r in results]


def compare_pretraining(config: Config) -> tuple[dict[str, Any], str]:
    """The results and a table of fine-tuning from scratch and after each pre-training; see `studies.pretraining`."""

    def run(script: str, flags: str, name: str) -> Path:
        workdir = Path(config.workdir) / name
        train(script, shlex.split(f"{flags} {config.pretraining_flags}"), workdir)
        return workdir

    flags = f"--steps 512 --loop.evaluate_every 256 {TRANSFORMER} --data.train_examples {config.labels}"
    chart, tune = Path(config.workdir) / "pretraining.png", partial(finetune, config)
    return pretraining.compare(config.methods or tuple(METHODS), config.seeds, config.clips, flags, run, tune, chart)


def compare_captions(config: Config) -> tuple[dict[str, Any], str]:
    """The results and a table of training pairs from scratch and from a pre-trained video tower, over the seeds."""
    all_results: dict[str, list] = {"from scratch": [], "pre-trained": []}
    for seed in config.seeds:
        source = pretrain(config, seed)
        for start, results in all_results.items():
            flag = "" if start == "from scratch" else f" --init_video_from {shlex.quote(source)}"
            results.append(train_pair(config, f"pair_{start.replace(' ', '_')}_{seed}", f"{PAIRED}{flag}", seed))
            print(f"  {start}, seed {seed}: top-1 {results[-1]['top1']:.1%}", flush=True)
    curves = {start: seed_curves(results) for start, results in all_results.items()}
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


def table_of_stages(results: dict[str, list]) -> str:
    """A row for each stage: the accuracies of the seeds, their mean and std."""
    table = ["| stage | top-1 of each seed | mean | std |", "|---|---|---|---|"]
    for stage, values in ((stage, np.array([row["top1"] for row in rows])) for stage, rows in results.items()):
        std = f"{values.std(ddof=1):.1%}" if len(values) > 1 else "-"
        table.append(f"| {stage} | {', '.join(f'{value:.1%}' for value in values)} | {values.mean():.1%} | {std} |")
    return "\n".join(table)


def compare_stages(config: Config) -> tuple[dict[str, Any], str]:
    """The accuracy of each encoder without and with its pre-training, and of both together, over the seeds."""
    results: dict[str, list] = {}
    labels = f"--data.train_examples {config.labels}"
    for seed in config.seeds:
        starts = {"masked": pretrain(config, seed), "contrastive": str(Path(config.workdir) / f"captioned_{seed}")}
        train("contrastive_pretrain.py", shlex.split(f"{CAPTIONED} --seed {seed}"), Path(starts["contrastive"]))
        for encoder, flags in (("masked", MASKED), ("contrastive", f"--model uniformerv2_tiny {FEW}")):
            for stage, start in (("from scratch", ""), ("pre-trained", f"--init_from {shlex.quote(starts[encoder])}")):
                name = f"{encoder}_{stage.replace(' ', '_')}_{seed}"
                row = finetune(config, name, f"{flags} {labels} {start}", seed)
                results.setdefault(f"{encoder} encoder, {stage}", []).append(row)
        for stage, flags in (("mean of both scores", UNTRAINED), ("cross-model", JOINT)):
            row = train_joint(config, f"{stage.replace(' ', '_')}_{seed}", f"{flags} {labels}", seed)
            results.setdefault(stage, []).append(row)
        print("".join(f"  {stage}, seed {seed}: top-1 {rows[-1]['top1']:.1%}\n" for stage, rows in results.items()))
    together = float(np.mean([row["top1"] for row in results["mean of both scores"]]))
    curves = {stage: seed_curves(rows) for stage, rows in results.items() if len(rows[0]["curve"]) > 1}
    lines = {"chance": CHANCE, "mean of both scores": together}
    save_bands(Path(config.workdir) / f"{config.study}.png", curves, "step", "top-1", lines)
    return results, table_of_stages(results)


def main(config: Config) -> dict[str, Any]:
    """Runs the missing trainings; prints, writes and returns the results."""
    studies = {
        "families": compare_families, "pretraining": compare_pretraining, "captions": compare_captions,
        "internvideo": compare_stages,
    }  # fmt: skip
    results, table = studies[config.study](config)
    out = Path(config.workdir) / config.study
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}\n\nwritten to {out}.md, {out}.json and {out}.png")
    return results


if __name__ == "__main__":
    cli.run(main, Config)
