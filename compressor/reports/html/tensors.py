"""The table of tensors, the worst first. It is written as short as HTML allows (end tags that may be left out are),
since a model has a thousand of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from compressor.core.histogram import BINS, Histogram
from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.reports.figures import error_text, percent
from compressor.reports.html.sheet import Sheet, TensorRow
from compressor.reports.markup import told

MANY = 5000  # rows; of more tensors the rest is counted
DRAWN = 1000  # histograms, of the largest errors
POINTS, HIGH = 20, 9  # of a histogram as it is drawn
_OFTEN = 10  # rows with one reason that say it themselves
_TAIL = 0.005  # share of the numbers on either side that is not drawn


def tensors_table(sheet: Sheet) -> str:
    """All tensors with what became of them."""
    rows = sorted(sheet.rows, key=lambda row: (not row.treated, -_error(row.change), -row.before, row.name))
    heads = ["tensor", "shape", "stored as", "before", "after", "bits/w"]
    heads += [*(["error"] if sheet.errors else ()), *(["zeros"] if sheet.pruned else ()), "numbers"]
    heads += ["why"] if any(row.why for row in rows) else []
    notes = _notes(rows)
    body = []
    for place, row in enumerate(rows[:MANY]):
        cells = _cells(row, sheet, drawn=place < DRAWN)
        cells.append(told("; ".join(notes.get(reason, reason) for reason in row.why), 200))
        while not cells[-1]:
            cells.pop()
        body.append(f"<tr><th>{told(row.name, 200) or '&#39;&#39;'}<td>{'<td>'.join(cells)}")
    more = f"<p>{len(rows) - MANY} more tensors: --format json has all.</p>" if len(rows) > MANY else ""
    top = "".join(f"<th scope=col>{head}" for head in heads)
    listed = "".join(f"<li>{note}: {told(reason)}" for reason, note in notes.items())
    return (
        f"<ul>{listed}</ul>"
        "<div class=scroll tabindex=0 role=region aria-labelledby=tensors><table id=all>"
        f"<thead><tr>{top}<tbody>\n{chr(10).join(body)}</table></div>{more}"
    )


def _notes(rows: Sequence[TensorRow]) -> dict[str, str]:
    """Reasons that many tensors share, as the rows call them: they are written out once."""
    counts = Counter(reason for row in rows for reason in row.why)
    common = [reason for reason, count in counts.most_common() if count > _OFTEN]
    return {reason: f"note {n}" for n, reason in enumerate(common, 1)}


def _error(change: Change | None) -> float:
    if change is None:
        return -1.0
    return change.error if change.error == change.error else inf


def _cells(row: TensorRow, sheet: Sheet, *, drawn: bool) -> list[str]:
    before, after = row.stored
    change = row.change
    return [
        "×".join(map(str, row.shape)),
        told(after if before == after or not before else f"{before} → {after}" if after else before, 60),
        size_text(row.before) if before else "",
        size_text(row.after) if after else "",
        f"{row.after * 8 / row.size:.3g}" if row.size and after else "",
        *([error_text(change.error) if change is not None else ""] if sheet.errors else ()),
        *([percent(change.sparsity_after) if change is not None else ""] if sheet.pruned else ()),
        picture(change.histogram) if drawn and change is not None and change.histogram is not None else "",
    ]


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
