"""The curve of error against size as a picture: SVG, with nothing foreign in it but names, which are escaped.

What is drawn is the neighbourhood of the choice: points of an error so small that they only stretch the axis (a
dense tensor loses 1e-9) are left out, and counted below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from compressor.reports.figures import error_text
from compressor.reports.markup import number, told
from compressor.workflows.budget.choice import Allocation, Point

_WIDE, _HIGH = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 28, 56
_SPAN = 25.0  # how many times smaller than the chosen error one is drawn
_CHARACTER, _LINE = 6.6, 14  # of a label: about the width of a letter, and its height
STYLE = (
    ".curve{color:#1b1f24;background:#fff;--line:#0969da;--mark:#bc4c00;--grid:#d8dee4;--soft:#57606a}"
    "@media(prefers-color-scheme:dark){.curve{color:#e6edf3;background:#0d1117;--line:#58a6ff;--mark:#ffa657;"
    "--grid:#30363d;--soft:#9aa4af}}"
)
_OWN = (
    ".curve text{font:12px system-ui,sans-serif;fill:currentColor}.curve .soft{fill:var(--soft)}"
    ".curve .grid{stroke:var(--grid)}.curve .line{stroke:var(--line);stroke-width:2;fill:none}"
    ".curve .one{fill:var(--soft)}.curve .here{fill:var(--mark)}.curve text.here{font-weight:600}"
)


def render_curve(allocation: Allocation) -> str:
    """A whole SVG document, light or dark as its reader is."""
    return curve_picture(allocation, STYLE) + "\n"


def curve_picture(allocation: Allocation, style: str = "") -> str:
    """An `svg` element: bits a weight to the right, error (logarithmic) upwards; the best that the candidates
    allow, uniform choices, and the choice."""
    view = _View.of(allocation)
    drawn = [point for point in allocation.curve if view.shows(point)]
    uniform = [point for point in allocation.uniform if view.shows(point)]
    chosen = allocation.point
    said = f"{chosen.bits:.4g} bits a weight, error {error_text(chosen.error)}"
    out = [
        f'<svg class="curve" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        f'aria-label="Error against stored bits a weight. Chosen: {told(said)}.">',
        f"<style>{style}{_OWN}</style>",
        *_axes(view),
    ]
    if drawn:
        path = " ".join(f"{number(view.x(point))},{number(view.y(point))}" for point in drawn)
        out.append(f'<polyline class="line" points="{path}"/>')
    labels = _Labels([(view.x(point), view.y(point)) for point in (*drawn, *uniform)])
    named = []
    if view.shows(chosen):
        named = labels.placed(view.x(chosen), view.y(chosen), f"chosen: {said}", "here")
    for point in sorted(uniform, key=lambda point: point.error):
        tip = f"all {point.name}: {point.bits:.4g} bits, error {error_text(point.error)}"
        out.append(_dot(view, point, tip, "one", 3.5))
        named += labels.placed(view.x(point), view.y(point), f"all {point.name}", "soft")
    if view.shows(chosen):
        out.append(_dot(view, chosen, f"chosen: {said}", "here", 6))
    out += named
    left = len(allocation.curve) + len(allocation.uniform) - len(drawn) - len(uniform)
    note = f" ({left} of smaller errors are not drawn)" if left else ""
    out.append(_text((_LEFT + _WIDE - _RIGHT) / 2, _HIGH - 10, f"stored bits a weight{note}", anchor="middle"))
    out.append("</svg>")
    return "\n".join(out)


@dataclass(frozen=True)
class _View:
    """What part of the plane is drawn: bits from `low` to `high`, errors by their decimal logarithms."""

    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, allocation: Allocation) -> _View:
        chosen = allocation.point.error
        seen = [point for point in (*allocation.curve, *allocation.uniform, allocation.point) if point.error > 0]
        near = [point for point in seen if chosen <= 0 or point.error >= chosen / _SPAN]
        near = near or seen or [Point(0, 0.0, 1.0)]
        errors = [log10(point.error) for point in near]
        bits = [point.bits for point in near]
        margin = 0.05 * (max(bits) - min(bits)) or 0.5
        room = 0.06 * (max(errors) - min(errors)) or 0.2
        return cls(min(bits) - margin, max(bits) + margin, min(errors) - room, max(errors) + room)

    def shows(self, point: Point) -> bool:
        return point.error > 0 and self.least <= log10(point.error) <= self.most

    def x(self, point: Point) -> float:
        return self.at(point.bits)

    def at(self, bits: float) -> float:
        return _LEFT + (bits - self.low) / (self.high - self.low) * (_WIDE - _LEFT - _RIGHT)

    def y(self, point: Point) -> float:
        return self.up(log10(point.error))

    def up(self, power: float) -> float:
        return _TOP + (self.most - power) / (self.most - self.least) * (_HIGH - _TOP - _BOTTOM)


class _Labels:
    """Where labels go: beside their points, over nothing that is there already; where there is no room, none."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]

    def placed(self, x: float, y: float, said: str, kind: str) -> list[str]:
        wide = len(said) * _CHARACTER
        for left, base, anchor in (
            (x + 10, y - 6, "start"),
            (x + 10, y + 16, "start"),
            (x - 10, y + 16, "end"),
            (x - 10, y - 6, "end"),
            (x, y - 12, "middle"),
            (x, y + 24, "middle"),
        ):
            start = left - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = (start, base - _LINE + 3, start + wide, base + 3)
            inside = box[0] >= _LEFT and box[2] <= _WIDE - 4 and box[1] >= 2 and box[3] <= _HIGH - _BOTTOM
            if inside and not any(_meet(box, other) for other in self.taken):
                self.taken.append(box)
                return [_text(left, base, said, anchor=anchor, kind=kind)]
        return []


Box = tuple[float, float, float, float]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _axes(view: _View) -> Iterator[str]:
    bottom, right = _HIGH - _BOTTOM, _WIDE - _RIGHT
    step = next((size for size in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16) if (view.high - view.low) / size <= 10), 64.0)
    for count in range(ceil(view.low / step), floor(view.high / step) + 1):
        x = number(view.at(count * step))
        yield f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>'
        yield _text(float(x), bottom + 18, f"{count * step:g}", anchor="middle")
    for power, digit in _ticks(view):
        y = number(view.up(power + log10(digit)))
        yield f'<path class="grid" d="M{_LEFT} {y}H{right}"/>'
        yield _text(_LEFT - 8, float(y) + 4, f"{digit * 10.0**power:g}", anchor="end")
    yield _text(_LEFT - 8, 14, "error", anchor="end", kind="soft")


def _ticks(view: _View) -> list[tuple[int, int]]:
    """Round errors on the axis as (power, digit): 1, 2 and 5 of each power where there is room, else fewer."""
    powers = range(floor(view.least), ceil(view.most) + 1)
    for digits in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1,)):
        found = [(power, digit) for power in powers for digit in digits]
        found = [(power, digit) for power, digit in found if view.least <= power + log10(digit) <= view.most]
        if len(found) <= 9:
            return found
    return found[:: ceil(len(found) / 9)]


def _dot(view: _View, point: Point, said: str, kind: str, radius: float) -> str:
    x, y = number(view.x(point)), number(view.y(point))
    return f'<circle class="{kind}" cx="{x}" cy="{y}" r="{number(radius)}"><title>{told(said)}</title></circle>'


def _text(x: float, y: float, said: str, *, anchor: str = "start", kind: str = "") -> str:
    own = f' class="{kind}"' if kind else ""
    return f'<text{own} x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{told(said, 60)}</text>'
