"""Clips a second of reading, decoding and augmenting, a core and on several, beside plain PyAV on the same frames.

For every number of cores a process of its own, held to them, in which these ways take turns, round by round:

- plain PyAV, as one would write it, with as many threads as cores;
- decode alone: `vidjax.data.decode` on the paths and indices of the pipeline's clips, shrunk to the size that the
  pipeline crops from; what the pipeline is measured against;
- decord and torchcodec on the same frames, where they are installed;
- the pipeline without augmentation (middle crop) and with it;
- the pipeline over TFRecords of the same videos, without and with augmentation.

Medians over the rounds count, and ratios are medians of the rounds' own, so that a busy machine disturbs both sides.
"""

import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.process import keep_to
from vidjax.cli import check_files
from vidjax.data.config import AugmentConfig, DataConfig, core_count
from vidjax.errors import UserError
from vidjax.fields import check_values

ROWS = 8
"""Clips of a batch."""
WAYS = ("plain PyAV", "decode alone", "pipeline", "pipeline, augmented", "TFRecord", "TFRecord, augmented")
"""What is measured."""


@dataclasses.dataclass(frozen=True)
class Input:
    """Reading, decoding and augmenting clips."""

    source: str
    """Video files: a folder, or a .csv or .jsonl manifest."""
    data: DataConfig = DataConfig(augment=AugmentConfig(flip=True))
    """How clips are made (its source is the one above, its workers are as many as cores)."""
    cores: tuple[int, ...] = ()
    """Numbers of cores to measure on; when not given, one and all."""
    clips: int = 48
    """Clips in each measurement."""
    rounds: int = 3
    """Measurements of each way."""
    json: str | None = None
    """Write the numbers to this file."""
    chart: str | None = None
    """Draw the numbers in this PNG."""

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        check_values(self)
        for name in ("clips", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if any(not 1 <= count <= core_count() for count in self.cores):
            raise UserError(f"cores is {self.cores}: choose 1 to {core_count()}, which there are to measure on")
        check_files(json=self.json, chart=self.chart)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a measuring process needs to know."""

    config: Input
    listed: str
    """A manifest of the videos that can be read."""
    stored: str
    """A source of TFRecords of the same videos, in the same order."""
    jobs: tuple[tuple[str, tuple[int, ...]], ...]
    """Path and frames of each clip that is timed, as the pipeline takes them from the videos."""


def plain_decode(path: str, indices: Sequence[int], short_side: int) -> np.ndarray:
    """What one would write without vidjax: seek before the first frame, decode on, keep and shrink those wanted."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, start, last = float(stream.average_rate), stream.start_time or 0, max(indices)
        container.seek(int(start + min(indices) / rate / stream.time_base), stream=stream)
        scale = short_side / min(stream.width, stream.height)
        size = (
            (round(stream.width * scale), round(stream.height * scale)) if scale < 1 else (stream.width, stream.height)
        )
        wanted, kept = set(indices), {}
        for position, frame in enumerate(container.decode(stream)):
            index = position if frame.pts is None else round(float((frame.pts - start) * stream.time_base) * rate)
            if index in wanted:
                kept[index] = frame.reformat(*size, format="rgb24").to_ndarray()
            if index >= last:
                break
        return np.stack(list(kept.values()))


def decord_decode(path: str, indices: Sequence[int], short_side: int) -> np.ndarray:
    """The same frames by decord 0.6, shrunk by it."""
    import decord

    width, height = decord.VideoReader(path)[0].shape[1::-1]
    scale = min(1, short_side / min(width, height))
    size = {"width": round(width * scale), "height": round(height * scale)}
    return decord.VideoReader(path, num_threads=1, **size).get_batch(list(indices)).asnumpy()


def torchcodec_decode(path: str, indices: Sequence[int], short_side: int) -> np.ndarray:
    """The same frames by torchcodec 0.17, shrunk by it."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    found = VideoDecoder(path, num_ffmpeg_threads=1).metadata
    scale = min(1, short_side / min(found.width, found.height))
    size = Resize((round(found.height * scale), round(found.width * scale)))
    transforms = [size] if scale < 1 else []
    return VideoDecoder(path, num_ffmpeg_threads=1, transforms=transforms).get_frames_at(list(indices)).data.numpy()


PEERS = {"decord": decord_decode, "torchcodec": torchcodec_decode}
"""Decoders of others, measured too where they are installed and can read the videos."""


def find_peers(plan: "Plan") -> tuple[str, ...]:
    """Those of PEERS that read every video of the plan."""
    found = []
    for name, decode in PEERS.items():
        try:
            for path, indices in dict(plan.jobs).items():
                decode(path, indices, plan.config.data.decode_short_side)
            found.append(name)
        except Exception as error:  # of a library of theirs, which may be of any class
            print(f"{name} is not measured: {' '.join(str(error).split())[:200]}")
    return tuple(found)


def measure_input(config: Input) -> list[dict[str, Any]]:
    """Measures every way on every number of cores.

    Returns:
      A row for each: its `way`, `cores`, `clips_per_second` (median), `per_core`, `least`, `most`, `cpu_ms` (CPU
      time of a clip), `of_decode` (clips a second over those of decode alone on the same cores), `cpu_of_decode` (the
      same by CPU time, which other processes disturb less) and `scaling` (clips a second over those of the same way on
      the fewest cores).

    Raises:
      UserError: the source holds no video files, or none that can be read, or a process did not live to tell.
    """
    counts = sorted(set(config.cores or (1, core_count())))
    spawn = multiprocessing.get_context("spawn")
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plan = prepare(config, Path(folder))
        ways = (*WAYS, *find_peers(plan))
        ends = {count: stack.enter_context(_process(spawn, plan, count)) for count in counts}
        for _ in range(config.rounds):
            for way in ways:
                for count in counts:
                    try:
                        ends[count].send(way)
                        found = ends[count].recv()
                    except (EOFError, ConnectionError) as error:
                        raise UserError("a process that measures was killed: give fewer --clips or --cores") from error
                    if isinstance(found, Exception):
                        raise found
                    measured.setdefault((way, count), []).append(found)

    def ratios(over: tuple[str, int], under: tuple[str, int], which: int = 0) -> float:
        pairs = zip(measured[over], measured[under], strict=True)
        return statistics.median(below[which] / above[which] for above, below in pairs)

    rows = []
    for way in ways:
        for count in counts:
            speeds = [len(plan.jobs) / seconds for seconds, _ in measured[way, count]]
            row = {
                "way": f"{way}, {count} core{'s' * (count > 1)}",
                "cores": count,
                "clips_per_second": statistics.median(speeds),
                "per_core": statistics.median(speeds) / count,
                "least": min(speeds),
                "most": max(speeds),
                "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in measured[way, count]) / len(plan.jobs),
                "of_decode": ratios((way, count), ("decode alone", count)),
                "cpu_of_decode": ratios((way, count), ("decode alone", count), 1),
                "scaling": ratios((way, count), (way, counts[0])),
            }
            rows.append(row)
    return rows


def prepare(config: Input, folder: Path) -> Plan:
    """Lists videos that can be read, writes them as TFRecords, and notes the frames that the pipeline takes.

    There are no more videos than clips, drawn at random, whatever the source holds.
    """
    import tensorflow as tf

    from vidjax.data import records
    from vidjax.data.decode import DecodeError, VideoInfo
    from vidjax.data.example import Example
    from vidjax.data.pipeline import train_batches
    from vidjax.data.sources import draw, open_source

    source = draw(
        open_source(config.source, config.data.split, config.data.square_pixels), config.clips, 0
    )  # each is decoded whole and written
    if not all(Path(path).is_file() for path in source.ids):
        raise UserError(
            f"{config.source} is no source of video files: plain decoding needs a folder or a manifest of them"
        )
    good, infos = [], []
    with tf.io.TFRecordWriter(str(folder / "videos.tfrecord")) as writer:
        for index, path in enumerate(source.ids):
            try:  # all frames, as TFRecords hold them
                clip = source.read(index, None, config.data.decode_short_side)
            except DecodeError:
                continue
            good.append(str(Path(path).resolve()))
            infos.append(clip.info)
            height, width = clip.frames.shape[1:3]
            pictures = records.encode_frames(clip.frames, 90)
            record = records.Record(pictures, clip.info.rate, height, width, -1, "", (), path)
            writer.write(records.encode_record(record))
    if not good:
        raise UserError(
            f"none of {len(source)} videos of {config.source} can be read: look with experiments/check_data.py"
        )
    (folder / "good.jsonl").write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in good))
    jobs = []

    @dataclasses.dataclass
    class Noting:
        """A stream that notes what is read from it."""

        index: int

        @property
        def info(self) -> VideoInfo:
            return infos[self.index]

        def read(self, indices: np.ndarray, short_side: int | None) -> tuple[np.ndarray, VideoInfo]:
            jobs.append((good[self.index], tuple(int(i) for i in indices)))
            return np.zeros((len(indices), 8, 8, 3), np.uint8), self.info

        iterate = read

    source = dataclasses.replace(
        open_source(str(folder / "good.jsonl"), "train"),
        open=lambda index, names: nullcontext(Example({"video": Noting(index)})),
    )
    batches = train_batches(source, dataclasses.replace(config.data, workers=1, repeats=1), batch_size=ROWS, seed=0)
    timed = -(-config.clips // ROWS)
    for _ in range(1 + timed):
        next(batches)
    batches.close()
    # The first batch starts the pipeline and is not timed.
    return Plan(config, str(folder / "good.jsonl"), f"tfrecord:{folder}", tuple(jobs[ROWS : ROWS * (1 + timed)]))


@contextmanager
def _process(spawn: Any, plan: Plan, cores: int) -> Iterator[Connection]:
    """A process on so many cores, that measures the ways sent to it, one at a time, until it is left."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, plan, cores), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(timeout=10)
        process.kill()


def _serve(ends: Connection, plan: Plan, cores: int) -> None:
    """Sends (seconds, CPU seconds) of the clips for each way that comes in, or the error."""
    keep_to(cores)  # before TensorFlow counts them
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    while True:
        try:
            way = ends.recv()
        except EOFError:
            return
        try:
            ends.send(_time(way, plan, cores))
        except Exception as error:  # raised where it can be seen
            ends.send(error)


def _time(way: str, plan: Plan, cores: int) -> tuple[float, float]:
    data = plan.config.data
    if way in ("plain PyAV", "decode alone", *PEERS):
        from vidjax.data.decode import decode

        one: Callable = ({"plain PyAV": plain_decode} | PEERS).get(way, decode)
        with ThreadPoolExecutor(cores) as pool:
            start, cpu = time.perf_counter(), time.process_time()
            for clip in pool.map(lambda job: one(*job, data.decode_short_side), plan.jobs):
                del clip
            return time.perf_counter() - start, time.process_time() - cpu

    from vidjax.data.pipeline import train_batches
    from vidjax.data.sources import open_source

    augment = data.augment if "augmented" in way else AugmentConfig(crop="center")
    source = open_source(plan.stored if "TFRecord" in way else plan.listed, "train")
    settings = dataclasses.replace(data, augment=augment, workers=cores, repeats=1)
    batches = train_batches(source, settings, batch_size=ROWS, seed=0)
    next(batches)  # traced, and as many clips under way as later
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(len(plan.jobs) // ROWS):
        next(batches)
    taken = time.perf_counter() - start, time.process_time() - cpu
    batches.close()
    return taken
