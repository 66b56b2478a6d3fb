"""What a worker does: read rows, apply the steps in cache, write parts at their offsets, measure the loss.

Every tensor is cut into chunks (one read, one write a part) and every chunk into blocks that fit the
processor's cache. The cuts depend on the plan alone, so results do not depend on the number of workers, and
all passes over a tensor see the same blocks. A worker is shared by threads, and known to forked processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.finite import count_non_finite
from compressor.checkpoint.joined_experts import JoinedExperts
from compressor.checkpoint.rows import Rows
from compressor.core import kernels
from compressor.core.errors import InputError
from compressor.core.floats import add_base, narrow_exact, settle, widen
from compressor.core.histogram import Histogram, histogram
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.metrics import Change, carried_over, count_stored_zeros, count_zeros, dot, is_safe
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Borrowed, Workspace
from compressor.engine.execution.cut import Slice, part_buffer, part_offset, part_views, slice_tensor
from compressor.engine.execution.joined import Joined, changes_by_rows, runs_of
from compressor.engine.execution.shards import Shards
from compressor.engine.plan.plan import Job, Plan, Step
from compressor.files.output import Output
from compressor.methods.contract import Block, Coded, Encoder, Selection, Survey, Transform, Treatment, select

Done = tuple[str, Change]  # a tensor, and what happened to some of its rows
Piece = tuple[Job, Slice, Sequence[Treatment], int, int]  # rows, and what treats them before a survey


class Finished(NamedTuple):
    """A container file that is complete, and the hash of its content where it is kept."""

    file: int
    content: str


@dataclass
class Worker:
    """Treats pieces of one plan. `teachers` are the partners' checkpoints by stage, `statistics` those of layer
    inputs; without a `sink` it only observes. `shards` keep the files that are finished. With `histograms` a change
    has one, of what is treated."""

    plan: Plan
    checkpoint: Checkpoint
    teachers: Mapping[int, Checkpoint]
    sink: Output | None
    statistics: Mapping[int, Statistics] = field(default_factory=dict)
    shards: Shards | None = None
    histograms: bool = False
    idle: deque[Workspace] = field(default_factory=deque)

    def __getstate__(self) -> dict[str, Any]:
        """For a process elsewhere: without scratch memory."""
        return {**self.__dict__, "idle": deque()}

    def cut(self, job: Job) -> Slice:
        """How the tensor of a job is divided into chunks and blocks."""
        tensor = self.checkpoint.tensors[job.spec.name]
        partners = [
            self.teachers[step.stage].tensors[name] for step in job.steps for name in step.partners.values()
        ]
        return slice_tensor(job, tensor, partners)

    def observe(self, survey: Survey[Any], pieces: Sequence[Piece]) -> Any:
        """The survey's statistics over some rows of some tensors."""
        stats = survey.start()
        with Borrowed(self.idle) as work:
            for job, cut, treatments, start, stop in pieces:
                for block in self._blocks(job, cut, start, stop, work):
                    numbers = self._transform(job, treatments, block)
                    stats = survey.observe(self._block(job, len(treatments), numbers, block), stats)
        return stats

    def chunk(self, job: Job, cut: Slice, treatments: Sequence[Treatment], start: int, stop: int) -> list[Done]:
        """Read, treat, write and measure rows [start, stop) of a tensor."""
        tensor = self.checkpoint.tensors[job.spec.name]
        with Borrowed(self.idle) as work:
            if not job.steps and tensor.encoder is None:
                change = self._carry(job, tensor, cut, start, stop, work)
            else:
                change = Change()
                for block, after, stored in self._treat(job, cut, treatments, start, stop, work):
                    change.merge(after if isinstance(after, Change) else self._measure(job, block, after, stored))
                    seen = self._seen(job, block, after) if self.histograms else None
                    change.merge(Change(notes=tuple(block.remarks), histogram=seen))
        return [(job.spec.name, change)]

    def chunks(
        self, job: Job, cut: Slice, treatments: Sequence[Treatment], places: Sequence[tuple[int, int]]
    ) -> list[Done]:
        """Several chunks of a tensor, one after the other, where a task is dear."""
        return [done for start, stop in places for done in self.chunk(job, cut, treatments, start, stop)]

    def joined(self, joined: Joined) -> list[Done]:
        """Treat joined neighbours as one tensor. InputError or UsageError that may name the wrong one of them."""
        job, cut = joined.job, self.cut(joined.job)
        with Borrowed(self.idle) as work:
            ((block, after, _),) = self._treat(job, cut, joined.treatments, 0, cut.rows, work, joined)
            assert not isinstance(after, Change)  # noqa: S101 - it was asked for the numbers
            rows = (-1, job.spec.shape[1])  # an element-wise cut is flat
            changes = changes_by_rows(block.values.reshape(rows), after.reshape(rows), np.array(joined.starts))
        return [(member.spec.name, change) for member, change in zip(joined.members, changes, strict=True)]

    def _write_joint(self, joined: Joined, parts: Mapping[str, Array]) -> None:
        """Write the parts of neighbours, each where it belongs, and those whose content the shapes tell."""
        members, rows = joined.members, joined.job.spec.shape[0]
        offsets = self.plan.files[members[0].file].layout.offsets
        for number, part in enumerate(members[0].parts):
            places = [offsets[member.part_name(member.parts[number])] for member in members]
            starts: Sequence[int] = joined.starts
            if part.value is None:
                data = parts[part.suffix]  # flat, where rows do not matter
                data = data.reshape(rows, data.size // rows)
            else:
                values = [np.reshape(np.asarray(member.parts[number].value), -1) for member in members]
                data, starts = np.array(values, DTYPES[part.dtype].storage), range(len(members))
            for start, stop, place in runs_of(starts, len(data), places, data[:1].nbytes):
                self._write(members[0].file, place, data[start:stop])

    def finish(self, file: int) -> Finished:
        """Sync a container file whose tensors are all written."""
        assert self.sink is not None  # noqa: S101 - as in `_write`
        self.sink.finish_file(file)
        return Finished(file, "" if self.shards is None else self.shards.keep(file))

    def _write(self, file: int, offset: int, data: Array) -> None:
        assert self.sink is not None  # noqa: S101 - who writes gave one
        self.sink.write(file, offset, data)

    def _carry(self, job: Job, tensor: Tensor, cut: Slice, start: int, stop: int, work: Workspace) -> Change:
        """Copy as it is."""
        offset = self.plan.files[job.file].layout.offsets[job.spec.name]
        storage = DTYPES[job.spec.dtype].storage
        if cut.turned:
            return self._carry_turned(job, tensor, start, stop, work)
        if cut.bytes:
            raw = tensor.whole.read_bytes(start, stop, work, "carry")
            self._write(job.file, offset + start, raw)
            numbers = raw.view(storage) if storage and len(raw) % np.dtype(storage).itemsize == 0 else raw[:0]
        else:
            numbers = tensor.whole.read_rows(cut.columns, start, stop, work, "carry")
            self._write(job.file, offset + start * cut.columns * numbers.itemsize, numbers)
        zeros, energy = carried_over(numbers, job.spec, work)
        size = (stop - start) * (8 if cut.bytes else 1) * cut.columns
        if cut.bytes:
            size //= DTYPES[job.spec.dtype].bits
        return Change(size, zeros, zeros, energy)

    def _carry_turned(self, job: Job, tensor: Tensor, start: int, stop: int, work: Workspace) -> Change:
        """Copy columns of the matrices of a tensor that is joined of transposed ones."""
        assert isinstance(tensor.whole, JoinedExperts)  # noqa: S101 - it was cut so
        assert self.sink is not None  # noqa: S101 - as in `_write`
        _, inputs, outputs = job.spec.shape
        offset, change = self.plan.files[job.file].layout.offsets[job.spec.name], Change()
        for expert, first, found in tensor.whole.outputs(start, stop, work, "carry"):
            upright = work.array("carry.upright", (inputs, len(found)), found.dtype.str)
            np.copyto(upright, found.T)
            place = offset + (expert * inputs * outputs + first) * found.itemsize
            self.sink.write_columns(job.file, place, outputs * found.itemsize, upright)
            zeros, energy = carried_over(upright, job.spec, work)
            change.merge(Change(found.size, zeros, zeros, energy))
        return change

    def _treat(
        self,
        job: Job,
        cut: Slice,
        treatments: Sequence[Treatment],
        start: int,
        stop: int,
        work: Workspace,
        joined: Joined | None = None,
    ) -> Iterator[tuple[_Read, Array | Change, Array | None]]:
        """Each block with the numbers that the output stands for and, if it stores numbers, these as stored; the
        output is written at the end. Unless neighbours are `joined`, an encoder may tell the change instead."""
        parts, offsets, origins = {}, {}, self.plan.files[job.file].layout.offsets
        for part in job.parts:
            offset = part_offset(part, job, cut, start, stop, origins[job.part_name(part)])
            parts[part.suffix] = part_buffer(part, job, cut, start, stop, offset, work)
            offsets[part.suffix] = offset
        for block in self._blocks(job, cut, start, stop, work):
            rows = slice(block.start - start, block.start - start + len(block.values))
            if not job.stores_parts:
                stored = parts[""][rows]
                if (
                    block.stored is not None
                    and len(treatments) == 1
                    and isinstance(treatments[0], Selection)
                    and joined is None
                ):
                    change = self._select(job, treatments[0], block, stored)
                    if self.histograms:
                        block.after = widen(stored, job.spec.dtype, work, "run.seen")
                    yield block, change, None
                    continue
                result = self._transform(job, treatments, block)
                if block.stored is not None and all(isinstance(one, Selection) for one in treatments):
                    narrow_exact(result, job.spec.dtype, stored, work)
                    yield block, result, stored
                elif treatments:
                    yield block, settle(result, job.spec.dtype, stored, work), stored
                else:  # restoring: these are numbers of the tensor's dtype already
                    if block.settled is None:
                        narrow_exact(result, job.spec.dtype, stored, work)
                    else:
                        np.copyto(stored, block.settled)
                    if joined is None:
                        yield block, _changed(job, block, _zeros_now(block, result, stored, job), 0.0), None
                    else:
                        yield block, result, stored
                continue
            encoder = treatments[-1]
            assert isinstance(encoder, Encoder)  # noqa: S101 - the planner composed it
            views = part_views(parts, job, rows, start)
            if len(treatments) == 1 and joined is None:
                lost, zeros = encoder.measured(self._block(job, 0, block.values, block), views)
                if np.isfinite(lost):  # else look at the numbers
                    if self.histograms:
                        block.after = _decoded(job, encoder, block, views)
                    yield block, _changed(job, block, zeros, lost), None
                    continue
            numbers = self._transform(job, treatments[:-1], block)
            result = work.array("run.restored", numbers.shape, numbers.dtype.str)
            encoder.encode(self._block(job, len(treatments) - 1, numbers, block), views, result)
            yield block, result, None
        if joined is None:
            self._write_parts(job, parts, offsets, start)
        else:
            self._write_joint(joined, parts)

    def _select(self, job: Job, selection: Selection, block: _Read, out: Array) -> Change:
        """Write to `out` the stored weights that stay; what happened, from the bits of those that do not."""
        work, stored = block.work, block.stored
        assert stored is not None  # noqa: S101 - who calls looked
        keep = work.array("run.keep", stored.shape, "|b1")
        selection.keep(self._block(job, 0, block.values, block), keep)
        if job.spec.dtype == "BF16":
            counted = kernels.select_bf16(stored, keep, out)
            if counted is not None and is_safe(counted[0]):
                return _changed(job, block, counted[1], counted[0])
        select(stored, keep, out)
        bits = f"<u{stored.itemsize}"
        gone = work.array("run.gone", stored.shape, bits)
        np.bitwise_xor(stored.view(bits), out.view(bits), out=gone)
        lost = widen(gone.view(stored.dtype), job.spec.dtype, work, "run.lost")
        return _changed(job, block, _zeros(block.values, out, job, work), dot(lost, lost))

    def _seen(self, job: Job, block: _Read, after: Array | Change) -> Histogram | None:
        """The histogram of a block that is treated; None where what is stored stands for other numbers."""
        numbers = block.after if isinstance(after, Change) else after
        if numbers is None or not job.treated or job.norm_partner:
            return None
        return histogram(block.values, numbers, block.work)

    def _measure(self, job: Job, block: _Read, after: Array, stored: Array | None) -> Change:
        """What happened to one block; InputError when a new number is not finite."""
        work = block.work
        counted = kernels.squared_difference(block.values, after)
        if counted is not None and is_safe(counted[0]):
            return _changed(job, block, counted[1], counted[0])
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

    def _write_parts(self, job: Job, parts: Mapping[str, Array], offsets: Mapping[str, int], start: int) -> None:
        assert self.sink is not None  # noqa: S101 - who writes gave one
        for part in job.parts:
            data, offset = parts[part.suffix], offsets[part.suffix]
            if part.every == 0:
                if start != 0:
                    continue
                if part.value is not None:
                    data[...] = np.reshape(part.value, part.shape)
            if part.across:
                self.sink.write_columns(job.file, offset, part.shape[1] * data.itemsize, data)
            else:
                self.sink.write(job.file, offset, data)

    def _blocks(self, job: Job, cut: Slice, start: int, stop: int, work: Workspace) -> Iterator[_Read]:
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
            energy, zeros = rows.counted or (0.0, None)
            if not is_safe(energy):
                energy = self._finite(values, tensor, self.checkpoint)
            beside: dict[int, dict[str, Array]] = {}
            for stage, role, teacher in partners:
                numbers = teacher.block(first, last)
                theirs = self._finite(numbers, teacher.tensor, self.teachers[stage])
                if role == job.norm_partner:
                    energy = theirs
                beside.setdefault(stage, {})[role] = numbers
            coded = None if tensor.encoder is None else Coded(tensor.encoder, rows.views(first, last))
            stored, settled = rows.stored(first, last), rows.settled
            yield _Read(values, stored, first, energy, zeros, beside, work, coded, settled=settled)

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

    def _inputs(self, step: Step, work: Workspace) -> Layer | None:
        """What is known of the inputs of the tensor's layer; a worker holds one layer's of each stage at a time."""
        layer = step.inputs
        if layer is None:
            return None
        read = self.statistics[step.stage].read
        return work.once(f"run.inputs{step.stage}", (layer, step.gram), lambda: read(layer, step.gram))

    def _block(self, job: Job, place: int, numbers: Array, read: _Read) -> Block:
        """What the job's step at `place` gets to see, where `numbers` is what the steps before made of what was
        `read`."""
        step = job.steps[place]
        beside, inputs = read.partners.get(step.stage, {}), self._inputs(step, read.work)
        coded = read.coded if place == 0 else None
        return Block(numbers, read.start, job.spec, read.work, beside, inputs, coded, read.remarks)

    def _transform(self, job: Job, treatments: Sequence[Treatment], block: _Read) -> Array:
        """The numbers after these; two buffers take turns."""
        numbers = block.values
        for turn, one in enumerate(treatments):
            out = block.work.array(f"run.turn{turn % 2}", numbers.shape, numbers.dtype.str)
            inner = self._block(job, turn, numbers, block)
            if isinstance(one, Encoder):
                one.encode(inner, None, out)
            else:
                assert isinstance(one, Transform)  # noqa: S101 - there are no other kinds
                one.apply(inner, out)
            numbers = out
        return numbers


@dataclass(slots=True)
class _Read:
    """A block as it came from disk, as numbers and as stored; partners by stage and role."""

    values: Array
    stored: Array | None
    start: int
    energy: float
    zeros: int | None  # where they are known already
    partners: dict[int, dict[str, Array]]
    work: Workspace
    coded: Coded | None = None
    remarks: list[str] = field(default_factory=list)
    after: Array | None = None  # the new numbers, where an encoder told the change without them
    settled: Array | None = None  # decoded numbers as the tensor's dtype has them


def _decoded(job: Job, encoder: Encoder, block: _Read, views: Mapping[str, Array]) -> Array:
    """The numbers that the parts of a block stand for."""
    for part in job.parts:
        if part.value is not None:
            views[part.suffix][...] = np.reshape(part.value, views[part.suffix].shape)
    out: Array = block.work.array("run.seen", block.values.shape, block.values.dtype.str)
    encoder.decoder.decode(views, job.spec, out, block.start, block.work)
    if encoder.decoder.on_base:
        (base,) = block.partners[job.steps[-1].stage].values()
        add_base(out, base, job.spec.dtype)
    return out


def _zeros(numbers: Array, raw: Array | None, job: Job, work: Workspace) -> int:
    return count_zeros(numbers, work) if raw is None else count_stored_zeros(raw, job.spec, work)


def _zeros_now(block: _Read, numbers: Array, stored: Array, job: Job) -> int:
    """The zeros of a block that nothing is done to."""
    return _zeros(numbers, stored, job, block.work) if block.zeros is None else block.zeros


def _changed(job: Job, block: _Read, zeros: int, lost: float) -> Change:
    before = block.zeros
    if before is None:
        before = _zeros(block.values, block.stored, job, block.work)
    return Change(block.values.size, before, zeros, block.energy, lost)
