"""Texts and numbers as HTML and SVG have them: whatever comes from outside goes through `told`."""

from __future__ import annotations

from html import escape

from compressor.core.text import printable


def told(text: str, limit: int = 300) -> str:
    """A foreign text as content or as a quoted attribute: control characters and markup are written out."""
    return escape(printable(text, limit))


def number(value: float) -> str:
    """A coordinate with at most one digit behind the point."""
    return f"{value:.1f}".removesuffix(".0")
