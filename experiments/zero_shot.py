"""Zero-shot classification by class names, or few-shot classification, with a video-text model.

    python experiments/zero_shot.py --run runs/c --data.source val.csv --templates actionclip --views 4x3
    python experiments/zero_shot.py --run openai/clip-vit-base-patch16 --data.source val.csv --templates "a video of {}"
    python experiments/zero_shot.py --run runs/c --data.source val.csv --shots 5 --ways 5
    python experiments/zero_shot.py --run runs/c --data.source val.csv --shots 8 --support train.csv --episodes 10

`--run` is the work directory of a contrastive run, or a CLIP or ActionCLIP checkpoint (file, directory, hub id). The
classes are those of the source, or those in `--classes`, a file with one name per line, which must include them. Each
class name is inserted into each template. A class is represented by the mean of its prompts' embeddings (CLIP); with
`--combine probabilities` each template classifies separately, and the probabilities are averaged (ActionCLIP's code).
Probabilities are averaged over the views of a video.

`--shots` uses no text: a class is represented by the mean of that many clips, and the nearest mean is predicted. Each
episode draws `--ways` classes; with `--support train.csv` it draws clips of all classes there, and classifies the whole
source.

Prints tables and writes to OUT: zero_shot.json and zero_shot.txt; without `--shots` also per_template.csv,
per_class.csv, predictions.csv and confusion.png; and bad_files.jsonl (for the support bad_support_files.jsonl) if
videos could not be read.
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
from vidjax.runs.announce import print_notes
from vidjax.runs.results import describe_recognition, open_results, per_class, predictions, write_csv
from vidjax.runs.video_text import (
    check_tokenizer,
    clip_encoder,
    require_video_text,
    similarity_scale,
    text_encoder,
    tokenizer_of,
)
from vidjax.training.sharding import check_batch_size, make_mesh, replicated
from vidjax.visualize.confusion import save_confusion


@dataclasses.dataclass(frozen=True)
class Config:
    """A zero-shot or few-shot evaluation."""

    run: str
    """The work directory of a contrastive run, or a published checkpoint (file, directory or hub id)."""
    model: str | None = None
    """One of vidjax.list_models(); needed if the checkpoint does not specify its model."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one that validated best, or the newest."""
    tokenizer: str | None = None
    """CLIP's vocabulary (file or directory); needed if neither the run nor the checkpoint contains a tokenizer."""
    data: SourceConfig = SourceConfig()
    """The videos, with labels."""
    classes: str | None = None
    """A file with one class name per line (default: the source's classes)."""
    templates: str = "plain"
    """actionclip, plain (only the name), a file with one template per line, or a template ("a video of {}")."""
    combine: Literal["embeddings", "probabilities"] = "embeddings"
    """Average the embeddings of a class's prompts, or the probabilities of the templates."""
    views: str = "1x1"
    """Clips in time x crops in space of each video."""
    shots: int | None = None
    """Clips per class of a few-shot episode; replaces the text."""
    support: str | None = None
    """Draw the shots from these videos, for all of their classes."""
    support_split: str = "train"
    """The split of a tfds or synthetic source, or of a Kinetics list with several splits."""
    ways: int = 5
    """Classes per episode, without a support."""
    queries: int = 15
    """Clips per class to classify in an episode, without a support."""
    episodes: int = 600
    """Number of episodes to average over."""
    batch_size: int = 8
    """Videos per batch over all devices; does not affect the results."""
    out: str | None = None
    """Output directory (default: zero_shot/1, 2, ... in the work directory, or in runs/ for a checkpoint)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""
    seed: int = 0
    """Random seed of the episodes."""

    def __post_init__(self) -> None:
        check_values(self)
        runs.read_views(self.views)
        if self.shots is not None and self.classes:
            raise UserError("classes sets class names, which --shots does not use: omit one of them")
        for name, minimum in (("shots", 1), ("ways", 2), ("queries", 1), ("episodes", 2)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}: it must be {minimum} or more")
        if self.support and not self.shots:
            raise UserError("support applies to --shots: give both, or omit --support")


def read_classes(file: str) -> tuple[str, ...]:
    """Reads class names from a file with one per line.

    Raises:
      UserError: the file does not exist, is empty, or is not a UTF-8 text file.
    """
    if not Path(file).is_file():
        raise UserError(f"classes {file} does not exist: give a file with one class name per line")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"classes {file} is not a text file in UTF-8: convert it") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"classes {file} contains no class names: give one per line")
    return names


def main(config: Config) -> dict[str, Any]:
    """Evaluates, prints and writes the results; returns the contents of zero_shot.json."""
    from vidjax.data.batches import BadFiles, evaluation_batches
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
    uses_text = config.shots is None
    templates = read_templates(config.templates) if uses_text else ()
    prompts = fill(templates, source.class_names) if uses_text else []
    settings = {"which": config.which, "strict": True, "dtype": runs.computing_type(config.dtype)}
    model, variables = runs.load_pretrained(config.run, config.model, **settings)
    model = require_video_text(config.run, model)
    if uses_text:
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
    coverage = f"{int(valid.sum()):,} of {len(source):,} videos decoded"
    coverage += "" if valid.all() else f"; {int((~valid).sum())} unreadable, see bad_files.jsonl"
    report = {"videos": len(source), "decoded": int(valid.sum()), "counted": len(labels), "views": config.views}
    report |= {"clips": dataclasses.asdict(clips), "config": cli.as_dict(config)}
    heading = f"{config.run} on {source.name}\n{views}\n{coverage}\n\n"
    if not uses_text:
        key, features = jax.random.key(config.seed), video.mean(axis=1)
        if support is not None:
            bad = BadFiles(support, clips.max_bad_share, out / "bad_support_files.jsonl")
            batches = evaluation_batches(support, clips, **(settings | {"bad_files": bad}))
            shots, shot_labels, _, shot_valid = embed_clips(variables, batches)
            usable = shot_valid & (shot_labels >= 0)
            shots, shot_labels = shots[usable].mean(axis=1), shot_labels[usable]
            draws = {"shots": config.shots, "episodes": config.episodes}
            result = few_shot_from_support(key, shots, shot_labels, features, labels, **draws)
            task, ways = f"all classes, {config.shots} clips of each from {support.name}", len(np.unique(shot_labels))
        else:
            draws = {name: getattr(config, name) for name in ("ways", "shots", "queries", "episodes")}
            result = few_shot(key, features, labels, **draws)
            task, ways = f"{config.ways}-way {config.shots}-shot, {result.queries} queries per episode", config.ways
        low, high = result.interval
        text = f"{heading}{task}: {result.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%} over {config.episodes} "
        text += f"episodes, chance {1 / ways:.1%})"
        numbers = {"accuracy": result.accuracy, "interval": result.interval, "queries": result.queries}
        return write(out, text, numbers | report)

    flat = [prompt for row in prompts for prompt in row]
    texts = text_encoder(model, tokenizer, mesh)(variables, flat).reshape(len(templates), len(source.class_names), -1)
    scale = float(similarity_scale(model, variables["params"]))
    probabilities = zero_shot(video, texts, config.combine, scale)
    result = recognition(probabilities, labels)
    per_template = [
        {"template": template, "top1": recognition(zero_shot(video, one[None], scale=scale), labels).top1}
        for template, one in zip(templates, texts, strict=True)
    ]
    text = heading + describe_recognition(result, source.class_names)
    text += "\n\ntop-1 of each template\n" + "\n".join(f"{row['top1']:7.2%}  {row['template']}" for row in per_template)
    write_csv(out / "per_template.csv", per_template)
    write_csv(out / "per_class.csv", per_class(result, source.class_names))
    ids = [source.ids[i] for i in index]
    write_csv(out / "predictions.csv", predictions(probabilities, labels, ids, source.class_names))
    save_confusion(out / "confusion.png", result.confusion, source.class_names, f"top-1 {result.top1:.1%}, {coverage}")
    metrics = ("top1", "top5", "top1_interval", "mean_class_accuracy", "calibration_error")
    numbers = {name: getattr(result, name) for name in metrics}
    return write(out, text, numbers | {"per_template": per_template, "scale": scale, **report})


def write(out: Path, text: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Prints and writes the results."""
    (out / "zero_shot.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (out / "zero_shot.txt").write_text(text + "\n", "utf-8", "backslashreplace")
    print(f"\n{text}\n\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return numbers


if __name__ == "__main__":
    cli.run(main, Config)
