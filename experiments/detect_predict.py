"""Draw the actions of persons in a video: with a run of detect.py, and the boxes of the persons in key frames.

    python experiments/detect_predict.py street.mp4 --run runs/boxes --boxes persons.csv --out street_actions.mp4
    python experiments/detect_predict.py street.mp4 --run runs/boxes --boxes persons.csv --csv scores.csv

The boxes are rows of `video_id, timestamp, x1, y1, x2, y2` and any more columns, as AVA's annotations and detected
persons: the time in seconds, corners as fractions of the frame. video_id is the name of the file without its suffix.
The video is drawn (MP4 or GIF) in constant memory, each key frame's boxes around its time.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tyro.conf import Positional

import vidjax
from vidjax import cli, runs
from vidjax.data.config import ClipConfig
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.models.detector import Detector
from vidjax.runs import detection
from vidjax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Config:
    """A video whose actions are drawn."""

    video: Positional[str]
    """The video file."""
    run: str
    """The work directory of a run of detect.py."""
    boxes: str
    """A .csv of boxes in key frames."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of the run: the one that validated best, or the newest."""
    start: float = 0.0
    """Time stamp at which the file begins, if the times in the .csv do not count from its start."""
    least_box_score: float | None = None
    """Boxes with a lower score in the last column are left out (default: it is no score)."""
    least_score: float = 0.3
    """Actions with a lower score are neither drawn nor printed."""
    crops: int = 3
    """Squares along the longer side; a box is classified in the one that shows most of it."""
    batch_size: int = 8
    """Key frames per batch."""
    short_side: int = 480
    """Pixels of the shorter side of the drawn video; smaller videos are enlarged to 360."""
    out: str | None = None
    """Draw the boxes to this new .mp4 or .gif."""
    csv: str | None = None
    """Write the scores of all actions to this new file, in the form of AVA's results."""
    json: str | None = None
    """Write the actions above the least score to this new file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: auto is bfloat16 on accelerators, float32 on a CPU."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "crops", "batch_size", "short_side")
        written = {name: getattr(self, name) for name in ("out", "csv", "json")}
        for name, path in written.items():
            if path is not None and os.path.lexists(path):
                raise UserError(f"{path} already exists, and nothing is overwritten: give another --{name}")
        if self.out is not None and not self.out.lower().endswith((".mp4", ".gif")):
            raise UserError(f"out is {self.out}: give a file that ends in .mp4 or .gif")
        cli.check_files(**written)


def draw(config: Config, frames: Sequence[Any], lines: Sequence[Sequence[Sequence[str]]]) -> Iterator[np.ndarray]:
    """The frames of the video, with the boxes of the nearest key frame, if it is nearer than half the usual distance.

    Args:
      lines: of text, of each box of each key frame.
    """
    from vidjax.data.decode import open_clip
    from vidjax.visualize.boxes import NEUTRAL, draw_boxes

    times = np.array([frame.time for frame in frames]) - config.start
    reach = np.median(np.diff(times)) / 2 + 1e-3 if len(times) > 1 else 0.5
    with open_clip(config.video) as clip:
        rate = clip.info.rate
        for number, pixels in enumerate(clip.iterate(np.arange(clip.info.num_frames), config.short_side)):
            nearest = int(np.abs(times - number / rate).argmin())
            near = abs(times[nearest] - number / rate) <= reach
            boxes, texts = (frames[nearest].boxes, lines[nearest]) if near else (np.zeros((0, 4)), [])
            yield draw_boxes(pixels, boxes, texts, [NEUTRAL] * len(boxes))


def main(config: Config) -> dict[str, Any]:
    """Classifies, prints, writes and draws; returns the contents of the JSON file."""
    from vidjax.data.batches import BadFiles, evaluation_batches
    from vidjax.data.decode import open_clip
    from vidjax.data.key_frames import frames_of_video, key_frame_source
    from vidjax.data.writing import write_video

    settings = {"which": config.which, "strict": True, "verbose": False, "dtype": runs.computing_type(config.dtype)}
    model, variables = vidjax.load_pretrained(config.run, **settings)
    if not isinstance(model, Detector):
        raise UserError(f"{config.run} is a {type(model).__name__}, no detector: give a run of detect.py")
    clips, names = ClipConfig(**runs.usual_clips(config.run, model)), model.card.class_names
    frames = frames_of_video(config.boxes, Path(config.video).stem, config.least_box_score)
    source = key_frame_source(
        config.video, frames, names, lambda _: open_clip(config.video, clips.square_pixels), clips, start=config.start
    )
    bad = BadFiles(source, 1.0)
    batches = evaluation_batches(
        source, clips, batch_size=config.batch_size, view_counts=(1, config.crops), fields=("boxes",), bad_files=bad
    )
    mesh = make_mesh(devices=jax.local_devices()[:1])
    score = detection.make_score(model, mesh, runs.read_config(config.run)["objective"])
    scores = detection.score_frames(score, variables, batches, frames, mesh)
    if all(rows is None for rows in scores):
        raise UserError(f"no key frame could be read: {next(iter(bad.errors.values()))}")
    report: dict[str, Any] = {"config": cli.as_dict(config), "frames": []}
    lines: list[list[list[str]]] = []
    for frame, rows in zip(frames, scores, strict=True):
        found = [detection.best_actions(each, names, config.least_score) for each in rows] if rows is not None else []
        lines.append(
            [[f"{name} {value:.2f}" for name, value in actions] for actions in found] or [[]] * len(frame.boxes)
        )
        boxes = [
            {"box": box.tolist(), "actions": [{"class": name, "score": value} for name, value in actions]}
            for box, actions in zip(frame.boxes, found, strict=False)
        ]
        report["frames"].append({"time": frame.time, "boxes": boxes})
        print(f"{frame.time:8.2f} s  " + "; ".join(", ".join(each) or "-" for each in lines[-1]))
    for error in bad.errors.values():
        print(f"cannot be read: {error}")
    if config.json:
        Path(config.json).write_text(json.dumps(report, indent=1) + "\n")
    if config.csv:
        ids = json.loads((Path(config.run) / "action_ids.json").read_text())
        detection.write_detections(config.csv, frames, scores, ids)
    if config.out:
        with open_clip(config.video) as clip:
            rate = clip.info.rate
        write_video(config.out, draw(config, frames, lines), rate)
    for path in filter(None, (config.out, config.csv, config.json)):
        print(f"wrote {path}")
    return report


if __name__ == "__main__":
    cli.run(main, Config)
