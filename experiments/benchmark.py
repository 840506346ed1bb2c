"""Measures vidjax on this machine, beside what it is to be compared with, in one run.

    python experiments/benchmark.py input videos.csv

`input` prints clips a second of plain PyAV on the same frames with as many threads, of the pipeline without and with
augmentation, and of the pipeline over TFRecords of the same videos; rounds alternate, the median and the spread count.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from vidjax import cli
from vidjax.data.config import AugmentConfig, DataConfig


@dataclasses.dataclass(frozen=True)
class Input:
    """Reading, decoding and augmenting clips."""

    source: tyro.conf.Positional[str]
    """Video files: a folder, or a .csv or .jsonl manifest."""
    data: DataConfig = DataConfig(workers=2)
    """How clips are made (its source is the one above)."""
    clips: int = 64
    """Clips in each measurement."""
    rounds: int = 3
    """Measurements of each way."""
    json: str | None = None
    """Write the numbers to this file."""


def plain_decode(path: str, choose: Callable[[int, float], np.ndarray], short_side: int) -> np.ndarray:
    """What one would write without vidjax: seek before the first frame, decode on, keep and shrink those wanted."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate = float(stream.average_rate)
        count = stream.frames or round(float(container.duration / 1e6) * rate)
        indices = choose(count, rate)
        start = stream.start_time or 0
        container.seek(int(start + indices[0] / rate / stream.time_base), stream=stream)
        scale = short_side / min(stream.width, stream.height)
        size = (
            (round(stream.width * scale), round(stream.height * scale)) if scale < 1 else (stream.width, stream.height)
        )
        wanted, kept = set(indices.tolist()), {}
        for position, frame in enumerate(container.decode(stream)):
            index = position if frame.pts is None else round(float((frame.pts - start) * stream.time_base) * rate)
            if index in wanted:
                kept[index] = frame.reformat(*size, format="rgb24").to_ndarray()
            if index >= indices[-1]:
                break
        return np.stack(list(kept.values()))


def measure_input(config: Input) -> dict[str, Any]:
    """Clips a second by way, and their ratio to plain decoding."""
    import tensorflow as tf

    from vidjax.data import records
    from vidjax.data.decode import DecodeError
    from vidjax.data.pipeline import train_batches
    from vidjax.data.sampling import sample
    from vidjax.data.sources import open_source

    data = dataclasses.replace(config.data, source=config.source)
    source = open_source(data.source, data.split)
    if not all(Path(path).is_file() for path in source.ids):
        raise ValueError(f"{config.source} is no source of video files: plain decoding has nothing to be measured on")
    threads = data.workers or 2
    rng = np.random.default_rng(0)
    good, stored = [], []
    for index, path in enumerate(source.ids):
        try:  # all frames, as TFRecords hold them
            clip = source.read(index, lambda info: np.arange(min(info.num_frames, 300)), 256)
        except DecodeError:
            continue
        good.append(path)
        height, width = clip.frames.shape[1:3]
        pictures = records.encode_frames(clip.frames, 90)
        stored.append(records.Record(pictures, clip.info.rate, height, width, -1, "", (), path))
    if not good:
        raise ValueError(f"no video of {config.source} can be read: look with experiments/check_data.py")

    with tempfile.TemporaryDirectory() as folder:
        (listed := Path(folder) / "good.csv").write_text("path\n" + "".join(f"{Path(p).resolve()}\n" for p in good))
        with tf.io.TFRecordWriter(f"{folder}/videos.tfrecord") as writer:
            for record in stored:
                writer.write(records.encode_record(record))
        plain = dataclasses.replace(data, source=str(listed), augment=AugmentConfig(crop="center"))
        pipelines = {
            "pipeline, no augmentation": plain,
            "pipeline": dataclasses.replace(plain, augment=data.augment),
            "TFRecord pipeline": dataclasses.replace(
                plain, source=f"tfrecord:{folder}/*.tfrecord", augment=data.augment
            ),
        }
        speeds: dict[str, list[float]] = {"plain PyAV": [], **{name: [] for name in pipelines}}
        for number in range(config.rounds):
            generators = [np.random.default_rng((number, n)) for n in range(config.clips)]
            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                jobs = [
                    pool.submit(
                        plain_decode,
                        good[n % len(good)],
                        lambda c, r, g=g: sample(data, c, r, g),
                        data.decode_short_side,
                    )
                    for n, g in enumerate(generators)
                ]
                for job in jobs:
                    job.result()
                speeds["plain PyAV"].append(config.clips / (time.perf_counter() - start))
            for name, settings in pipelines.items():
                batches = train_batches(
                    open_source(settings.source, settings.split),
                    settings,
                    batch_size=len(good),
                    seed=int(rng.integers(1 << 30)),
                )
                next(batches)  # traced and warm
                start, read = time.perf_counter(), 0
                while read < config.clips:
                    read += len(next(batches)["valid"])
                speeds[name].append(read / (time.perf_counter() - start))
                batches.close()
    return {
        name: {
            "clips_per_second": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "ratio": statistics.median(values) / statistics.median(speeds["plain PyAV"]),
        }
        for name, values in speeds.items()
    }


def main(config: Input) -> dict[str, Any]:
    """Measures and prints a table."""
    numbers = measure_input(config)
    data = config.data
    print(f"{config.source}: clips of {data.frames} frames, {data.size} pixels, {data.workers or 2} threads")
    print(f"{'':28}{'clips/s':>9}{'least':>9}{'most':>9}{'to plain':>10}")
    for name, row in numbers.items():
        print(
            f"{name:28}"
            + "".join(f"{row[k]:9.1f}" for k in ("clips_per_second", "least", "most"))
            + f"{row['ratio']:10.2f}"
        )
    if config.json:
        Path(config.json).write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


COMMANDS = {"input": (main, Input)}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        cli.fail(f"say what to measure first: {', '.join(COMMANDS)}")
    cli.run(*COMMANDS[sys.argv.pop(1)])
