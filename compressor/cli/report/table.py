"""Reports as tables for people: readable at 80 columns, on wide terminals and in a log without one."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from compressor.architectures.groups import Coupled
from compressor.calibration.result import CalibrationReport
from compressor.checkpoint.checkpoint import Tensor
from compressor.cli.report.page import Column, Page, shown_name
from compressor.core.metrics import Change, Moments
from compressor.core.text import printable, size_text
from compressor.engine.plan.plan import Job, Plan
from compressor.reports.figures import error_text, percent
from compressor.workflows.archive_contents import CodingGain, summed
from compressor.workflows.compare import ComparisonReport
from compressor.workflows.inspect import InspectReport
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.results import Report

_MANY = 60  # rows that are shown without being asked for more


def render(
    report: Report | ComparisonReport | InspectReport | CalibrationReport | MergeReport,
    *,
    top: int | None = None,
    quiet: bool = False,
    wide: bool = False,
) -> str:
    """Tables and closing lines, ending in a newline; with `quiet` the last of these alone."""
    page = Page(wide=wide, quiet=quiet)
    if isinstance(report, Report):
        _report(page, report, top)
    elif isinstance(report, ComparisonReport):
        _comparison(page, report, top)
    elif isinstance(report, CalibrationReport):
        _calibration(page, report, top)
    elif isinstance(report, MergeReport):
        _merged(page, report, top)
    else:
        _inspection(page, report, top)
    return page.text()


# ---- transforming verbs --------------------------------------------------------------------------------

_REPORT = (
    Column("tensor", 9, right=False),
    Column("shape", 1),
    Column("dtype", 6, right=False),
    Column("size", 7),
    Column("sparsity", 3),
    Column("bits/w", 2),
    Column("error", 8),
)


def _report(page: Page, report: Report, top: int | None) -> None:
    plan, rows = report.plan, report.rows
    _cuts(page, plan, top)
    if rows:
        shown = rows
        limit = _MANY if top is None else top
        if limit and len(rows) > limit:
            shown = sorted(rows, key=lambda row: -(row[1].error if row[1] else row[0].size_before))[:limit]
        page.table(_REPORT, [_row(page, job, change) for job, change in shown], _total(page, report))
        if len(shown) < len(rows):
            page.line(f"{len(rows) - len(shown)} more tensors; --top 0 shows all, --format json gives all")
        page.line()
    for reason, jobs in report.kept:
        size = size_text(sum(job.size_after for job in jobs))
        page.line(f"kept {len(jobs)} ({size}): {reason}: {_names(page, jobs)}")
    for reason, jobs in _partly(plan.jobs):
        page.line(f"left out of a stage {len(jobs)}: {reason}: {_names(page, jobs)}")
    for said, jobs in _instead(plan.jobs):
        page.line(f"instead {len(jobs)}: {said}: {_names(page, jobs)}")
    for name, reason in plan.left:
        page.line(f"left behind: {printable(name, 60)}: {reason}")
    for note in plan.notes:
        page.line(f"note: {note}")
    if report.part is not None:
        whole = f"{len(report.part)} of {len(plan.jobs)} tensors"
        page.verdict(f"wrote {printable(report.output)}: a part, with something of {whole}")
        return
    verb = "not written" if report.failures else "would write" if report.changes is None else "wrote"
    page.verdict(
        f"{verb} {printable(report.output)}: {size_text(plan.size_before)} {page.arrow} "
        f"{size_text(plan.size_after)}, {_ratio(page, report.ratio)}{_overall(page, report)}",
    )


_MERGED = (Column("tensor", 9, right=False), Column("shape", 1), Column("sparsity", 5), Column("error", 8))


def _merged(page: Page, report: MergeReport, top: int | None) -> None:
    """What an output of several parts came to, the worst tensors first where there are many."""
    if report.rows:
        limit = _MANY if top is None else top
        shown = report.rows
        if limit and len(shown) > limit:
            shown = sorted(shown, key=lambda row: -row.change.error)[:limit]
        page.table(
            _MERGED,
            [
                [
                    shown_name(row.name),
                    page.shape(row.shape),
                    page.pair(percent(row.change.sparsity_before), percent(row.change.sparsity_after)),
                    error_text(row.change.error),
                ]
                for row in shown
            ],
        )
        if len(shown) < len(report.rows):
            more = len(report.rows) - len(shown)
            page.line(f"{more} more tensors; --top 0 shows all, --format json gives all")
        page.line()
    error = error_text(report.everything.error)
    page.verdict(
        f"{'not written' if report.failures else 'merged'} {printable(report.output)}, {report.parts} parts: "
        f"{size_text(report.size_before)} {page.arrow} {size_text(report.size_after)}, "
        f"{_ratio(page, report.size_before / report.size_after)}, relative error {error}",
    )


_CUTS = (
    Column("structure", 9, right=False),
    Column("units", 8),
    Column("importance removed", 7),
    Column("largest error", 6),
)


def _cuts(page: Page, plan: Plan, top: int | None) -> None:
    """The coupled groups that structured cuts made smaller, the most hurt first where there are many."""
    if not plan.cuts:
        return
    limit = _MANY if top is None else top
    shown: Sequence[Coupled] = plan.cuts
    if limit and len(shown) > limit:
        shown = sorted(shown, key=lambda cut: -cut.error)[:limit]
    page.table(
        _CUTS,
        [
            [
                f"{cut.structure} {shown_name(cut.name)}",
                page.pair(str(cut.before), str(cut.after)),
                percent(cut.removed),
                error_text(cut.error),
            ]
            for cut in shown
        ],
    )
    if len(shown) < len(plan.cuts):
        page.line(f"{len(plan.cuts) - len(shown)} more groups; --top 0 shows all, --format json gives all")
    page.line()


def _ratio(page: Page, ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "same size"
    return f"{ratio:.3g}{page.times} smaller" if ratio > 1 else f"{1 / ratio:.3g}{page.times} larger"


def _names(page: Page, jobs: Sequence[Job]) -> str:
    return ", ".join(printable(job.spec.name, 60) for job in jobs[:2]) + (f", {page.more}" if len(jobs) > 2 else "")


def _partly(jobs: Sequence[Job]) -> list[tuple[str, list[Job]]]:
    """Tensors that some stages treated and others left alone, by the reason of those."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        for reason in dict.fromkeys(why.reason for why in job.left_alone if job.treated):
            groups.setdefault(reason, []).append(job)
    return list(groups.items())


def _instead(jobs: Sequence[Job]) -> list[tuple[str, list[Job]]]:
    """Tensors whose shape did not allow what was asked, by what they got."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        for step in job.steps:
            if step.instead:
                groups.setdefault(step.instead, []).append(job)
    return list(groups.items())


def _overall(page: Page, report: Report) -> str:
    """Figures of the whole file, as the sizes before them are; those of the treated tensors are below the table."""
    everything = report.everything
    if everything is None:
        return ""
    sparsity = page.pair(percent(everything.sparsity_before), percent(everything.sparsity_after))
    return f", zeros {sparsity}" + (f", relative error {error_text(everything.error)}" if report.rows else "")


def _row(page: Page, job: Job, change: Change | None) -> list[str]:
    spec = job.spec
    bits = job.size_after * 8 / spec.size if spec.size else 0
    return [
        shown_name(spec.name),
        page.shape(spec.shape),
        page.pair(job.dtype_before, job.dtype_after),
        page.pair(size_text(job.size_before), size_text(job.size_after)),
        page.pair(percent(change.sparsity_before), percent(change.sparsity_after)) if change else "",
        f"{bits:.3g}",
        error_text(change.error) if change else "",
    ]


def _total(page: Page, report: Report) -> list[str]:
    total = report.total
    before = sum(job.size_before for job, _ in report.rows)
    after = sum(job.size_after for job, _ in report.rows)
    return [
        f"{len(report.rows)} {'treated' if report.plan.stages else 'restored'}",
        "",
        "",
        page.pair(size_text(before), size_text(after)),
        page.pair(percent(total.sparsity_before), percent(total.sparsity_after)) if total else "",
        f"{report.bits_per_weight:.3g}",
        error_text(total.error) if total else "",
    ]


# ---- compare, inspect, recipes -------------------------------------------------------------------------

_COMPARISON = (
    Column("tensor", 9, right=False),
    Column("shape", 1),
    Column("dtype", 6, right=False),
    Column("size", 7),
    Column("sparsity", 3),
    Column("cosine", 4),
    Column("max error", 2),
    Column("SQNR dB", 5),
    Column("error", 8),
)


def _comparison(page: Page, report: ComparisonReport, top: int | None) -> None:
    if report.loss is not None:
        from compressor.cli.report.loss import to_page

        to_page(page, report, top)
        return
    limit = _MANY if top is None else top
    shown = report.rows[: limit or None]
    rows = []
    for row in shown:
        found = row.measured
        head = [shown_name(row.name), page.shape(row.shape), _both(page, row.stored)]
        head.append(
            _both(page, [size_text(size) if kind else "" for size, kind in zip(row.sizes, row.stored, strict=True)])
        )
        if found is None:
            rows.append([*head, "", "", "", "", row.problem])
            continue
        rows.append(
            [
                *head,
                page.pair(percent(found.sparsity_before), percent(found.sparsity_after)),
                f"{found.cosine:.6f}",
                error_text(found.largest),
                "inf" if isinf(found.sqnr) else f"{found.sqnr:.1f}",
                error_text(found.error),
            ]
        )
    page.table(_COMPARISON, rows)
    if len(shown) < len(report.rows):
        page.line(f"{len(report.rows) - len(shown)} more tensors; --top 0 shows all")
    total = report.total
    if report.apart:
        page.line(f"{len(report.apart)} of {len(report.rows)} tensors do not match; the others were compared")
    page.line()
    page.verdict(
        f"{printable(report.b)} against {printable(report.a)}: {size_text(report.sizes[0])} {page.arrow} "
        f"{size_text(report.sizes[1])}, relative error {error_text(total.error)}, cosine {total.cosine:.6f}",
    )


def _both(page: Page, sides: Sequence[str]) -> str:
    """What A's and B's tensor have; that of one where the other has no such tensor."""
    return page.pair(*sides) if all(sides) else "".join(sides)


_INSPECTION = (
    Column("tensor", 9, right=False),
    Column("shape", 7),
    Column("dtype", 8, right=False),
    Column("size", 6),
)
_MOMENTS = (Column("zeros", 5), Column("min", 3), Column("max", 4), Column("mean", 1), Column("std", 2))


def _inspection(page: Page, report: InspectReport, top: int | None) -> None:
    rows = list(report.rows)
    with_stats = any(moments is not None for _, moments in rows)
    limit = _MANY if top is None else top
    shown = rows if not limit or len(rows) <= limit else sorted(rows, key=lambda row: -row[0].nbytes)[:limit]
    if with_stats or not report.codings:
        page.table(
            (*_INSPECTION, *(_MOMENTS if with_stats else ())),
            [_inspected(page, tensor, moments, with_stats) for tensor, moments in shown],
        )
        if len(shown) < len(rows):
            page.line(f"{len(rows) - len(shown)} more tensors; --top 0 shows all")
    if report.codings:
        _coding_table(page, report.codings, limit)
    for name, reason in report.left.items():
        page.line(f"not weights of it: {printable(name, 60)}: {reason}")
    for tensor, moments in rows:
        if moments is not None and moments.non_finite:
            page.line(
                f"{shown_name(tensor.spec.name)} holds {moments.non_finite} NaN or infinite values",
                style="bold",
            )
    page.line()
    said = f", {report.compression}" if report.compression else ""
    weights = sum(tensor.spec.size for tensor, _ in rows)
    original = sum(one.original for one in report.codings)
    smaller = f", {original / report.size:.3g}{page.times} smaller than its tensors" if original else ""
    page.verdict(
        f"{printable(report.path)}: {report.kind}{said}, {len(rows)} tensor{'s' * (len(rows) != 1)}, "
        f"{weights:,} elements, "
        f"{size_text(report.size)}{smaller}",
    )


def _inspected(page: Page, tensor: Tensor, moments: Moments | None, with_stats: bool) -> list[str]:
    stored = "" if tensor.encoder is None else tensor.encoder.stored_name
    row = [
        shown_name(tensor.spec.name),
        page.shape(tensor.spec.shape),
        f"{tensor.spec.dtype} as {stored}" if stored else tensor.spec.dtype,
        size_text(tensor.nbytes),
    ]
    if moments is None:
        return row + [""] * (5 if with_stats else 0)
    empty = moments.size == moments.non_finite
    numbers = (
        ["", "", "", ""]
        if empty
        else [f"{v:.4g}" for v in (moments.low, moments.high, moments.mean, moments.deviation)]
    )
    return [*row, percent(moments.zeros / moments.size) if moments.size else "", *numbers]


_CALIBRATION = (
    Column("layer", 9, right=False),
    Column("rows", 6),
    Column("width", 7),
    Column("statistics", 5, right=False),
    Column("size", 4),
)


def _calibration(page: Page, report: CalibrationReport, top: int | None) -> None:
    limit = _MANY if top is None else top
    shown = report.layers
    if limit and len(shown) > limit:
        shown = tuple(sorted(shown, key=lambda layer: layer.rows / layer.width)[:limit])
    page.table(
        _CALIBRATION,
        [
            [
                shown_name(layer.name),
                f"{layer.rows:,}",
                str(layer.width),
                "gram" if layer.gram else "diagonal",
                size_text(layer.size),
            ]
            for layer in shown
        ],
    )
    if len(shown) < len(report.layers):
        page.line(f"{len(report.layers) - len(shown)} more layers; --top 0 shows all")
    page.line()
    for note in report.notes:
        page.line(f"note: {printable(note, 500)}")
    page.verdict(
        f"wrote {printable(report.output)}: {len(report.layers)} layer{'s' * (len(report.layers) != 1)}, "
        f"{size_text(report.size)}, from {printable(report.source, 500)}",
    )


# ---- what an archive holds, in the columns of Deep Compression's tables -----------------------------------

_CODING = (
    Column("tensor", 9, right=False),
    Column("weights", 7),
    Column("kept", 6),
    Column("value bits", 5),
    Column("position bits", 4),
    Column("beside", 1),
    Column("size", 3),
    Column("of the original", 8),
)


def _coding_table(page: Page, codings: Sequence[CodingGain], limit: int) -> None:
    """Bits for each weight that is kept, before coding and coded; the largest tensors where there are many."""
    shown = codings
    if limit and len(codings) > limit:
        shown = sorted(codings, key=lambda one: -one.coded)[:limit]
    page.table(_CODING, [_coding_row(page, one) for one in shown], _coding_row(page, summed(codings), "all"))
    if len(shown) < len(codings):
        page.line(f"{len(codings) - len(shown)} more tensors; --top 0 shows all")


def _coding_row(page: Page, one: CodingGain, title: str = "") -> list[str]:
    def each(bits: tuple[int, float]) -> str:
        before, after = (one.each(part) for part in bits)
        return "" if before is None or after is None else page.pair(f"{before:.3g}", f"{after:.3g}")

    return [
        title or shown_name(one.name),
        f"{one.weights:,}",
        percent(one.kept / one.weights) if one.weights else "",
        each(one.values),
        each(one.positions),
        size_text(round(one.beside[1] / 8)),
        page.pair(size_text(round(one.plain)), size_text(one.coded)),
        page.pair(percent(one.plain / one.original), percent(one.coded / one.original)) if one.original else "",
    ]
