"""The document of two files beside each other, or of an output that lies there, with its source or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from compressor.core.text import printable, size_text
from compressor.reports.html.sheet import Sheet, TensorRow, figures, gates_told, loss_told, losses, sizes_told
from compressor.reports.loss import words_of
from compressor.workflows.compare import ComparedTensor, ComparisonReport
from compressor.workflows.written import WrittenReport

_LIMITS = "--max-error, --min-sqnr; of outputs --max-kld, --min-agreement, --max-perplexity-ratio, --min-cosine"


def sheet_of(report: ComparisonReport | WrittenReport, say: Callable[[str], str]) -> Sheet:
    """What is shown of a comparison, or of an output; `say` puts our messages into the words of who reads them."""
    return _of_output(report, say) if isinstance(report, WrittenReport) else _of_comparison(report, say)


def _of_comparison(report: ComparisonReport, say: Callable[[str], str]) -> Sheet:
    rows, (before, after) = [_row(one) for one in report.rows], report.sizes
    gates = gates_told(report.gates)
    if report.loss is not None:
        facts, lost = (
            [("size of A", size_text(before)), ("size of B", size_text(after))],
            words_of(report.loss.outputs),
        )
        lost = f"{lost[0].upper()}{lost[1:]}"
    else:
        facts = figures(before, after, rows) + losses(report.total, report.total)[1:]
        facts.append(("cosine", f"{report.total.cosine:.6f}"))
        lost = _lost(rows, report.total.error)
    if report.failures:
        gates = f" A gate does not hold: {'; '.join(report.failures[:5])}."
    notes = () if report.loss is None else report.loss.notes
    return Sheet(
        title=f"compare {report.a} {report.b}",
        verdict=f"B is {sizes_told(before, after)}. {lost.rstrip('.')}.{gates}",
        facts=facts,
        sizes=report.sizes,
        rows=rows,
        failed=bool(report.failures),
        pruned=_has_zeros(report.rows),
        gates=report.gates,
        limits=say(_LIMITS),
        told=[*map(say, notes), *_apart(report.apart)],
        loss=report.loss,
    )


def _of_output(report: WrittenReport, say: Callable[[str], str]) -> Sheet:
    rows, (before, after) = [_row(one) for one in report.rows], report.sizes
    facts, lost = figures(before, after, rows), ""
    if not report.source:
        facts[0] = ("its tensors, dense", facts[0][1])
    if report.total is not None:
        facts += losses(report.total, report.total)[1:]
        lost = " " + _lost(rows, report.total.error)
    kind, digest = report.made_of or ("", "")
    said = {"sha256": "source, SHA-256", "sampled": "source, SHA-256 of a sample (docs/formats.md)"}.get(kind)
    return Sheet(
        title=f"report {report.output}",
        verdict=f"It is {sizes_told(before, after)}.{lost}",
        facts=facts,
        sizes=report.sizes,
        rows=rows,
        errors=report.total is not None,
        pruned=_has_zeros(report.rows),
        told=[*map(say, report.notes), *_apart([row for row in report.rows if row.problem])],
        stages=report.stages,
        known_by=[*([("plan", report.plan)] if report.plan else ()), *([(said, digest)] if said else ())],
    )


def _row(one: ComparedTensor) -> TensorRow:
    changed = one.stored[0] != one.stored[1] or (one.measured is not None and one.measured.lost > 0)
    why = (one.problem,) if one.problem else ()
    return TensorRow(one.name, one.shape, one.stored, *one.sizes, changed and not why, one.measured, why)


def _lost(rows: Sequence[TensorRow], total: float) -> str:
    if not any(row.change is not None for row in rows):
        return "Nothing could be compared."
    return loss_told(rows, total)


def _has_zeros(rows: Sequence[ComparedTensor]) -> bool:
    """Whether some tensor has so many zeros that a reader should see it."""
    return any(row.measured is not None and row.measured.sparsity_after > 0.05 for row in rows)


def _apart(rows: Sequence[ComparedTensor]) -> Iterator[str]:
    if rows:
        named = ", ".join(f"{printable(row.name, 80)} ({row.problem})" for row in rows[:3])
        yield f"{len(rows)} tensors do not match: {named}{', …' if len(rows) > 3 else ''}"
