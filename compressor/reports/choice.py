"""A budget's choice as JSON has it."""

from __future__ import annotations

from typing import Any

from compressor.workflows.budget.choice import Allocation, Point


def to_json(allocation: Allocation) -> dict[str, Any]:
    """A budget's choice as JSON types, for machines."""
    return {
        "asked": allocation.asked,
        "weighted_by": allocation.weighted or None,
        **({"note": allocation.note} if allocation.note else {}),
        "size_after": allocation.size_after,
        "point": _numbers(allocation.point),
        "tensors": [
            {
                "name": row.name,
                "choice": row.choice,
                "size": row.size,
                "bits": row.bits,
                "relative_error": row.error,
                "weighted_error": row.weighted,
                "spread": row.spread,
                "gain_per_mb": row.gain,
            }
            for row in allocation.chosen
        ],
        "curve": [_numbers(point) for point in allocation.curve],
        "uniform": [{"candidate": point.name, **_numbers(point)} for point in allocation.uniform],
        **(
            {"tried": [{"size": one.size, "metric": one.metric} for one in allocation.tried]}
            if allocation.tried
            else {}
        ),
    }


def _numbers(point: Point) -> dict[str, Any]:
    return {"size": point.size, "bits": point.bits, "error": point.error}
