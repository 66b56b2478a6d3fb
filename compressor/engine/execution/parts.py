"""What one of several jobs writes down of its share of a plan, and what the parts of all of them come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.lazy import np
from compressor.core.metrics import Change
from compressor.core.tensor import DTYPES
from compressor.engine.execution.cut import part_offset, part_shape
from compressor.engine.execution.runner import Runner
from compressor.engine.execution.shards import change_of, said_of
from compressor.engine.execution.units import Batch, Unit
from compressor.engine.execution.worker import Worker
from compressor.engine.plan.plan import Job, Plan
from compressor.files.identity import Identity, identity_of
from compressor.files.part_folder import Extent, Part, PartFile, PartOutput, damaged, joined


def inputs_of(
    checkpoints: Iterable[Checkpoint], more: Sequence[str], first: Identity | None = None
) -> tuple[str, str]:
    """What the inputs of a run are known by: a hash of their weights, or of samples of them, and of what `more` the
    bytes of its output depend on beside the plan; and a hash of their files' sizes and times. `first`: the identity
    of the first one's source, where somebody took it."""
    known, files = list(more), list[Any]()
    for number, one in enumerate(checkpoints):
        known += first if first is not None and number == 0 else identity_of(one.source)
        # by name, size and time: numbers of files are a disk's own
        files.append([(file.path.rpartition("/")[2], *file.identity[1:]) for file in one.source.opened])
    return sha256(repr(known).encode()).hexdigest(), sha256(repr(files).encode()).hexdigest()


def written_file(runner: Runner, sink: PartOutput, number: int, *, archived: bool) -> PartFile:
    """What is to be said of a container file of a share, all of which is written."""
    if archived:
        return sink.whole(runner.worker.plan.files[number].name)
    units = runner.units_by_file.get(number, ())
    return sink.written(number, joined(extent for unit in units for extent in extents_of(unit, runner.worker)))


def extents_of(unit: Unit, worker: Worker) -> Iterator[Extent]:
    """Where a unit's bytes go in its file."""
    for job in unit.jobs:
        offsets = worker.plan.files[job.file].layout.offsets
        if isinstance(unit, Batch):
            for spec in job.part_specs:
                yield Extent(offsets[spec.name], spec.nbytes)
            continue
        if not job.steps and worker.checkpoint.tensors[job.spec.name].encoder is None:
            width = job.spec.nbytes // max(unit.cut.rows, 1)
            begin = offsets[job.spec.name] + unit.start * width
            yield Extent(begin, (unit.stop - unit.start) * width)
            continue
        for part in job.parts:
            if part.every == 0 and unit.start:
                continue  # written with the first rows
            place = unit.start, unit.stop
            begin = part_offset(part, job, unit.cut, *place, offsets[job.part_name(part)])
            shape = part_shape(part, job, unit.cut, *place)
            itemsize = np.dtype(DTYPES[part.dtype].storage).itemsize
            if part.across:
                yield Extent(begin, shape[1] * itemsize, part.shape[1] * itemsize, shape[0])
            else:
                yield Extent(begin, prod(shape) * itemsize)


def measured(runner: Runner, plan: Plan, changes: Sequence[Change]) -> dict[str, Any]:
    """What happened to each tensor of a share, as JSON types: of one that begins in another share piece by piece,
    so that sums are those of one run."""
    own = {job.spec.name for jobs in runner.files.values() for job in jobs}
    return {
        job.spec.name: {
            **_described(job),
            "changes": [said_of(one) for one in (runner.pieces if job.spec.name == runner.divided else [change])],
        }
        for job, change in zip(plan.jobs, changes, strict=True)
        if job.spec.name in own
    }


def _described(job: Job) -> dict[str, Any]:
    spec = job.spec
    reported = job.treated or bool(job.stored_as and not job.stays)
    return {
        "dtype": job.dtype_before,
        "after": job.dtype_after,
        "shape": list(spec.shape),
        "sizes": [job.size_before, job.size_after],
        "treated": reported,
    }


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of a merged output: what it was stored as before and after, in how many bytes, whether it was
    treated, and what happened to it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    dtype_after: str
    sizes: tuple[int, int]
    treated: bool
    change: Change


def merged_tensors(parts: Sequence[Part]) -> list[MergedTensor]:
    """All tensors of these parts, which are in their order. InputError where one says what cannot be."""
    found: dict[str, MergedTensor] = {}
    for part in parts:
        try:
            for name, said in part.record.said["tensors"].items():
                one = found.get(name) or _tensor(name, said)
                for change in said["changes"]:
                    one.change.merge(change_of(change))
                found[name] = one
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise damaged(part.path) from error
    return [found[name] for name in sorted(found)]


def _tensor(name: str, said: Mapping[str, Any]) -> MergedTensor:
    texts, shape, (before, after) = (said["dtype"], said["after"]), said["shape"], said["sizes"]
    numbers = [*shape, before, after]
    if not all(isinstance(text, str) for text in texts) or not all(
        type(one) is int and one >= 0 for one in numbers
    ):
        raise ValueError(name)
    return MergedTensor(name, tuple(shape), *texts, (before, after), said["treated"] is True, Change())


def check_covered(parts: Sequence[Part], *, archived: bool) -> None:
    """InputError where the parts leave a hole in a file: then one of them is not what a run wrote."""
    for name in parts[0].record.names:
        having = [(part, file) for part in parts for file in part.record.files if file.name == name]
        if not having:
            raise damaged(parts[0].path)
        part, first = having[0]
        if archived:
            continue
        if len({(file.size, file.pieces, file.offsets) for _, file in having}) > 1:
            raise damaged(part.path)
        there = [Extent(*piece) for piece in first.pieces] + [one for _, file in having for one in file.extents]
        if sum(one.nbytes for one in there) != first.size:
            raise damaged(part.path)
