"""Seconds from the shell to the output and to the first training step, compared with another version of vidjax."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.cli import check_files
from vidjax.errors import UserError

HERE = Path(__file__).parents[2]
SMALL = ("--data.frames", "16", "--data.size", "112", "--data.short_side", "128", "--batch_size", "2")
COMMANDS = {
    "predict": ("predict.py",),
    "finetune_tiny": ("finetune.py",),
    "finetune_small": ("finetune.py", "--model", "videomae_small", *SMALL),
    "pretrain_tiny": ("mae_pretrain.py",),
    "pretrain_small": ("mae_pretrain.py", "--model", "videomae_small_pretrain", *SMALL),
    "finetune_uniformer_small": ("finetune.py", "--model", "uniformer_small", *SMALL),
    "finetune_r3d_18": ("finetune.py", "--model", "r3d_18", *SMALL),
    "finetune_vivit_base": ("finetune.py", "--model", "vivit_base_16x2_factorized_encoder", *SMALL),
}
"""The measured command lines: one clip's classes from a tiny model, and training from scratch on rendered clips."""

# Runs a script and appends each tracing, lowering and compiling to a file, with its first and last second.
LISTENING = """
import json, runpy, sys, time
import jax.monitoring
log, sys.argv = open(sys.argv[1], "a", buffering=1), sys.argv[2:]
def listen(event, seconds, **_):
    if event.startswith("/jax/core/compile/"):
        print(json.dumps([time.time() - seconds, time.time()]), file=log)
jax.monitoring.register_event_duration_secs_listener(listen)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class Startup:
    """Seconds from the shell to the output of `predict.py`, or to the first finished step of a training script.

    Each command starts twice per round: with an empty compilation cache, and again with the same one.
    """

    commands: tuple[str, ...] = tuple(COMMANDS)[:5]
    """Which commands to measure."""
    against: str | None = None
    """Another checkout of vidjax, such as a git worktree, measured in turn with this one."""
    rounds: int = 3
    """Number of rounds; the table has their medians."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.commands if name not in COMMANDS]:
            raise UserError(f"commands has {unknown[0]}: choose from {', '.join(COMMANDS)}")
        if self.rounds < 1 or not self.commands:
            raise UserError("give one command and one round or more")
        require_checkout(self.against)
        check_files(json=self.json)


def require_checkout(against: str | None) -> None:
    """Raises UserError if `against` is given and no checkout of vidjax."""
    if against is not None and not (Path(against) / "experiments" / "predict.py").is_file():
        raise UserError(f"against is {against}: give the root of another checkout of vidjax")


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds covered by spans, which may be nested or overlap."""
    total, until = 0.0, -float("inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, until))
        until = max(until, last)
    return total


def start(checkout: Path, command: Sequence[str], folder: Path, cache: Path, until: Path | None) -> dict[str, float]:
    """Starts a command in a new process, and waits until it ends or has written a file.

    Args:
      checkout: root of the version of vidjax.
      command: name of the script and its arguments.
      folder: a new directory, in which the process works.
      cache: the user's cache directory.
      until: the file, relative to `folder`; the process is killed once it is there. By default the process ends itself.

    Returns:
      `seconds` in all, and `compile_seconds` of these for tracing, lowering and compiling.
    """
    folder.mkdir(parents=True)
    env = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
    # Python keeps the compiled modules, as for users, also where the environment says otherwise.
    for name in ("JAX_COMPILATION_CACHE_DIR", "VIDJAX_CACHE", "PYTHONDONTWRITEBYTECODE"):
        env.pop(name, None)
    script = str(checkout / "experiments" / command[0])
    spans, output = folder / "spans", folder / "output"
    began = time.time()
    with output.open("w") as file:
        line = [sys.executable, "-c", LISTENING, str(spans), script, *command[1:]]
        process = subprocess.Popen(line, env=env, cwd=folder, stdout=file, stderr=file, start_new_session=True)
    while process.poll() is None and not (until and (folder / until).exists() and (folder / until).stat().st_size):
        time.sleep(0.01)
    seconds = time.time() - began
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    if process.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(command)} in {checkout} failed: {output.read_text()[-2000:]}")
    ends = [tuple(json.loads(line)) for line in spans.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {"seconds": seconds, "compile_seconds": covered([span for span in ends if span[0] < began + seconds])}


def start_twice(checkout: Path, name: str, folder: Path) -> list[dict[str, float]]:
    """Starts a command with an empty cache, and again."""
    command, cache = COMMANDS[name], folder / "cache"
    if name != "predict":
        until = Path("run", "metrics.jsonl")
        command = (*command, "--workdir", "run", "--steps", "8")
        return [start(checkout, command, folder / each, cache, until) for each in ("first", "second")]
    trained = folder / "trained"
    start(checkout, ("finetune.py", "--workdir", "run", "--steps", "1"), trained, cache, None)
    shutil.rmtree(cache, ignore_errors=True)
    write_clip(folder / "clip.mp4")
    command = (*command, "--run", str(trained / "run"), str(folder / "clip.mp4"))
    return [start(checkout, command, folder / each, cache, None) for each in ("first", "second")]


def write_clip(path: Path) -> None:
    """Writes two seconds of moving stripes."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, width=320, height=240, pix_fmt="yuv420p")
        for n in range(50):
            stripes = (np.indices((240, 320)).sum(axis=0) + 4 * n) % 256
            frame = av.VideoFrame.from_ndarray(np.repeat(stripes[..., None], 3, axis=2).astype(np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def measure_startup(config: Startup, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measures every command, in turn for the two checkouts.

    Returns:
      A row for the first and second start of each command: `seconds` and `compile_seconds` of this checkout, with
      `against` also `other_seconds` and `other_compile_seconds` of the other one's first start, each the median of the
      rounds, and with `_range` the least and the most.
    """
    checkouts = {"": HERE} | ({"other_": Path(config.against).resolve()} if config.against else {})
    rows = []
    for name in config.commands:
        rounds: dict[str, list[list[dict[str, float]]]] = {side: [] for side in checkouts}
        for _, (side, checkout) in itertools.product(range(config.rounds), checkouts.items()):
            with tempfile.TemporaryDirectory() as folder:
                rounds[side].append(start_twice(checkout, name, Path(folder) / name))
            numbers = ", then ".join(f"{s['seconds']:.1f} ({s['compile_seconds']:.1f})" for s in rounds[side][-1])
            report(f"{name} of {checkout}: {numbers} s")
        for number, which in enumerate(("first", "second")):
            row: dict[str, Any] = {"command": name, "start": which}
            for side, runs in rounds.items():
                for key in ("seconds", "compile_seconds"):
                    values = [run[0 if side else number][key] for run in runs]
                    row |= {side + key: statistics.median(values), f"{side}{key}_range": (min(values), max(values))}
            rows.append(row)
    return rows
