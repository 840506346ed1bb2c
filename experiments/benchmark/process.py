"""Helpers of a measuring process on either side: CPU affinity, timing and resident memory."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal


def keep_to(threads: int | None) -> int:
    """Restricts this process to its first `threads` cores (all when None); returns their number."""
    if not hasattr(os, "sched_setaffinity"):  # outside of Linux
        return threads or os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)


def timed(run: Callable[[], Any], wait: Callable[[Any], Any], steps: int, differ: bool = False) -> list[float]:
    """Seconds of each of `steps` calls of `run`, after calls of warm-up: two, or 30 if the calls `differ` in shapes.

    The first call of each shape takes up to three times as long as the others. As in a training loop, a call is made
    before waiting for the result of the previous one, so that an accelerator never waits for Python.
    """
    pending, seconds = run(), []
    for number in range(-30 if differ else -2, steps):
        start = time.perf_counter()
        following = run()
        wait(pending)
        pending = following
        if number >= 0:
            seconds.append(time.perf_counter() - start)
    wait(pending)
    return seconds


def resident(what: Literal["now", "peak"]) -> int:
    """Resident memory of this process in bytes, now or at its peak since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage may return the parent's peak, as a process starts as its copy
        field = {"now": "VmRSS:", "peak": "VmHWM:"}[what]
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Resets the peak of `resident`, if the system supports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
