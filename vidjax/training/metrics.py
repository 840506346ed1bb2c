"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard events beside it, a line or a bar for the person."""

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

from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard's events in a work directory.

    Lines of steps from `first_step` on, which a killed run left and a resumed one will write again, are dropped first.
    What has changed in the config since the checkpoint of that step is a line of its own, `{"step": ..., "config":
    {"optim.learning_rate": [OLD, NEW]}}`.
    """

    def __init__(self, workdir: Path, first_step: int = 0, changes: Mapping[str, tuple[Any, Any]] | None = None):
        self._path = Path(workdir) / "metrics.jsonl"
        if self._path.exists():
            kept = [e for e in read_metrics(workdir) if e["step"] < first_step + ("config" not in e)]
            unfinished = self._path.with_suffix(".jsonl.tmp")
            unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
            os.replace(unfinished, self._path)
        self._file = self._path.open("a")
        if changes:
            self._write({"step": first_step, "config": changes})
        self._events = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=first_step + 1, flush_secs=30)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, `{"step": ..., ...}`, flushed; a value that is not finite is written as null."""
        entry = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._write(entry)
        for name, value in entry.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, step)

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that a killed run wrote in part is left out."""
    entries = []
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


class Meter:
    """Clips a second, and the share of the time for which the device waited for data."""

    def __init__(self):
        self._clips = self._waited = 0.0  # of the intervals read so far
        self.seconds = 0.0
        """Of the intervals read so far."""
        self.restart()

    def restart(self) -> None:
        """Begins an interval, and forgets the one under way."""
        self._interval = [0.0, 0.0, time.monotonic()]

    def add(self, clips: float, waited: float) -> None:
        """A step of so many clips, before which the device waited so many seconds."""
        self._interval[0] += clips
        self._interval[1] += waited

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside, on evaluation or saving, is not counted."""
        before = time.monotonic()
        yield
        self._interval[2] += time.monotonic() - before

    def read(self) -> dict[str, float]:
        """Rates of the interval, which ends here."""
        clips, waited, since = self._interval
        seconds = max(time.monotonic() - since, 1e-9)
        self._clips, self._waited, self.seconds = self._clips + clips, self._waited + waited, self.seconds + seconds
        self.restart()
        return {"clips_per_second": clips / seconds, "data_wait_fraction": min(waited / seconds, 1.0)}

    def overall(self) -> dict[str, float]:
        """Rates of all intervals read."""
        seconds = max(self.seconds, 1e-9)
        return {"clips_per_second": self._clips / seconds, "data_wait_fraction": min(self._waited / seconds, 1.0)}


class Progress:
    """A bar on a terminal and in a notebook, plain lines elsewhere."""

    def __init__(self, first_step: int, steps: int):
        bar = partial(tqdm, initial=first_step, total=steps, unit="step", dynamic_ncols=True, mininterval=0.5)
        # A notebook's kernel has no terminal, but the page overwrites a line as one does.
        self._bar = bar() if sys.stderr.isatty() or "ipykernel" in sys.modules else None
        self._start, self._first, self._steps = time.monotonic(), first_step, steps

    def step(self) -> None:
        """One step was taken."""
        if self._bar is not None:
            self._bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the values of a logged step."""
        shown = f"loss {values['loss']:.4f}"
        if "learning_rate" in values:
            shown += f", learning rate {values['learning_rate']:.2e}"
        if values["clips_per_second"]:  # 0 for the first step, whose time is compilation
            shown += f", {values['clips_per_second']:.1f} clips/s, data wait {values['data_wait_fraction']:.0%}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / max(step - self._first, 1) * (self._steps - step)
        print(f"step {step}/{self._steps}: {shown}, {clock(elapsed)} gone, {clock(left)} left", flush=True)

    def note(self, text: str) -> None:
        """A line that does not break the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the bar on the screen."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
