"""What an output that lies there is, told by its record and its files: `report`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint, Tensor, open_checkpoint
from compressor.checkpoint.finite import blocks_of
from compressor.core.errors import InputError
from compressor.core.histogram import Histogram, histogram
from compressor.core.lazy import np
from compressor.core.metrics import Comparison, count_zeros
from compressor.core.parallel.threads import available_workers, in_order, local
from compressor.core.shown import Shown, document_of
from compressor.core.tensor import DTYPES
from compressor.core.text import printable
from compressor.core.workspace import Workspace
from compressor.files.identity import Identity, identity_of
from compressor.workflows.compare import ComparedTensor, compared_tensors, stored_as

Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, repr=False)
class WrittenReport(Shown):
    """An output: its tensors beside those that they stand for, with what was lost (`total`) where its source was
    there too. `sizes` are bytes of the source, or of the dense tensors, and of the output. `stages`, `plan` and
    `made_of` are what the record says, which only outputs of compressor have; `notes` tell what cannot be shown."""

    output: str
    source: str
    rows: tuple[ComparedTensor, ...]
    sizes: tuple[int, int]
    total: Comparison | None
    stages: Sequence[Mapping[str, Any]]
    plan: str
    made_of: Identity | None
    notes: tuple[str, ...]

    def to_html(self) -> str:
        """The whole report to look at: one document that loads nothing."""
        return document_of(self)


def report(
    output: Path,
    *,
    source: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> WrittenReport:
    """Tell what `output` is; with its `source` also what was lost, with histograms of both. InputError where the
    record says that it was made of another one. `progress` is told the bytes that are read, of how many."""
    made = open_checkpoint(output)
    record = next((one for one in made.records if one.plan), None)
    stages = next((one.stages for one in made.records if one.stages), ())
    notes = list(_unknown(source is not None, record is not None))
    count = available_workers() if workers is None else workers
    if source is None:
        rows, total = _looked_at(made, count, progress), None
        before = sum(row.sizes[0] for row in rows)
    else:
        given = open_checkpoint(source)
        if record is not None and record.made_of is not None:
            _check_made_of(made, given, record.made_of)
        rows, total = compared_tensors(given, made, count, progress, histograms=True)
        given.source.check_unchanged()
        before = given.source.nbytes
    made.source.check_unchanged()
    return WrittenReport(
        os.fspath(output),
        "" if source is None else os.fspath(source),
        tuple(rows),
        (before, made.source.nbytes),
        total,
        stages,
        record.plan if record is not None else "",
        record.made_of if record is not None else None,
        tuple(notes),
    )


def _unknown(with_source: bool, recorded: bool) -> Iterator[str]:
    """What there is no telling of."""
    if not recorded:
        yield "it has no record of compressor, which would say what was done and of which source"
    if not with_source:
        yield "its source was not given (--source), so that errors and the numbers of before cannot be shown"
    yield "a budget's curve, gates and why tensors were kept are known to the run alone (its own --report)"


def _check_made_of(made: Checkpoint, given: Checkpoint, known: Identity) -> None:
    """InputError unless the record names this source."""
    found = identity_of(given.source)
    if found != known:
        raise InputError(
            f"is not what {printable(made.path)} was made of: its hash is {found[1][:16]}…, "
            f"and by the record that of the source {known[1][:16]}…",
            file=given.path,
            remedy="`compressor compare A B --report FILE.html` is for any two",
        )


def _looked_at(made: Checkpoint, count: int, progress: Progress | None) -> list[ComparedTensor]:
    """A row for each tensor, whose side before is what it stands for, the largest first."""
    tensors = sorted(made.tensors.values(), key=lambda one: (-one.spec.nbytes, one.spec.name))
    done, size = 0, sum(one.nbytes for one in tensors)
    rows = []
    with local(count) as executor:
        tasks = (partial(_numbers_of, one) for one in tensors)
        for one, found in zip(tensors, in_order(executor, tasks, 2 * count), strict=True):
            spec = one.spec
            sides = (spec.dtype, stored_as(one)), (spec.nbytes, one.nbytes)
            rows.append(ComparedTensor(spec.name, spec.shape, (spec.dtype, spec.dtype), *sides, found))
            done += one.nbytes
            if progress is not None:
                progress(done, size)
    return rows


def _numbers_of(tensor: Tensor) -> Comparison | None:
    """Zeros and a histogram of a tensor's numbers; None where they are none to count with."""
    if not DTYPES[tensor.spec.dtype].storage or not tensor.spec.is_float:
        return None
    total, work = Comparison(), Workspace()
    with np.errstate(all="ignore"):
        for block in blocks_of(tensor, work, tensor.align):
            seen: Histogram | None = None
            if np.isfinite(block).all():
                seen = histogram(block[:0], block, work)
            total.merge(Comparison(block.size, 0, count_zeros(block, work), histogram=seen))
    return total
