"""What outputs lost: as figures, block by block, and tensor by tensor where that was measured."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.calibration.loss import ModelLoss
from compressor.reports.figures import error_text
from compressor.reports.loss import figures_of
from compressor.reports.markup import number, told


def sections(loss: ModelLoss) -> Iterator[str]:
    """The sections of a comparison of outputs."""
    yield "<h2>What the outputs lost</h2>"
    yield f"<p>A {told(loss.outputs.kind)}, measured on {told(loss.source, 500)}.</p>"
    rows = "".join(f"<tr><th scope=row>{told(name)}<td>{told(value)}" for name, value in figures_of(loss.outputs))
    yield f"<table><thead><tr><th scope=col>figure<th scope=col>value<tbody>{rows}</table>"
    if loss.blocks:
        yield "<h2>Where it was lost</h2>"
        said = "Of every block the error that it adds (the bar), and after the dot the error so far (the mark)."
        yield f'<p class="note">{said}</p>'
        top = max(max(one.added, one.total) for one in loss.blocks) or 1.0
        bars = "".join(_bar(f"block {one.number}", one.added, one.total, top) for one in loss.blocks)
        heads = "<th scope=col>block<td><th scope=col>added · so far"
        yield f"<table class=bars><caption>Relative error by block</caption><thead><tr>{heads}<tbody>{bars}</table>"
    if loss.tensors:
        what = "KL divergence" if loss.outputs.kld is not None else "1 − cosine"
        yield f"<h2>Each tensor alone</h2>\n<p>Measured on {loss.sample} tokens, the costliest first.</p>"
        body = "".join(
            f"<tr><th scope=row>{told(one.name, 200)}<td>{error_text(one.error)}<td>{error_text(one.lost)}"
            for one in loss.tensors
        )
        heads = f"<th scope=col>tensor<th scope=col>relative error<th scope=col>{what} alone"
        table = f"<table><thead><tr>{heads}<tbody>{body}</table>"
        yield f"<div class=scroll tabindex=0 role=region aria-label=alone>{table}</div>"


def _bar(label: str, added: float, total: float, top: float) -> str:
    """A bar of what a block adds, and a mark where the error is by then."""
    wide, place = 1000 * min(added / top, 1.0), 1000 * min(total / top, 1.0)
    strip = (
        f"<rect class=less width={number(max(wide, 2))} height=1 />"
        f"<rect class=more x={number(min(place, 996))} width=4 height=1 />"
    )
    return (
        f"<tr><th scope=row>{told(label)}<td><svg viewBox='0 0 1000 1' preserveAspectRatio=none "
        f"aria-hidden=true>{strip}</svg><td>{error_text(added)} · {error_text(total)}"
    )
