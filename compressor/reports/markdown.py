"""A report in Markdown, a screen long: for the page that a CI shows of a job."""

from __future__ import annotations

import re

from compressor.core.metrics import Change
from compressor.core.text import printable, size_text
from compressor.engine.plan.plan import Job
from compressor.reports.figures import error_text, percent
from compressor.workflows.results import Report

_WORST = 10  # tensors that are listed
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&-])")


def plain(text: str, limit: int = 300) -> str:
    """A foreign text that Markdown takes as it is."""
    return _MARKUP.sub(r"\\\1", printable(text, limit))


def render_markdown(report: Report) -> str:
    """A heading with the verdict, a table of figures, gates, and the tensors that lost most."""
    plan, failed = report.plan, report.failures
    done = "not written" if failed else "would be written" if report.changes is None else "written"
    lines = [
        f"### compressor {report.verb}: {plain(report.output)} {done}",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        f"| files | {size_text(plan.size_before)} | {size_text(plan.size_after)} |",
        f"| times smaller | | {report.ratio:.3g} |",
    ]
    if report.everything is not None and report.total is not None:
        zeros = report.everything.sparsity_before, report.everything.sparsity_after
        lines.append(f"| zeros | {percent(zeros[0])} | {percent(zeros[1])} |")
        lines.append(f"| relative error of the whole file | | {error_text(report.everything.error)} |")
        lines.append(f"| of the {len(report.rows)} treated tensors | | {error_text(report.total.error)} |")
    if report.gates:
        lines += ["", "| gate | measured | |", "|---|---|---|"]
        lines += [
            f"| {plain(one.gate)} | {plain(one.measured)} | {'**does not hold**' if one.failure else 'holds'} |"
            for one in report.gates
        ]
    measured = [(job, change) for job, change in report.rows if change is not None]
    if measured:
        lines += ["", "| tensor | stored as | size | error |", "|---|---|---:|---:|"]
        lines += [_row(*row) for row in sorted(measured, key=lambda row: -row[1].error)[:_WORST]]
        if len(measured) > _WORST:
            lines += ["", f"{len(measured) - _WORST} more treated tensors lost less."]
    lines += [
        f"- {plain(sentence, 1000)}" for sentence in (["", *report.warnings] if report.warnings else ()) if sentence
    ]
    return "\n".join(lines) + "\n"


def _row(job: Job, change: Change) -> str:
    stored, size = plain(job.dtype_after, 60), f"{size_text(job.size_before)} → {size_text(job.size_after)}"
    return f"| {plain(job.spec.name, 120)} | {stored} | {size} | {error_text(change.error)} |"
