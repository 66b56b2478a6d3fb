"""A budget's choice as a table: per tensor what it becomes and what that costs, then the curve around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compressor.cli.report.page import Column, Page, shown_name
from compressor.core.text import printable, size_text
from compressor.reports.figures import error_text
from compressor.workflows.budget.choice import Allocation, Chosen, Point

_MANY = 60  # tensors that are shown without being asked for more
_POINTS = 12  # of the curve
_BY = {
    "": "of the weights",
    "square": "of outputs, by mean squares of inputs",
    "gram": "of outputs, by grams of inputs",
}

_ROWS = (
    Column("tensor", 9, right=False),
    Column("shape", 1),
    Column("choice", 8, right=False),
    Column("size", 6),
    Column("bits/w", 5),
    Column("error", 7),
    Column("weighted", 4),
    Column("gain/MB", 3),
)
_CURVE = (Column("curve", 9, right=False), Column("size", 8), Column("bits/w", 7), Column("error", 8))


def render_allocation(allocation: Allocation, *, top: int | None = None, wide: bool = False) -> str:
    """The choice as text; `top` tensors of the largest error."""
    page = Page(wide=wide)
    rows = list(allocation.chosen)
    limit = _MANY if top is None else top
    if limit and len(rows) > limit:
        rows = sorted(rows, key=lambda row: (-row.error, row.name))[:limit]
    page.table(_ROWS, [_row(page, row) for row in rows])
    if len(rows) < len(allocation.chosen):
        page.line(f"{len(allocation.chosen) - len(rows)} more tensors; --top 0 shows all")
    page.line()
    page.table(_CURVE, [_point(point, allocation.point) for point in _spread(allocation)])
    page.line()
    counts = Counter(row.choice for row in allocation.chosen)
    listed = ", ".join(f"{count} {printable(name, 60)}" for name, count in counts.most_common())
    page.line(f"budget {allocation.asked}: {listed}")
    sampled = [row.spread for row in allocation.chosen if row.spread > 0]
    how = (
        f"; of {len(sampled)} tensors a sample of rows was measured: squares within {max(sampled):.1%} (95 %)"
        if sampled
        else ""
    )
    by = _BY[allocation.weighted] + (", times what they cost the outputs" if allocation.sloped else "")
    page.line(f"errors are relative; weighted: {by}{how}")
    page.line(
        f"chosen: {size_text(allocation.size_after)} in files, {allocation.point.bits:.4g} bits a weight, "
        f"error {error_text(allocation.point.error)}",
        style="bold",
    )
    if allocation.note:
        page.line(f"note: {allocation.note}")
    return page.text()


def _row(page: Page, row: Chosen) -> Sequence[str]:
    gain = "" if not row.gain else f"{row.gain:.3g}"
    return [
        shown_name(row.name),
        page.shape(row.shape),
        printable(row.choice, 40) + (" (fused)" if row.fused else ""),
        size_text(row.size),
        f"{row.bits:.3g}",
        error_text(row.error),
        error_text(row.weighted),
        gain,
    ]


def _spread(allocation: Allocation) -> list[Point]:
    """Some points of the curve, evenly spread, with the chosen one and uniform choices in their places."""
    curve = allocation.curve
    steps = max(min(len(curve), _POINTS) - 1, 1)
    picked = [curve[n * (len(curve) - 1) // steps] for n in range(steps + 1)]
    points = {*picked, allocation.point, *allocation.uniform}
    return sorted(points, key=lambda point: (point.size, point.error, point.name))


def _point(point: Point, chosen: Point) -> Sequence[str]:
    name = f"all {printable(point.name, 40)}" if point.name else "chosen" if point == chosen else "mixed"
    return [name, size_text(point.size), f"{point.bits:.4g}", error_text(point.error)]
