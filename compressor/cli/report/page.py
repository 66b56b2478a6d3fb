"""A page of a report: how wide it may be, what characters it may use, and tables that fit it.

A table is as wide as the terminal, or as COLUMNS says, or 80 columns: long names are shortened in their middle, and
columns that do not fit are dropped, the least important first, and named below. With `wide` it is as wide as its
content. Lines of text are wrapped in a terminal only, so that a log can be searched.
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
ESSENTIAL = 6  # columns kept as high as this go only where names would have no room at all
_WIDTH = 80  # where nothing says how wide it is
_UNBOUNDED = 4000
_NAME, _LEAST = 32, 10  # columns that names get, and the least of it for columns that are essential


@dataclass(frozen=True)
class Column:
    """A column: `keep` ranks it, the lowest are dropped first where there is no room."""

    title: str
    keep: int
    right: bool = True


class Page:
    """A text under construction that knows how wide it may be and what characters it may use."""

    def __init__(self, *, wide: bool = False, quiet: bool = False) -> None:
        """`wide`: tables have all their columns and whole names; `quiet`: there is a verdict, and nothing else."""
        terminal, asked = sys.stdout.isatty(), _asked_width()
        self.quiet = quiet
        self.wraps = terminal or asked is not None
        self.width = _UNBOUNDED if wide else _terminal_width() if terminal else asked or _WIDTH
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
        if not self.quiet:
            self.console.print(Text(text, style=style), soft_wrap=not self.wraps)

    def verdict(self, text: str) -> None:
        """The line that tells what came of it: the last one, and with `quiet` the only one."""
        self.console.print(Text(text, style="bold"), soft_wrap=not self.wraps or self.quiet)

    def pair(self, before: str, after: str) -> str:
        """Two texts with an arrow between them, as `before → after`."""
        return before if before == after else f"{before} {self.arrow} {after}"

    def shape(self, shape: Sequence[int]) -> str:
        """A tensor's shape as a text."""
        return self.times.join(map(str, shape)) or "scalar"

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None
    ) -> None:
        """The first column holds foreign names, which are shortened; the others never wrap."""
        if self.quiet:
            return
        shown, names = self._fitting(columns, [*rows, *([footer] if footer else [])])
        box = SIMPLE if footer else SIMPLE_HEAD  # with a rule above the footer, or without
        table = Table(box=box, show_edge=False, pad_edge=False, show_footer=footer is not None)
        for number in shown:
            column = columns[number]
            table.add_column(
                column.title,
                footer=Text(footer[number]) if footer else "",
                justify="right" if column.right else "left",
                overflow="ellipsis",
                no_wrap=True,
                footer_style="bold",
            )
        for row in rows:
            table.add_row(Text(shortened(row[0], names)), *(Text(row[number]) for number in shown[1:]))
        self.console.print(table)
        dropped = [column.title for number, column in enumerate(columns) if number not in shown]
        if dropped:
            self.line(f"not shown: {', '.join(dropped)}; --wide shows all columns")

    def _fitting(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
        """The columns that are shown, and the width that is left for names."""
        widths = [
            max((cell_len(text) for text in (column.title, *(row[n] for row in rows))), default=0)
            for n, column in enumerate(columns)
        ]
        shown = list(range(len(columns)))
        while len(shown) > 2:
            least = min(shown[1:], key=lambda n: columns[n].keep)
            room = _LEAST if columns[least].keep >= ESSENTIAL else _NAME
            if min(widths[0], room) + sum(widths[n] + GAP for n in shown[1:]) <= self.width:
                break
            shown.remove(least)
        return shown, max(self.width - sum(widths[n] + GAP for n in shown[1:]), 8)

    def text(self) -> str:
        """Everything that was put on the page."""
        found = self.console.file
        assert isinstance(found, _Encoded)  # noqa: S101 - set above
        lines = found.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines).replace("…", self.more) + "\n"


def shortened(name: str, width: int) -> str:
    """A name of at most `width` cells, with an ellipsis in its middle: of a tensor's name both ends tell most."""
    if cell_len(name) <= width:
        return name
    head = 2 * (width - 1) // 5
    tail = width - 1 - head
    while head + tail > 2 and cell_len(found := f"{name[:head]}…{name[-tail:]}") > width:  # wide characters
        head, tail = max(head - 1, 1), max(tail - 1, 1)
    return found


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
