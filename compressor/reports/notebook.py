"""Results in one line, and as HTML for a notebook: the line, and a table of what is most worth seeing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.calibration.result import CalibrationReport
from compressor.core.text import printable, size_text
from compressor.reports.figures import error_text, percent
from compressor.reports.markup import told
from compressor.workflows.compare import ComparedTensor, ComparisonReport
from compressor.workflows.inspect import InspectReport
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.results import Report
from compressor.workflows.written import WrittenReport

_ROWS = 20
Result = Report | ComparisonReport | InspectReport | CalibrationReport | MergeReport | WrittenReport


@dataclass(frozen=True)
class _Table:
    """A table's heads and rows, and how many rows there would be."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    count: int


def line_of(result: Result) -> str:
    """A result in one line."""
    if isinstance(result, Report):
        return _run(result)
    if isinstance(result, MergeReport):
        sizes = f"{size_text(result.size_before)} → {size_text(result.size_after)}"
        return f"merge of {result.parts} parts: {printable(result.output)}: {sizes}"
    if isinstance(result, ComparisonReport):
        found = f"{printable(result.a)} and {printable(result.b)}"
        if result.loss is not None:
            return f"compare: {found}, by their outputs on {printable(result.loss.source)}"
        return f"compare: {found}: relative error {error_text(result.total.error)} of {len(result.rows)} tensors"
    if isinstance(result, WrittenReport):
        sizes = f"{size_text(result.sizes[0])} → {size_text(result.sizes[1])}, {len(result.rows)} tensors"
        error = "" if result.total is None else f", relative error {error_text(result.total.error)}"
        return f"report: {printable(result.output)}: {sizes}{error}"
    if isinstance(result, CalibrationReport):
        return f"calibrate: {printable(result.output)}: {len(result.layers)} layers, {size_text(result.size)}"
    return f"inspect: {printable(result.path)}: {len(result.rows)} tensors, {size_text(result.size)}"


def _run(report: Report) -> str:
    plan = report.plan
    treated = f"{len(report.rows)} tensor{'' if len(report.rows) == 1 else 's'} treated"
    sizes = f"{size_text(plan.size_before)} → {size_text(plan.size_after)}, {treated}"
    error = "" if report.total is None else f", relative error {error_text(report.total.error)}"
    what = "not written, a gate failed" if report.failures else "a dry run" if report.changes is None else "written"
    return f"{report.verb}: {printable(report.output)}: {what}: {sizes}{error}"


def render_fragment(result: Result) -> str:
    """The line and the table as HTML, in the style of what it stands in."""
    table = _table(result)
    heads = "".join(f"<th>{told(head)}</th>" for head in table.heads)
    rows = "".join(f"<tr>{''.join(f'<td>{told(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    more = f"<p>and {table.count - len(table.rows)} more</p>" if table.count > len(table.rows) else ""
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<p>{told(line_of(result), 1000)}</p>{body}{more}"


def _table(result: Result) -> _Table:
    if isinstance(result, Report):
        return _treated(result)
    if isinstance(result, MergeReport):
        worst = sorted(result.rows, key=lambda one: -one.change.error)[:_ROWS]
        merged = [[one.name, f"{one.dtype} → {one.dtype_after}", error_text(one.change.error)] for one in worst]
        return _Table(("tensor", "dtype", "error"), merged, len(result.rows))
    if isinstance(result, WrittenReport):
        return _tensors(result.rows, errors=result.total is not None)
    if isinstance(result, ComparisonReport):
        return _compared(result)
    if isinstance(result, CalibrationReport):
        layers = [[one.name, str(one.rows), str(one.width)] for one in result.layers[:_ROWS]]
        return _Table(("layer", "rows", "width"), layers, len(result.layers))
    found = [
        [one.spec.name, one.spec.dtype, _shape(one.spec.shape), size_text(one.nbytes)]
        for one, _ in result.rows[:_ROWS]
    ]
    return _Table(("tensor", "dtype", "shape", "size"), found, len(result.rows))


def _treated(report: Report) -> _Table:
    worst = sorted(report.rows, key=lambda row: 0 if row[1] is None else -row[1].error)[:_ROWS]
    rows = [
        [
            job.spec.name,
            _shape(job.spec.shape),
            f"{job.spec.dtype} → {job.dtype_after}",
            f"{size_text(job.size_before)} → {size_text(job.size_after)}",
            "" if change is None else percent(change.sparsity_after),
            "" if change is None else error_text(change.error),
        ]
        for job, change in worst
    ]
    return _Table(("tensor", "shape", "dtype", "size", "zeros", "error"), rows, len(report.rows))


def _compared(report: ComparisonReport) -> _Table:
    if report.loss is not None:
        blocks = [[str(one.number), error_text(one.added), error_text(one.total)] for one in report.loss.blocks]
        return _Table(("block", "error added", "error so far"), blocks[:_ROWS], len(blocks))
    return _tensors(report.rows, errors=True)


def _tensors(compared: Sequence[ComparedTensor], *, errors: bool) -> _Table:
    rows = [
        [
            row.name,
            _shape(row.shape),
            " → ".join(filter(None, row.stored)),
            " → ".join(size_text(size) for size, kind in zip(row.sizes, row.stored, strict=True) if kind),
            row.problem or (error_text(row.measured.error) if errors and row.measured is not None else ""),
        ]
        for row in compared[:_ROWS]
    ]
    return _Table(("tensor", "shape", "dtype", "size", "error"), rows, len(compared))


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
