"""Neighbouring small tensors treated as one matrix whose rows are theirs.

A checkpoint of a hundred thousand tiny tensors would spend its time in the interpreter. Where tensors of one
dtype and row length lie next to each other in the input and are treated alike by what takes each row alone, one job
with all their rows does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.rows import BLOCK
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.metrics import Change
from compressor.core.sums import dots
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array
from compressor.engine.plan.plan import Job, Plan, dense_part
from compressor.methods.contract import Survey, TensorMethod, Treatment

Told = TensorMethod | Survey[Any] | Treatment  # what is known of a step


@dataclass(frozen=True)
class Joined:
    """A joint `job`, named after its first member, and what treats it; `starts` are the members' first rows. Parts
    whose content the shape tells are not its, but each member's own."""

    job: Job
    treatments: tuple[Treatment, ...]
    members: tuple[Job, ...]
    starts: tuple[int, ...]


def join(
    jobs: Iterable[Job], plan: Plan, checkpoint: Checkpoint, told: Callable[[Job], Sequence[Told]]
) -> Iterator[Joined | Job]:
    """The jobs in their order, neighbours that can be joined as one (at most a block of weights).

    `told` gives what is known of a job's steps by now.
    """
    held: list[Job] = []
    size, apt = 0, dict[tuple[int, ...], bool]()  # by what is told of a job: methods of a stage are one object
    for job in jobs:
        what = told(job)
        key = tuple(map(id, what))
        if key not in apt:
            apt[key] = all(_takes_rows_alone(one, job.spec) for one in what)
        fits = bool(held) and apt[key] and size + job.spec.size <= BLOCK
        if held and not (fits and _follows(held[-1], job, plan, checkpoint, told)):
            yield _joint(held, told)
            held, size = [], 0
        if not apt[key]:
            yield job
            continue
        held.append(job)
        size += job.spec.size
    if held:
        yield _joint(held, told)


def _takes_rows_alone(one: Told, spec: TensorSpec) -> bool:
    found = _treatment(one, spec)
    return found is not None and found.rows_alone


def _treatment(one: Told, spec: TensorSpec) -> Treatment | None:
    """What treats a tensor, where nothing has to be looked at before."""
    found = one.prepare([spec]) if isinstance(one, TensorMethod) and not isinstance(one, Treatment) else one
    return found if isinstance(found, Treatment) else None


def _joint(members: Sequence[Job], told: Callable[[Job], Sequence[Told]]) -> Joined | Job:
    first, starts, rows = members[0], [], 0
    if len(members) == 1:
        return first
    for job in members:
        starts.append(rows)
        rows += job.spec.shape[0]
    spec = TensorSpec(first.spec.name, first.spec.dtype, (rows, first.spec.shape[1]))
    treatments = [found for one in told(first) if (found := _treatment(one, spec)) is not None]
    parts = (dense_part(spec),) if first.encoder is None else first.encoder.parts(spec)
    parts = tuple(part for part in parts if part.value is None)
    return Joined(Job(spec, first.steps, parts, first.file), tuple(treatments), tuple(members), tuple(starts))


def _follows(
    job: Job, after: Job, plan: Plan, checkpoint: Checkpoint, told: Callable[[Job], Sequence[Told]]
) -> bool:
    """Whether `after` continues `job` in every respect."""
    spec, other = job.spec, after.spec
    if (
        len(spec.shape) != 2
        or len(other.shape) != 2
        or (spec.dtype, spec.shape[1], job.file) != (other.dtype, other.shape[1], after.file)
        or DTYPES[spec.dtype].compute != "<f4"  # rows are measured in float64, which must be the wider type
        or not job.steps
        or len(job.steps) != len(after.steps)
    ):
        return False
    for step, twin in zip(job.steps, after.steps, strict=True):
        if step.dense != twin.dense or step.partners or step.inputs is not None:
            return False
    if any(one is not like for one, like in zip(told(job), told(after), strict=True)):
        return False
    ours, theirs = checkpoint.tensors[spec.name], checkpoint.tensors[other.name]
    if not (ours.seekable and theirs.seekable and ours.whole.file is theirs.whole.file):
        return False
    if ours.whole.placed.offset + spec.nbytes != theirs.whole.placed.offset:
        return False
    return all((part.every == 1 or part.value is not None) and not part.across for part in job.parts)


def runs_of(starts: Sequence[int], size: int, places: Sequence[int], width: int) -> Iterator[tuple[int, int, int]]:
    """Which of `size` rows of `width` bytes can be written at once, and where to: first row, the row behind the
    last, and the place. Each of the members begins at one of the rows `starts`, and belongs to one of `places`."""
    first, begin = 0, places[0]
    for start, place in zip(starts, places, strict=True):
        if place != begin + (start - first) * width:
            yield first, start, begin
            first, begin = start, place
    yield first, size, begin


def changes_by_rows(before: Array, after: Array, starts: Array) -> list[Change]:
    """What happened to the members of a joint matrix whose first rows are `starts`.

    InputError when any of it cannot be told: each member has then to be looked at alone.
    """
    wide, difference = before.astype(np.float64), np.subtract(before, after).astype(np.float64)
    energy, lost = (np.add.reduceat(dots(one, one), starts) for one in (wide, difference))
    if not np.isfinite(lost).all():
        raise InputError("a new value is not finite")
    zeros = [np.add.reduceat(np.count_nonzero(x == 0, axis=1), starts).tolist() for x in (before, after)]
    rows = np.diff(np.append(starts, len(before)))
    sizes = (rows * before.shape[1]).tolist()
    return [Change(*figures) for figures in zip(sizes, *zeros, energy.tolist(), lost.tolist(), strict=True)]
