"""Metrics of a run: writing `metrics.jsonl` and TensorBoard events, measuring throughput, showing progress."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard events in a work directory.

    Lines of steps after `first_step`, which a killed run has written and a resumed run will write again, are removed
    first. Changes in the config since the checkpoint of that step are written as a line of the form `{"step": ...,
    "config": {"optim.learning_rate": [OLD, NEW]}}`.
    """

    def __init__(self, workdir: Path, first_step: int = 0, changes: Mapping[str, tuple[Any, Any]] | None = None):
        self._path = Path(workdir) / "metrics.jsonl"
        if self._path.exists():
            earlier = [e for e in read_metrics(workdir) if e["step"] < first_step + ("config" not in e)]
            unfinished = self._path.with_suffix(".jsonl.tmp")
            unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in earlier))
            os.replace(unfinished, self._path)
        self._file = self._path.open("a")
        if changes:
            self._write({"step": first_step, "config": changes})
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events = EventFileWriter(str(Path(workdir) / "tensorboard"), flush_secs=30)
        # TensorBoard forgets what an earlier session wrote from this step on.
        self._add_event(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes and flushes one line, `{"step": ..., ...}`; values that are not finite become null."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._write({"step": step} | dict.fromkeys(values) | finite)
        scalars = [{"tag": name, "simple_value": value} for name, value in finite.items()]
        self._add_event(step, summary={"value": scalars})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def _add_event(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._events.add_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Flushes and closes both files."""
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The entries of `metrics.jsonl`, without an incomplete last line of a killed run."""
    entries = []
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


class Meter:
    """Measures clips per second and the fraction of time that the device waited for data.

    Attributes:
      seconds: total duration of the intervals read so far.
    """

    def __init__(self):
        self._clips = self._waited = 0.0  # of the intervals read so far
        self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Discards the current interval and starts a new one."""
        self._interval = [0.0, 0.0, time.monotonic()]

    def add(self, clips: float, waited: float) -> None:
        """Adds a step: the number of its clips, and the seconds that the device waited for them."""
        self._interval[0] += clips
        self._interval[1] += waited

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager that excludes the time spent inside, such as for evaluating and saving."""
        before = time.monotonic()
        yield
        self._interval[2] += time.monotonic() - before

    def read(self) -> dict[str, float]:
        """Ends the interval and returns its rates."""
        clips, waited, since = self._interval
        seconds = max(time.monotonic() - since, 1e-9)
        self._clips, self._waited, self.seconds = self._clips + clips, self._waited + waited, self.seconds + seconds
        self.restart()
        return {"clips_per_second": clips / seconds, "data_wait_fraction": min(waited / seconds, 1.0)}

    def overall(self) -> dict[str, float]:
        """Rates over all intervals read so far."""
        seconds = max(self.seconds, 1e-9)
        return {"clips_per_second": self._clips / seconds, "data_wait_fraction": min(self._waited / seconds, 1.0)}


class Progress:
    """A progress bar in terminals and notebooks, plain lines elsewhere."""

    def __init__(self, first_step: int, steps: int):
        bar = partial(tqdm, initial=first_step, total=steps, unit="step", dynamic_ncols=True, mininterval=0.5)
        # A notebook kernel is not a terminal, but its output supports overwriting lines.
        self._bar = bar() if sys.stderr.isatty() or "ipykernel" in sys.modules else None
        self._start, self._first, self._steps = time.monotonic(), first_step, steps

    def step(self) -> None:
        """Advances by one step."""
        if self._bar is not None:
            self._bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        shown = f"loss {values['loss']:.4f}"
        if "learning_rate" in values:
            shown += f", learning rate {values['learning_rate']:.2e}"
        if values["clips_per_second"]:  # 0 at the first step, which includes compilation
            shown += f", {values['clips_per_second']:.1f} clips/s, data wait {values['data_wait_fraction']:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            return
        elapsed = time.monotonic() - self._start
        remaining = elapsed / max(step - self._first, 1) * (self._steps - step)
        print(f"step {step}/{self._steps}: {shown}, {clock(elapsed)} elapsed, {clock(remaining)} left", flush=True)

    def note(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Closes the bar, which stays visible."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Formats a duration as `h:mm:ss`, or `m:ss` below an hour."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
