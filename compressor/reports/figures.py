"""Shares and errors as all reports write them."""

from __future__ import annotations

from math import isinf


def percent(share: float) -> str:
    """`0 %`, `50 %`, `99.95 %`: never rounded to all or nothing."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    text = f"{100 * share:.3g}"
    if text == "100":
        text = ">99.9"
    return f"{'<0.01' if share < 1e-4 else text} %"


def error_text(error: float) -> str:
    """A relative error as tables print it."""
    return "0" if error == 0 else "inf" if isinf(error) else f"{error:.3g}"
