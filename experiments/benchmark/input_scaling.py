"""Weak scaling of the input pipeline: processes with one core each read their parts of the same batches."""

import dataclasses
import multiprocessing
import os
import statistics
import time
from typing import Any

from vidjax.cli import check_files
from vidjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class InputScaling:
    """Weak scaling of the input pipeline, with one core per process."""

    source: str
    """Videos, as for --data.source of the training scripts."""
    processes: int = 2
    """Number of processes, with one core each."""
    rows: int = 4
    """Clips per batch and process."""
    clips: int = 32
    """Clips that each process reads per measurement, after warm-up."""
    rounds: int = 3
    """Measurements of each kind, alternating."""
    frames: int = 16
    """Frames per clip."""
    size: int = 224
    """Height and width in pixels."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        for name in ("processes", "rows", "clips", "rounds", "frames", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        check_files(json=self.json)


def read_part(config: InputScaling, place: int, core: int, commands: Any, reports: Any, barrier: Any) -> None:
    """The main function of a process that measures its part of the batches for each command, on one core."""
    os.sched_setaffinity(0, {core})
    from vidjax.data.config import DataConfig
    from vidjax.data.pipeline import train_batches
    from vidjax.data.sources import open_source

    data = DataConfig(source=config.source, frames=config.frames, size=config.size, workers=1)
    source = open_source(data.source, data.split)
    part = {"batch_size": config.rows * config.processes, "process_index": place, "process_count": config.processes}
    while (command := commands.get()) is not None:
        batches = train_batches(source, data, seed=0, **part)
        next(batches)  # the first batch traces the pipeline
        if command == "together":
            barrier.wait()
        # Not timed: batches that were prefetched while waiting.
        for _ in range(3):
            next(batches)
        start, cpu, clips = time.perf_counter(), time.process_time(), 0
        while clips < config.clips:
            clips += len(next(batches)["valid"])
        reports.put((place, clips / (time.perf_counter() - start), clips / (time.process_time() - cpu)))
        batches.close()


def measure_input_scaling(config: InputScaling) -> list[dict[str, Any]]:
    """Clips per second of each process, alone and together with the others.

    Returns:
      A row for each `clock`: `second`, wall time, and `cpu_second`, CPU time. `alone` and `together` are medians,
      `efficiency` is the median of the ratios of the rounds, and `least` and `most` are the range of these ratios.

    Raises:
      UserError: there are too few cores, the source cannot be read, or a process ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < config.processes:
        raise UserError(f"{config.processes} processes need as many cores, and there are {len(cores)}: give fewer")
    from vidjax.data.sources import open_source

    open_source(config.source)  # reports an invalid source once, before any process starts
    context = multiprocessing.get_context("spawn")  # TensorFlow cannot be forked
    reports, barrier = context.Queue(), context.Barrier(config.processes)
    commands = [context.Queue() for _ in range(config.processes)]
    readers = [
        context.Process(target=read_part, args=(config, place, cores[place], commands[place], reports, barrier))
        for place in range(config.processes)
    ]
    for reader in readers:
        reader.start()
    measured: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}
    try:
        for _ in range(config.rounds):
            alone = []
            for queue in commands:
                queue.put("alone")
                alone.append(wait_for(reports, readers))
            for queue in commands:
                queue.put("together")
            together = [wait_for(reports, readers) for _ in readers]
            for kind, rates in (("alone", alone), ("together", together)):
                measured[kind].append(tuple(statistics.mean(rate[i] for rate in rates) for i in (1, 2)))
    finally:
        for queue in commands:
            queue.put(None)
        for reader in readers:
            reader.join(10)
            reader.kill()
    rows = []
    for i, clock in enumerate(("second", "cpu_second")):
        rates = {kind: [round_[i] for round_ in rounds] for kind, rounds in measured.items()}
        ratios = [b / a for a, b in zip(rates["alone"], rates["together"], strict=True)]
        row = {"clock": clock, **{kind: statistics.median(values) for kind, values in rates.items()}}
        rows.append(row | {"efficiency": statistics.median(ratios), "least": min(ratios), "most": max(ratios)})
    return rows


def wait_for(reports: Any, readers: list) -> tuple[int, float, float]:
    """The next report: index of a reader, clips per second of wall time and of CPU time.

    Raises:
      UserError: a reader has ended.
    """
    while reports.empty():
        if not all(reader.is_alive() for reader in readers):
            raise UserError("a reading process ended: see its message above")
        time.sleep(0.01)
    return reports.get()
