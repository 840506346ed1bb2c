"""Recognise classes by their names alone, or from a few clips of each, with a model of videos and text.

    python experiments/zero_shot.py --run runs/c --data.source val.csv --templates actionclip --views 4x3
    python experiments/zero_shot.py --run openai/clip-vit-base-patch16 --data.source val.csv --templates "a video of {}"
    python experiments/zero_shot.py --run runs/c --data.source val.csv --shots 5 --ways 5
    python experiments/zero_shot.py --run runs/c --data.source val.csv --shots 8 --support train.csv --episodes 10

`--run` is the work directory of a contrastive run, or a CLIP or ActionCLIP checkpoint (file, directory, hub id). The
classes are those of the source, or those in `--classes`, a file with a name a line, among which the source's must be.
Each class name is put into every template. A class is the mean of its prompts' embeddings (CLIP), or, with `--combine
probabilities`, every template classifies by itself and probabilities are averaged (as ActionCLIP's release does it).
Probabilities are averaged over the views of a video.

With `--shots` no text is used: so many clips of a class stand for it, and others are told by the nearest mean. Episodes
are drawn of `--ways` classes, or, with `--support train.csv`, clips of all classes there, to tell all of the source by.

Prints tables and writes OUT: zero_shot.json, zero_shot.txt, by names also per_template.csv, per_class.csv,
predictions.csv and confusion.png; and bad_files.jsonl (of the support bad_support_files.jsonl) where a video could not
be read.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vidjax import cli, runs
from vidjax.data.config import SourceConfig
from vidjax.errors import UserError
from vidjax.evaluation.few_shot import few_shot, few_shot_from_support
from vidjax.evaluation.recognition import recognition
from vidjax.evaluation.zero_shot import zero_shot
from vidjax.fields import check_values
from vidjax.matching import check_tokenizer, clip_encoder, require_video_text, text_encoder, tokenizer_of
from vidjax.objectives.contrastive import clamp_scale
from vidjax.runs.announce import print_notes
from vidjax.runs.results import describe_recognition, open_results, per_class, predictions, write_csv
from vidjax.training.sharding import check_batch_size, make_mesh, replicated
from vidjax.visualize.confusion import save_confusion


@dataclasses.dataclass(frozen=True)
class Config:
    """What to recognise, with what, and how."""

    run: str
    """The work directory of a contrastive run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(), where the checkpoint does not say what it is."""
    which: Literal["best", "last"] = "best"
    """Of a run: the checkpoint that validated best, or the newest."""
    tokenizer: str | None = None
    """Where neither a run nor the checkpoint's directory says it: CLIP's vocabulary (a file or a directory)."""
    data: SourceConfig = SourceConfig()
    """The videos, with labels."""
    classes: str | None = None
    """A file with a class name a line (default: the source's classes)."""
    templates: str = "plain"
    """actionclip, plain (the name itself), a file with one template a line, or one template ("a video of {}")."""
    combine: Literal["embeddings", "probabilities"] = "embeddings"
    """Average the prompts' embeddings before classifying, or the probabilities that each template gives."""
    views: str = "1x1"
    """Clips over time x crops over space, of every video."""
    shots: int | None = None
    """Draw episodes with so many clips a class instead of using text."""
    support: str | None = None
    """Draw those clips from these videos, of all their classes."""
    support_split: str = "train"
    """The split of a tfds or synthetic source, or of a Kinetics list that holds several."""
    ways: int = 5
    """Classes of an episode, without a support."""
    queries: int = 15
    """Other clips of each class to tell in an episode, without a support."""
    episodes: int = 600
    """Draws to average over."""
    batch_size: int = 8
    """Videos at a time, over all devices; changes no result."""
    out: str | None = None
    """Where the results go (default: zero_shot/1, 2, ... in the run's directory, or in runs/ for a checkpoint)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation: auto is bfloat16, on a CPU float32."""
    seed: int = 0
    """Of the episodes."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        runs.read_views(self.views)
        if self.shots is not None and self.classes:
            raise UserError("classes is about names, which --shots does not look at: leave one of them out")
        for name, least in (("shots", 1), ("ways", 2), ("queries", 1), ("episodes", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}: it must be {least} or more")
        if self.support and not self.shots:
            raise UserError("support is about --shots: give them too, or leave it out")


def read_classes(file: str) -> tuple[str, ...]:
    """Names, one a line.

    Raises:
      UserError: there are none, or the file is no text.
    """
    if not Path(file).is_file():
        raise UserError(f"classes {file} does not exist: give a file with one class name a line")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"classes {file} is no text file: write it in UTF-8") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"classes {file} names no class: give one a line")
    return names


def main(config: Config) -> dict[str, Any]:
    """Measures, prints and writes; returns what zero_shot.json holds."""
    from vidjax.data.pipeline import BadFiles, evaluation_batches
    from vidjax.data.prompts import fill, read_templates
    from vidjax.data.sources import open_source, with_classes

    check_batch_size(config.batch_size)
    square, mesh = runs.square_pixels(config.run, config.data), make_mesh()
    source = open_source(config.data.source, config.data.split, square)
    source = with_classes(source, read_classes(config.classes) if config.classes else source.class_names)
    support = config.support and with_classes(
        open_source(config.support, config.support_split, square), source.class_names
    )
    print_notes(source, support or None)
    by_names = config.shots is None
    templates = read_templates(config.templates) if by_names else ()
    prompts = fill(templates, source.class_names) if by_names else []
    loaded = {"which": config.which, "strict": True, "dtype": runs.computing_type(config.dtype)}
    model, variables = runs.load_pretrained(config.run, config.model, **loaded)
    model = require_video_text(config.run, model)
    if by_names:
        tokenizer = tokenizer_of(config.run, config.tokenizer)
        check_tokenizer(tokenizer, model)
    clips = runs.cut_clips(config.run, model, config.data)
    variables = jax.device_put(variables, replicated(mesh))
    out = open_results(config.out, config.run, "zero_shot")
    views = f"{config.views} views of {clips.frames} frames, {clips.sampling}"
    print(f"{source.name}: {len(source):,} videos, {views}; {len(source.class_names)} classes", flush=True)

    bad_files = BadFiles(source, clips.max_bad_share, out / "bad_files.jsonl")
    settings = {"batch_size": config.batch_size, "view_counts": runs.read_views(config.views), "bad_files": bad_files}
    batches = evaluation_batches(source, clips, **settings)
    embed_clips = clip_encoder(model, mesh)
    video, labels, index, valid = embed_clips(variables, batches)
    counted = valid & (labels >= 0)
    video, labels, index = video[counted], labels[counted], index[counted]
    honest = f"{int(valid.sum()):,} of {len(source):,} videos decoded"
    honest += "" if valid.all() else f"; {int((~valid).sum())} unreadable, see bad_files.jsonl"
    told = {"videos": len(source), "decoded": int(valid.sum()), "counted": len(labels), "views": config.views}
    told |= {"clips": dataclasses.asdict(clips), "config": cli.as_dict(config)}
    heading = f"{config.run} on {source.name}\n{views}\n{honest}\n\n"
    if not by_names:
        key, features = jax.random.key(config.seed), video.mean(axis=1)
        if support is not None:
            bad = BadFiles(support, clips.max_bad_share, out / "bad_support_files.jsonl")
            batches = evaluation_batches(support, clips, **(settings | {"bad_files": bad}))
            known, theirs, _, readable = embed_clips(variables, batches)
            known, theirs = known[readable & (theirs >= 0)].mean(axis=1), theirs[readable & (theirs >= 0)]
            drawn = {"shots": config.shots, "episodes": config.episodes}
            found = few_shot_from_support(key, known, theirs, features, labels, **drawn)
            kind, ways = f"all classes, {config.shots} clips of each from {support.name}", len(np.unique(theirs))
        else:
            drawn = {name: getattr(config, name) for name in ("ways", "shots", "queries", "episodes")}
            found = few_shot(key, features, labels, **drawn)
            kind, ways = f"{config.ways}-way {config.shots}-shot, {found.queries} others an episode", config.ways
        low, high = found.interval
        text = f"{heading}{kind}: {found.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%} over {config.episodes} "
        text += f"draws, chance {1 / ways:.1%})"
        numbers = {"accuracy": found.accuracy, "interval": found.interval, "queries": found.queries}
        return write(out, text, numbers | told)

    flat = [prompt for row in prompts for prompt in row]
    texts = text_encoder(model, tokenizer, mesh)(variables, flat).reshape(len(templates), len(source.class_names), -1)
    scale = float(clamp_scale(variables["params"]["logit_scale"]))
    shares = zero_shot(video, texts, config.combine, scale)
    found = recognition(shares, labels)
    alone = [
        {"template": template, "top1": recognition(zero_shot(video, one[None], scale=scale), labels).top1}
        for template, one in zip(templates, texts, strict=True)
    ]
    text = heading + describe_recognition(found, source.class_names)
    text += "\n\ntop-1 by each template alone\n" + "\n".join(f"{row['top1']:7.2%}  {row['template']}" for row in alone)
    write_csv(out / "per_template.csv", alone)
    write_csv(out / "per_class.csv", per_class(found, source.class_names))
    ids = [source.ids[i] for i in index]
    write_csv(out / "predictions.csv", predictions(shares, labels, ids, source.class_names))
    save_confusion(out / "confusion.png", found.confusion, source.class_names, f"top-1 {found.top1:.1%}, {honest}")
    measured = ("top1", "top5", "top1_interval", "mean_class_accuracy", "calibration_error")
    numbers = {name: getattr(found, name) for name in measured}
    return write(out, text, numbers | {"per_template": alone, "scale": scale, **told})


def write(out: Path, text: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Prints and keeps the results."""
    (out / "zero_shot.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (out / "zero_shot.txt").write_text(text + "\n", "utf-8", "backslashreplace")
    print(f"\n{text}\n\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return numbers


if __name__ == "__main__":
    cli.run(main, Config)
