"""The table of tensors, the worst first. It is written as short as HTML allows (end tags that may be left out are),
since a model has a thousand of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from compressor.core.histogram import BINS, Histogram
from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.engine.plan.plan import Job
from compressor.reports.figures import error_text, percent
from compressor.reports.markup import told
from compressor.workflows.results import Report

MANY = 5000  # rows; of more tensors the rest is counted
DRAWN = 1000  # histograms, of the largest errors
POINTS, HIGH = 20, 9  # of a histogram as it is drawn
_OFTEN = 10  # rows with one reason that say it themselves
_TAIL = 0.005  # share of the numbers on either side that is not drawn


def tensors_table(report: Report) -> str:
    """All tensors with what became of them."""
    jobs = report.plan.jobs
    changes: Sequence[Change | None] = report.changes or [None] * len(jobs)
    treated = {job.spec.name for job, _ in report.rows}
    chosen = {} if report.allocation is None else {one.name: one for one in report.allocation.chosen}
    rows = [
        (job, change if job.spec.name in treated else None, job.spec.name in treated)
        for job, change in zip(jobs, changes, strict=True)
    ]
    rows.sort(key=lambda row: (not row[2], -_error(row[1]), -row[0].size_before, row[0].spec.name))
    pruned = any(stage["kind"] == "prune" for stage in report.plan.stages)
    heads = ["tensor", "shape", "stored as", "before", "after", "bits/w", "error"]
    heads += [*(["zeros"] if pruned else ()), "numbers", "why"]
    notes = _notes(rows)
    body = []
    for place, (job, change, done) in enumerate(rows[:MANY]):
        one = chosen.get(job.spec.name)
        why = f"gains {one.gain:.2g}/MB" if one is not None and one.gain else ""
        cells = _cells(job, change, drawn=place < DRAWN, pruned=pruned)
        reasons = [notes.get(reason, reason) for reason in _reasons(job, treated=done)]
        cells.append(told("; ".join(filter(None, (why, *reasons))), 200))
        while not cells[-1]:
            cells.pop()
        body.append(f"<tr><th>{told(job.spec.name, 200) or '&#39;&#39;'}<td>{'<td>'.join(cells)}")
    more = f"<p>{len(rows) - MANY} more tensors: --format json has all.</p>" if len(rows) > MANY else ""
    top = "".join(f"<th scope=col>{head}" for head in heads)
    listed = "".join(f"<li>{note}: {told(reason)}" for reason, note in notes.items())
    return (
        f"<ul>{listed}</ul>"
        "<div class=scroll tabindex=0 role=region aria-labelledby=tensors><table id=all>"
        f"<thead><tr>{top}<tbody>\n{chr(10).join(body)}</table></div>{more}"
    )


def _notes(rows: Sequence[tuple[Job, Change | None, bool]]) -> dict[str, str]:
    """Reasons that many tensors share, as the rows call them: they are written out once."""
    counts = Counter(reason for job, _, done in rows for reason in _reasons(job, treated=done))
    common = [reason for reason, count in counts.most_common() if count > _OFTEN]
    return {reason: f"note {n}" for n, reason in enumerate(common, 1)}


def _error(change: Change | None) -> float:
    if change is None:
        return -1.0
    return change.error if change.error == change.error else inf


def _cells(job: Job, change: Change | None, *, drawn: bool, pruned: bool) -> list[str]:
    spec = job.spec
    after = job.dtype_after
    return [
        "×".join(map(str, spec.shape)),
        told(after if job.dtype_before == after else f"{job.dtype_before} → {after}", 60),
        size_text(job.size_before),
        size_text(job.size_after),
        f"{job.size_after * 8 / spec.size:.3g}" if spec.size else "",
        error_text(change.error) if change is not None else "",
        *([percent(change.sparsity_after) if change is not None else ""] if pruned else ()),
        picture(change.histogram) if drawn and change is not None and change.histogram is not None else "",
    ]


def _reasons(job: Job, *, treated: bool) -> list[str]:
    """Why a tensor is what it is, where that is not simply what was asked."""
    kept = [why.reason for why in job.left_alone]
    if treated:
        return [*dict.fromkeys(step.instead for step in job.steps if step.instead), *dict.fromkeys(kept)]
    return list(dict.fromkeys(kept))


def picture(found: Histogram) -> str:
    """Counts before as an area and after as a line, but for zeros and the outermost tails."""
    low, high = _middle(found)
    before, after = (_points(counts, low, high) for counts in (found.before, found.after))
    top = max(before) or max(after) or 1.0
    area, line = (_steps([min(round(HIGH * value / top), HIGH) for value in one]) for one in (before, after))
    return f'<svg><path d="M0 9{area}V9z"/><path d="M0 9{line}"/></svg>'


def _middle(found: Histogram) -> tuple[int, int]:
    """The bins that are drawn, as far from zero on either side: all but the outermost numbers."""
    counts = [max(pair) for pair in zip(found.before, found.after, strict=True)]
    total = sum(counts)
    half, beyond = BINS // 2, 0
    for reach in range(half, 1, -1):
        beyond += counts[half - reach] + counts[half + reach - 1]
        if beyond > 2 * _TAIL * total:
            return half - reach, half + reach
    return half - 1, half + 1


def _points(counts: Sequence[int], low: int, high: int) -> list[float]:
    """The counts of bins [low, high) in `POINTS` of equal width; a bin that lies in two is divided."""
    width = (high - low) / POINTS
    found = []
    for n in range(POINTS):
        start, stop = low + n * width, low + (n + 1) * width
        bins = range(int(start), min(int(stop) + 1, high))
        found.append(sum(counts[b] * max(min(b + 1, stop) - max(b, start), 0) for b in bins))
    return found


def _steps(heights: Sequence[int]) -> str:
    """A path through the heights, by differences; runs of one height are one step."""
    out, at, run = "", 0, 0
    for height in heights:
        if height != at:
            out += (f"h{run}" if run else "") + f"l1 {at - height}".replace(" -", "-")
            at, run = height, 0
        else:
            run += 1
    return out + (f"h{run}" if run else "")
