"""The curve of error against size as a picture: SVG, written by hand, with nothing foreign in it but names of
candidates, which are escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from math import ceil, floor, log10

from compressor.cli.report.page import error_text
from compressor.core.text import printable
from compressor.workflows.budget.choice import Allocation, Point

_WIDE, _HIGH = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 60


def render_curve(allocation: Allocation) -> str:
    """A whole SVG document: bits a weight to the right, error (logarithmic) upwards; the hull, uniform choices, and
    the choice."""
    seen = [point for point in (*allocation.curve, *allocation.uniform, allocation.point) if point.error > 0]
    low_bits = min((point.bits for point in allocation.curve), default=0.0)
    high_bits = max((point.bits for point in seen), default=low_bits)
    high_bits = high_bits if high_bits > low_bits else low_bits + 1
    errors = [log10(point.error) for point in seen] or [0.0]
    low, high = floor(min(errors)), ceil(max(errors))
    high = high if high > low else low + 1

    def at(point: Point) -> tuple[float, float]:
        x = _LEFT + (point.bits - low_bits) / (high_bits - low_bits) * (_WIDE - _LEFT - _RIGHT)
        y = _TOP + (high - log10(point.error)) / (high - low) * (_HIGH - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="white"/>',
        _text(_LEFT, 22, f"error against bits a weight ({allocation.asked})", size=14),
        *_axes(low_bits, high_bits, low, high),
    ]
    path = " ".join(f"{x},{y}" for x, y in map(at, _positive(allocation.curve)))
    lines.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="2"/>')
    for point in _positive(allocation.uniform):
        x, y = at(point)
        lines.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#888888"/>')
        lines.append(_text(x + 5, y - 5, printable(point.name, 40), fill="#555555"))
    for point in _positive([allocation.point]):
        x, y = at(point)
        lines.append(f'<circle cx="{x}" cy="{y}" r="5" fill="#d62728"/>')
        said = f"{point.bits:.4g} bits, error {error_text(point.error)}"
        lines.append(_text(x + 8, y + 16, said, fill="#d62728"))
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _positive(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if point.error > 0]


def _axes(low_bits: float, high_bits: float, low: int, high: int) -> list[str]:
    bottom, right = _HIGH - _BOTTOM, _WIDE - _RIGHT
    found = [f'<path d="M{_LEFT},{_TOP} V{bottom} H{right}" fill="none" stroke="black"/>']
    step = next(size for size in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 64) if (high_bits - low_bits) / size <= 12)
    for number in range(ceil(low_bits / step), floor(high_bits / step) + 1):
        bits = number * step
        x = round(_LEFT + (bits - low_bits) / (high_bits - low_bits) * (right - _LEFT), 1)
        found.append(f'<path d="M{x},{bottom} v5" stroke="black"/>')
        found.append(_text(x, bottom + 20, f"{bits:g}", anchor="middle"))
    for power in range(low, high + 1):
        y = round(_TOP + (high - power) / (high - low) * (bottom - _TOP), 1)
        found.append(f'<path d="M{_LEFT},{y} H{right}" stroke="#dddddd"/>')
        found.append(_text(_LEFT - 8, y + 4, f"{10.0**power:g}", anchor="end"))
    found.append(_text((_LEFT + right) / 2, _HIGH - 15, "stored bits a weight", anchor="middle"))
    return found


def _text(x: float, y: float, said: str, *, size: int = 12, fill: str = "black", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{escape(said)}</text>'
