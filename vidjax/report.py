"""What scripts say and leave behind: a run before it begins, in units, and how well classes are recognised."""

import contextlib
import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from vidjax.cli import make_folder
from vidjax.data.config import ClipConfig, core_count
from vidjax.errors import UserError
from vidjax.evaluation.knn import nearest
from vidjax.evaluation.recognition import Recognition
from vidjax.runs import computing_type, is_run
from vidjax.training.cost import peak_flops

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source
    from vidjax.training.loop import FitResult


def tell_notes(*sources: "Source | None") -> None:
    """Prints what was left out or is not used when the sources were opened, each line once."""
    for note in dict.fromkeys(note for source in sources if source is not None for note in source.notes):
        print(f"note: {note}", flush=True)


def describe_run(config: Any, source: "Source", shapes: Any, macs: int, steps: int, more: Mapping[str, str]) -> str:
    """Devices, data, model, batch, rate and length of a training run, a line each.

    Args:
      config: of a script; `data`, `model`, `batch_size`, `accumulation`, `dtype`, `fsdp`, `sequence`, `optim` and
        `workdir` are read.
      shapes: of the parameters.
      macs: multiply-accumulates of one clip forward.
      steps: in all.
      more: further lines by their first word.
    """
    data, devices = config.data, jax.devices()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    groups = len(devices) // config.sequence
    per_epoch = len(source) * data.repeats / config.batch_size
    rate, peak = config.optim.learning_rate, config.optim.learning_rate * config.batch_size / 256
    lines = {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es), "
        f"mesh data={groups // config.fsdp} fsdp={config.fsdp}"
        + (f" sequence={config.sequence}" if config.sequence > 1 else ""),
        "data": f"{source.name}: {len(source):,} videos; clips of {data.frames} frames, {data.size} pixels, "
        f"{describe_span(data, source)}",
        "model": f"{config.model}: {parameters:,} parameters, {macs / 1e9:.3g} GMACs a clip forward, "
        f"{computing_type(config.dtype).name}",
        **more,
        "batch": f"{config.batch_size} clips in {config.accumulation} micro-batch(es), "
        f"{config.batch_size // groups} " + ("a device" if config.sequence == 1 else f"for {config.sequence} devices"),
        "rate": f"{rate:g} x {config.batch_size}/256 = {peak:.3g} at its peak",
        "length": f"{steps:,} steps, {per_epoch:,.1f} an epoch: {steps / per_epoch:,.1f} epochs",
        "work in": config.workdir,
    }
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def describe_span(clips: ClipConfig, source: "Source") -> str:
    """Seconds that a clip covers, by the first video that can be read.

    Raises:
      UserError: none of the first ten can.
    """
    from vidjax.data.sampling import seconds_covered

    for index in range(min(len(source), 10)):
        with contextlib.suppress(ValueError):
            info = source.read(index, (), None).info
            seconds = seconds_covered(clips, info.num_frames, info.rate)
            return f"{seconds:.2f} s of the first video's {info.duration:.2f} s ({clips.sampling})"
    raise UserError(f"none of the first videos of {source.name} can be read: look with experiments/check_data.py")


def name_classes(model: nn.Module) -> tuple[str, ...]:
    """What the model's classes are called, by number where nobody says; none without classes."""
    return model.card.class_names or tuple(f"class {i}" for i in range(getattr(model, "num_classes", None) or 0))


def describe_losses(entries: Sequence[dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """The loss at first and at last, as a line and as numbers; not a number where every logged one was not finite.

    Args:
      entries: of `read_metrics`.
    """
    losses = [entry["loss"] for entry in entries if entry.get("loss") is not None]
    if not losses:
        return "no logged step had a finite one", {"first_loss": math.nan, "last_loss": math.nan}
    first, last, count = losses[0], sum(losses[-5:]) / len(losses[-5:]), len(losses[-5:])
    line = f"{first:.4f} at first, {last:.4f} at last (mean of the last {count} logged)"
    return line, {"first_loss": first, "last_loss": last}


def describe_speed(result: "FitResult", macs: int) -> str:
    """Clips a second, waiting for data, the share of the devices' peak that was used; what was amiss in a second line.

    Args:
      result: of `fit`.
      macs: multiply-accumulates of one clip forward.
    """
    speed = f"{result.clips_per_second:.1f} clips/s, waiting for data {result.data_wait_fraction:.0%}"
    if peak := peak_flops(jax.devices()[0].device_kind):
        # 2 FLOPs a MAC, once forward and twice that backward.
        speed += f", MFU {6 * macs * result.clips_per_second / peak / jax.device_count():.1%}"
    return f"{speed}\n{'starved':<9} {result.advice}" if result.advice else speed


def describe_starvation(source: str, workers: int, wanted: float, made: float) -> str:
    """What would feed a device that waits for data: so many cores, or another format.

    Args:
      source: the name of the data source. Video files are worth writing as TFRecords; other sources hold pictures.
      workers: clips made at the same time, 0 for one a core.
      wanted: clips a second that the devices of a process could take.
      made: clips a second that the process makes.
    """
    cores = core_count()
    busy = min(workers or cores, cores)
    # Clips that come in bursts starve a device too, though enough of them are made on the whole.
    needed = max(math.ceil(busy * wanted / made - 0.1), busy + 1)
    remedy = f"--data.workers {needed} (there are {cores} cores)" if needed <= cores else f"about {needed} cores"
    if not source.startswith(("tfrecord:", "tfds:", "synthetic:")):
        remedy += ", or TFRecords (experiments/write_tfrecords.py; about 4 times as many clips a core)"
    return f"the device could take {wanted:.3g} clips/s, {busy} core{'s' * (busy > 1)} made {made:.3g}: {remedy}"


def open_results(out: str | None, run: str, folder: str) -> Path:
    """A new directory for results: `out`, or the next number in `folder` of the run's directory (of runs/ for others).

    Raises:
      UserError: there are files in it.
      UserError: it cannot be written.
    """
    if out is not None:
        path = Path(out)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is not an empty directory: choose another --out, nothing is overwritten")
        make_folder(path, "--out")
        return path
    results = (Path(run) if is_run(run) else Path("runs")) / folder
    make_folder(results, "--out")
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):  # an earlier one's, or that of one which runs beside
            (results / str(number)).mkdir()
            break
    return results / str(number)


def describe_recognition(found: Recognition, class_names: Sequence[str]) -> str:
    """The numbers and a line a class, for a person."""
    low, high = found.top1_interval
    lines = [
        f"top-1                 {found.top1:7.2%}   (95 % interval {low:.2%} to {high:.2%}, bootstrap over videos)",
        f"top-5                 {found.top5:7.2%}",
        f"mean class accuracy   {found.mean_class_accuracy:7.2%}",
        f"calibration error     {found.calibration_error:7.2%}   (expected, 15 bins)",
        "",
        f"{'class':30} {'videos':>7} {'correct':>7} {'accuracy':>9}   most often taken for",
    ]
    for row in per_class(found, class_names):
        taken = f"{row['taken_for']} ({row['times']})" if row["taken_for"] else ""
        share = f"{row['accuracy']:9.1%}" if row["videos"] else f"{'-':>9}"
        lines.append(f"{row['class'][:30]:30} {row['videos']:7,} {row['correct']:7,} {share}   {taken}".rstrip())
    return "\n".join(lines)


def per_class(found: Recognition, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a class: videos, how many are correct, and the class that they are most often mistaken for."""
    rows = []
    for i, name in enumerate(class_names):
        counts = found.confusion[i]
        mistakes = np.where(np.arange(len(counts)) == i, 0, counts)
        taken, times = class_names[int(mistakes.argmax())], int(mistakes.max())
        accuracy = float(found.class_accuracy[i]) if counts.sum() else None
        row = {"class": name, "videos": int(counts.sum()), "correct": int(counts[i]), "accuracy": accuracy}
        rows.append(row | {"taken_for": taken if times else "", "times": times})
    return rows


def predictions(
    probabilities: np.ndarray, labels: np.ndarray, ids: Sequence[str], class_names: Sequence[str]
) -> list[dict[str, str]]:
    """A row a video: its likeliest class, how likely, and its label, empty for -1."""
    best = probabilities.argmax(axis=1)
    return [
        {
            "video": ids[row],
            "label": class_names[labels[row]] if labels[row] >= 0 else "",
            "predicted": class_names[best[row]],
            "probability": f"{probabilities[row, best[row]]:.6f}",
        }
        for row in range(len(ids))
    ]


def name_nearest(path: str, query: str, features: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The windows of a file of embed.py whose features are nearest to a query's `1 d`, printed and returned.

    Args:
      query: what the sentence calls it.

    Raises:
      UserError: the features have another width.
    """
    with np.load(path) as arrays:
        index = {name: arrays[name] for name in ("features", "ids", "start", "end", "labels", "class_names")}
    order, similarity = nearest(index["features"], features, count)
    print(f"\n{query} is most like\n  cosine    start      end")
    rows = []
    for i, value in zip(order[0], similarity[0], strict=True):
        label = str(index["class_names"][index["labels"][i]]) if index["labels"][i] >= 0 else None
        row = {"id": str(index["ids"][i]), "start": float(index["start"][i]), "end": float(index["end"][i])}
        rows.append(row | {"similarity": float(value), "label": label})
        print(f"  {value:.4f} {row['start']:8.2f} {row['end']:8.2f}  {row['id']}{f' ({label})' if label else ''}")
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a row, under a header, in UTF-8; of a name that is none, its bytes as in `caf\\udce9.mp4`."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
