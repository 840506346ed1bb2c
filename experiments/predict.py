"""Classify videos: the most likely classes of each file, or of each window of a long video.

    python experiments/predict.py --run runs/ft clip.mp4 more/*.mp4 --topk 5
    python experiments/predict.py --run runs/ft lecture.mp4 --window 16 --stride 8 --csv lecture.csv
    python experiments/predict.py --run r3d_18.pth --model r3d_18 videos/ --views 4x3 --json answers.json

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. A folder selects all
videos below it. Clips are sampled and cropped as in training, or as published, unless flags such as `--data.stride 2`
are given.

Without `--window` there is one prediction per file, from its central clip, or from several `--views` (4x3: four clips
over its length times three square crops), which lie and are averaged as in the model's published test. With `--window`
there is one prediction for each window of that many sampled frames, with its start and end in seconds; files are
streamed in constant memory.

Files that cannot be read are listed on stderr with the reason, and the others are processed. The exit status is 0 if
any file could be read, and 2, with a one-line error, if none could or the arguments are invalid.
"""

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

import vidjax
from vidjax import cli, runs
from vidjax.data.config import ClipConfig, GivenClipConfig, core_count
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.objectives.multi_task import parts, softmax_of_tasks
from vidjax.runs.announce import print_notes
from vidjax.runs.results import name_classes


@dataclasses.dataclass(frozen=True)
class Config:
    """A prediction job."""

    paths: Positional[tuple[str, ...]]
    """Video files, folders of videos, and lists: LIST or LIST:FOLDER (.csv .jsonl .txt .json)."""
    run: str
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    data: GivenClipConfig = GivenClipConfig()
    """Sampling and cropping of the clips."""
    head: str | None = None
    """Of a run on several data sets (finetune.py --heads): report the classes of this one only."""
    topk: int = 5
    """Number of classes to report per file or window, and per head."""
    views: str = "1x1"
    """Clips in time x crops in space of each file, or "published": those of the model's published test."""
    window: int | None = None
    """Sampled frames per window, for predictions along each video (default: one prediction per file)."""
    stride: int | None = None
    """Sampled frames from one window to the next (default: the window size)."""
    batch_size: int = 8
    """Clips per batch; views are computed one at a time."""
    json: str | None = None
    """Write the predictions to this new file."""
    csv: str | None = None
    """Write the predictions to this new file, one line per class of each file or window."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""

    def __post_init__(self) -> None:
        check_values(self)
        if not self.paths:
            raise UserError("no video is given: give files or folders")
        for name in ("topk", "window", "stride", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if self.stride is not None and self.window is None:
            raise UserError("stride applies to windows: give --window too (the stride of the frames is --data.stride)")
        runs.check_views(self.views)
        if self.window is not None and self.views != "1x1":
            raise UserError("windows have one view: give either --window or --views")
        for name in ("json", "csv"):
            if (path := getattr(self, name)) is not None and os.path.lexists(path):
                raise UserError(f"{path} already exists, and nothing is overwritten: give another --{name}")
        cli.check_files(json=self.json, csv=self.csv)


def make_classify(model: nn.Module, variables: dict, clips: ClipConfig) -> Callable[[np.ndarray], jax.Array]:
    """A function of pixels (b v t h w c) to probabilities (b classes), averaged over views as the model's card says.

    Raises:
      UserError: the model does not accept clips of this size.
    """
    softmax = partial(softmax_of_tasks, sizes=model.card.head_sizes or (model.num_classes,))

    @jax.jit
    def classify(variables: dict, video: jax.Array) -> jax.Array:
        def one_view(view: jax.Array) -> jax.Array:
            logits = model.apply(variables, model.card.preprocess(view)).astype(jnp.float32)
            return softmax(logits) if model.card.average == "softmax" else logits

        views = jax.lax.map(one_view, jnp.swapaxes(video, 0, 1)).mean(axis=0)
        return views if model.card.average == "softmax" else softmax(views)

    clip = (1, 1, clips.frames, clips.size, clips.size, len(model.card.mean))
    jax.eval_shape(classify, variables, jax.ShapeDtypeStruct(clip, jnp.uint8))  # fails before any video is read
    return lambda video: classify(variables, video)


def main(config: Config) -> dict[str, Any]:
    """Predicts, prints and writes the results; returns the contents of the JSON file."""
    from vidjax.data.windows import batches, open_files

    videos = open_files(config.paths, runs.square_pixels(config.run, config.data))
    print_notes(videos.source)
    # Strict, since a newly initialised head would give random predictions.
    settings = {"which": config.which, "strict": True, "verbose": False, "dtype": runs.computing_type(config.dtype)}
    model, variables = vidjax.load_pretrained(config.run, config.model, **settings)
    if getattr(model, "num_classes", None) is None:
        raise UserError(f"{config.run} is a {type(model).__name__} without classes: fine-tune it first")
    if config.head is not None or model.card.stills:  # which see with other kernels than the other heads
        model, variables = runs.choose_head(model, variables, config.head, config.run)
    heads = parts(model.card.head_sizes or (model.num_classes,))
    names = name_classes(model)
    clips = runs.cut_clips(config.run, model, config.data, config.window)
    classify, views = make_classify(model, variables, clips), runs.read_views(runs.choose_views(config.views, model))

    def read(index: int) -> Iterator:
        if config.window is not None:
            return videos.windows(index, clips, config.stride or config.window)
        return videos.clip(index, clips, views)

    def failed(index: int, error: ValueError) -> None:
        files[index]["error"] = str(error)
        print(f"cannot be read: {error}", file=sys.stderr, flush=True)

    files: list[dict[str, Any]] = [{"path": path, "windows": []} for path in videos.source.ids]
    rows = config.batch_size if config.window is not None else min(config.batch_size, len(files))
    streams = (read(index) for index in range(len(files)))
    for batch, video in batches(streams, rows, clips.workers or core_count(), failed):
        # Not strict: the batch may be padded.
        for (index, window), probabilities in zip(batch, np.asarray(classify(video)), strict=False):
            ranked = [part.start + np.argsort(-probabilities[part], kind="stable") for part in heads]
            best = np.concatenate([each[: config.topk] for each in ranked])
            predictions = [{"class": names[i], "probability": float(probabilities[i])} for i in best]
            show(config, files[index], window, predictions)
            files[index]["windows"].append({"start": window.start, "end": window.end, "predictions": predictions})

    report = {"config": cli.as_dict(config), "clips": dataclasses.asdict(clips), "files": files}
    write(config, report)
    if not any(file["windows"] for file in files):
        raise UserError(f"none of the {len(files)} files could be read: see the reasons above")
    if bad := sum("error" in file for file in files):
        print(f"\n{bad} of {len(files)} files could not be read, or only in part", file=sys.stderr)
    return report


def show(config: Config, file: dict[str, Any], window: Any, predictions: list[dict[str, Any]]) -> None:
    """Prints the predictions: one line per class for a file, one line for a window."""
    if not file["windows"]:
        print(f"\n{file['path']}" + ("\n   start      end" if config.window else ""))
    if config.window:
        line = ", ".join(f"{row['class']} {row['probability']:.1%}" for row in predictions)
        print(f"{window.start:8.2f} {window.end:8.2f}  {line}", flush=True)
    else:
        print("\n".join(f"  {row['probability']:6.1%}  {row['class']}" for row in predictions), flush=True)


def write(config: Config, report: dict[str, Any]) -> None:
    """Writes the JSON and CSV files."""
    if config.json:
        with open(config.json, "x") as file:
            file.write(json.dumps(report, indent=1) + "\n")
        print(f"\nwrote {config.json}")
    if config.csv:
        with open(config.csv, "x", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file)
            table.writerow(("path", "start", "end", "rank", "class", "probability", "error"))
            for entry in report["files"]:
                for window in entry["windows"]:
                    for rank, row in enumerate(window["predictions"], start=1):
                        location = (entry["path"], window["start"], window["end"])
                        table.writerow((*location, rank, row["class"], row["probability"], ""))
                if "error" in entry:
                    table.writerow((entry["path"], "", "", "", "", "", entry["error"]))
        print(f"\nwrote {config.csv}")


if __name__ == "__main__":
    cli.run(main, Config)
