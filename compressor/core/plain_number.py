"""What counts as a number in JSON and TOML, which have others than programs want."""

from __future__ import annotations

from math import isfinite
from typing import TypeGuard


def is_number(found: object) -> TypeGuard[int | float]:
    """Whether `value` is a number that float64 holds: no truth value, NaN, infinity, or integer beyond the
    range."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    try:
        return isfinite(found)
    except OverflowError:  # an integer of 309 digits or more
        return False
