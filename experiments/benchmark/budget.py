"""The largest batch whose training step fits into a given amount of memory, by compiling only."""

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
"""Maximum number of compilations; the result is then within a few clips of the largest."""


def find_largest(needs: Callable[[int], int], budget: float) -> tuple[int, int, int]:
    """The largest number whose need is within the budget, if needs grow roughly linearly.

    Args:
      needs: the need of a number from 1 on; called at most `COMPILATIONS` times.
      budget: in the unit of `needs`.

    Returns:
      The number, its need, and the number of calls; if nothing fits, 0 and the need of 1.
    """
    fits, above, calls = {}, {}, 0

    def measure(number: int) -> None:
        nonlocal calls
        needed, calls = needs(number), calls + 1
        (fits if needed <= budget else above)[number] = needed

    measure(1)
    if not fits:
        return 0, above[1], calls
    measure(2)
    while calls < COMPILATIONS and (not above or min(above) - max(fits) > 1):
        known = sorted({**fits, **above}.items(), key=lambda known: abs(known[1] - budget))[:2]
        (a, at_a), (b, at_b) = sorted(known)
        growth = max((at_b - at_a) / (b - a), 1)
        guess = int(a + (budget - at_a) / growth)
        least = max(fits) + 1
        most = min(above) - 1 if above else 16 * max(fits)  # extrapolating from small batches is unreliable
        measure(min(max(guess, least), most))
    return max(fits), fits[max(fits)], calls


def largest_batch(job: Job, budget_gb: float) -> dict[str, Any]:
    """The largest batch of a job that fits, over all devices; nothing is executed.

    Returns:
      `batch_size` (0 if none fits), `program_bytes` per device, `compile_seconds` of the last compilation, and `tried`,
      the number of compilations.
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
