"""Weak scaling of the input pipeline: processes of one core each read their shares of the same batches."""

import dataclasses
import multiprocessing
import os
import statistics
import time
from typing import Any

from vidjax.cli import check_files
from vidjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shares:
    """Weak scaling of the input pipeline, a core for each process."""

    source: str
    """Videos, as for --data.source of the training scripts."""
    processes: int = 2
    """Processes, of one core each."""
    rows: int = 4
    """Clips of a batch that each process reads."""
    clips: int = 32
    """Clips that each process reads in a measurement, after one batch to warm up."""
    rounds: int = 3
    """Measurements of each kind, in turn."""
    frames: int = 16
    """Frames of a clip."""
    size: int = 224
    """Pixels of a side."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        for name in ("processes", "rows", "clips", "rounds", "frames", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        check_files(json=self.json)


def read_share(config: Shares, place: int, core: int, commands: Any, told: Any, barrier: Any) -> None:
    """A process that reads its share of batches, on one core, whenever it is told to."""
    os.sched_setaffinity(0, {core})
    from vidjax.data.config import DataConfig
    from vidjax.data.pipeline import train_batches
    from vidjax.data.sources import open_source

    data = DataConfig(source=config.source, frames=config.frames, size=config.size, workers=1)
    source = open_source(data.source, data.split)
    share = {"batch_size": config.rows * config.processes, "process_index": place, "process_count": config.processes}
    while (command := commands.get()) is not None:
        batches = train_batches(source, data, seed=0, **share)
        next(batches)  # traced and warm
        if command == "together":
            barrier.wait()
        # What was read ahead while waiting counts for nothing.
        for _ in range(3):
            next(batches)
        start, cpu, clips = time.perf_counter(), time.process_time(), 0
        while clips < config.clips:
            clips += len(next(batches)["valid"])
        told.put((place, clips / (time.perf_counter() - start), clips / (time.process_time() - cpu)))
        batches.close()


def measure_shares(config: Shares) -> list[dict[str, Any]]:
    """Clips a second of each process alone and beside the others.

    Returns:
      A row for each `clock`: `second`, by the wall, and `cpu_second`, of a core's own time. `alone` and `together` are
      medians, `efficiency` is the median of the rounds' own ratios, `least` and `most` are the range of these.

    Raises:
      UserError: there are too few cores, the source cannot be read, or a process ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < config.processes:
        raise UserError(f"{config.processes} processes want as many cores, and there are {len(cores)}: give fewer")
    from vidjax.data.sources import open_source

    open_source(config.source)  # what is wrong with it is said once, before any process starts
    context = multiprocessing.get_context("spawn")  # TensorFlow cannot be forked
    told, barrier = context.Queue(), context.Barrier(config.processes)
    commands = [context.Queue() for _ in range(config.processes)]
    readers = [
        context.Process(target=read_share, args=(config, place, cores[place], commands[place], told, barrier))
        for place in range(config.processes)
    ]
    for reader in readers:
        reader.start()
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}
    try:
        for _ in range(config.rounds):
            alone = []
            for queue in commands:
                queue.put("alone")
                alone.append(wait_for(told, readers))
            for queue in commands:
                queue.put("together")
            together = [wait_for(told, readers) for _ in readers]
            for kind, rates in (("alone", alone), ("together", together)):
                found[kind].append(tuple(statistics.mean(rate[i] for rate in rates) for i in (1, 2)))
    finally:
        for queue in commands:
            queue.put(None)
        for reader in readers:
            reader.join(10)
            reader.kill()
    rows = []
    for i, clock in enumerate(("second", "cpu_second")):
        rates = {kind: [round_[i] for round_ in rounds] for kind, rounds in found.items()}
        ratios = [b / a for a, b in zip(rates["alone"], rates["together"], strict=True)]
        row = {"clock": clock, **{kind: statistics.median(values) for kind, values in rates.items()}}
        rows.append(row | {"efficiency": statistics.median(ratios), "least": min(ratios), "most": max(ratios)})
    return rows


def wait_for(told: Any, readers: list) -> tuple[int, float, float]:
    """The next report: a reader's place, clips a second and clips a second of its processor time.

    Raises:
      UserError: a reader has ended.
    """
    while told.empty():
        if not all(reader.is_alive() for reader in readers):
            raise UserError("a reading process ended: read what it said above")
        time.sleep(0.01)
    return told.get()
