"""Rows of bars and of cells that are as wide as the screen allows: a label, a strip of SVG, a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log

from compressor.core.text import size_text
from compressor.reports.figures import error_text
from compressor.reports.markup import number, told

LEVELS = 7  # of colour
_RANGE = 8  # times: values further apart are told apart by their logarithms
_ALIKE = 1.05  # times: values that are nearer to each other have one colour


@dataclass
class Amount:
    """Bytes before and after."""

    before: int = 0
    after: int = 0


def waterfall(amounts: Mapping[str, Amount], before: int, after: int) -> str:
    """From all bytes before to all bytes after, a row for each role: what it saves, or adds."""
    top = max(before, after, 1)
    rows = [_bar("before", 0, before, top, "all", size_text(before))]
    height = before
    for role, amount in amounts.items():
        saved = amount.before - amount.after
        low, high = sorted((height, height - saved))
        figure = size_text(amount.before)
        if saved:
            figure += f" → {size_text(amount.after)}"
        rows.append(_bar(role, low, high, top, "less" if saved >= 0 else "more", figure))
        height -= saved
    rows.append(_bar("after", 0, after, top, "all", size_text(after)))
    return _table("Bytes before and after, by role", ("role", "", "bytes"), rows)


def _bar(label: str, low: int, high: int, top: int, kind: str, figure: str) -> str:
    left, wide = 1000 * low / top, max(1000 * (high - low) / top, 2)
    strip = f'<rect class="{kind}" x="{number(min(left, 998))}" width="{number(wide)}" height="1"/>'
    return _row(label, 1000, strip, figure)


@dataclass(frozen=True)
class Scale:
    """Levels of colour for the values that there are."""

    low: float
    high: float
    wide: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        some = [value for value in values if value > 0 and isfinite(value)] or [1.0]
        low, high = min(some), max(some)
        return cls(low, high if high > low * _ALIKE else low, high / low > _RANGE)

    def level(self, value: float) -> int:
        """0 to LEVELS − 1; what is not finite is the worst."""
        if value <= self.low or (self.high == self.low and isfinite(value)):
            return 0
        if not value < self.high:
            return LEVELS - 1
        share = (value - self.low) / (self.high - self.low)
        if self.wide:
            share = log(value / self.low) / log(self.high / self.low)
        return min(int(share * LEVELS), LEVELS - 1)

    def edge(self, level: int) -> float:
        """Where a level begins."""
        if self.wide:
            return float(self.low * (self.high / self.low) ** (level / LEVELS))
        return self.low + (self.high - self.low) * level / LEVELS


def heat_map(title: str, rows: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> str:
    """A row for each role, a cell for each layer; `rows` has the values by role and layer's place among `names`."""
    scale = Scale.of([value for cells in rows.values() for value in cells.values()])
    body = []
    for role, cells in rows.items():
        worst = max(cells, key=lambda layer: cells[layer])
        low, high = min(cells.values()), cells[worst]
        figure = error_text(high)
        if f"{low:.3g}" != f"{high:.3g}":
            figure = f"{error_text(low)} – {figure} (layer {names[worst]})"
        body.append(_row(role, len(names), _cells(cells, scale), figure))
    axis = f"<p class=axis>columns: layers {told(names[0], 60)} to {told(names[-1], 60)}</p>"
    legend = "".join(
        f"<span><svg viewBox='0 0 1 1' aria-hidden=true><path class=q{level} d='M0 .5h1'/></svg>{edge}</span>"
        for level, edge in enumerate(_edges(scale))
    )
    return _table(title, ("role", "", "lowest – highest"), body) + axis + f"<p class=legend>{legend}</p>"


def _edges(scale: Scale) -> list[str]:
    """Where the levels begin, with as many digits as tell them apart."""
    if scale.high == scale.low:
        return [f"about {scale.low:.3g}"]
    said = list[str]()
    for digits in (2, 3, 4):
        said = [f"{scale.edge(level):.{digits}g}" for level in range(LEVELS)]
        if len({*said}) == LEVELS:
            break
    return [*said[:-1], f"{said[-1]}+"]


def _cells(cells: Mapping[int, float], scale: Scale) -> str:
    """One path for each level of colour: a dash for each run of cells."""
    runs: dict[int, list[str]] = {}
    layers = sorted(cells)
    start = 0
    for n, layer in enumerate(layers):
        level = scale.level(cells[layer])
        following = layers[n + 1] if n + 1 < len(layers) else None
        if following == layer + 1 and scale.level(cells[following]) == level:
            continue
        runs.setdefault(level, []).append(f"M{layers[start]} .5h{layer - layers[start] + 1}")
        start = n + 1
    return "".join(f'<path class=q{level} d="{"".join(runs[level])}"/>' for level in sorted(runs))


def _row(label: str, wide: int, strip: str, figure: str) -> str:
    return (
        f"<tr><th scope=row>{told(label, 60)}<td><svg viewBox='0 0 {wide} 1' preserveAspectRatio=none "
        f"aria-hidden=true>{strip}</svg><td>{told(figure)}"
    )


def _table(title: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    top = "".join(f"<th scope=col>{head}" if head else "<td>" for head in heads)
    return f"<table class=bars><caption>{title}</caption><thead><tr>{top}<tbody>{''.join(rows)}</table>"
