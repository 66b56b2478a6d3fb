"""Doing what the plan says: read rows, apply the steps in cache, write parts at their offsets, measure the loss.

Every tensor is cut into chunks (one read, one write a part) and every chunk into blocks that fit the
processor's cache. The cuts depend on the plan alone, so results do not depend on the number of workers, and
all passes over a tensor see the same blocks. Surveys run first: those of a whole model over all its tensors,
those of a tensor when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from compressor.checkpoint import Checkpoint, Rows, Tensor
from compressor.cutting import Cut, cut_tensor, part_buffer, part_views
from compressor.engines.local import in_order
from compressor.errors import InputError, UsageError
from compressor.files.sink import Sink
from compressor.floats import narrow, narrow_exact, settle
from compressor.joining import Joined, changes_by_rows, join
from compressor.lazy import np
from compressor.method import Block, Encoder, Method, Survey, Transform
from compressor.metrics import Change, count_stored_zeros, count_zeros, dot
from compressor.plan import Job, Plan
from compressor.scan import count_non_finite
from compressor.tensor import DTYPES
from compressor.workspace import Array, Borrowed, Workspace

_BATCH = 1 << 19  # elements of small tensors that make one task

Progress = Callable[[int], None]


@dataclass
class Runner:
    """One run of one plan. `teachers` are the partners' checkpoints by stage."""

    plan: Plan
    checkpoint: Checkpoint
    teachers: Mapping[int, Checkpoint]
    executor: Executor
    window: int
    sink: Sink
    progress: Progress = lambda done: None
    resolved: dict[tuple[str, int], Method] = field(default_factory=dict)
    idle: deque[Workspace] = field(default_factory=deque)

    def run(self) -> list[Change]:
        """Treat and write every tensor; what happened to each, in the order of the plan's jobs."""
        self._survey_models()
        changes = {job.spec.name: Change() for job in self.plan.jobs}
        waiting = [sum(job.file == number for job in self.plan.jobs) for number in range(len(self.plan.files))]
        finish = deque(number for number, count in enumerate(waiting) if not count)
        for done in in_order(self.executor, self._tasks(finish), self.window):
            for job, change, last in done:
                changes[job.spec.name].merge(change)
                self.progress(change.size * DTYPES[job.spec.dtype].bits // 8)
                if last:
                    waiting[job.file] -= 1
                    if not waiting[job.file]:
                        finish.append(job.file)
        for _ in in_order(
            self.executor, (partial(self.sink.finish_file, number) for number in finish), self.window
        ):
            pass
        return [changes[job.spec.name] for job in self.plan.jobs]

    # ---- cutting work into tasks -------------------------------------------------------------------

    def _tasks(self, finish: deque[int]) -> Iterator[Callable[[], list[_Done]]]:
        """Chunks of large tensors, batches of small ones; files whose tensors are all written are synced
        between them, while other tensors are computed. Small ones are treated here, by who hands out the
        tasks: they are all interpreter, and two threads of that are slower than one."""
        batch: list[Job] = []
        held = 0
        for job in self.plan.jobs:
            while finish:
                yield partial(self._finish, finish.popleft())
            if job.spec.size <= _BATCH // 4:
                batch.append(job)
                held += job.spec.size + 512
                if held >= _BATCH:
                    yield _ready(self._small(batch))
                    batch, held = [], 0
                continue
            methods = self._methods(job, self._fold)
            cut = self._cut(job)
            for start, stop in cut.chunks:
                yield partial(self._chunk, job, cut, methods, start, stop)
        if batch:
            yield _ready(self._small(batch))

    def _finish(self, number: int) -> list[_Done]:
        self.sink.finish_file(number)
        return []

    def _small(self, jobs: Sequence[Job]) -> list[_Done]:
        """Whole tensors, one after the other, surveys included; alike neighbours at once."""
        done: list[_Done] = []
        for item in join(jobs, self.plan, self.checkpoint):
            if isinstance(item, Joined):
                done += self._joined(item)
            else:
                done.append(self._one(item))
        return done

    def _one(self, job: Job) -> _Done:
        methods, cut, total = self._methods(job, _fold_here), self._cut(job), Change()
        for start, stop in cut.chunks:
            for _, change, _ in self._chunk(job, cut, methods, start, stop):
                total.merge(change)
        return job, total, True

    def _joined(self, joined: Joined) -> list[_Done]:
        """Neighbours as one; if something is wrong with one of them, each alone, so that it is named."""
        job, cut = joined.job, self._cut(joined.job)
        methods = [step.method for step in job.steps]
        if any(method.survey([job.spec]) is not None for method in methods):
            return [self._one(member) for member in joined.members]
        try:
            with self._workspace() as work:
                ((block, after, _),) = self._treat(job, cut, methods, 0, cut.rows, work, whole=True)
                assert not isinstance(after, Change)  # noqa: S101 - it was asked for the numbers
                rows = (-1, job.spec.shape[1])  # an element-wise cut is flat
                changes = changes_by_rows(block.values.reshape(rows), after.reshape(rows), np.array(joined.starts))
        except (InputError, UsageError):
            return [self._one(member) for member in joined.members]
        return [(member, change, True) for member, change in zip(joined.members, changes, strict=True)]

    def _cut(self, job: Job) -> Cut:
        tensor = self.checkpoint.tensors[job.spec.name]
        partners = [
            self.teachers[step.stage].tensors[name] for step in job.steps for name in step.partners.values()
        ]
        return cut_tensor(job, tensor, partners)

    # ---- surveys -----------------------------------------------------------------------------------

    def _survey_models(self) -> None:
        """Resolve every method that looks at all tensors of its stage together."""
        for number in range(len(self.plan.stages)):
            groups: dict[Method, list[Job]] = {}
            for job in self.plan.jobs:
                for step in job.steps:
                    if step.stage == number and step.method.reach == "model":
                        groups.setdefault(step.method, []).append(job)
            for method, jobs in groups.items():
                found: Any = method.survey([job.spec for job in jobs])
                while isinstance(found, Survey):
                    found = found.conclude(self._fold(found, self._survey_tasks(found, jobs, number)))
                for job in jobs:
                    self.resolved[job.spec.name, number] = found or method

    def _survey_tasks(self, survey: Survey[Any], jobs: Sequence[Job], stage: int) -> Iterator[Callable[[], Any]]:
        batch: list[_Piece] = []
        held = 0
        for job in jobs:
            if not survey.wants(job.spec):
                continue
            methods, cut = self._methods(job, self._fold, before=stage), self._cut(job)
            for start, stop in cut.chunks:
                batch.append((job, cut, methods, start, stop))
                held += (stop - start) * cut.columns
                if held >= _BATCH:
                    yield partial(self._observe, survey, batch)
                    batch, held = [], 0
        if batch:
            yield partial(self._observe, survey, batch)

    def _methods(self, job: Job, fold: Fold, before: int | None = None) -> list[Method]:
        """The job's methods, knowing all they need, up to (not including) a stage."""
        methods: list[Method] = []
        for step in job.steps:
            if before is not None and step.stage >= before:
                break
            key = (job.spec.name, step.stage)
            found: Any = self.resolved.get(key)
            if found is None:
                found = step.method.survey([job.spec])
                while isinstance(found, Survey):
                    cut = self._cut(job)
                    before_it = list(methods)
                    tasks = (
                        partial(self._observe, found, [(job, cut, before_it, start, stop)])
                        for start, stop in cut.chunks
                    )
                    found = found.conclude(fold(found, tasks))
                found = found or step.method
                if before is not None:
                    self.resolved[key] = found
            methods.append(found)
        return methods

    def _fold(self, survey: Survey[Any], tasks: Iterator[Callable[[], Any]]) -> Any:
        stats = survey.start()
        for more in in_order(self.executor, tasks, self.window):
            stats = survey.merge(stats, more)
        return stats

    def _observe(self, survey: Survey[Any], pieces: Sequence[_Piece]) -> Any:
        """The survey's statistics over some rows of some tensors."""
        stats = survey.start()
        with self._workspace() as work:
            for job, cut, methods, start, stop in pieces:
                for block in self._blocks(job, cut, start, stop, work):
                    numbers = self._transform(job, methods, block)
                    stats = survey.observe(Block(numbers, block.start, job.spec, work, {}), stats)
        return stats

    # ---- the data ----------------------------------------------------------------------------------

    def _chunk(self, job: Job, cut: Cut, methods: Sequence[Method], start: int, stop: int) -> list[_Done]:
        """Read, treat, write and measure rows [start, stop) of a tensor."""
        tensor = self.checkpoint.tensors[job.spec.name]
        with self._workspace() as work:
            if not job.steps and tensor.encoder is None:
                change = self._carry(job, tensor, cut, start, stop, work)
            else:
                change = Change()
                for block, after, stored in self._treat(job, cut, methods, start, stop, work):
                    change.merge(after if isinstance(after, Change) else self._measure(job, block, after, stored))
        return [(job, change, stop == cut.rows)]

    def _carry(self, job: Job, tensor: Tensor, cut: Cut, start: int, stop: int, work: Workspace) -> Change:
        """Copy as it is."""
        offset = self.plan.files[job.file].layout.offsets[job.spec.name]
        storage = DTYPES[job.spec.dtype].storage
        if cut.bytes:
            raw = tensor.whole.read_bytes(start, stop, work, "carry")
            self.sink.write(job.file, offset + start, raw)
            numbers = raw.view(storage) if storage and len(raw) % np.dtype(storage).itemsize == 0 else raw[:0]
        else:
            numbers = tensor.whole.read_rows(cut.columns, start, stop, work, "carry")
            self.sink.write(job.file, offset + start * cut.columns * numbers.itemsize, numbers)
        zeros = count_stored_zeros(numbers, job.spec, work)
        size = (stop - start) * (8 if cut.bytes else 1) * cut.columns
        if cut.bytes:
            size //= DTYPES[job.spec.dtype].bits
        return Change(size, zeros, zeros)

    def _treat(
        self,
        job: Job,
        cut: Cut,
        methods: Sequence[Method],
        start: int,
        stop: int,
        work: Workspace,
        *,
        whole: bool = False,
    ) -> Iterator[tuple[_Read, Array | Change, Array | None]]:
        """Each block with the numbers that the output stands for and, if it stores numbers, these as stored; the
        output is written at the end. Unless `whole`, an encoder may tell the change instead of the numbers."""
        parts = {part.suffix: part_buffer(part, job, cut, start, stop, work) for part in job.parts}
        for block in self._blocks(job, cut, start, stop, work):
            rows = slice(block.start - start, block.start - start + len(block.values))
            if job.encoder is None:
                result = self._transform(job, methods, block)
                stored = parts[""][rows]
                if block.stored is not None and _selects(methods):
                    narrow_exact(result, job.spec.dtype, stored, work)
                    yield block, result, stored
                elif methods:
                    yield block, settle(result, job.spec.dtype, stored, work), stored
                else:  # restoring: what codes stand for is rounded to the tensor's dtype, as by any loader
                    narrow(result, job.spec.dtype, stored)
                    yield block, result, stored
                continue
            encoder = methods[-1]
            assert isinstance(encoder, Encoder)  # noqa: S101 - the planner composed it
            views = part_views(parts, job, rows)
            if len(methods) == 1 and not whole:
                lost, zeros = encoder.measured(Block(block.values, block.start, job.spec, work, {}), views)
                if np.isfinite(lost):  # else look at the numbers
                    yield block, _changed(job, block, zeros, lost), None
                    continue
            numbers = self._transform(job, methods[:-1], block)
            result = work.array("run.restored", numbers.shape, numbers.dtype.str)
            encoder.encode(Block(numbers, block.start, job.spec, work, {}), views, result)
            yield block, result, None
        self._write_parts(job, cut, parts, start, stop)

    def _measure(self, job: Job, block: _Read, after: Array, stored: Array | None) -> Change:
        """What happened to one block; InputError when a new number is not finite."""
        work = block.work
        difference = work.array("run.difference", after.shape, after.dtype.str)
        np.subtract(block.values, after, out=difference)
        lost = dot(difference, difference)
        if not np.isfinite(lost) and not np.isfinite(after).all():
            raise InputError(
                f"its new values leave the range of {job.spec.dtype}",
                file=self.checkpoint.path,
                tensor=job.spec.name,
                remedy="Exclude it",
            )
        return _changed(job, block, _zeros(after, stored, job, work), lost)

    def _write_parts(self, job: Job, cut: Cut, parts: Mapping[str, Array], start: int, stop: int) -> None:
        offsets = self.plan.files[job.file].layout.offsets
        for part in job.parts:
            data = parts[part.suffix]
            offset = offsets[job.part_name(part)]
            if part.every == 0:
                if start != 0:
                    continue
                if part.value is not None:
                    data[...] = np.reshape(part.value, part.shape)
                self.sink.write(job.file, offset, data)
                continue
            first, _ = part.rows(start, stop)
            if part.across:
                stride = part.shape[1] * data.itemsize
                self.sink.write_columns(job.file, offset + first * data.itemsize, stride, data)
            else:
                self.sink.write(job.file, offset + first * data[:1].nbytes, data)

    def _blocks(self, job: Job, cut: Cut, start: int, stop: int, work: Workspace) -> Iterator[_Read]:
        """The source's numbers with their partners', finite, block by block."""
        tensor = self.checkpoint.tensors[job.spec.name]
        rows = Rows(tensor, cut.columns, start, stop, work, "source")
        partners = [
            (
                step.stage,
                role,
                Rows(
                    self.teachers[step.stage].tensors[name],
                    cut.columns,
                    start,
                    stop,
                    work,
                    f"{role}{step.stage}",
                ),
            )
            for step in job.steps
            for role, name in step.partners.items()
        ]
        for first in range(start, stop, cut.block):
            last = min(first + cut.block, stop)
            values = rows.block(first, last)
            energy = self._finite(values, tensor, self.checkpoint)
            beside: dict[int, dict[str, Array]] = {}
            for stage, role, teacher in partners:
                numbers = teacher.block(first, last)
                self._finite(numbers, teacher.tensor, self.teachers[stage])
                beside.setdefault(stage, {})[role] = numbers
            yield _Read(values, rows.stored(first, last), first, energy, beside, work)

    def _finite(self, values: Array, tensor: Tensor, checkpoint: Checkpoint) -> float:
        """Σ w² of a block; InputError with the tensor's count of NaN and infinite values if it has any."""
        energy = dot(values, values)
        if not np.isfinite(energy) and not np.isfinite(values).all():
            count = count_non_finite(tensor)
            raise InputError(
                f"holds {count} NaN or infinite value{'s' if count != 1 else ''}",
                file=checkpoint.path,
                tensor=tensor.spec.name,
                remedy="Mend it, --exclude it, or carry such tensors over with --non-finite keep",
            )
        return energy

    def _transform(self, job: Job, methods: Sequence[Method], block: _Read) -> Array:
        """The numbers after these methods; two buffers take turns."""
        numbers = block.values
        for turn, (step, method) in enumerate(zip(job.steps, methods, strict=False)):
            out = block.work.array(f"run.turn{turn % 2}", numbers.shape, numbers.dtype.str)
            inner = Block(numbers, block.start, job.spec, block.work, block.partners.get(step.stage, {}))
            if isinstance(method, Encoder):
                method.encode(inner, None, out)
            else:
                assert isinstance(method, Transform)  # noqa: S101 - there are no other kinds
                method.apply(inner, out)
            numbers = out
        return numbers

    def _workspace(self) -> Borrowed:
        return Borrowed(self.idle)


Fold = Callable[[Survey[Any], Iterator[Callable[[], Any]]], Any]
_Done = tuple[Job, Change, bool]  # a job, what happened to some of its rows, and whether they were the last
_Piece = tuple[Job, Cut, Sequence[Method], int, int]  # rows of a job's tensor, and the methods before the survey


def _fold_here(survey: Survey[Any], tasks: Iterator[Callable[[], Any]]) -> Any:
    stats = survey.start()
    for task in tasks:
        stats = survey.merge(stats, task())
    return stats


@dataclass(slots=True)
class _Read:
    """A block as it came from disk, as numbers and as stored; partners by stage and role."""

    values: Array
    stored: Array | None
    start: int
    energy: float
    partners: dict[int, dict[str, Array]]
    work: Workspace


def _zeros(numbers: Array, raw: Array | None, job: Job, work: Workspace) -> int:
    return count_zeros(numbers, work) if raw is None else count_stored_zeros(raw, job.spec, work)


def _changed(job: Job, block: _Read, zeros: int, lost: float) -> Change:
    before = _zeros(block.values, block.stored, job, block.work)
    return Change(block.values.size, before, zeros, block.energy, lost)


def _ready(result: list[_Done]) -> Callable[[], list[_Done]]:
    """A task that is done already."""
    return lambda: result


def _selects(methods: Sequence[Method]) -> bool:
    """Whether all results are numbers of the source (or zero), so that none needs rounding."""
    return all(isinstance(method, Transform) and method.selects for method in methods)
