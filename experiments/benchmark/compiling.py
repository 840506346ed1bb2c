"""CPU seconds that XLA's compiler takes for a model's initialisation and training step, beside another version."""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vidjax
from benchmark.settings import Train, check_models
from benchmark.startup import HERE, require_checkout
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values

# Traces and compiles in a process of its own: CPU seconds of all threads, which other work on the machine hardly
# changes. The packages are those of the checkout; until 29 November 2026 the benchmark was a part of vidjax.
COMPILING = """
import json, sys, time
import jax
try:
    from benchmark.ours import make_program
    from benchmark.settings import Job
except ImportError:
    from vidjax.benchmark.ours import make_program
    from vidjax.benchmark.settings import Job
from vidjax.training.sharding import make_mesh
jax.config.update("jax_enable_compilation_cache", False)
model, scan, frames, size, clips = sys.argv[1], sys.argv[2] == "scan", *map(int, sys.argv[3:])
fields = {"overrides": (("scan", True),)} if scan else {}
times = [time.process_time()]
job = Job(model, True, frames, size, clips, "float32", None, 1, **fields)
program, create, batch = make_program(job, make_mesh())
create.lower().compile()
times.append(time.process_time())
program.lower(jax.eval_shape(create), batch).compile()
times.append(time.process_time())
print(json.dumps({"init": times[1] - times[0], "step": times[2] - times[1]}))
"""


@dataclasses.dataclass(frozen=True)
class Compile:
    """CPU seconds of tracing and compiling initialisation and training step (AdamW, float32), each without a cache."""

    models: tuple[str, ...] = (
        "videomae_small_pretrain", "uniformer_small", "r3d_18", "vivit_base_16x2_factorized_encoder",
    )  # fmt: skip
    """Names of vidjax.list_models(): classifiers and *_pretrain."""
    scanned: tuple[str, ...] = ()
    """Models whose equal blocks run in a loop (the training scripts' `--scan`), in this checkout only."""
    frames: int = 16
    """Frames per clip."""
    size: int = 112
    """Height and width in pixels."""
    batch_size: int = 2
    """Clips per step."""
    against: str | None = None
    """Another checkout of vidjax, such as a git worktree, measured in turn with this one."""
    rounds: int = 1
    """Number of rounds; the table has their medians."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("frames", "size", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if others := set(self.scanned) - set(self.models):
            raise UserError(f"scanned contains {', '.join(sorted(others))}, which is not among the models")
        require_checkout(self.against)
        check_files(json=self.json)


def compile_once(checkout: Path, config: Compile, model: str) -> dict[str, float]:
    """CPU seconds of `init` and `step` of one model, compiled by a checkout in a new process.

    Raises:
      RuntimeError: the process failed.
    """
    environment = os.environ | {"PYTHONPATH": f"{checkout / 'experiments'}:{checkout}"}
    numbers = map(str, (config.frames, config.size, config.batch_size))
    scan = "scan" if model in config.scanned and checkout == HERE else "unrolled"
    line = [sys.executable, "-c", COMPILING, model, scan, *numbers]
    done = subprocess.run(line, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{model} in {checkout} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_compile(config: Compile, report: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Compiles every model, in turn in the two checkouts.

    Returns:
      A row for each model and one for their sum: the medians of `init` and `step`, and with `against` those of the
      other checkout as `other_init` and `other_step`.
    """
    check_models(Train(config.models))
    for name in config.scanned:
        vidjax.create_model(name, scan=True)  # raises if the model cannot
    checkouts = {"": HERE} | ({"other_": Path(config.against).resolve()} if config.against else {})
    rows: list[dict[str, Any]] = []
    for model in config.models:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in checkouts}
        for _, (side, checkout) in itertools.product(range(config.rounds), checkouts.items()):
            rounds[side].append(compile_once(checkout, config, model))
            report(f"{model} of {checkout}: {rounds[side][-1]['init']:.1f} + {rounds[side][-1]['step']:.1f} s")
        rows.append({"model": model} | {
            side + part: statistics.median(each[part] for each in runs)
            for side, runs in rounds.items() for part in ("init", "step")
        })  # fmt: skip
    return [*rows, {"model": "sum"} | {key: sum(row[key] for row in rows) for key in rows[0] if key != "model"}]
