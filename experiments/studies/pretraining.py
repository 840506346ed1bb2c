"""Which pre-training helps most with few labels, for equal numbers of clips and for equal time.

Each encoder is fine-tuned on the same few labelled clips, from scratch and from each of its pre-trainings. A budget
counts everything that a pre-training needs: the frozen teacher and the tokenizer take half of it. Time is that of the
training steps, from the speed in the log; compiling is not counted, as it would dominate such short runs.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidjax.training.metrics import clock, read_metrics
from vidjax.visualize.bars import Bar, save_bars


class Stage(NamedTuple):
    """A training that is a part of a pre-training.

    Attributes:
      flags: may name the work directory of the stage before as `{before}`.
      share: of the budget.
      batch_size: clips per step.
    """

    script: str
    flags: str
    share: float = 1.0
    batch_size: int = 16


class Method(NamedTuple):
    """A way of pre-training.

    Attributes:
      encoder: the model that is fine-tuned.
      size: height and width of the clips in pixels.
      stages: one after the other; the encoder starts from the last.
      stride: of the frames of the clips.
    """

    encoder: str
    size: int
    stages: tuple[Stage, ...]
    stride: int = 2


PIXELS = Stage("mae_pretrain.py", "demo --probe_clips 0")
TAUGHT = (
    "demo --model vjepa2_tiny --short_blocks 8 --short_scale 0.15 --short_duration 1 --long_blocks 2 --long_scale 0.7 "
    "--long_duration 1 --probe_clips 0"
)
METHODS = {
    "videomae": Method("videomae_tiny", 48, (PIXELS,)),
    # Running cells need an even number of patches in a row.
    "videomae_v2": Method("videomae_tiny", 64, (PIXELS._replace(flags=f"{PIXELS.flags} --decoder_mask running_cell"),)),
    "jepa": Method(
        "vjepa2_tiny_frames", 16, (Stage("jepa_pretrain.py", "demo --probe_clips 0", batch_size=32),), stride=4
    ),
    # The teacher's tokens lie on a grid with several places per frame, for which the published masks are.
    "frozen_teacher": Method(
        "vjepa2_tiny", 48, (PIXELS._replace(share=0.5), Stage("jepa_pretrain.py", TAUGHT + " --teacher {before}", 0.5))
    ),
    "bevt": Method(
        "video_swin_tiny",
        32,
        (
            Stage("token_pretrain.py", "demo", 0.5),
            Stage(
                "token_pretrain.py",
                "bevt_tiny --tokenizer {before} --data.source synthetic:moving_shapes --probe_clips 0",
                0.5,
            ),
        ),
    ),
}
REFERENCE = "videomae"
"""Whose time is the budget of time."""

Train = Callable[[str, str, str], Path]
"""Runs a script with flags in a work directory of this name, whose path it returns."""
Finetune = Callable[[str, str, int], dict[str, Any]]
"""Fine-tunes with flags in a work directory of this name, with a seed; returns its results."""


def speed_of(workdir: Path) -> float:
    """Clips per second of a run: the mean over equal numbers of clips in its log."""
    speeds = [entry["clips_per_second"] for entry in read_metrics(workdir) if entry.get("clips_per_second")]
    return len(speeds) / sum(1 / speed for speed in speeds)


def sizes(method: Method) -> str:
    """The flags of the clips of a method."""
    return f"--data.frames 8 --data.stride {method.stride} --data.size {method.size} --data.short_side {method.size}"


def pretrain(train: Train, name: str, budget: str, seed: int, clips: int) -> tuple[Path, float]:
    """Runs the stages of a method; returns the last work directory and the seconds of all."""
    workdir, seconds, method = Path(), 0.0, METHODS[name]
    for number, stage in enumerate(method.stages):
        steps = max(1, round(clips * stage.share / stage.batch_size))
        flags = f"{stage.flags} {sizes(method)} --batch_size {stage.batch_size} --steps {steps} --seed {seed}"
        flags = flags.format(before=shlex.quote(str(workdir)))
        workdir = train(stage.script, flags, f"{name}_{budget}_{number}_{seed}")
        seconds += steps * stage.batch_size / speed_of(workdir)
    return workdir, seconds


def compare(
    methods: Sequence[str], seeds: Sequence[int], clips: int, flags: str, train: Train, finetune: Finetune, chart: Path
) -> tuple[dict[str, Any], str]:
    """The results by row, and a table; writes a chart.

    Args:
      methods: keys of `METHODS`, to compare with the reference and with training from scratch.
      clips: in each pre-training; the other budget is the time that the reference takes for these.
      flags: of the fine-tuning.
    """
    methods = [REFERENCE, *(name for name in methods if name != REFERENCE)]
    rows: dict[str, dict[str, Any]] = {}

    def add(budget: str, name: str, seed: int, clips: int, start: Path | None, seconds: float) -> None:
        method = METHODS[name]
        label = f"{name if start else 'from scratch'}_{method.encoder}_{method.size}_{budget}_{seed}"
        more = "" if start is None else f" --init_from {shlex.quote(str(start))}"
        result = finetune(label.replace(" ", "_"), f"--model {method.encoder} {sizes(method)} {flags}{more}", seed)
        key = f"{budget}: {name}" if start else f"{method.encoder}, {method.size} pixels"
        encoder = f"`{method.encoder}`, {method.size} pixels"
        new = {"start": name if start else "from scratch", "budget": budget, "encoder": encoder}
        row = rows.setdefault(key, {**new, "clips": [], "seconds": [], "top1": []})
        for field, value in (("clips", clips), ("seconds", seconds), ("top1", result["top1"])):
            row[field].append(value)
        print(f"  {key}, seed {seed}: top-1 {result['top1']:.1%}", flush=True)

    for seed in seeds:
        for encoder, size in dict.fromkeys((METHODS[name].encoder, METHODS[name].size) for name in methods):
            name = next(name for name in methods if METHODS[name][:2] == (encoder, size))
            add("no pre-training", name, seed, 0, None, 0.0)
        allowed = 0.0
        for name in methods:
            start, seconds = pretrain(train, name, "clips", seed, clips)
            add("equal clips", name, seed, clips, start, seconds)
            if name == REFERENCE:
                allowed = seconds
                continue
            fitting = int(clips * allowed / seconds)
            start, seconds = pretrain(train, name, "seconds", seed, fitting)
            add("equal time", name, seed, fitting, start, seconds)
    if len(methods) > 1:  # the reference takes the time that it takes
        rows[f"equal time: {REFERENCE}"] = {**rows[f"equal clips: {REFERENCE}"], "budget": "equal time"}
    draw(chart, rows)
    return rows, tabulate(rows)


def tabulate(rows: dict[str, dict[str, Any]]) -> str:
    """A line for each row, by budget and mean accuracy."""
    table = [
        "| budget | start | encoder | clips | time of the steps | top-1 of each seed | mean | std |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ordered(rows):
        top1 = np.array(row["top1"])
        std = f"{top1.std(ddof=1):.1%}" if len(top1) > 1 else "-"
        shown = ", ".join(f"{value:.1%}" for value in top1)
        spent = f"{np.mean(row['clips']):,.0f} | {clock(np.mean(row['seconds']))}" if row["clips"][0] else "- | -"
        table.append(
            f"| {row['budget']} | {row['start']} | {row['encoder']} | {spent} | {shown} | {top1.mean():.1%} | {std} |"
        )
    return "\n".join(table)


def ordered(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by budget, in the order in which these were measured first, and by mean accuracy."""
    budgets = list(dict.fromkeys(row["budget"] for row in rows.values()))
    return sorted(rows.values(), key=lambda row: (budgets.index(row["budget"]), np.mean(row["top1"])))


def draw(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Writes the accuracies as bars on one scale; a line goes from the least to the most of the seeds."""
    bars: dict[str, Bar] = {}
    for row in ordered(rows):
        values = [100 * value for value in row["top1"]]
        pretrained = bool(row["clips"][0])
        note = f"{np.mean(values):.1f} %" + (f" after {clock(np.mean(row['seconds']))}" if pretrained else "")
        name = f"{row['budget']}: {row['start']}, {row['encoder'].replace('`', '')}"
        bars[name] = Bar(float(np.mean(values)), min(values), max(values), note, pretrained)
    label = "top-1 accuracy in % (line: least to most of the seeds)"
    save_bars(path, {"fine-tuning on few labels": bars}, label)
