"""A progress bar on stderr, in bytes with the remaining time; only where a person watches a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """Called with what is done and of how much; `stage` says what that is part of. Mute without a `progress`."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self.task = None if progress is None else progress.add_task("", total=None)

    def __call__(self, done: int, total: int) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=total)

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=text, completed=0, total=None)


@contextmanager
def bar(*, enabled: bool) -> Iterator[Bar]:
    """A bar, mute where stderr is no terminal."""
    if not enabled or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = Console(stderr=True)
    name = Column(
        no_wrap=True, max_width=max(8, console.width - 40)
    )  # figures go before names where both have no room
    said = TextColumn("{task.description}", markup=False, table_column=name)
    figures = (DownloadColumn(table_column=Column(no_wrap=True)), TimeRemainingColumn())
    with Progress(said, BarColumn(bar_width=None), *figures, console=console, transient=True) as progress:
        yield Bar(progress)
