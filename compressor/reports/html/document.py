"""The document: what a run did and what that cost, or how two files differ; the verdict first, tensors last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from math import sqrt

from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.core.version import __version__
from compressor.reports.curve import curve_picture
from compressor.reports.figures import error_text
from compressor.reports.html.bars import Amount, heat_map, waterfall
from compressor.reports.html.places import Place, layers_of, place_of
from compressor.reports.html.sheet import Sheet, TensorRow
from compressor.reports.html.tensors import tensors_table
from compressor.reports.markup import told
from compressor.workflows.compare import ComparisonReport
from compressor.workflows.in_python import in_python
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.results import Report
from compressor.workflows.written import WrittenReport

Documented = Report | ComparisonReport | MergeReport | WrittenReport

_ROLES = 14  # rows of a picture; the smallest of more roles are one
_OTHERS = "others"
_REST = "headers and the rest"  # and what earlier passes of a recipe changed
# nothing is loaded, whatever a name may say
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Origin:
    """How a report came to be: the `command` as a shell takes it ("" where a function was called), and what files
    are known by, as (what, hash)."""

    command: str
    hashes: Sequence[tuple[str, str]] = ()


def render_html(report: Documented, origin: Origin) -> str:
    """The whole document."""
    folder = resources.files("compressor") / "reports" / "html"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    view = _View(_sheet(report, str if origin.command else in_python))
    body = "\n".join(part for section in _SECTIONS for part in section(view, origin))
    skip = '<a class="skip" href="#tensors">To the table of tensors</a>\n' if view.sheet.rows else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{told(view.sheet.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{skip}<main>\n{body}\n</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _sheet(report: Documented, say: Callable[[str], str]) -> Sheet:
    if isinstance(report, Report):
        from compressor.reports.html.of_run import sheet_of as of_run

        return of_run(report, say)
    if isinstance(report, MergeReport):
        from compressor.reports.html.of_merge import sheet_of as of_merge

        return of_merge(report)
    from compressor.reports.html.of_files import sheet_of as of_files

    return of_files(report, say)


class _View:
    """A sheet with its tensors in their places."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet

    @cached_property
    def places(self) -> list[Place]:
        return [place_of(row.name, row.shape) for row in self.sheet.rows]

    @cached_property
    def roles(self) -> dict[str, Amount]:
        """Bytes by role, in the order of their sizes; the smallest of many together, and what no tensor has."""
        found: dict[str, Amount] = {}
        for row, place in zip(self.sheet.rows, self.places, strict=True):
            amount = found.setdefault(place.role, Amount())
            amount.before += row.before
            amount.after += row.after
        found = dict(sorted(found.items(), key=lambda item: -item[1].before))
        if len(found) > _ROLES:
            kept = dict(list(found.items())[: _ROLES - 1])
            rest = list(found.values())[_ROLES - 1 :]
            kept[_OTHERS] = Amount(sum(one.before for one in rest), sum(one.after for one in rest))
            found = kept
        before, after = self.sheet.sizes
        headers = Amount(
            before - sum(one.before for one in found.values()),
            after - sum(one.after for one in found.values()),
        )
        return {**found, _REST: headers}

    def cells(self, layers: Mapping[tuple[str, int], int]) -> dict[str, dict[int, list[TensorRow]]]:
        """The weights of layers that were treated, by role and the layer's place."""
        found: dict[str, dict[int, list[TensorRow]]] = {}
        for row, place in zip(self.sheet.rows, self.places, strict=True):
            if place.layer is not None and row.treated and place.layer in layers:
                cells = found.setdefault(place.role, {})
                cells.setdefault(layers[place.layer], []).append(row)
        rows = sorted(found.items(), key=lambda item: -sum(row.size for cell in item[1].values() for row in cell))
        return dict(rows[: 2 * _ROLES])


def _verdict(view: _View, origin: Origin) -> Iterator[str]:
    sheet = view.sheet
    yield f"<h1>{told(sheet.title)}</h1>"
    yield f'<p class="verdict{" bad" if sheet.failed else ""}" role="status">{told(sheet.verdict, 2000)}</p>'
    for sentence in sheet.warnings:
        yield f"<p><strong>Warning:</strong> {told(sentence, 1000)}</p>"
    facts = "".join(f"<div><dt>{name}</dt><dd>{told(value)}</dd></div>" for name, value in sheet.facts)
    yield f"<dl>{facts}</dl>"


def _sizes(view: _View, origin: Origin) -> Iterator[str]:
    if view.sheet.rows:
        yield "<h2>Where the bytes went</h2>"
        yield waterfall(view.roles, *view.sheet.sizes)


def _layers(view: _View, origin: Origin) -> Iterator[str]:
    names = layers_of(view.places)
    cells = view.cells({layer: n for n, layer in enumerate(names)}) if names else {}
    if not cells:
        return
    stacks = {stack for stack, _ in names}
    shown = [str(layer) if len(stacks) == 1 else f"{stack}.{layer}" for stack, layer in names]
    yield "<h2>Layer by layer</h2>"
    if view.sheet.errors:
        errors = {
            role: {at: _error([row.change for row in cell]) for at, cell in row.items()}
            for role, row in cells.items()
        }
        yield heat_map("Relative error", errors, shown)
    bits = {
        role: {
            at: 8 * sum(row.after for row in cell) / max(sum(row.size for row in cell), 1)
            for at, cell in row.items()
        }
        for role, row in cells.items()
    }
    yield heat_map("Stored bits a weight", bits, shown)


def _error(changes: Sequence[Change | None]) -> float:
    lost = sum(change.lost for change in changes if change is not None)
    energy = sum(change.energy for change in changes if change is not None)
    return sqrt(lost / energy) if energy > 0 else 0.0


def _outputs(view: _View, origin: Origin) -> Iterator[str]:
    if view.sheet.loss is not None:
        from compressor.reports.html.outputs import sections

        yield from sections(view.sheet.loss)


def _budget(view: _View, origin: Origin) -> Iterator[str]:
    allocation = view.sheet.allocation
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
    gates, limits = view.sheet.gates, view.sheet.limits
    if not gates and not limits:
        return
    yield "<h2>Gates</h2>"
    if not gates:
        yield f"<p>No limits were given ({told(limits)}).</p>"
        return
    rows = "".join(
        f"<tr><th scope=row>{told(one.gate)}<td>{told(one.measured)}"
        f"<td class={'no' if one.failure else 'yes'}>{'does not hold' if one.failure else 'holds'}"
        for one in gates
    )
    yield f"<table><thead><tr><th scope=col>gate<th scope=col>measured<th scope=col>verdict<tbody>{rows}</table>"


def _told(view: _View, origin: Origin) -> Iterator[str]:
    if view.sheet.told:
        yield f"<h2>{view.sheet.heading}</h2>"
        yield f"<ul>{''.join(f'<li>{told(item, 1000)}' for item in view.sheet.told)}</ul>"


def _tensors(view: _View, origin: Origin) -> Iterator[str]:
    sheet = view.sheet
    if not sheet.rows:
        return
    yield '<h2 id="tensors">Tensors</h2>'
    order = "The worst first." if sheet.errors else "The largest first."
    if any(row.change is not None and row.change.histogram is not None for row in sheet.rows):
        before = "<i></i> before, <b></b> after" if sheet.errors else "<b></b> as they are stored"
        yield (
            f'<p class="note key">{order} Under “numbers” are the weights other than zero, from the most '
            f"negative to the largest: {before}; the outermost 1 % are not drawn.</p>"
        )
    else:
        yield f'<p class="note">{order}</p>'
    if sheet.allocation is not None:
        said = "“gains x/MB”: the squared error that the last step to the choice saved, for its bytes."
        yield f'<p class="note">{said}</p>'
    yield tensors_table(sheet)


def _again(view: _View, origin: Origin) -> Iterator[str]:
    sheet = view.sheet
    rows = [*origin.hashes, *sheet.known_by, ("report by", f"compressor {__version__}")]
    yield "<h2>To make it again</h2>"
    if origin.command:
        yield f"<pre>{told(origin.command, 4000)}</pre>"
    listed = "".join(f"<tr><th scope=row>{told(name)}<td><code>{told(value)}</code>" for name, value in rows)
    yield f"<table><tbody>{listed}</table>"
    if sheet.stages:
        stages = json.dumps([dict(stage) for stage in sheet.stages], ensure_ascii=True)
        yield f"<p>Stages, as the record in the output has them:</p><pre>{told(stages, 8000)}</pre>"


_SECTIONS = (_verdict, _sizes, _layers, _outputs, _budget, _gates, _told, _tensors, _again)
