"""What an archive holds, in the columns of Deep Compression's tables."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.cli.report.page import Column, Page, percent, shown_name
from compressor.core.text import size_text
from compressor.workflows.results import Coding, summed

_COLUMNS = (
    Column("tensor", 9, right=False),
    Column("weights", 7),
    Column("kept", 6),
    Column("value bits", 5),
    Column("position bits", 4),
    Column("beside", 1),
    Column("size", 3),
    Column("of the original", 8),
)


def coding_table(page: Page, codings: Sequence[Coding], limit: int) -> None:
    """Bits for each weight that is kept, before coding and coded; the largest tensors where there are many."""
    shown = codings
    if limit and len(codings) > limit:
        shown = sorted(codings, key=lambda one: -one.coded)[:limit]
    page.table(_COLUMNS, [_row(page, one) for one in shown], _row(page, summed(codings), "all"))
    if len(shown) < len(codings):
        page.line(f"{len(codings) - len(shown)} more tensors; --top 0 shows all")


def _row(page: Page, one: Coding, title: str = "") -> list[str]:
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
