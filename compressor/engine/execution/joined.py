"""Neighbouring small tensors treated as one matrix whose rows are theirs, or they themselves.

A checkpoint of a hundred thousand tiny tensors would spend its time in the interpreter. Where tensors of one
dtype and row length lie next to each other in the input and are treated alike by what takes each row alone, one job
with all their rows does the same; and where they are of one size, what takes each tensor alone has them as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.rows import BLOCK
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.metrics import Change
from compressor.core.sums import dots
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array
from compressor.engine.plan.plan import Job, dense_part
from compressor.methods.contract import Survey, TensorMethod, Transform, Treatment

Told = TensorMethod | Survey[Any] | Treatment  # what is known of a step
Rows = Literal["rows", "tensors"]  # of tensors: what the rows of a joint matrix are


@dataclass(frozen=True)
class Joined:
    """A joint `job`, named after its first member, and what treats it; `starts` are the members' first rows. Parts
    whose content the shape tells are not its, but each member's own."""

    job: Job
    treatments: tuple[Treatment, ...]
    members: tuple[Job, ...]
    starts: tuple[int, ...]


def join(
    jobs: Iterable[Job], checkpoint: Checkpoint, told: Callable[[Job], Sequence[Told]]
) -> Iterator[Joined | Job]:
    """The jobs in their order, neighbours that can be joined as one (at most a block of weights).

    `told` gives what is known of a job's steps by now.
    """
    held: list[Job] = []
    alike: Rows | None = None  # what is held
    size, ways = 0, dict[tuple[int, ...], Rows | None]()  # by what is told: methods of a stage are one object
    for job in jobs:
        what = told(job)
        key = tuple(map(id, what))
        if key not in ways:
            ways[key] = _rows([_treatment(one, job.spec) for one in what])
        rows = ways[key]
        fits = bool(held) and size + job.spec.size <= BLOCK
        if held and not (fits and _follows(held[-1], job, alike, checkpoint, told)):
            yield _joint(held, alike, told)
            held, size = [], 0
        if rows is None:
            yield job
            continue
        held.append(job)
        alike, size = rows, size + job.spec.size
    if held:
        yield _joint(held, alike, told)


def _rows(treatments: Sequence[Treatment | None]) -> Rows | None:
    """What the rows of a joint matrix would be to these; None where they allow none."""
    if all(one is not None and one.rows_alone for one in treatments):
        return "rows"
    return "tensors" if all(isinstance(one, Transform) and one.flat_alone for one in treatments) else None


def _width(spec: TensorSpec, rows: Rows | None) -> int:
    """Weights of a row of a joint matrix."""
    return spec.size if rows == "tensors" else spec.matrix[1]


def _treatment(one: Told, spec: TensorSpec) -> Treatment | None:
    """What treats a tensor, where nothing has to be looked at before."""
    found = one.prepare([spec]) if isinstance(one, TensorMethod) and not isinstance(one, Treatment) else one
    return found if isinstance(found, Treatment) else None


def _joint(members: Sequence[Job], rows: Rows | None, told: Callable[[Job], Sequence[Told]]) -> Joined | Job:
    first, starts, count, width = members[0], [], 0, _width(members[0].spec, rows)
    if len(members) == 1:
        return first
    for job in members:
        starts.append(count)
        count += job.spec.size // width
    spec = TensorSpec(first.spec.name, first.spec.dtype, (count, width))
    treatments = [found for one in told(first) if (found := _treatment(one, first.spec)) is not None]
    parts = (dense_part(spec),) if first.encoder is None else first.encoder.parts(spec)
    parts = tuple(part for part in parts if part.value is None)
    return Joined(Job(spec, first.steps, parts, first.file), tuple(treatments), tuple(members), tuple(starts))


def _follows(
    job: Job, after: Job, rows: Rows | None, checkpoint: Checkpoint, told: Callable[[Job], Sequence[Told]]
) -> bool:
    """Whether `after` continues `job` in every respect."""
    spec, other = job.spec, after.spec
    if (
        (rows == "rows" and not len(spec.shape) == len(other.shape) == 2)
        or (spec.dtype, _width(spec, rows), job.file) != (other.dtype, _width(other, rows), after.file)
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
