"""Measurements of models, each in a separate process with the sides alternating, and their summary."""

import dataclasses
import importlib.util
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import jax

from benchmark.settings import Infer, Job, Models, check_models, jobs
from vidjax.errors import UserError
from vidjax.training.cost import peak_flops

Row = dict[str, Any]


def in_process(function: Callable, *args: Any) -> Any:
    """`function(*args)` in a new process, which has its own devices and memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *args).result()


def attempt(function: Callable, *args: Any) -> dict[str, Any]:
    """`function(*args)`, or, if it fails, one line on the reason under `failed`."""
    try:
        return function(*args)
    except Exception as error:  # from any library: the other measurements continue
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return {"failed": kind + (lines[0] if lines else "no reason given")[:300]}


def measure(function: Callable, *args: Any) -> dict[str, Any]:
    """`attempt` in a new process; that the process was killed is reported too."""
    try:
        return in_process(attempt, function, *args)
    except BrokenProcessPool:
        return {"failed": "the process was killed: out of memory, most likely"}


def describe_or_refuse(*args: Any) -> dict[str, Any]:
    """`ours.describe`, or, if it raises a UserError, the message under `refused`."""
    from benchmark.ours import describe

    try:
        return describe(*args)
    except UserError as error:
        return {"refused": str(error)}


def set_environment() -> None:
    """Sets the same environment for both sides, before their processes start.

    malloc uses huge pages unless GLIBC_TUNABLES is set: XLA on CPUs allocates new scratch memory at every step,
    and the page faults would otherwise cost a quarter of a second per gigabyte. On GPUs JAX must
    not preallocate memory.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def prepare(settings: Models) -> tuple[dict[str, Any], list[str]]:
    """Checks the settings and sets the environment.

    Returns:
      The result of `ours.describe`, and remarks.

    Raises:
      UserError: an invalid name or size.
    """
    remarks = check_models(settings)
    set_environment()
    every = [job for name in settings.models for job in jobs(settings, name, "float32", 1)]
    # With a budget, batch sizes are searched for.
    sizes = () if getattr(settings, "budget_gb", None) else settings.batch_sizes
    machine = in_process(describe_or_refuse, every, sizes)
    if "refused" in machine:
        raise UserError(machine["refused"])
    peers = [name for name in ("torch", "torchvision", "transformers") if importlib.util.find_spec(name)]
    machine["versions"] = {"jax": jax.__version__, **{name: version(name) for name in peers}}
    peak = {dtype: peak_flops(machine["device"], dtype) for dtype in settings.dtypes}
    if not all(peak.values()):
        remarks.append(f"the peak of '{machine['device']}' is unknown: no MFU")
    if machine["platform"] == "gpu" and "float32" in settings.dtypes:
        remarks.append(
            "float32 with the default of each framework: XLA uses TF32, PyTorch uses TF32 for convolutions and float32 "
            "for matrix products; MFU is relative to the peak of TF32"
        )
    if machine["platform"] == "cpu":
        remarks.append("peak memory is the resident memory that a process adds for its model, batch and steps")
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if machine["platform"] == "cpu" and busy > max(1, cores / 4):
        remarks.append(f"the machine is busy (load {busy:.1f} on {cores} cores): times may be disturbed")
    if settings.peers and not importlib.util.find_spec("torch"):
        remarks.append("PyTorch is not installed: only vidjax is measured")
    if machine["devices"] > 1 and machine["platform"] != "cpu":
        remarks.append(f"PyTorch runs on one device, vidjax on {machine['devices']}: ratios are per device")
    return machine, remarks


def measure_models(settings: Models, machine: dict[str, Any], report: Callable[[str], Any]) -> Iterator[list[Row]]:
    """Yields the rows of one model and compute type at a time.

    Args:
      machine: the result of `prepare`.
      report: called with one line after each measurement.
    """
    for name in settings.models:
        for dtype in settings.dtypes:
            rows: list[Row] = []
            skipped: set[str] = set()  # sides that failed at a smaller batch size
            for batch_size in sorted(set(settings.batch_sizes)):
                sides = sides_of(settings, machine["models"][name], name, dtype, batch_size)
                sides = {side: run for side, run in sides.items() if side not in skipped}
                results: dict[str, list[dict]] = {side: [] for side in sides}
                for number in range(settings.rounds):
                    for side, run in sides.items():
                        if results[side] and "failed" in results[side][-1]:
                            continue
                        results[side].append(run())
                        what = f"{name} {dtype} batch {batch_size} {side}, round {number + 1} of {settings.rounds}"
                        report(f"{what}: {outcome(results[side][-1])}")
                for side, rounds in results.items():
                    rows.append(summarize(settings, machine, name, dtype, batch_size, side, rounds))
                    if "failed" in rows[-1]:
                        skipped.add(side)
            yield compare(rows, machine)


def sides_of(
    settings: Models, facts: dict[str, Any], name: str, dtype: str, batch_size: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Functions that measure each side of one model, by the name of the side."""
    from benchmark.ours import measure_vidjax
    from benchmark.pytorch import measure_pytorch

    ours: list[Job] = list(jobs(settings, name, dtype, batch_size))
    sides = {job.side: partial(measure, measure_vidjax, job) for job in ours}
    if importlib.util.find_spec("torch"):
        for mode in settings.peers:
            counts = facts["parameters"], facts["positions"]
            job = dataclasses.replace(ours[0], overrides=())
            sides[f"PyTorch {mode}"] = partial(measure, measure_pytorch, job, mode == "compile", *counts)
    return sides


def outcome(result: dict[str, Any]) -> str:
    """One measurement as text."""
    return result.get("failed") or f"{1e3 * statistics.median(result['seconds']):.4g} ms per step"


def summarize(
    settings: Models, machine: dict[str, Any], name: str, dtype: str, batch_size: int, side: str, rounds: list[dict]
) -> Row:
    """The row of one side: the median of the rounds' medians, the range over all steps, and the maximum of memory.

    Where steps differ in what they compute, the mean of each round takes the place of its median.
    """
    facts = machine["models"][name]
    row: Row = {"model": name, "dtype": dtype, "batch_size": batch_size, "side": side}
    if failed := next((result["failed"] for result in rounds if "failed" in result), None):
        mode = "torch.compile failed: " if side == "PyTorch compile" else ""
        left = "; larger batches are skipped" if batch_size < max(settings.batch_sizes) else ""
        return {**row, "failed": mode + failed + left}
    average = statistics.fmean if facts["steps_differ"] else statistics.median
    step = statistics.median(average(result["seconds"]) for result in rounds)
    devices = machine["devices"] if side.startswith("vidjax") else 1
    # 2 FLOPs per multiply-accumulate; training costs one forward pass and a backward pass of twice that.
    flops = (2 if isinstance(settings, Infer) else 6) * facts["macs"] * batch_size / step
    peak = peak_flops(machine["device"], dtype)
    compiling = [result["compile"] for result in rounds if result["compile"] is not None]
    return row | {
        "devices": devices,
        "compile_seconds": statistics.median(compiling) if compiling else None,
        "step_seconds": step,
        "least_seconds": min(min(result["seconds"]) for result in rounds),
        "most_seconds": max(max(result["seconds"]) for result in rounds),
        "clips_per_second": batch_size / step,
        "flops_per_second": flops,
        "mfu": flops / peak / devices if peak else None,
        "memory_bytes": max(result["memory"] for result in rounds),
        "program_bytes": rounds[0].get("program"),
        "parameters": rounds[0].get("parameters", facts["parameters"]),
        "loss": rounds[-1]["loss"],
        "remark": rounds[0].get("remark", ""),
    }


def compare(rows: list[Row], machine: dict[str, Any]) -> list[Row]:
    """Adds `best` (whether this is the side's fastest batch) and `vidjax_speed` (vidjax's best speed over the row's).

    Speed is in clips per second and device; simulated devices of a CPU count as one.
    """

    def speed(row: Row) -> float:
        return row["clips_per_second"] / (1 if machine["platform"] == "cpu" else row["devices"])

    measured = [row for row in rows if "failed" not in row]
    fastest = {row["side"]: row for row in sorted(measured, key=speed)}
    ours = max((speed(row) for side, row in fastest.items() if side.startswith("vidjax")), default=None)
    for row in measured:
        row["best"] = row is fastest[row["side"]]
        row["vidjax_speed"] = ours / speed(row) if ours else None
    return rows
