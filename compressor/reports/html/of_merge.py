"""The document of an output that several jobs wrote."""

from __future__ import annotations

from compressor.reports.html.sheet import Sheet, TensorRow, figures, gates_told, loss_told, losses, sizes_told
from compressor.workflows.merge_report import MergeReport


def sheet_of(report: MergeReport) -> Sheet:
    """What is shown of parts that were put together."""
    rows = [
        TensorRow(
            one.name,
            one.shape,
            (one.dtype, one.dtype_after),
            *one.sizes,
            one.treated,
            one.change if one.treated else None,
        )
        for one in report.tensors
    ]
    before, after = report.size_before, report.size_after
    if report.failures:
        verdict = f"Not written, since a gate does not hold: {'; '.join(report.failures)}."
    else:
        lost = loss_told([row for row in rows if row.treated], report.total.error, "The treated weights")
        verdict = f"It is {sizes_told(before, after)}. {lost}{gates_told(report.gates)}"
    facts = figures(before, after, rows) + losses(report.total, report.everything)
    return Sheet(
        title=f"merge {report.output}",
        verdict=verdict,
        facts=[("parts", str(report.parts)), *facts],
        sizes=(before, after),
        rows=rows,
        failed=bool(report.failures),
        pruned=any(stage.get("kind") == "prune" for stage in report.stages),
        gates=report.gates,
        stages=report.stages,
        known_by=[("plan", report.fingerprint)],
    )
