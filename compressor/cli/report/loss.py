"""What a model lost by its outputs, as a page."""

from __future__ import annotations

from compressor.calibration.loss import ModelLoss
from compressor.cli.report.page import Column, Page, shown_name
from compressor.core.text import printable, size_text
from compressor.reports.figures import error_text
from compressor.reports.loss import words_of
from compressor.workflows.compare import ComparisonReport

_MANY = 60  # rows that are shown without being asked for more
_BLOCKS = (Column("block", 9, right=False), Column("error added", 7), Column("error so far", 8))
_TENSORS = (Column("tensor", 9, right=False), Column("error", 7), Column("", 8))


def to_page(page: Page, report: ComparisonReport, top: int | None) -> None:
    """Blocks in their order, tensors by what they cost, and what was measured of the outputs."""
    loss = report.loss
    assert loss is not None  # noqa: S101 - the caller looked
    if loss.blocks:
        rows = [[str(one.number), error_text(one.added), error_text(one.total)] for one in loss.blocks]
        page.table(_BLOCKS, rows)
        page.line()
    _tensors(page, loss, _MANY if top is None else top)
    for note in loss.notes:
        page.line(f"note: {printable(note, 500)}")
    page.line(f"measured on {printable(loss.source, 500)}")
    page.verdict(
        f"{printable(report.b)} against {printable(report.a)}: {size_text(report.sizes[0])} {page.arrow} "
        f"{size_text(report.sizes[1])}, {words_of(loss.outputs, page.pair)}",
    )


def _tensors(page: Page, loss: ModelLoss, limit: int) -> None:
    if not loss.sample:
        return
    title = "KL alone" if loss.outputs.kld is not None else "1 - cosine alone"
    shown = loss.tensors[: limit or None]
    columns = (*_TENSORS[:-1], Column(title, 8))
    page.table(columns, [[shown_name(one.name), error_text(one.error), error_text(one.lost)] for one in shown])
    if len(shown) < len(loss.tensors):
        page.line(f"{len(loss.tensors) - len(shown)} more tensors; --top 0 shows all")
    page.line(f"each tensor alone, on {loss.sample} tokens")
    page.line()
