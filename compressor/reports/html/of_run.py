"""The document of a run that makes an output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from compressor.core.metrics import Change
from compressor.core.text import printable, size_text
from compressor.engine.plan.plan import Job
from compressor.reports.html.sheet import Sheet, TensorRow, figures, gates_told, loss_told, losses, sizes_told
from compressor.workflows.results import Report

_LIMITS = "--max-error, --min-ratio, --max-size, --min-sparsity"


def sheet_of(report: Report, say: Callable[[str], str]) -> Sheet:
    """What is shown of a run; `say` puts a message of ours into the words of who reads it."""
    plan = report.plan
    changes: Sequence[Change | None] = report.changes or [None] * len(plan.jobs)
    treated = {job.spec.name for job, _ in report.rows}
    gains = {} if report.allocation is None else {one.name: one.gain for one in report.allocation.chosen}
    rows = [
        _row(job, change if job.spec.name in treated else None, job.spec.name in treated, gains, say)
        for job, change in zip(plan.jobs, changes, strict=True)
    ]
    facts = figures(plan.size_before, plan.size_after, rows)
    if report.total is not None and report.everything is not None:
        facts += losses(report.total, report.everything)
    return Sheet(
        title=f"{report.verb} {report.output}",
        verdict=_verdict(report, rows),
        facts=facts,
        sizes=(plan.size_before, plan.size_after),
        rows=rows,
        errors=report.changes is not None,
        failed=bool(report.failures),
        warnings=[say(sentence) for sentence in report.warnings],
        pruned=any(stage["kind"] == "prune" for stage in plan.stages),
        gates=report.gates,
        limits=say(_LIMITS),
        heading="What was kept, and what to know",
        told=list(_told(report, say)) or ["Every tensor was treated."],
        stages=plan.stages,
        known_by=[("plan", plan.fingerprint)],
        allocation=report.allocation,
    )


def _verdict(report: Report, rows: Sequence[TensorRow]) -> str:
    if report.failures:
        return f"Not written, since a gate does not hold: {'; '.join(report.failures)}."
    begin = "It would be" if report.changes is None else "It is"
    said = f"{begin} {sizes_told(report.plan.size_before, report.plan.size_after)}."
    return f"{said} {_lost(report, rows)}{gates_told(report.gates)}"


def _lost(report: Report, rows: Sequence[TensorRow]) -> str:
    measured = [row for row in rows if row.treated and row.change is not None]
    if not measured or report.total is None:
        return "Nothing was measured." if report.changes is None else "Nothing was changed."
    return loss_told(measured, report.total.error, "The treated weights")


def _row(
    job: Job, change: Change | None, treated: bool, gains: dict[str, float], say: Callable[[str], str]
) -> TensorRow:
    gain = gains.get(job.spec.name, 0.0)
    kept = [say(why.reason) for why in job.left_alone]
    instead = [step.instead for step in job.steps if step.instead] if treated else []
    why = [*([f"gains {gain:.2g}/MB"] if gain else []), *dict.fromkeys(instead), *dict.fromkeys(kept)]
    stored = job.dtype_before, job.dtype_after
    sizes = job.size_before, job.size_after
    return TensorRow(job.spec.name, job.spec.shape, stored, *sizes, treated, change, tuple(why))


def _told(report: Report, say: Callable[[str], str]) -> Iterator[str]:
    for reason, jobs in report.kept:
        names = ", ".join(printable(job.spec.name, 80) for job in jobs[:3]) + (", …" if len(jobs) > 3 else "")
        yield f"{len(jobs)} kept ({size_text(sum(job.size_after for job in jobs))}): {say(reason)}: {names}"
    for name, reason in report.plan.left:
        yield f"left behind: {printable(name, 80)}: {reason}"
    for note in report.plan.notes:
        yield say(note)
