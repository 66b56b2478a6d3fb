"""The limits that a result must keep: what a recipe or the command line may say of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Gates:
    """Limits that a result must keep; None: no limit. Sizes are judged before any data is read."""

    max_error: float | None = None
    min_ratio: float | None = None
    max_size: int | None = None
    min_sparsity: float | None = None

    def within(self, others: Gates) -> Gates:
        """These limits, and where there is none that of `others`."""
        pairs = zip(_limits(self), _limits(others), strict=True)
        return Gates(*(theirs if mine is None else mine for mine, theirs in pairs))


def _limits(gates: Gates) -> tuple[Any, ...]:
    return tuple(getattr(gates, each.name) for each in fields(gates))
