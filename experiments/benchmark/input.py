"""Clips per second of reading, decoding and augmenting, compared with plain PyAV on the same frames.

For every number of cores, a process restricted to them measures the following methods, which alternate in each round:

- plain PyAV, with as many threads as cores;
- decode alone: `vidjax.data.decode` on the paths and indices of the pipeline's clips, resized to the size from which
  the pipeline crops; the reference for the pipeline;
- decord and torchcodec on the same frames, if installed;
- the pipeline without augmentation (centre crop) and with it;
- the pipeline on TFRecords of the same videos, without and with augmentation.

Results are medians over the rounds. Ratios are computed per round, so that other load affects both sides equally.
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
"""Clips per batch."""
METHODS = ("plain PyAV", "decode alone", "pipeline", "pipeline, augmented", "TFRecord", "TFRecord, augmented")
"""The methods that are always measured."""


@dataclasses.dataclass(frozen=True)
class Input:
    """Reading, decoding and augmenting clips."""

    source: str
    """Video files: a folder, or a .csv or .jsonl manifest."""
    data: DataConfig = DataConfig(augment=AugmentConfig(flip=True))
    """How clips are sampled and augmented (source and workers are set by the benchmark)."""
    cores: tuple[int, ...] = ()
    """Numbers of cores to measure on (default: one, and all)."""
    clips: int = 48
    """Clips per measurement."""
    rounds: int = 3
    """Measurements of each method."""
    json: str | None = None
    """Write the numbers to this file."""
    chart: str | None = None
    """Write a chart of the numbers to this PNG."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("clips", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if any(not 1 <= count <= core_count() for count in self.cores):
            raise UserError(f"cores is {self.cores}: choose from 1 to {core_count()}, the cores of this machine")
        check_files(json=self.json, chart=self.chart)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The input of a measuring process."""

    config: Input
    listed: str
    """A manifest of the readable videos."""
    stored: str
    """The TFRecord source with the same videos in the same order."""
    jobs: tuple[tuple[str, tuple[int, ...]], ...]
    """Path and frame indices of each timed clip, as sampled by the pipeline."""


def plain_decode(path: str, indices: Sequence[int], short_side: int) -> np.ndarray:
    """The usual code without vidjax: seek before the first frame, decode, keep and resize the frames needed."""
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
    """The same frames, decoded and resized by decord 0.6."""
    import decord

    width, height = decord.VideoReader(path)[0].shape[1::-1]
    scale = min(1, short_side / min(width, height))
    size = {"width": round(width * scale), "height": round(height * scale)}
    return decord.VideoReader(path, num_threads=1, **size).get_batch(list(indices)).asnumpy()


def torchcodec_decode(path: str, indices: Sequence[int], short_side: int) -> np.ndarray:
    """The same frames, decoded and resized by torchcodec 0.17."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    metadata = VideoDecoder(path, num_ffmpeg_threads=1).metadata
    scale = min(1, short_side / min(metadata.width, metadata.height))
    size = Resize((round(metadata.height * scale), round(metadata.width * scale)))
    transforms = [size] if scale < 1 else []
    return VideoDecoder(path, num_ffmpeg_threads=1, transforms=transforms).get_frames_at(list(indices)).data.numpy()


PEERS = {"decord": decord_decode, "torchcodec": torchcodec_decode}
"""Decoders of other libraries, measured if installed and able to read the videos."""


def find_peers(plan: "Plan") -> tuple[str, ...]:
    """The names in PEERS whose decoder reads every video of the plan."""
    working = []
    for name, decode in PEERS.items():
        try:
            for path, indices in dict(plan.jobs).items():
                decode(path, indices, plan.config.data.decode_short_side)
            working.append(name)
        except Exception as error:  # another library may raise any class
            print(f"{name} is not measured: {' '.join(str(error).split())[:200]}")
    return tuple(working)


def measure_input(config: Input) -> list[dict[str, Any]]:
    """Measures every method on every number of cores.

    Returns:
      A row for each: `method` (with its cores), `cores`, `clips_per_second` (median), `per_core`, `least`, `most`,
      `cpu_ms` (CPU time per clip), `of_decode` (clips per second relative to decode alone on the same cores),
      `cpu_of_decode` (the same by CPU time, which other load affects less) and `scaling` (clips per second relative to
      the same method on the fewest cores).

    Raises:
      UserError: the source has no video files or none that can be read, or a measuring process was killed.
    """
    counts = sorted(set(config.cores or (1, core_count())))
    spawn = multiprocessing.get_context("spawn")
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plan = prepare(config, Path(folder))
        methods = (*METHODS, *find_peers(plan))
        ends = {count: stack.enter_context(_process(spawn, plan, count)) for count in counts}
        for _ in range(config.rounds):
            for method in methods:
                for count in counts:
                    try:
                        ends[count].send(method)
                        result = ends[count].recv()
                    except (EOFError, ConnectionError) as error:
                        raise UserError("a measuring process was killed: give fewer --clips or --cores") from error
                    if isinstance(result, Exception):
                        raise result
                    measured.setdefault((method, count), []).append(result)

    def ratios(over: tuple[str, int], under: tuple[str, int], which: int = 0) -> float:
        pairs = zip(measured[over], measured[under], strict=True)
        return statistics.median(below[which] / above[which] for above, below in pairs)

    rows = []
    for method in methods:
        for count in counts:
            speeds = [len(plan.jobs) / seconds for seconds, _ in measured[method, count]]
            row = {
                "method": f"{method}, {count} core{'s' * (count > 1)}",
                "cores": count,
                "clips_per_second": statistics.median(speeds),
                "per_core": statistics.median(speeds) / count,
                "least": min(speeds),
                "most": max(speeds),
                "cpu_ms": 1e3 * statistics.median(cpu for _, cpu in measured[method, count]) / len(plan.jobs),
                "of_decode": ratios((method, count), ("decode alone", count)),
                "cpu_of_decode": ratios((method, count), ("decode alone", count), 1),
                "scaling": ratios((method, count), (method, counts[0])),
            }
            rows.append(row)
    return rows


def prepare(config: Input, folder: Path) -> Plan:
    """Lists the readable videos, writes them as TFRecords, and records the frames that the pipeline samples.

    At most as many videos as clips are used, drawn at random from the source.
    """
    import tensorflow as tf

    from vidjax.data import images, records
    from vidjax.data.decode import DecodeError, VideoInfo
    from vidjax.data.example import Example
    from vidjax.data.pipeline import train_batches
    from vidjax.data.sources import draw, open_source

    # No more videos than clips, as each is decoded completely and written.
    source = draw(open_source(config.source, config.data.split, config.data.square_pixels), config.clips, 0)
    if not all(Path(path).is_file() for path in source.ids):
        raise UserError(
            f"{config.source} does not list video files: plain decoding needs a folder or a manifest of them"
        )
    good, infos = [], []
    with tf.io.TFRecordWriter(str(folder / "videos.tfrecord")) as writer:
        for index, path in enumerate(source.ids):
            try:  # TFRecords contain all frames
                clip = source.read(index, None, config.data.decode_short_side)
            except DecodeError:
                continue
            good.append(str(Path(path).resolve()))
            infos.append(clip.info)
            height, width = clip.frames.shape[1:3]
            frames = images.encode_frames(clip.frames, 90)
            record = records.Record(frames, clip.info.rate, height, width, -1, "", (), path)
            writer.write(records.encode_record(record))
    if not good:
        raise UserError(
            f"none of {len(source)} videos of {config.source} can be read: run experiments/check_data.py on it"
        )
    (folder / "good.jsonl").write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in good))
    jobs = []

    @dataclasses.dataclass
    class RecordingStream:
        """A stream that records what is read from it."""

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
        open=lambda index, names: nullcontext(Example({"video": RecordingStream(index)})),
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
    """A process restricted to `cores` cores, which measures each method sent to it until the context ends."""
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
    """Main function of a process: for each method received, sends (seconds, CPU seconds) of the clips, or the error."""
    keep_to(cores)  # before TensorFlow counts the cores
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    while True:
        try:
            method = ends.recv()
        except EOFError:
            return
        try:
            ends.send(_time(method, plan, cores))
        except Exception as error:  # raised in the parent process
            ends.send(error)


def _time(method: str, plan: Plan, cores: int) -> tuple[float, float]:
    data = plan.config.data
    if method in ("plain PyAV", "decode alone", *PEERS):
        from vidjax.data.decode import decode

        one: Callable = ({"plain PyAV": plain_decode} | PEERS).get(method, decode)
        with ThreadPoolExecutor(cores) as pool:
            start, cpu = time.perf_counter(), time.process_time()
            for clip in pool.map(lambda job: one(*job, data.decode_short_side), plan.jobs):
                del clip
            return time.perf_counter() - start, time.process_time() - cpu

    from vidjax.data.pipeline import train_batches
    from vidjax.data.sources import open_source

    augment = data.augment if "augmented" in method else AugmentConfig(crop="center")
    source = open_source(plan.stored if "TFRecord" in method else plan.listed, "train")
    settings = dataclasses.replace(data, augment=augment, workers=cores, repeats=1)
    batches = train_batches(source, settings, batch_size=ROWS, seed=0)
    next(batches)  # traces the pipeline and starts prefetching
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(len(plan.jobs) // ROWS):
        next(batches)
    elapsed = time.perf_counter() - start, time.process_time() - cpu
    batches.close()
    return elapsed
