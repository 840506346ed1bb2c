"""Name what is seen in videos: the likeliest classes of each file, or of each window of a long one.

    python experiments/predict.py --run runs/ft clip.mp4 more/*.mp4 --topk 5
    python experiments/predict.py --run runs/ft lecture.mp4 --window 16 --stride 8 --csv lecture.csv
    python experiments/predict.py --run r3d_18.pth --model r3d_18 videos/ --views 4x3 --json answers.json

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. A folder stands for
all videos below it. Clips are cut as in training, or as published; `--data.stride 2` and the like say otherwise.

Without `--window` each file has one answer, from the clip in its middle, or from as many `--views` as are asked for
(4x3: four clips over its length times three square crops, whose probabilities are averaged). With `--window` there is
one for every so many sampled frames, with its start and end in seconds; files are read in one go, in constant memory.

A file that cannot be read is listed on stderr with its reason, and the others are done. The exit status is 0 where any
file could be read, and 2, with one line, where none could or the command cannot be meant.
"""

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
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
from vidjax.runs.announce import print_notes
from vidjax.runs.results import name_classes


@dataclasses.dataclass(frozen=True)
class Config:
    """What to look at, and with what."""

    paths: Positional[tuple[str, ...]]
    """Video files, folders of them, and lists: LIST or LIST:FOLDER (.csv .jsonl .txt .json)."""
    run: str
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(), where the checkpoint does not say what it is."""
    which: Literal["best", "last"] = "best"
    """Of a run: the checkpoint that validated best, or the newest."""
    data: GivenClipConfig = GivenClipConfig()
    """How clips are cut."""
    topk: int = 5
    """Classes named for each file or window."""
    views: str = "1x1"
    """Clips over time x crops over space, of every file."""
    window: int | None = None
    """Sampled frames of a window that runs through each video (default: one answer a file)."""
    stride: int | None = None
    """Sampled frames from one window to the next (default: the window)."""
    batch_size: int = 8
    """Clips at a time; the views of each are computed one after the other."""
    json: str | None = None
    """Write the answers to this new file."""
    csv: str | None = None
    """Write the answers to this new file, a line for each class of each file or window."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation: auto is bfloat16, on a CPU float32."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        if not self.paths:
            raise UserError("no video is given: name files or folders")
        for name in ("topk", "window", "stride", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if self.stride is not None and self.window is None:
            raise UserError("stride is about windows: give --window too (the clips' own stride is --data.stride)")
        if self.window is not None and runs.read_views(self.views) != (1, 1):
            raise UserError("a window is one view: give --window or --views")
        for name in ("json", "csv"):
            if (path := getattr(self, name)) is not None and os.path.lexists(path):
                raise UserError(f"{path} is there already: give another --{name}, nothing is overwritten")
        cli.check_files(json=self.json, csv=self.csv)


def make_classify(model: nn.Module, variables: dict, clips: ClipConfig) -> Callable[[np.ndarray], jax.Array]:
    """Pixels (b v t h w c) to probabilities (b classes), averaged over views; compiled once for a shape.

    Raises:
      UserError: the model cannot take such clips.
    """

    @jax.jit
    def classify(variables: dict, video: jax.Array) -> jax.Array:
        def one_view(view: jax.Array) -> jax.Array:
            logits = model.apply(variables, model.card.preprocess(view))
            return jax.nn.softmax(logits.astype(jnp.float32))

        return jax.lax.map(one_view, jnp.swapaxes(video, 0, 1)).mean(axis=0)

    clip = jax.ShapeDtypeStruct((1, 1, clips.frames, clips.size, clips.size, 3), jnp.uint8)
    jax.eval_shape(classify, variables, clip)  # what does not fit is said before any video is read
    return lambda video: classify(variables, video)


def main(config: Config) -> dict[str, Any]:
    """Looks, prints and writes; returns what the JSON file holds."""
    from vidjax.data.windows import batches, open_files

    videos = open_files(config.paths, runs.square_pixels(config.run, config.data))
    print_notes(videos.source)
    # A head that the weights lack would answer at random: strict refuses it.
    settings = {"which": config.which, "strict": True, "verbose": False, "dtype": runs.computing_type(config.dtype)}
    model, variables = vidjax.load_pretrained(config.run, config.model, **settings)
    if getattr(model, "num_classes", None) is None:
        raise UserError(f"{config.run} holds a {type(model).__name__} without classes: fine-tune it first")
    names = name_classes(model)
    clips = runs.cut_clips(config.run, model, config.data, config.window)
    classify = make_classify(model, variables, clips)

    def read(index: int) -> Iterator:
        if config.window is not None:
            return videos.windows(index, clips, config.stride or config.window)
        return videos.clip(index, clips, runs.read_views(config.views))

    def failed(index: int, error: ValueError) -> None:
        files[index]["error"] = str(error)
        print(f"cannot be read: {error}", file=sys.stderr, flush=True)

    files: list[dict[str, Any]] = [{"path": path, "windows": []} for path in videos.source.ids]
    rows = config.batch_size if config.window is not None else min(config.batch_size, len(files))
    streams = (read(index) for index in range(len(files)))
    for batch, video in batches(streams, rows, clips.workers or core_count(), failed):
        for (index, window), found in zip(batch, np.asarray(classify(video)), strict=False):  # without what fills
            best = np.argsort(-found, kind="stable")[: config.topk]
            guesses = [{"class": names[i], "probability": float(found[i])} for i in best]
            show(config, files[index], window, guesses)
            files[index]["windows"].append({"start": window.start, "end": window.end, "predictions": guesses})

    report = {"config": cli.as_dict(config), "clips": dataclasses.asdict(clips), "files": files}
    write(config, report)
    if not any(file["windows"] for file in files):
        raise UserError(f"none of the {len(files)} files could be read: see above why")
    if bad := sum("error" in file for file in files):
        print(f"\n{bad} of {len(files)} files could not be read, or not to their end", file=sys.stderr)
    return report


def show(config: Config, file: dict[str, Any], window: Any, guesses: list[dict[str, Any]]) -> None:
    """Prints the answer: a line a class for a file, a line for a window."""
    if not file["windows"]:
        print(f"\n{file['path']}" + ("\n   start      end" if config.window else ""))
    if config.window:
        said = ", ".join(f"{guess['class']} {guess['probability']:.1%}" for guess in guesses)
        print(f"{window.start:8.2f} {window.end:8.2f}  {said}", flush=True)
    else:
        print("\n".join(f"  {guess['probability']:6.1%}  {guess['class']}" for guess in guesses), flush=True)


def write(config: Config, report: dict[str, Any]) -> None:
    """The files that were asked for."""
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
                    for rank, guess in enumerate(window["predictions"], start=1):
                        place = (entry["path"], window["start"], window["end"])
                        table.writerow((*place, rank, guess["class"], guess["probability"], ""))
                if "error" in entry:
                    table.writerow((entry["path"], "", "", "", "", "", entry["error"]))
        print(f"\nwrote {config.csv}")


if __name__ == "__main__":
    cli.run(main, Config)
