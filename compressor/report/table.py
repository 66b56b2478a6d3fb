"""Reports as tables for people: readable at 80 columns, on wide terminals and in a log without one.

In a terminal, columns that do not fit are dropped, least important first, and long names are folded. Elsewhere
a table is as wide as its content, so that a log can be searched.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf

from rich.box import SIMPLE, SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compressor.checkpoint import Tensor
from compressor.metrics import Change, Moments
from compressor.plan import Job
from compressor.recipe import Recipe
from compressor.results import ComparisonReport, InspectReport, Report
from compressor.text import printable, size_text

_MANY = 60  # rows that are shown without being asked for more
_GAP = 3  # characters between two columns


@dataclass(frozen=True)
class Column:
    """A column: `keep` ranks it, the lowest are dropped first where the terminal is narrow."""

    title: str
    keep: int
    right: bool = True


def render(
    report: Report | ComparisonReport | InspectReport, *, top: int | None = None, quiet: bool = False
) -> str:
    """Tables and closing lines, ending in a newline."""
    page = Page()
    if isinstance(report, Report):
        _report(page, report, top, quiet)
    elif isinstance(report, ComparisonReport):
        _comparison(page, report, top)
    else:
        _inspection(page, report, top)
    return page.text()


class Page:
    """A text under construction that knows how wide it may be and what characters it may use."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.width = _terminal_width() if terminal else 4000
        plain = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
        self.arrow, self.times, self.more = ("->", "x", "...") if plain else ("→", "×", "…")
        # both sizes: without a height rich asks the terminal and falls back to 80 columns
        self.console = Console(
            file=_Encoded(sys.stdout.encoding or "ascii"),
            width=self.width,
            height=50,
            force_terminal=True if terminal else None,
            no_color=None if terminal or os.environ.get("FORCE_COLOR") else True,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def line(self, text: str = "", style: str = "") -> None:
        """A line of our own text, foreign names in it made printable; wrapped in a terminal only."""
        self.console.print(Text(text, style=style), soft_wrap=self.width >= 4000)

    def pair(self, before: str, after: str) -> str:
        return before if before == after else f"{before} {self.arrow} {after}"

    def shape(self, shape: Sequence[int]) -> str:
        return self.times.join(map(str, shape)) or "scalar"

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None
    ) -> None:
        """The first column holds foreign names and folds; the others never wrap."""
        shown, names = self._fitting(columns, [*rows, *([footer] if footer else [])])
        box = SIMPLE if footer else SIMPLE_HEAD  # with a rule above the footer, or without
        table = Table(box=box, show_edge=False, pad_edge=False, show_footer=footer is not None)
        for number in shown:
            column = columns[number]
            table.add_column(
                column.title,
                footer=Text(footer[number]) if footer else "",
                justify="right" if column.right else "left",
                overflow="fold",
                no_wrap=number > 0,
                footer_style="bold",
            )
        for row in rows:
            table.add_row(Text(_folded(row[0], names)), *(Text(row[number]) for number in shown[1:]))
        self.console.print(table)

    def _fitting(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
        """The columns that are shown, and the width that is left for names."""
        widths = [
            max((cell_len(text) for text in (column.title, *(row[n] for row in rows))), default=0)
            for n, column in enumerate(columns)
        ]
        shown = list(range(len(columns)))
        name = min(widths[0], max(24, self.width // 3))
        while len(shown) > 2 and name + sum(widths[n] + _GAP for n in shown[1:]) > self.width:
            shown.remove(min(shown[1:], key=lambda n: columns[n].keep))
        return shown, max(self.width - sum(widths[n] + _GAP for n in shown[1:]), 8)

    def text(self) -> str:
        found = self.console.file
        assert isinstance(found, _Encoded)  # noqa: S101 - set above
        lines = found.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines).replace("…", self.more) + "\n"


def _folded(name: str, width: int) -> str:
    """A name in lines of at most `width` characters, cut after a dot where that leaves no line half empty."""
    lines = []
    while len(name) > width:
        at = name.rfind(".", width // 2, width) + 1 or width
        lines.append(name[:at])
        name = name[at:]
    return "\n".join([*lines, name])


def _shown(name: str) -> str:
    """A tensor's name as a cell; a name of no characters is shown too."""
    return printable(name, 100) or "''"


class _Encoded(io.StringIO):
    """A buffer that answers for the encoding of the stream it will go to: rich asks, to choose its boxes."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def _terminal_width() -> int:
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, 40)
    except (OSError, ValueError):
        return 80


# ---- transforming verbs --------------------------------------------------------------------------------

_REPORT = (
    Column("tensor", 9, right=False),
    Column("shape", 1),
    Column("dtype", 3, right=False),
    Column("size", 6),
    Column("sparsity", 5),
    Column("bits/w", 2),
    Column("error", 8),
)


def _report(page: Page, report: Report, top: int | None, quiet: bool) -> None:
    plan, rows = report.plan, report.rows
    if not quiet and rows:
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
        page.line(f"not as asked {len(jobs)}: {said}: {_names(page, jobs)}")
    for name, reason in plan.left:
        page.line(f"left behind: {printable(name, 60)}: {reason}")
    for note in plan.notes:
        page.line(f"note: {note}")
    verb = "not written" if report.failures else "would write" if report.changes is None else "wrote"
    page.line(
        f"{verb} {printable(report.output)}: {size_text(plan.size_before)} {page.arrow} "
        f"{size_text(plan.size_after)}, {_ratio(page, report.ratio)}{_overall(page, report)}",
        style="bold",
    )


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
        for reason in dict.fromkeys(why.reason for why in job.kept if job.steps):
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
    everything, total = report.everything, report.total
    if everything is None or total is None:
        return ""
    sparsity = page.pair(_percent(everything.sparsity_before), _percent(everything.sparsity_after))
    return f", zeros {sparsity}" + (f", relative error {_error(total.error)}" if report.rows else "")


def _row(page: Page, job: Job, change: Change | None) -> list[str]:
    spec = job.spec
    bits = job.size_after * 8 / spec.size if spec.size else 0
    return [
        _shown(spec.name),
        page.shape(spec.shape),
        page.pair(job.dtype_before, job.dtype_after),
        page.pair(size_text(job.size_before), size_text(job.size_after)),
        page.pair(_percent(change.sparsity_before), _percent(change.sparsity_after)) if change else "",
        f"{bits:.3g}",
        _error(change.error) if change else "",
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
        page.pair(_percent(total.sparsity_before), _percent(total.sparsity_after)) if total else "",
        f"{report.bits_per_weight:.3g}",
        _error(total.error) if total else "",
    ]


def _percent(share: float) -> str:
    """`0 %`, `50 %`, `99.95 %`: never rounded to all or nothing."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    text = f"{100 * share:.3g}"
    if text == "100":
        text = ">99.9"
    return f"{'<0.01' if share < 1e-4 else text} %"


def _error(error: float) -> str:
    return "0" if error == 0 else "inf" if isinf(error) else f"{error:.3g}"


# ---- compare, inspect, recipes -------------------------------------------------------------------------

_COMPARISON = (
    Column("tensor", 9, right=False),
    Column("shape", 1),
    Column("dtype", 2, right=False),
    Column("sparsity", 4),
    Column("cosine", 5),
    Column("max error", 3),
    Column("SQNR dB", 7),
    Column("error", 8),
)


def _comparison(page: Page, report: ComparisonReport, top: int | None) -> None:
    limit = _MANY if top is None else top
    shown = report.rows[: limit or None]
    rows = []
    for row in shown:
        found = row.measured
        head = [_shown(row.name), page.shape(row.shape), page.pair(*row.dtypes)]
        if found is None:
            rows.append([*head, "", "", "", "", row.problem])
            continue
        rows.append(
            [
                *head,
                page.pair(_percent(found.sparsity_before), _percent(found.sparsity_after)),
                f"{found.cosine:.6f}",
                _error(found.largest),
                "inf" if isinf(found.sqnr) else f"{found.sqnr:.1f}",
                _error(found.error),
            ]
        )
    page.table(_COMPARISON, rows)
    if len(shown) < len(report.rows):
        page.line(f"{len(report.rows) - len(shown)} more tensors; --top 0 shows all")
    total = report.total
    page.line()
    page.line(
        f"{printable(report.b)} against {printable(report.a)}: {size_text(report.sizes[0])} {page.arrow} "
        f"{size_text(report.sizes[1])}, relative error {_error(total.error)}, cosine {total.cosine:.6f}",
        style="bold",
    )


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
    page.table(
        (*_INSPECTION, *(_MOMENTS if with_stats else ())),
        [_inspected(page, tensor, moments, with_stats) for tensor, moments in shown],
    )
    if len(shown) < len(rows):
        page.line(f"{len(rows) - len(shown)} more tensors; --top 0 shows all")
    for name, reason in report.left.items():
        page.line(f"not weights of it: {printable(name, 60)}: {reason}")
    for tensor, moments in rows:
        if moments is not None and moments.non_finite:
            page.line(
                f"{_shown(tensor.spec.name)} holds {moments.non_finite} NaN or infinite values",
                style="bold",
            )
    page.line()
    said = f", {report.compression}" if report.compression else ""
    weights = sum(tensor.spec.size for tensor, _ in rows)
    page.line(
        f"{printable(report.path)}: {report.kind}{said}, {len(rows)} tensor{'s' * (len(rows) != 1)}, "
        f"{weights:,} elements, "
        f"{size_text(report.size)}",
        style="bold",
    )


def _inspected(page: Page, tensor: Tensor, moments: Moments | None, with_stats: bool) -> list[str]:
    stored = getattr(tensor.encoder, "id", "")
    if tensor.encoder is not None and (stored == "int" or tensor.encoder.verb == "store"):
        stored = tensor.encoder.label
    row = [
        _shown(tensor.spec.name),
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
    return [*row, _percent(moments.zeros / moments.size) if moments.size else "", *numbers]


def render_recipes(recipes: Mapping[str, Recipe]) -> str:
    """The ready recipes with what they say of themselves."""
    page = Page()
    for name, recipe in recipes.items():
        page.line(name, style="bold")
        page.line(f"  {recipe.description}")
    return page.text()
