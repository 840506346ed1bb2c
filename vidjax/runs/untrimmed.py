"""Features of untrimmed videos in runs: their times, batches of training, and features of video files."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vidjax.data.config import ClipConfig, core_count
from vidjax.data.embeddings import sampled_rate
from vidjax.errors import UserError
from vidjax.evaluation.segments import Clock
from vidjax.runs.announce import print_notes
from vidjax.runs.embedding import Encode
from vidjax.training.sharding import this_process

KEPT = "features.json"
"""File in a work directory with what embed.py wrote about the features, by which they are made of other videos."""


class Track(NamedTuple):
    """The features of a video, and their times. What is sliced into windows of frames may stand in their place."""

    features: Any  # Float[np.ndarray, "t c"], or data.untrimmed_videos.WindowedVideo
    clock: Clock


def resized(track: Track, length: int) -> Track:
    """Stretches features to a length."""
    features, clock = track
    stride = ((len(features) - 1) * clock.stride + clock.frames) / length
    stretched = stretch(np.asarray(features, np.float32), length)
    return Track(stretched, Clock(clock.fps, stride, stride, clock.duration))


def stretch(features: Float[np.ndarray, "t c"], length: int) -> Float[np.ndarray, "l c"]:
    """Resizes features over time linearly, with the ends of both at the same times."""
    place = np.clip((np.arange(length) + 0.5) * len(features) / length - 0.5, 0, len(features) - 1)
    before = place.astype(int)
    part = (place - before)[:, None].astype(features.dtype)
    return features[before] * (1 - part) + features[np.minimum(before + 1, len(features) - 1)] * part


def shuffled_batches(
    count: int,
    example: Callable[[int, np.random.Generator], dict[str, np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    first: int,
    workers: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of each batch from number `first` on, without end: a pure function of seed and number.

    All examples are drawn in random order, then again in another order, each time with other random numbers.

    Args:
      count: number of examples.
      example: its arrays, from its number and a source of random numbers.
      workers: examples that are made in parallel.
    """
    place, part = this_process()["process_index"], batch_size // this_process()["process_count"]
    number, epoch, order = first * batch_size + place * part, -1, np.zeros(0, int)
    with ThreadPoolExecutor(workers) as pool:
        while True:
            making = []
            for k in range(number, number + part):
                if k // count != epoch:
                    epoch = k // count
                    order = np.random.default_rng((seed, 0, epoch)).permutation(count)
                making.append(pool.submit(example, int(order[k % count]), np.random.default_rng((seed, 1, k))))
            examples = [each.result() for each in making]
            yield {name: np.stack([each[name] for each in examples]) for name in examples[0]}
            number += batch_size


def embed_files(
    paths: Sequence[str], encode: Encode, clips: ClipConfig, stride: int, batch_size: int, workers: int
) -> tuple[list[str], dict[int, Track], dict[int, str]]:
    """The names of videos, the features of those that could be read, and the errors of the others.

    Files are streamed: of a video, only its features are kept. Times are those of the frames, at any rate.

    Args:
      paths: video files, folders and lists.
      encode, clips: see `embedding.open_encoder`.
      stride: sampled frames from one feature to the next.
      batch_size: windows per batch.
      workers: videos decoded in parallel, 0 for one per core.
    """
    from vidjax.data.windows import batches, open_files

    videos = open_files(paths)
    print_notes(videos.source)
    rows: dict[int, list[tuple[int, float, float]]] = {}
    features: dict[int, list[np.ndarray]] = {}
    errors: dict[int, str] = {}
    streams = (videos.windows(index, clips, stride) for index in range(len(videos.source)))

    def failed(index: int, error: ValueError) -> None:
        errors[index] = str(error)

    for batch, pixels in batches(streams, batch_size, workers or core_count(), failed):
        for (index, window), feature in zip(batch, encode(pixels), strict=False):  # the batch may be padded
            rows.setdefault(index, []).append((window.first, window.start, window.end))
            if window.first % stride == 0:  # the last window may be nearer to the one before
                features.setdefault(index, []).append(feature)
    tracks = {}
    for index in features.keys() - errors.keys():
        first, start, end = map(np.array, zip(*rows[index], strict=True))
        clock = Clock(sampled_rate(first, start, end, clips.frames), stride, clips.frames, float(end[-1]))
        tracks[index] = Track(np.stack(features[index]), clock)
    return list(videos.source.ids), dict(sorted(tracks.items())), errors


def make_demo_features(commands: Sequence[str], experiments: Path, workdir: str, seed: int, script: str) -> str:
    """Trains a demo's encoder and writes the features of its videos, unless this is done already; returns their folder.

    Args:
      commands: scripts with their flags, in which WORKDIR and SEED stand for the run's.
      experiments: the folder of the scripts.
      script: the one whose demo this is.
    """
    features = Path(workdir) / "features"
    for command in () if features.exists() else commands:
        name, *flags = command.replace("WORKDIR", workdir).replace("SEED", str(seed)).split()
        print(f"\npython experiments/{name} {' '.join(flags)}", flush=True)
        _run([sys.executable, str(experiments / name), *flags])
        # A run that SIGTERM stops saves its state and exits without an error; one that ends draws its curves.
        if "--workdir" in flags and not (Path(flags[flags.index("--workdir") + 1]) / "curves.png").is_file():
            raise SystemExit(f"{name} was stopped before its end: run {script} again to resume")
    print(f"\npython experiments/{script}", flush=True)
    return str(features)


def _run(command: Sequence[str]) -> None:
    """Runs a command to its end; SIGTERM is passed on to it, and ends this process once it has ended."""
    process, stopped = subprocess.Popen(command), threading.Event()

    def stop(*_: Any) -> None:
        stopped.set()
        process.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    if stopped.is_set():
        raise SystemExit("stopped by SIGTERM: run the same command to resume")
    if status:
        raise subprocess.CalledProcessError(status, command)


def read_kept(run: str) -> Any:
    """The description of the features that a run was trained on, from its work directory.

    Raises:
      UserError: they were not made by embed.py.
    """
    path = Path(run) / KEPT
    if not path.is_file():
        raise UserError(
            f"{run} was not trained on features in a folder that embed.py wrote, so that its encoder is unknown: give "
            "a run on such features"
        )
    return json.loads(path.read_text())
