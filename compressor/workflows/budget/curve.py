"""What a budget chose, and what every other size would have cost: plain data, for reports.

The error of a choice is √(mean loss) over the decided tensors, each counting as it has weights: relative in the
Frobenius norm, of the weights or, weighted by statistics, of the layers' outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt

from compressor.workflows.budget.allocate import steps
from compressor.workflows.budget.choice import Allocation, Chosen, Point
from compressor.workflows.budget.fit import Fitting
from compressor.workflows.budget.survey import size_of


def allocation_of(
    found: Fitting, picked: Sequence[int], size_after: int, sizes: Mapping[str, int] | None = None
) -> Allocation:
    """The choice as data; `size_after` is that of the files, `sizes` those of tensors that a trial has told."""
    sizes = sizes or {}
    rows = []
    for number, unit in enumerate(found.units):
        one = found.candidate(number, picked)
        gain = _gain(found, number, picked[number])
        for spec in unit.specs:
            measured = found.measured_of(number, picked, spec)
            size = sizes.get(spec.name, size_of(one, spec, measured, found.takers))
            rows.append(
                Chosen(
                    spec.name,
                    spec.shape,
                    one.name,
                    size,
                    size * 8 / spec.size,
                    measured.error,
                    sqrt(measured.loss),
                    measured.spread,
                    gain,
                    len(unit.specs) > 1,
                )
            )
    rows.sort(key=lambda row: row.name)
    point = _point(found, found.bytes_of(picked), found.loss_of(picked))
    if found.more or sizes:
        loss = sum(row.weighted**2 * prod(row.shape) for row in rows)
        point = _point(found, sum(row.size for row in rows), loss)
    return Allocation(
        found.budget.words,
        found.informed,
        tuple(rows),
        point,
        curve_of(found),
        _uniform(found),
        size_after,
        note=found.note,
        sloped=found.sloped,
    )


def curve_of(found: Fitting) -> tuple[Point, ...]:
    """The curve of error against size: every point of the lower hull of the units' choices."""
    least = found.points()[0]
    size, loss = found.bytes_of(least), found.loss_of(least)
    points = [_point(found, size, loss)]
    for step in steps(found.options):
        size, loss = size + step.size, max(loss - step.loss, 0.0)
        points.append(_point(found, size, loss))
    return tuple(points)


def _uniform(found: Fitting) -> tuple[Point, ...]:
    """One candidate for all tensors, where all of them allow it."""
    points = []
    for place, one in enumerate(found.candidates):
        if one.encoder is not None and all(place in unit.places for unit in found.units):
            picked = [unit.places.index(place) for unit in found.units]
            points.append(_point(found, found.bytes_of(picked), found.loss_of(picked), one.name))
    return tuple(sorted(points, key=lambda point: (point.size, point.error)))


def _point(found: Fitting, size: int, loss: float, name: str = "") -> Point:
    return Point(size, size * 8 / found.weights, sqrt(loss / found.weights), name)


def _gain(found: Fitting, unit: int, option: int) -> float:
    """Loss that a MB saves between the next smaller option of the hull and this one; 0 for the smallest."""
    options = found.options[unit]
    smaller = [one for one in options if one.size < options[option].size and one.loss > options[option].loss]
    if not smaller:
        return 0.0
    return min((one.loss - options[option].loss) / (options[option].size - one.size) for one in smaller) * 1e6
