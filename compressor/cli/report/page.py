"""A page of a report: how wide it may be, what characters it may use, and tables that fit it.

In a terminal, columns that do not fit are dropped, least important first, and long names are folded. Elsewhere
a table is as wide as its content, so that a log can be searched; where COLUMNS says how wide a log is, what does
not fit follows in a table of its own, so that nothing is missing.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE, SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compressor.core.text import printable

GAP = 3  # characters between two columns
_UNBOUNDED = 4000


@dataclass(frozen=True)
class Column:
    """A column: `keep` ranks it, the lowest are dropped first where the terminal is narrow."""

    title: str
    keep: int
    right: bool = True


class Page:
    """A text under construction that knows how wide it may be and what characters it may use."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.drops = terminal
        self.width = _terminal_width() if terminal else _asked_width() or _UNBOUNDED
        plain = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
        self.arrow, self.times, self.more = ("->", "x", "...") if plain else ("→", "×", "…")
        # both sizes: without a height rich asks the terminal and falls back to 80 columns
        self.console = Console(
            file=_Encoded(sys.stdout.encoding or "ascii"),
            width=self.width,
            height=50,
            force_terminal=True if terminal else None,
            no_color=None if terminal or os.environ.get("FORCE_COLOR") else True,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def line(self, text: str = "", style: str = "") -> None:
        """A line of our own text, foreign names in it made printable; wrapped in a terminal only."""
        self.console.print(Text(text, style=style), soft_wrap=self.width >= _UNBOUNDED)

    def pair(self, before: str, after: str) -> str:
        """Two texts with an arrow between them, as `before → after`."""
        return before if before == after else f"{before} {self.arrow} {after}"

    def shape(self, shape: Sequence[int]) -> str:
        """A tensor's shape as a text."""
        return self.times.join(map(str, shape)) or "scalar"

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None
    ) -> None:
        """The first column holds foreign names and folds; the others never wrap in a terminal."""
        shown, names = self._fitting(columns, [*rows, *([footer] if footer else [])])
        box = SIMPLE if footer else SIMPLE_HEAD  # with a rule above the footer, or without
        table = Table(box=box, show_edge=False, pad_edge=False, show_footer=footer is not None)
        for number in shown:
            column = columns[number]
            table.add_column(
                column.title,
                footer=Text(footer[number]) if footer else "",
                justify="right" if column.right else "left",
                overflow="fold",
                no_wrap=number > 0 and self.drops,
                footer_style="bold",
            )
        for row in rows:
            table.add_row(Text(_folded(row[0], names)), *(Text(row[number]) for number in shown[1:]))
        self.console.print(table)
        rest = [number for number in range(len(columns)) if number == 0 or number not in shown]
        if len(rest) > 1 and not self.drops:
            self.line()
            left = [[row[number] for number in rest] for row in rows]
            self.table([columns[n] for n in rest], left, [footer[n] for n in rest] if footer else None)

    def _fitting(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
        """The columns that are shown, and the width that is left for names."""
        widths = [
            max((cell_len(text) for text in (column.title, *(row[n] for row in rows))), default=0)
            for n, column in enumerate(columns)
        ]
        shown = list(range(len(columns)))
        name = min(widths[0], max(24, self.width // 3))
        while len(shown) > 2 and name + sum(widths[n] + GAP for n in shown[1:]) > self.width:
            shown.remove(min(shown[1:], key=lambda n: columns[n].keep))
        return shown, max(self.width - sum(widths[n] + GAP for n in shown[1:]), 8)

    def text(self) -> str:
        """Everything that was put on the page."""
        found = self.console.file
        assert isinstance(found, _Encoded)  # noqa: S101 - set above
        lines = found.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines).replace("…", self.more) + "\n"


def _folded(name: str, width: int) -> str:
    """A name in lines of at most `width` characters, cut after a dot where that leaves no line half empty."""
    lines = []
    while len(name) > width:
        at = name.rfind(".", width // 2, width) + 1 or width
        lines.append(name[:at])
        name = name[at:]
    return "\n".join([*lines, name])


class _Encoded(io.StringIO):
    """A buffer that answers for the encoding of the stream it will go to: rich asks, to choose its boxes."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def _terminal_width() -> int:
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, 40)
    except (OSError, ValueError):
        return 80


def _asked_width() -> int | None:
    """What COLUMNS says, if it says something."""
    asked = os.environ.get("COLUMNS", "")
    return max(int(asked), 40) if asked.isascii() and asked.isdigit() and len(asked) < 6 and int(asked) else None


def shown_name(name: str) -> str:
    """A tensor's name as a cell; a name of no characters is shown too."""
    return printable(name, 100) or "''"
