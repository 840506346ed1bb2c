"""Find actions in video files: start and end in seconds, class and score, with a run of localize.py.

    python experiments/localize_predict.py --run runs/actions lecture.mp4
    python experiments/localize_predict.py --run runs/actions videos/ --least_score 0.3 --json found.json

The features are made as those were that the run was trained on (embed.py), by the same encoder; `--encoder` says where
its weights are if they were moved. A run that trained its encoder too contains it. Files are streamed: of a video, only
its features are kept. Times are those at which the frames are on screen, from the first frame on, also at variable
frame rates.
"""

import dataclasses
import json
import os
import sys
from typing import Any, Literal

from tyro.conf import Positional

from vidjax import cli, runs
from vidjax.errors import UserError
from vidjax.evaluation.segments import Selection
from vidjax.fields import check_values, require_positive
from vidjax.runs import localization, localizer
from vidjax.runs.embedding import open_encoder
from vidjax.runs.untrimmed import embed_files, read_kept
from vidjax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Config:
    """A search for actions."""

    paths: Positional[tuple[str, ...]]
    """Video files, folders of videos, and lists."""
    run: str
    """The work directory of a run of localize.py."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of the run: the one that validated best, or the newest."""
    encoder: str | None = None
    """The encoder of the features (default: where it was when they were made)."""
    least_score: float = 0.1
    """Segments with a lower score are not reported."""
    batch_size: int = 16
    """Windows per batch of the encoder."""
    workers: int = 0
    """Videos decoded in parallel, 0 = one per core."""
    json: str | None = None
    """Write the segments to this new file."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "batch_size")
        if not self.paths:
            raise UserError("no video is given: give files or folders")
        if self.json is not None and os.path.lexists(self.json):
            raise UserError(f"{self.json} already exists, and nothing is overwritten: give another --json")
        cli.check_files(json=self.json)


def main(config: Config) -> dict[str, Any]:
    """Finds, prints and writes the segments; returns the contents of the JSON file."""
    model, variables, own = localizer.open_run(config.run, config.which)
    if own and config.encoder:
        raise UserError(f"{config.run} has an encoder of its own: omit --encoder")
    described = None if own else read_kept(config.run)
    encoder = own or (*open_encoder(described["meta"], config.encoder), described["stride"])
    selection = Selection(**runs.read_config(config.run)["selection"])
    names, tracks, errors = embed_files(config.paths, *encoder, config.batch_size, config.workers)
    for error in errors.values():
        print(f"cannot be read: {error}", file=sys.stderr)
    if not tracks:
        raise UserError(f"none of the {len(names)} files could be read: see the reasons above")
    numbers, lengths = list(tracks), [len(track.features) for track in tracks.values()]
    read = [lambda number=number: tracks[number] for number in numbers]
    mesh = make_mesh()
    found = localization.find_segments(read, lengths, model, variables, selection, mesh, mesh.size)
    files: list[dict[str, Any]] = [{"path": name, "segments": []} for name in names]
    for place, number in enumerate(numbers):
        print(f"\n{names[number]}\n   start      end   score  class")
        rows = found[(found.video == place) & (found.score >= config.least_score)]
        for (start, end), score, label in zip(rows.segment, rows.score, rows.label, strict=True):
            entry = {"start": float(start), "end": float(end), "class": model.card.class_names[label]}
            print(f"{start:8.2f} {end:8.2f} {score:7.3f}  {entry['class']}")
            files[number]["segments"].append(entry | {"score": float(score)})
    for number, error in errors.items():
        files[number]["error"] = error
    report = {"config": cli.as_dict(config), "files": files}
    if config.json:
        with open(config.json, "x") as file:
            file.write(json.dumps(report, indent=1) + "\n")
        print(f"\nwrote {config.json}")
    return report


if __name__ == "__main__":
    cli.run(main, Config)
