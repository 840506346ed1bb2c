"""Ask a video file a sentence: when it shows this, and how much each moment has to do with it, with a run of ground.py.

    python experiments/ground_predict.py holiday.mp4 "a dog jumps into the water" --run runs/moments

Prints the moments in seconds, best first, and writes to OUT: moments.json, with the saliency of each step, and
moments.png, a picture of both. The features are made as those were that the run was trained on (embed.py), by the same
encoders and text tower; `--encoders` and `--text` say where their weights are if they were moved. The file is streamed:
only its features are kept. Times are those at which the frames are on screen, also at variable frame rates.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from tyro.conf import Positional

from vidjax import cli, runs
from vidjax.convert.checkpoint import read_model
from vidjax.data.moments import join_features, require_words, unit_length
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.runs.embedding import open_encoder
from vidjax.runs.grounding import find_moments
from vidjax.runs.queries import open_tower
from vidjax.runs.results import open_results
from vidjax.runs.untrimmed import Track, embed_files, read_kept
from vidjax.training.sharding import make_mesh
from vidjax.visualize.moments import Answer, save_moments


@dataclasses.dataclass(frozen=True)
class Config:
    """A sentence about a video."""

    video: Positional[str]
    """The video file."""
    query: Positional[str]
    """What to look for, in words."""
    run: str
    """The work directory of a run of ground.py."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of the run: the one that validated best, or the newest."""
    encoders: tuple[str, ...] = ()
    """The encoder of each folder of features (default: where they were when the features were made)."""
    text: str | None = None
    """The model with the text tower (default: where it was)."""
    tokenizer: str | None = None
    """Its tokenizer (default: where it was)."""
    least_score: float = 0.1
    """Moments with a lower score are not reported."""
    batch_size: int = 16
    """Windows per batch of the encoders."""
    workers: int = 0
    """Threads that decode, 0 = one per core."""
    out: str | None = None
    """Output directory (default: moments/1, 2, ... in the work directory)."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "batch_size")
        require_words(self.query)


def embed_video(config: Config, described: list[dict[str, Any]]) -> Track:
    """The features of the video by all encoders, side by side.

    Raises:
      UserError: the video cannot be read, or the encoders are not as many as in training.
    """
    encoders = config.encoders or (None,) * len(described)
    if len(encoders) != len(described):
        raise UserError(f"{len(encoders)} encoders are given, the run was trained with features of {len(described)}")
    tracks = []
    for each, encoder in zip(described, encoders, strict=True):
        encode, clips = open_encoder(each["meta"], encoder)
        _, found, errors = embed_files([config.video], encode, clips, each["stride"], config.batch_size, config.workers)
        if errors or len(found) != 1:
            raise UserError(f"{config.video} cannot be read: {errors.get(0, 'give a single file')}")
        tracks.append(found[0])
    return Track(join_features([track.features for track in tracks]), tracks[0].clock)


def embed_query(config: Config, saved: dict[str, Any], words: int) -> np.ndarray:
    """The features of the words; says so if some are cut off.

    Raises:
      UserError: the text tower is not that of the run.
    """
    kept = Path(config.run) / "queries.json"
    if not kept.is_file():
        raise UserError(f"{config.run} was trained on published features of sentences: give a run with a text tower")
    tower = open_tower(config.text or saved["text"], config.tokenizer or saved["tokenizer"])
    if tower.weights != json.loads(kept.read_text())["weights"]:
        raise UserError(
            f"{config.text or saved['text']} has other weights than the text tower of {config.run}: give it"
        )
    (features,) = tower.encode([config.query])
    if len(features) > words:
        print(f"note: the query has {len(features)} tokens, of which the first {words} are read")
    return unit_length(features)


def main(config: Config) -> dict[str, Any]:
    """Finds, prints, draws and writes the moments; returns the contents of moments.json."""
    described, saved = read_kept(config.run), runs.read_config(config.run)
    if "rounded" not in saved:
        raise UserError(f"{config.run} is no run of ground.py: give one")
    model = read_model(Path(config.run)).clone(dtype=jnp.float32)
    words = embed_query(config, saved, model.words)
    track = embed_video(config, described)
    weights, _ = runs.read_weights(config.run, config.which)
    variables, mesh = {"params": unflatten_dict(weights, sep="/")["params"]}, make_mesh()
    settings = {"length": saved["max_length"], "rounded": saved["rounded"], "mesh": mesh, "batch_size": mesh.size}
    (found,) = find_moments([lambda: (track, words)], model, variables, **settings)
    shown = found.scores >= config.least_score
    windows, scores = found.windows[shown], found.scores[shown]
    print(f"\n{config.video}: {config.query}\n   start      end   score")
    for (start, end), score in zip(windows, scores, strict=True):
        print(f"{start:8.2f} {end:8.2f} {score:7.3f}")
    if not len(windows):
        print(f"   no moment has a score of {config.least_score:g} or more; the best has {found.scores[0]:.3f}")
    best = found.times[found.saliency.argmax()]
    print(f"most salient at {best:.2f} s of {track.clock.duration:.2f} s")
    out = open_results(config.out, config.run, "moments")
    report = {
        "config": cli.as_dict(config),
        "moments": [
            {"start": float(start), "end": float(end), "score": float(score)}
            for (start, end), score in zip(windows, scores, strict=True)
        ],
        "times": found.times.tolist(),
        "saliency": found.saliency.tolist(),
    }
    (out / "moments.json").write_text(json.dumps(report, indent=1) + "\n")
    title = f"{Path(config.video).name}: {config.query}"
    answer = Answer(title, track.clock.duration, found.times, found.saliency, windows, scores)
    save_moments(out / "moments.png", [answer])
    print(f"wrote {out}/moments.json and moments.png")
    return report


if __name__ == "__main__":
    cli.run(main, Config)
