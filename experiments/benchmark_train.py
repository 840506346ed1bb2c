"""Forward pass and training step of named models beside PyTorch's, in one run.

    python experiments/benchmark_train.py
    python experiments/benchmark_train.py --models r3d_18 --frames 16 --batch_size 4 --json numbers.json

Every measurement has a process of its own, held to the same cores; the two sides alternate. For each model: compile
time, forward pass, training step (cross entropy, gradients, plain SGD), the median and the range over rounds, and the
peak of the process's memory over what it held before the model. Without PyTorch only our side is measured.

Both sides run with huge pages for malloc (GLIBC_TUNABLES=glibc.malloc.hugetlb=1, unless it is set already): XLA takes
its scratch memory anew at every step, which else costs a quarter of a second a gigabyte in page faults.
"""

import dataclasses
import importlib.util
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vidjax import cli


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    models: tuple[str, ...] = ("uniformer_small", "r2plus1d_18")
    """Names of vidjax.list_models(); those with a PyTorch peer are uniformer_*, r3d_18, mc3_18, r2plus1d_18 and s3d."""
    frames: int = 8
    """Frames of a clip."""
    size: int = 112
    """Pixels of a side."""
    batch_size: int = 2
    """Clips of a step."""
    threads: int = 2
    """Cores that each side may use."""
    rounds: int = 3
    """Processes of each side."""
    steps: int = 10
    """Timed steps of a process, after one to warm up."""
    json: str | None = None
    """Write the numbers to this file."""


def inputs(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """A batch of noise and its labels."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.frames, config.size, config.size, 3)
    return rng.standard_normal(shape, np.float32), rng.integers(400, size=config.batch_size)


def timed(run: Callable[[], Any], steps: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def memory() -> float:
    """Peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def measure_vidjax(config: Config, name: str) -> dict[str, Any]:
    """Our side."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.threads])
    import jax
    import jax.numpy as jnp

    import vidjax

    model = vidjax.create_model(name, num_frames=config.frames, image_size=config.size, num_classes=400)
    video, labels = (jnp.asarray(x) for x in inputs(config))
    before = memory()
    variables = jax.jit(model.init)(jax.random.key(0), video)
    rngs = {"dropout": jax.random.key(1), "drop_path": jax.random.key(2)}

    def loss_fn(params, state):
        mutable = list(state)
        logits, state = model.apply({"params": params, **state}, video, train=True, rngs=rngs, mutable=mutable)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean(), state

    def step(variables):
        params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        (loss, state), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
        return {"params": jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), **state}, loss

    start = time.perf_counter()
    forward = jax.jit(model.apply).lower(variables, video).compile()
    compiled = time.perf_counter()
    train = jax.jit(step, donate_argnums=0).lower(variables).compile()
    compile_times = {"compile_forward": compiled - start, "compile_step": time.perf_counter() - compiled}
    jax.block_until_ready(forward(variables, video))
    forward_times = timed(lambda: jax.block_until_ready(forward(variables, video)), config.steps)
    held = [jax.block_until_ready(train(variables))]  # the old variables are given away each time

    def again():
        held[0] = jax.block_until_ready(train(held[0][0]))

    step_times = timed(again, config.steps)
    return {"forward": forward_times, "step": step_times, "memory": memory() - before, **compile_times}


def pytorch_peer(name: str, config: Config) -> Any:
    """The same architecture in PyTorch; None where we know of none."""
    places = Path(__file__).resolve().parents[1] / "tests"
    sys.path[:0] = [str(places), str(places / "goldens")]
    if name.startswith("uniformer"):
        import torch_uniformer  # a plain module of our own: the official one is on no registry

        import vidjax

        ours = vidjax.create_model(name)
        fields = ("widths", "depths", "head_width", "mlp_ratio", "split", "temporal_overlap", "drop_path")
        return torch_uniformer.UniFormer(**{field: getattr(ours, field) for field in fields})
    import peers

    video = peers.torchvision().models.video
    return getattr(video, name)(num_classes=400) if name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d") else None


def measure_pytorch(config: Config, name: str) -> dict[str, Any] | None:
    """PyTorch's side, eager."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.threads])
    import torch

    torch.set_num_threads(config.threads)
    model = pytorch_peer(name, config)
    if model is None:
        return None
    video, labels = (torch.from_numpy(x) for x in inputs(config))
    video = video.permute(0, 4, 1, 2, 3).contiguous()
    before = memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def forward():
        with torch.no_grad():
            model(video)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(video), labels).backward()
        optimizer.step()

    model.eval()
    forward()
    forward_times = timed(forward, config.steps)
    model.train()
    step()
    return {"forward": forward_times, "step": timed(step, config.steps), "memory": memory() - before}


SIDES = {"vidjax": measure_vidjax, "PyTorch": measure_pytorch}


def main(config: Config) -> dict[str, Any]:
    """Measures and prints a table; returns the numbers by model and side."""
    import vidjax

    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # read when the measuring processes start
    for name in config.models:
        vidjax.create_model(name)  # a wrong name ends it here
    sides = SIDES if importlib.util.find_spec("torch") else {"vidjax": measure_vidjax}
    found: dict[str, dict[str, list]] = {name: {side: [] for side in sides} for name in config.models}
    for name in config.models:
        for _ in range(config.rounds):
            for side, measure in sides.items():
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    found[name][side].append(process.submit(measure, config, name).result())
    print(f"{config.batch_size} clips of {config.frames} x {config.size} x {config.size}, {config.threads} cores")
    print(f"{'model':20}{'':10}{'forward':>10}{'step':>10}{'range of steps':>20}{'memory':>10}{'compile':>10}")
    numbers = {}
    for name, by_side in found.items():
        numbers[name] = {side: summary(rounds) for side, rounds in by_side.items() if all(rounds)}
        for side, row in numbers[name].items():
            spread = f"{row['step_range'][0]:.3f} to {row['step_range'][1]:.3f} s"
            compiling = f"{row['compile_forward'] + row['compile_step']:8.1f} s" if "compile_step" in row else ""
            print(
                f"{name:20}{side:10}{row['forward']:8.3f} s{row['step']:8.3f} s{spread:>20}"
                f"{row['memory']:7.2f} GB{compiling:>10}"
            )
        if "PyTorch" in numbers[name]:
            ours, theirs = numbers[name]["vidjax"], numbers[name]["PyTorch"]
            ratios = [ours[key] / theirs[key] for key in ("forward", "step")]
            print(f"{name:20}{'ratio':10}{ratios[0]:10.2f}{ratios[1]:10.2f}")
    if config.json:
        Path(config.json).write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds' medians, the range of all steps, the largest memory."""
    row = {key: statistics.median(statistics.median(r[key]) for r in rounds) for key in ("forward", "step")}
    row["step_range"] = [min(min(r["step"]) for r in rounds), max(max(r["step"]) for r in rounds)]
    row["memory"] = max(r["memory"] for r in rounds)
    return row | {key: statistics.median(r[key] for r in rounds) for key in rounds[0] if key.startswith("compile")}


if __name__ == "__main__":
    cli.run(main, Config)
