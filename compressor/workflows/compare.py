"""What B lost against A: `compare`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isnan
from typing import Any

from compressor.calibration.loss import ModelLoss
from compressor.checkpoint.checkpoint import Checkpoint, Tensor, open_checkpoint
from compressor.checkpoint.delta_base import has_base, open_with_base
from compressor.checkpoint.experts import split_like
from compressor.checkpoint.finite import blocks_of
from compressor.core import kernels
from compressor.core.errors import InputError
from compressor.core.histogram import histogram
from compressor.core.lazy import np
from compressor.core.metrics import Comparison, count_zeros, dot, is_safe
from compressor.core.parallel.threads import available_workers, in_order, local
from compressor.core.shown import Shown, document_of
from compressor.core.tensor import DTYPES
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.engine.plan.plan import short_name
from compressor.recipe.loss_gates import LossGates
from compressor.workflows.model_loss import LossInput, measure_loss, values_of
from compressor.workflows.results import Verdict

Path = str | os.PathLike[str]
_NAMED = 2  # tensors of either side in a message


@dataclass(frozen=True)
class ComparedTensor:
    """One row of `compare`: metrics, or the reason why there are none. `dtypes` are those of the numbers, `stored`
    what they lie there as and `sizes` the bytes of that, of A and of B; "" and 0 where a side has none."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    stored: tuple[str, str]
    sizes: tuple[int, int]
    measured: Any = None
    problem: str = ""


@dataclass(frozen=True, repr=False)
class ComparisonReport(Shown):
    """`compare A B`: rows sorted worst first, and the gates that failed; or what the outputs lost."""

    a: str
    b: str
    rows: tuple[ComparedTensor, ...]
    total: Any
    sizes: tuple[int, int]
    gates: tuple[Verdict, ...] = ()
    loss: ModelLoss | None = None

    def to_html(self) -> str:
        """The whole report to look at, as `--report FILE.html` writes it: one document that loads nothing. It has
        histograms where they were asked for (`histograms=True`)."""
        return document_of(self)

    @property
    def failures(self) -> tuple[str, ...]:
        """What gates say that do not hold."""
        return tuple(one.failure for one in self.gates if one.failure)

    @property
    def apart(self) -> tuple[ComparedTensor, ...]:
        """The tensors that could not be compared, since only one side has them in that shape."""
        return tuple(row for row in self.rows if row.problem)


@dataclass(frozen=True)
class Sides:
    """The paths of what is compared, and of the base that one of them, or both, is coded against."""

    a: Path
    b: Path
    base: Path | None = None

    def opened(self) -> tuple[Checkpoint, Checkpoint]:
        """Both; a base that neither is coded against is B's, which then refuses it."""
        if self.base is None:
            return open_checkpoint(self.a), open_checkpoint(self.b)
        base, left, right = os.fspath(self.base), open_checkpoint(self.a), open_checkpoint(self.b)
        first, second = has_base(left), has_base(right)
        if first:
            left = open_with_base(self.a, base)
        return left, open_with_base(self.b, base) if second or not first else right


def compare(
    sides: Sides,
    *,
    max_error: float | None = None,
    min_sqnr: float | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    histograms: bool = False,
) -> ComparisonReport:
    """Measure B against A, tensor by tensor, both restored if they store codes; worst first.

    A tensor that only one side has, or that differs in shape, is a row with a problem, and fails any gate.
    `progress` is told the bytes that are compared, of how many. With `histograms` rows have one of their numbers,
    as documents draw it.
    """
    left, right = sides.opened()
    count = available_workers() if workers is None else workers
    rows, total = compared_tensors(left, right, count, progress, histograms=histograms)
    left.source.check_unchanged()
    right.source.check_unchanged()
    gates = tuple(_judge(rows, max_error, min_sqnr))
    sizes = (left.source.nbytes, right.source.nbytes)
    return ComparisonReport(os.fspath(sides.a), os.fspath(sides.b), tuple(rows), total, sizes, gates)


def compare_outputs(
    sides: Sides, what: LossInput, gates: LossGates, progress: Callable[[int, int], None] | None = None
) -> ComparisonReport:
    """Measure what B's outputs lost against A's. The report has no rows: tensors are not looked at one by one."""
    left, right = sides.opened()
    loss = measure_loss(left, right, what, gates, progress)
    left.source.check_unchanged()
    right.source.check_unchanged()
    sizes = (left.source.nbytes, right.source.nbytes)
    judged = gates.judged(values_of(loss.outputs))
    verdicts = tuple(_verdict(one.gate, one.measured, kept=one.holds) for one in judged)
    return ComparisonReport(os.fspath(sides.a), os.fspath(sides.b), (), Comparison(), sizes, verdicts, loss)


def compared_tensors(
    left: Checkpoint,
    right: Checkpoint,
    count: int,
    progress: Callable[[int, int], None] | None,
    *,
    histograms: bool = False,
) -> tuple[list[ComparedTensor], Comparison]:
    """A row for each tensor of either side, worst first, and all of them together, by so many workers. InputError
    where there is none that both sides have."""
    if "gguf" in (left.source.kind, right.source.kind):
        left, right = _of_one_naming(left, right)
    left, right = split_like(left, right), split_like(right, left)
    lone = len(left.tensors) == len(right.tensors) == 1
    pairs: list[tuple[Tensor, Tensor]] = []
    rows: list[ComparedTensor] = []
    shared = False  # some tensor is there on both sides, though it may be one that cannot be subtracted
    for name, one in left.tensors.items():
        other = right.tensors.get(name)
        if other is None and lone:
            other = next(iter(right.tensors.values()))
        shared |= other is not None and one.spec.shape == other.spec.shape
        problem = _mismatch(one, other)
        if other is None or problem:
            rows.append(_row(name, one, other, problem=problem))
        else:
            pairs.append((one, other))
    if not lone:
        rows += [
            _row(name, None, other, problem="only in B")
            for name, other in right.tensors.items()
            if name not in left.tensors
        ]
    if rows and not shared:
        raise InputError(
            f"has no tensor in common with {printable(os.fspath(left.source.path), 200)}: {_told(rows)}",
            file=right.source.path,
            remedy="`compressor inspect` shows what each of them holds",
        )
    total, done, size = Comparison(), 0, sum(one.nbytes + other.nbytes for one, other in pairs)
    with local(count) as executor:
        tasks = (partial(_compare, one, other, histograms=histograms) for one, other in pairs)
        for (one, other), measured in zip(pairs, in_order(executor, tasks, 2 * count), strict=True):
            rows.append(_row(one.spec.name, one, other, measured))
            total.merge(measured)
            done += one.nbytes + other.nbytes
            if progress is not None:
                progress(done, size)
    rows.sort(key=lambda row: (not row.problem, -row.measured.error if row.measured else 0, row.name))
    return rows, total


def _row(
    name: str, one: Tensor | None, other: Tensor | None, measured: Comparison | None = None, problem: str = ""
) -> ComparedTensor:
    """The row of a tensor that one of the sides has at least."""
    sides = [(side.spec.dtype, stored_as(side), side.nbytes) if side else ("", "", 0) for side in (one, other)]
    dtypes, stored, sizes = zip(*sides, strict=True)
    shape = next(side.spec.shape for side in (one, other) if side is not None)
    return ComparedTensor(name, shape, dtypes, stored, sizes, measured, problem)


def stored_as(tensor: Tensor) -> str:
    """How tables call what a tensor lies in its file as."""
    return tensor.spec.dtype if tensor.encoder is None else short_name(tensor.encoder)


def _of_one_naming(left: Checkpoint, right: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both under the names of transformers, where one of them is a model in a GGUF file and they share none; and
    with the shapes that their metadata says, or the names that a file of images' models would have."""
    from compressor.checkpoint.gguf.from_file import as_folder, is_file_of_a_model
    from compressor.checkpoint.gguf.reshaped import with_original_shapes
    from compressor.checkpoint.gguf.to_file import without_prefix

    left, right = (
        with_original_shapes(one) if one.source.kind == "gguf" else without_prefix(one) for one in (left, right)
    )
    if left.tensors.keys() & right.tensors.keys():
        return left, right
    if is_file_of_a_model(left) == is_file_of_a_model(right):
        return left, right
    return (as_folder(left), right) if is_file_of_a_model(left) else (left, as_folder(right))


def _mismatch(one: Tensor, other: Tensor | None) -> str:
    if other is None:
        return "only in A"
    if one.spec.shape != other.spec.shape:
        return f"shape {list(one.spec.shape)} in A, {list(other.spec.shape)} in B"
    narrow = not DTYPES[one.spec.dtype].storage or not DTYPES[other.spec.dtype].storage
    if narrow or "C64" in (one.spec.dtype, other.spec.dtype):  # nothing to subtract one from the other
        return "" if one.spec.dtype == other.spec.dtype else f"{one.spec.dtype} and {other.spec.dtype}"
    return ""


def _told(rows: Sequence[ComparedTensor]) -> str:
    """Some of the tensors that do not match: of A, and then of B."""
    ours = [row for row in rows if row.dtypes[0]][:_NAMED]
    theirs = [row for row in rows if not row.dtypes[0]][:_NAMED]
    said = [f"'{printable(row.name, 60)}' {list(row.shape)}: {row.problem}" for row in (*ours, *theirs)]
    more = len(rows) - len(said)
    return "; ".join([*said, *([f"and {more} more"] if more else [])])


def _judge(rows: list[ComparedTensor], max_error: float | None, min_sqnr: float | None) -> Iterator[Verdict]:
    """What the gates say: with any, of each tensor that does not match; of the worst that was measured."""
    if max_error is None and min_sqnr is None:
        return
    for row in rows:
        if row.problem:
            yield Verdict("tensors match", row.problem, f"'{row.name}': {row.problem}")
    measured = [row for row in rows if row.measured is not None]
    if max_error is not None and measured:
        row = max(measured, key=lambda row: inf if isnan(row.measured.error) else row.measured.error)
        said = f"the relative error of '{row.name}' is {row.measured.error:.4g}"
        yield _verdict(f"--max-error {max_error:g}", said, kept=row.measured.error <= max_error)
    if min_sqnr is not None and measured:
        row = min(measured, key=lambda row: -inf if isnan(row.measured.sqnr) else row.measured.sqnr)
        said = f"the SQNR of '{row.name}' is {row.measured.sqnr:.4g} dB"
        yield _verdict(f"--min-sqnr {min_sqnr:g}", said, kept=row.measured.sqnr >= min_sqnr)


def _verdict(gate: str, said: str, *, kept: bool) -> Verdict:
    return Verdict(gate, said, "" if kept else f"{gate}: {said}")


def _compare(one: Tensor, other: Tensor, *, histograms: bool = False) -> Comparison:
    with np.errstate(all="ignore"):  # what is not finite is looked for
        return _compared(one, other, histograms)


def _compared(one: Tensor, other: Tensor, histograms: bool) -> Comparison:
    total = Comparison()
    work = Workspace()
    beside = blocks_of(other, Workspace(), max(one.align, other.align))
    for a in blocks_of(one, work, max(one.align, other.align)):
        b = next(beside)
        a, b = _numbers(a), _numbers(b)
        if histograms and np.isfinite(a).all() and np.isfinite(b).all():
            total.merge(Comparison(histogram=histogram(a, b, work)))
        found = kernels.compare(a, b)
        if found is not None and all(map(is_safe, found[:4])):
            lost, energy, energy_b, product, zeros, zeros_b, most = found
            total.merge(Comparison(a.size, zeros, zeros_b, energy, lost, energy_b, product, most))
            continue
        difference = np.subtract(a, b)
        wrong = ~np.isfinite(difference)
        if wrong.any():  # equal NaN or Inf on both sides are no loss; anything else is
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            if not same[wrong].all():
                difference[wrong & ~same] = np.inf
            difference[wrong & same] = 0
            a, b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
        lost = dot(difference, difference) if np.isfinite(difference).all() else np.inf
        total.merge(
            Comparison(
                a.size,
                count_zeros(a, work),
                count_zeros(b, work),
                dot(a, a),
                lost,
                dot(b, b),
                dot(a, b),
                float(np.max(np.abs(difference), initial=0)),
            )
        )
    return total


def _numbers(block: Array) -> Array:
    """Floats as they are, everything else as float64; of a complex number both halves."""
    if block.dtype.kind == "c":
        return block.view(block.real.dtype).astype(np.float64)
    return block if block.dtype.kind == "f" else block.astype(np.float64)
