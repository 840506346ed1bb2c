"""The largest batch whose training step fits into a given memory, found by compiling alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from benchmark.ours import compile_program
from benchmark.process import keep_to
from benchmark.settings import Job
from vidjax.training.memory import program_memory
from vidjax.training.sharding import make_mesh

COMPILATIONS = 10
"""At most; a batch found by then is within a few clips of the largest."""


def find_largest(needs: Callable[[int], int], budget: float) -> tuple[int, int, int]:
    """The largest number that needs no more than the budget, where needs grow about evenly.

    Args:
      needs: of a number of 1 or more; at most `COMPILATIONS` are asked for.
      budget: in the same unit.

    Returns:
      The number, what it needs, and how many were asked for; 0 and what 1 needs where nothing fits.
    """
    fits, above, asked = {}, {}, 0

    def ask(number: int) -> None:
        nonlocal asked
        needed, asked = needs(number), asked + 1
        (fits if needed <= budget else above)[number] = needed

    ask(1)
    if not fits:
        return 0, above[1], asked
    ask(2)
    while asked < COMPILATIONS and (not above or min(above) - max(fits) > 1):
        known = sorted({**fits, **above}.items(), key=lambda known: abs(known[1] - budget))[:2]
        (a, at_a), (b, at_b) = sorted(known)
        growth = max((at_b - at_a) / (b - a), 1)
        guess = int(a + (budget - at_a) / growth)
        least = max(fits) + 1
        most = min(above) - 1 if above else 16 * max(fits)  # a line through small batches says little of large ones
        ask(min(max(guess, least), most))
    return max(fits), fits[max(fits)], asked


def largest_batch(job: Job, budget_gb: float) -> dict[str, Any]:
    """The largest batch of a job that fits, over all devices; nothing is run.

    Returns:
      `batch_size` (0 where none fits), `program_bytes` a device, `compile_seconds` of the last compilation and the
      number of compilations, `tried`.
    """
    keep_to(job.threads)
    mesh, seconds = make_mesh(), []

    def needs(clips: int) -> int:
        sized = dataclasses.replace(job, batch_size=clips * jax.device_count())
        compiled, _, took = compile_program(sized, mesh)
        seconds.append(took)
        return program_memory(compiled).total

    clips, needed, tried = find_largest(needs, 1e9 * budget_gb)
    return {
        "batch_size": clips * jax.device_count(),
        "program_bytes": needed,
        "compile_seconds": seconds[-1],
        "tried": tried,
    }
