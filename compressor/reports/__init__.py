"""Results as data and as documents: JSON, HTML, Markdown, JUnit. Nothing here computes, or prints.

The functions are what results show themselves by (`core/shown.py`).
"""

from __future__ import annotations

from typing import Any


def to_dict(result: Any, /) -> dict[str, Any]:
    """What the command line prints with `--format json`."""
    from compressor.reports.json import to_dict

    return to_dict(result)


def to_html(result: Any, /) -> str:
    """The document that `--report` writes, without a command and without hashes."""
    from compressor.reports.html.document import Origin, render_html

    return render_html(result, Origin(""))


def fragment(result: Any, /) -> str:
    """A few lines and a table, for notebooks."""
    from compressor.reports.notebook import render_fragment

    return render_fragment(result)


def line(result: Any, /) -> str:
    """A result in one line."""
    from compressor.reports.notebook import line_of

    return line_of(result)
