"""How much memory a plan takes, and how many workers a limit of it allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.calibration.statistics import Statistics
from compressor.core.errors import UsageError
from compressor.core.text import size_text
from compressor.engine.plan.plan import Job

PROGRAM = 256 << 20  # bytes of the program itself, and of the blocks that each worker has in any case


def beside_blocks(job: Job, statistics: Mapping[int, Statistics]) -> int:
    """Bytes that a worker holds of a tensor, at most, beside some blocks: what its methods say, and of each layer's
    statistics two vectors of float64 and, where it goes by a gram, a matrix of them."""
    total = sum(step.method.memory(job.spec) for step in job.steps)
    for step in job.steps:
        if step.inputs is not None:
            width = statistics[step.stage].widths[step.inputs]
            total += 16 * width + (8 * width * width if step.gram else 0)
    return total


def workers_within(
    limit: int, jobs: Sequence[Job], statistics: Mapping[int, Statistics], workers: int, *, more: int = 0
) -> int:
    """How many of so many `workers` may treat these tensors at once within `limit` bytes; `more` run beside them
    where they are several. UsageError where not even one may, or where the program alone takes as much."""
    return workers_holding(
        limit, {job.spec.name: beside_blocks(job, statistics) for job in jobs}, workers, more=more
    )


def workers_holding(limit: int, each: Mapping[str, int], workers: int, *, more: int = 0) -> int:
    """The same where a worker holds so many bytes of `each` tensor, by name, beside blocks."""
    largest = max(each, key=lambda name: each[name], default="")
    most = each.get(largest, 0)
    needed = PROGRAM + most
    if limit < needed:
        enough = f"{-(-needed // 10**6)}MB"
        why = f", for {size_text(most)} that the method takes of the largest tensor" if most else ""
        raise UsageError(
            f"--memory {size_text(limit)} does not do for one worker, which needs {enough}{why}",
            tensor=largest if most else None,
            remedy=f"Allow {enough}" + (", or --exclude it" if most else ""),
        )
    if not most:
        return workers
    found = (limit - PROGRAM) // most
    return max(min(workers, found - more), 1)
