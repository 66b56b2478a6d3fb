"""Units of work: the rows of a large tensor that one task treats, or a batch of small tensors. They follow from the
plan alone, file by file and in the order in which they are handed out, so that several jobs that share a plan agree
on who does what (`Share`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from compressor.engine.execution.cut import Slice
from compressor.engine.execution.worker import Worker
from compressor.engine.plan.plan import Job
from compressor.methods.contract import SMALL

BATCH = 1 << 19  # elements of small tensors that make one task
_EACH = 512  # elements that a tensor counts for, however small it is


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows [start, stop) of a tensor that is cut so."""

    job: Job
    cut: Slice
    start: int
    stop: int

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The one job that it is of."""
        return (self.job,)

    @property
    def continues(self) -> bool:
        """Whether the unit before it is of the same tensor."""
        return self.start > 0

    @property
    def nbytes(self) -> int:
        """About how many bytes of the input it reads."""
        return _EACH + self.job.spec.nbytes * (self.stop - self.start) // max(self.cut.rows, 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole small tensors of one file."""

    jobs: tuple[Job, ...]
    continues: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        """About how many bytes of the input it reads."""
        return sum(_EACH + job.spec.nbytes for job in self.jobs)


Unit = Chunk | Batch


def units_of(worker: Worker) -> Iterator[Unit]:
    """All units of the plan, file by file: chunks of large tensors, then batches of small ones in the order in
    which they are stored, where those that are alike lie side by side."""
    for jobs in worker.plan.by_file:
        for job in jobs:
            if job.spec.size > SMALL:
                cut = worker.cut(job)
                yield from (Chunk(job, cut, start, stop) for start, stop in cut.chunks)
        yield from _batches([job for job in jobs if job.spec.size <= SMALL], worker)


def _batches(jobs: list[Job], worker: Worker) -> Iterator[Batch]:
    tensors = worker.checkpoint.tensors

    def place(job: Job) -> tuple[int, int]:
        tensor = tensors[job.spec.name]
        return tensor.file, tensor.whole.placed.offset if tensor.seekable else 0

    batch: list[Job] = []
    held = 0
    for job in sorted(jobs, key=place):
        batch.append(job)
        held += job.spec.size + _EACH
        if held >= BATCH:
            yield Batch(tuple(batch))
            batch, held = [], 0
    if batch:
        yield Batch(tuple(batch))


# ---- what several jobs share ---------------------------------------------------------------------------


class Shareable(Protocol):
    """What shares are made of."""

    @property
    def nbytes(self) -> int:
        """About how many bytes of the input it reads."""

    @property
    def continues(self) -> bool:
        """Whether the one before it is of the same tensor."""


S = TypeVar("S", bound=Shareable)


@dataclass(frozen=True, slots=True)
class Share:
    """What job `number`, from 1, of `count` does: neighbouring units, of about as many bytes as the others have.
    `whole`: no tensor is divided."""

    number: int
    count: int
    whole: bool = False

    def of(self, units: Sequence[S]) -> list[S]:
        """The units of this share; those of all shares together are `units`."""
        groups: list[list[S]] = []
        for unit in units:
            if self.whole and unit.continues:
                groups[-1].append(unit)
            else:
                groups.append([unit])
        sizes = [sum(unit.nbytes for unit in group) for group in groups]
        own: list[S] = []
        total, before = sum(sizes), 0
        for group, size in zip(groups, sizes, strict=True):
            if (2 * before + size) * self.count // (2 * total) == self.number - 1:  # by where its middle lies
                own += group
            before += size
        return own
