"""Evaluate a classifier on labelled videos, with one or more views of each.

    python experiments/evaluate.py --run runs/ft --data.source val.csv --views 4x3
    python experiments/evaluate.py --run MCG-NJU/videomae-base-finetuned-kinetics --data.source k400/val --views 5x3
    python experiments/evaluate.py --run runs/ft --data.source val.csv --unknown others.csv

`--run` is the work directory of a run, or a published checkpoint: a file, a directory or a hub id. Clips are sampled
and cropped as in training, or as published, unless flags such as `--data.frames 32` are given. 4x3 views are four clips
over the length of a video times three square crops along its longer side. Where they lie (`--data.protocol`), and
whether probabilities or logits are averaged over them (`--average`), follows the code that the model was published
with; `--views published` takes as many. Labels are matched by class name.

`--unknown` names videos of classes that the model does not know: how well does its uncertainty separate them from the
others? AUROC, the false positive rate at 95 % true positives (rejected unknown videos), and F1 averaged over the known
classes and the unknown one are reported for four uncertainties, as in DEAR and InternVideo (see evaluation.open_set).

`--hashtags` labels the videos by the hashtags in their captions, several of a video, for a run of `finetune.py
--hashtags`, and reports their average precision.

Prints a table and writes to OUT: evaluation.json (all metrics and settings), evaluation.txt, per_class.csv,
predictions.csv (one line per video), without `--hashtags` scores.npz (for fuse.py) and confusion.png, with `--unknown`
uncertainty.csv (one line per video) and uncertainty.png (histograms), and bad_files.jsonl if videos could not be read.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidjax import cli, runs
from vidjax.data.config import ClipConfig, SourceConfig
from vidjax.data.labels import plain
from vidjax.errors import UserError
from vidjax.evaluation.multi_label import multi_label
from vidjax.evaluation.open_set import open_set
from vidjax.evaluation.recognition import recognition
from vidjax.fields import check_values
from vidjax.runs.announce import print_notes
from vidjax.runs.open_set import describe_open_set, write_open_set
from vidjax.runs.results import (
    describe_hashtags,
    describe_recognition,
    open_results,
    per_class,
    per_hashtag,
    predictions,
    write_csv,
    write_scores,
)
from vidjax.training.metrics import clock
from vidjax.training.sharding import (
    check_batch_size,
    is_main_process,
    jit_on_mesh,
    join_processes,
    make_mesh,
    put_batch,
    state_sharding,
    this_process,
)

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Config:
    """An evaluation of a classifier."""

    run: str
    """The work directory of a run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    data: SourceConfig = SourceConfig()
    """The videos."""
    head: str | None = None
    """Of a run on several data sets (--heads): the one whose classes are evaluated."""
    hashtags: bool = False
    """Label the videos by the hashtags in their captions, several of a video, and report their average precision."""
    unknown: str | None = None
    """Videos of classes that the model does not know, for open-set metrics: a source as in --data.source."""
    unknown_split: str = "validation"
    """Split of a tfds or synthetic source, or of a Kinetics list that contains several."""
    views: str = "1x1"
    """Clips in time x crops in space of each video, or "published": those of the model's published test."""
    average: Literal["softmax", "logits"] | None = None
    """What to average over the views: probabilities, or logits before the softmax (default: as published)."""
    batch_size: int = 8
    """Videos per batch over all devices; does not affect the results. Views are computed one at a time."""
    out: str | None = None
    """Output directory (default: evaluations/1, 2, ... in the work directory, or in runs/ for a checkpoint)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""
    fsdp: int = 1
    """Devices over which each copy of the parameters is sharded."""
    distributed: bool = False
    """Join the other processes of a cluster (jax.distributed); all must run the same command."""

    def __post_init__(self) -> None:
        check_values(self)
        runs.check_views(self.views)
        if self.hashtags and (self.head or self.unknown):
            flag = "head" if self.head else "unknown"
            raise UserError(f"hashtags are several labels of a video of one data set: omit --hashtags or --{flag}")


def label_by_name(source: "Source", model: nn.Module, hashtags: bool = False) -> tuple["Source", tuple[str, ...], str]:
    """The source with the model's classes, the class names, and how they were matched.

    Args:
      hashtags: the labels are the hashtags in the captions.

    Raises:
      UserError: the model has no classes, or they cannot be matched.
    """
    from vidjax.data.hashtags import with_hashtags
    from vidjax.data.sources import with_classes

    if getattr(model, "num_classes", None) is None:
        raise UserError(f"this {type(model).__name__} has no classes to evaluate: fine-tune it first (finetune.py)")
    if hashtags and not model.card.class_names:
        raise UserError("the weights have no names of hashtags: evaluate a run of finetune.py --hashtags")
    if hashtags:
        source = with_hashtags(source, model.card.class_names)
        return source, source.class_names, "with hashtags in captions"
    if model.card.class_names:
        return with_classes(source, model.card.class_names), model.card.class_names, "by name"
    if len(source.class_names) != model.num_classes:
        raise UserError(
            f"{source.name} has {len(source.class_names)} classes, but the model has {model.num_classes} without "
            "names: use a source with all of them, so that they can be matched by position"
        )
    return source, source.class_names, "by position, as the weights contain no class names"


def require_unknown(source: "Source", class_names: Sequence[str]) -> None:
    """Checks that no video of the source is of one of the classes; their names match as in `sources.with_classes`.

    Raises:
      UserError: some are; if labels are not listed, one of its classes is among them.
    """
    known = set(map(plain, class_names))
    labels = [source.label(index) for index in range(len(source))] if source.listed else range(len(source.class_names))
    names = [source.class_names[label] for label in labels if label >= 0]
    if wrong := [name for name in names if plain(name) in known]:
        what = f"{len(wrong)} of the {len(source)} videos of" if source.listed else f"{len(wrong)} of the classes of"
        raise UserError(
            f"unknown: {what} {source.name} are known to the model, such as '{wrong[0]}': leave them out, so that all "
            "videos are of other classes"
        )


class Predictions(NamedTuple):
    """The model's output for videos, and which videos they are."""

    probabilities: np.ndarray
    """(n c)."""
    labels: np.ndarray
    """(n,), or (n k) of hashtags, padded by -1."""
    valid: np.ndarray
    """Whether the video could be read."""
    index: np.ndarray
    """Position in the source, -1 for padding."""
    logits: np.ndarray
    """(n c), averaged over the views."""


def labels_field(config: Config) -> str:
    """The field of batches that has the labels."""
    return "hashtags" if config.hashtags else "label"


def make_predict(config: Config, model: nn.Module, variables: dict) -> Callable[[dict[str, np.ndarray]], Predictions]:
    """A function from a batch to the predictions, over all devices."""
    mesh = make_mesh(config.fsdp)
    sharding = state_sharding(mesh, variables)
    variables = jax.jit(lambda tree: tree, out_shardings=sharding)(variables)

    @partial(jit_on_mesh, mesh=mesh)
    def predict(variables: dict, batch: dict[str, jax.Array]) -> Predictions:
        def one_view(video: jax.Array) -> jax.Array:
            return model.apply(variables, model.card.preprocess(video)).astype(jnp.float32)

        views = jax.lax.map(one_view, jnp.swapaxes(batch["video"], 0, 1))
        logits = views.mean(axis=0)
        probabilities = jax.nn.softmax(views).mean(axis=0) if config.average == "softmax" else jax.nn.softmax(logits)
        return Predictions(probabilities, batch[labels_field(config)], batch["valid"], batch["index"], logits)

    return lambda batch: jax.device_get(predict(variables, put_batch(batch, mesh)))


def classify(config: Config, predict: Callable, source: "Source", clips: ClipConfig, bad_files: Any) -> Predictions:
    """The predictions for each video of the source."""
    from vidjax.data.batches import evaluation_batches, select

    settings = {"batch_size": config.batch_size, "view_counts": runs.read_views(config.views), "bad_files": bad_files}
    parts, start, reported = [], time.monotonic(), 0.0
    settings["fields"] = ("hashtags",) if config.hashtags else ()
    batches = evaluation_batches(source, clips, **settings, **this_process())
    for batch in select(batches, "video", labels_field(config), "valid", "index"):
        parts.append(predict(batch))
        done, elapsed = min(len(parts) * config.batch_size, len(source)), time.monotonic() - start
        if is_main_process() and (elapsed - reported > 15 or done == len(source)):
            reported = elapsed
            left = elapsed * (len(source) - done) / done
            print(f"{done:,} of {len(source):,} videos, {clock(elapsed)} elapsed, {clock(left)} left", flush=True)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Predictions(*(column[columns[3] >= 0] for column in columns))


def main(config: Config) -> dict[str, Any]:
    """Evaluates, prints and writes the results; returns the contents of evaluation.json."""
    from vidjax.data.batches import BadFiles
    from vidjax.data.sources import open_source

    if config.distributed:
        join_processes()
    is_main = is_main_process()
    check_batch_size(config.batch_size)
    square = runs.square_pixels(config.run, config.data)
    source = open_source(config.data.source, config.data.split, square)
    unknown = open_source(config.unknown, config.unknown_split, square) if config.unknown else None
    settings = {"which": config.which, "verbose": is_main, "dtype": runs.computing_type(config.dtype)}
    model, variables = runs.load_pretrained(config.run, config.model, **settings)
    model, variables = runs.choose_head(model, variables, config.head, config.run)
    clips = runs.cut_clips(config.run, model, config.data)
    source, class_names, matched = label_by_name(source, model, config.hashtags)
    if is_main:
        print_notes(source, unknown)
    if unknown is not None:
        require_unknown(unknown, class_names)
    average = config.average or model.card.average
    config = dataclasses.replace(config, views=runs.choose_views(config.views, model), average=average)
    out = open_results(config.out, config.run, "evaluations") if is_main else None
    views = f"{config.views} views of {clips.frames} frames, {clips.sampling}, {clips.protocol}, {average} averaged"
    if is_main:
        known = f"classes matched {matched}; published views: {model.card.views or 'unknown'}"
        print(f"{source.name}: {len(source):,} videos, {views}; {known}", flush=True)

    bad_files = BadFiles(source, clips.max_bad_share)  # written at the end, so that a failed run leaves --out empty
    predict = make_predict(config, model, variables)
    probabilities, labels, valid, index, logits = classify(config, predict, source, clips, bad_files)
    if unknown is not None:
        bad_unknown = BadFiles(unknown, clips.max_bad_share)
        others = classify(config, predict, unknown, clips, bad_unknown)
        bad_files.errors |= bad_unknown.errors
    if not is_main:
        return {}
    if config.hashtags:
        named = (labels[:, :, None] == np.arange(len(class_names))).any(axis=1)
        counted = valid
        result = multi_label(probabilities[counted], named[counted])
        described, rows = describe_hashtags(result, class_names), per_hashtag(result, class_names)
        numbers = {"mean_average_precision": result.mean_average_precision}
    else:
        counted = valid & (labels >= 0)
        result = recognition(probabilities[counted], labels[counted])
        described, rows = describe_recognition(result, class_names), per_class(result, class_names)
        names = ("top1_interval", "mean_class_accuracy", "calibration_error")
        numbers = {name: getattr(result, name) for name in names}
    coverage = f"{int(valid.sum()):,} of {len(source):,} videos decoded"
    coverage += f", {int(counted.sum()):,} of them labelled" if counted.sum() < valid.sum() else ""
    coverage += f"; {int((~valid).sum())} unreadable, see bad_files.jsonl" if not valid.all() else ""
    text = f"{config.run} on {source.name}\n{views}\n{coverage}\n\n{described}"
    numbers |= {
        "top1": result.top1,
        "top5": result.top5,
        "videos": len(source),
        "decoded": int(valid.sum()),
        "counted": result.videos,
        "unreadable": [source.ids[i] for i in index[~valid]],
        "views": config.views,
        "average": config.average,
        "classes_matched": matched,
        "clips": dataclasses.asdict(clips),
        "config": cli.as_dict(config),
        "per_class": rows,
    }
    if unknown is not None:
        read = others.valid
        results = open_set(logits[counted], labels[counted], others.logits[read], others.labels[read])
        text += f"\n\n{describe_open_set(results, unknown.name)}"
        ids = [source.ids[i] for i in index[counted]]
        rows = predictions(probabilities[counted], labels[counted], ids, class_names)
        ids = [unknown.ids[i] for i in others.index[read]]
        rows += predictions(others.probabilities[read], others.labels[read], ids, class_names, unknown.class_names)
        numbers["open_set"] = {"videos": len(unknown), "decoded": int(read.sum())}
        numbers["open_set"] |= write_open_set(out, results, rows)
    if bad_files.errors:
        lines = [json.dumps({"path": path, "error": error}) for path, error in bad_files.errors.items()]
        (out / "bad_files.jsonl").write_text("\n".join(lines) + "\n")
    (out / "evaluation.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (out / "evaluation.txt").write_text(text + "\n", "utf-8", "backslashreplace")
    write_csv(out / "per_class.csv", numbers["per_class"])
    ids = [source.ids[i] for i in index[valid]]
    write_csv(out / "predictions.csv", predictions(probabilities[valid], labels[valid], ids, class_names))
    if not config.hashtags:
        ids = [source.ids[i] for i in index[counted]]
        write_scores(out, ids, labels[counted], probabilities[counted], logits[counted], class_names)
        from vidjax.visualize.confusion import save_confusion  # imports Matplotlib

        save_confusion(out / "confusion.png", result.confusion, class_names, f"top-1 {result.top1:.1%}, {coverage}")
    print(f"\n{text}\n\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return numbers


if __name__ == "__main__":
    cli.run(main, Config)
