"""The document: what a run did and what that cost, from the verdict down to single tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from math import sqrt

from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.core.version import __version__
from compressor.engine.plan.plan import Job
from compressor.reports.curve import curve_picture
from compressor.reports.figures import error_text, percent
from compressor.reports.html.bars import Amount, heat_map, waterfall
from compressor.reports.html.places import Place, layers_of, place_of
from compressor.reports.html.tensors import tensors_table
from compressor.reports.markup import told
from compressor.workflows.results import Report

_ROLES = 14  # rows of a picture; the smallest of more roles are one
_OTHERS = "others"
_REST = "headers and the rest"  # and what earlier passes of a recipe changed
# nothing is loaded, whatever a name may say
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Origin:
    """How a report came to be: the `command` as a shell takes it, and what files are known by, as (what, hash)."""

    command: str
    hashes: Sequence[tuple[str, str]] = ()


def render_html(report: Report, origin: Origin) -> str:
    """The whole document."""
    folder = resources.files("compressor") / "reports" / "html"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    view = _View(report)
    title = f"{report.verb}: {report.output}"
    body = "\n".join(part for section in _SECTIONS for part in section(view, origin))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{told(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#tensors">To the table of tensors</a>\n<main>\n{body}\n</main>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


class _View:
    """A report with its tensors in their places."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @cached_property
    def changes(self) -> Sequence[Change | None]:
        return self.report.changes or [None] * len(self.report.plan.jobs)

    @cached_property
    def places(self) -> list[Place]:
        return [place_of(job.spec.name, job.spec.shape) for job in self.report.plan.jobs]

    @cached_property
    def roles(self) -> dict[str, Amount]:
        """Bytes by role, in the order of their sizes; the smallest of many together, and what no tensor has."""
        found: dict[str, Amount] = {}
        for job, place in zip(self.report.plan.jobs, self.places, strict=True):
            amount = found.setdefault(place.role, Amount())
            amount.before += job.size_before
            amount.after += job.size_after
        found = dict(sorted(found.items(), key=lambda item: -item[1].before))
        if len(found) > _ROLES:
            kept = dict(list(found.items())[: _ROLES - 1])
            rest = list(found.values())[_ROLES - 1 :]
            kept[_OTHERS] = Amount(sum(one.before for one in rest), sum(one.after for one in rest))
            found = kept
        plan = self.report.plan
        headers = Amount(
            plan.size_before - sum(one.before for one in found.values()),
            plan.size_after - sum(one.after for one in found.values()),
        )
        return {**found, _REST: headers}

    def cells(self, layers: Mapping[tuple[str, int], int]) -> dict[str, dict[int, list[tuple[Job, Change | None]]]]:
        """The weights of layers, by role and the layer's place."""
        found: dict[str, dict[int, list[tuple[Job, Change | None]]]] = {}
        treated = {job.spec.name for job, _ in self.report.rows}
        for job, place, change in zip(self.report.plan.jobs, self.places, self.changes, strict=True):
            if place.layer is not None and job.spec.name in treated and place.layer in layers:
                cells = found.setdefault(place.role, {})
                cells.setdefault(layers[place.layer], []).append((job, change))
        rows = sorted(
            found.items(), key=lambda item: -sum(job.spec.size for cell in item[1].values() for job, _ in cell)
        )
        return dict(rows[: 2 * _ROLES])


def _verdict(view: _View, origin: Origin) -> Iterator[str]:
    report = view.report
    failed = report.failures
    if failed:
        said = f"Not written, since a gate does not hold: {'; '.join(failed)}."
    else:
        size = f"{size_text(report.plan.size_before)} → {size_text(report.plan.size_after)}"
        times = f"{report.ratio:.3g}× smaller" if report.ratio >= 1.005 else "not smaller"
        begin = "It would be" if report.changes is None else "It is"
        said = f"{begin} {times}: {size}.{_lost(report)}"
        if report.gates:
            said += " The gate holds." if len(report.gates) == 1 else f" All {len(report.gates)} gates hold."
    yield f"<h1>{told(report.verb)} {told(report.output)}</h1>"
    yield f'<p class="verdict{" bad" if failed else ""}" role="status">{told(said, 2000)}</p>'
    for sentence in report.warnings:
        yield f"<p><strong>Warning:</strong> {told(sentence, 1000)}</p>"
    facts = "".join(f"<div><dt>{name}</dt><dd>{told(value)}</dd></div>" for name, value in _facts(report))
    yield f"<dl>{facts}</dl>"


def _lost(report: Report) -> str:
    measured = [(job, change) for job, change in report.rows if change is not None]
    if not measured or report.total is None:
        return " Nothing was measured." if report.changes is None else " Nothing was changed."
    if report.total.lost == 0:
        return " Nothing was lost."
    job, change = max(measured, key=lambda row: row[1].error)
    worst = f"most in {job.spec.name}: {error_text(change.error)}"
    return f" The treated weights lost {error_text(report.total.error)} of their norm ({worst})."


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    plan = report.plan
    yield "files before", size_text(plan.size_before)
    yield "files after", size_text(plan.size_after)
    yield "times smaller", f"{report.ratio:.3g}"
    yield "tensors treated", f"{len(report.rows)} of {len(plan.jobs)}"
    yield "bits a treated weight", f"{report.bits_per_weight:.3g}"
    if report.total is not None and report.everything is not None:
        yield "error of the treated", error_text(report.total.error)
        yield "error of the whole file", error_text(report.everything.error)
        yield "zeros", f"{percent(report.everything.sparsity_before)} → {percent(report.everything.sparsity_after)}"


def _sizes(view: _View, origin: Origin) -> Iterator[str]:
    plan = view.report.plan
    yield "<h2>Where the bytes went</h2>"
    yield waterfall(view.roles, plan.size_before, plan.size_after)


def _layers(view: _View, origin: Origin) -> Iterator[str]:
    names = layers_of(view.places)
    cells = view.cells({layer: n for n, layer in enumerate(names)}) if names else {}
    if not cells:
        return
    stacks = {stack for stack, _ in names}
    shown = [str(layer) if len(stacks) == 1 else f"{stack}.{layer}" for stack, layer in names]
    yield "<h2>Layer by layer</h2>"
    if view.report.changes is not None:
        errors = {
            role: {at: _error([c for _, c in cell]) for at, cell in row.items()} for role, row in cells.items()
        }
        yield heat_map("Relative error", errors, shown)
    bits = {
        role: {
            at: 8 * sum(j.size_after for j, _ in cell) / max(sum(j.spec.size for j, _ in cell), 1)
            for at, cell in row.items()
        }
        for role, row in cells.items()
    }
    yield heat_map("Stored bits a weight", bits, shown)


def _error(changes: Sequence[Change | None]) -> float:
    lost = sum(change.lost for change in changes if change is not None)
    energy = sum(change.energy for change in changes if change is not None)
    return sqrt(lost / energy) if energy > 0 else 0.0


def _budget(view: _View, origin: Origin) -> Iterator[str]:
    allocation = view.report.allocation
    if allocation is None:
        return
    yield f"<h2>The budget</h2>\n<p>Asked: {told(allocation.asked)}. {told(allocation.note)}</p>"
    yield f'<div class="picture" tabindex="0" role="region" aria-label="curve">{curve_picture(allocation)}</div>'
    rows = [("chosen", allocation.point), *((f"all {point.name}", point) for point in allocation.uniform)]
    body = "".join(
        f"<tr><th scope=row>{told(name, 60)}<td>{size_text(point.size)}<td>{point.bits:.4g}"
        f"<td>{error_text(point.error)}"
        for name, point in rows
    )
    heads = "".join(f"<th scope=col>{head}" for head in ("choice", "size", "bits/w", "error"))
    yield "<details><summary>The choice beside one candidate for all</summary>"
    yield f"<table><thead><tr>{heads}<tbody>{body}</table></details>"


def _gates(view: _View, origin: Origin) -> Iterator[str]:
    yield "<h2>Gates</h2>"
    gates = view.report.gates
    if not gates:
        yield "<p>No limits were given (--max-error, --min-ratio, --max-size, --min-sparsity).</p>"
        return
    rows = "".join(
        f"<tr><th scope=row>{told(one.gate)}<td>{told(one.measured)}"
        f"<td class={'no' if one.failure else 'yes'}>{'does not hold' if one.failure else 'holds'}"
        for one in gates
    )
    yield f"<table><thead><tr><th scope=col>gate<th scope=col>measured<th scope=col>verdict<tbody>{rows}</table>"


def _kept(view: _View, origin: Origin) -> Iterator[str]:
    report = view.report
    yield "<h2>What was kept, and what to know</h2>"
    items = [
        f"<strong>{len(jobs)} kept</strong> ({size_text(sum(job.size_after for job in jobs))}): {told(reason)}: "
        f"{', '.join(told(job.spec.name, 80) for job in jobs[:3])}{', …' if len(jobs) > 3 else ''}"
        for reason, jobs in report.kept
    ]
    items += [f"left behind: {told(name, 80)}: {told(reason)}" for name, reason in report.plan.left]
    items += [told(note, 1000) for note in report.plan.notes]
    yield f"<ul>{''.join(f'<li>{item}' for item in items)}</ul>" if items else "<p>Every tensor was treated.</p>"


def _tensors(view: _View, origin: Origin) -> Iterator[str]:
    yield '<h2 id="tensors">Tensors</h2>'
    if any(change is not None and change.histogram is not None for change in view.changes):
        yield (
            '<p class="note key">The worst first. Under “numbers” are the weights other than zero, from the most '
            "negative to the largest: <i></i> before, <b></b> after; the outermost 1 % are not drawn.</p>"
        )
    else:
        yield '<p class="note">The worst first.</p>'
    if view.report.allocation is not None:
        said = "“gains x/MB”: the squared error that the last step to the choice saved, for its bytes."
        yield f'<p class="note">{said}</p>'
    yield tensors_table(view.report)


def _again(view: _View, origin: Origin) -> Iterator[str]:
    report = view.report
    stages = json.dumps([dict(stage) for stage in report.plan.stages], ensure_ascii=True)
    rows = [*origin.hashes, ("plan", report.plan.fingerprint), ("made by", f"compressor {__version__}")]
    yield "<h2>To make it again</h2>"
    if origin.command:
        yield f"<pre>{told(origin.command, 4000)}</pre>"
    listed = "".join(f"<tr><th scope=row>{told(name)}<td><code>{told(value)}</code>" for name, value in rows)
    yield f"<table><tbody>{listed}</table>"
    yield f"<p>Stages, as the record in the output has them:</p><pre>{told(stages, 8000)}</pre>"


_SECTIONS = (_verdict, _sizes, _layers, _budget, _gates, _kept, _tensors, _again)
