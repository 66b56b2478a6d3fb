"""Progress in bytes with the remaining time: a bar where a person watches a terminal, else lines now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from compressor.cli.streams import say
from compressor.core.errors import OutputError
from compressor.core.text import printable, size_text
from compressor.files.text_files import append_line

if TYPE_CHECKING:
    from rich.progress import Progress


EVERY = 30.0  # seconds between lines where there is no terminal
EVERY_VERBOSE = 3.0  # and where they were asked for
EVERY_LOG = 10.0  # and in a log
_HUNDRED = 100


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


class Lines(Bar):
    """Has what is done told in a line, at most every so many seconds."""

    def __init__(self, every: float, tell: Callable[[str], None], *, stages: bool = False) -> None:
        """`stages`: each is told when it begins, and when it is done."""
        super().__init__()
        self.every, self.tell, self.name, self.stages = every, tell, "", stages
        self.last = time.monotonic()
        self.first: tuple[float, int] | None = None  # when of this stage something was told done, and how much

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= self.every or (self.stages and done >= total):
            self.last = now
            share = f"{done * 100 // max(total, 1)} % of {size_text(total)}"
            self.tell(f"{self.name}{share}{self._left(now, done, total)}")
        if self.first is None or done < self.first[1]:
            self.first = now, done

    def _left(self, now: float, done: int, total: int) -> str:
        """How long what is left will take, by the bytes since the first call; nothing as long as a hundredth of all
        is not done since, which says nothing of the rest."""
        if done >= total:
            return ", about 0:00:00 left"
        if self.first is None or (since := done - self.first[1]) * _HUNDRED < total:
            return ""
        return f", about {timedelta(seconds=round((now - self.first[0]) * (total - done) / since))} left"

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        self.first, self.name = None, f"{text}: "
        if self.stages:
            self.tell(text)


def logged(path: str) -> Callable[[str], None]:
    """What adds lines to a log, with the time. OutputError where the first cannot be; a disk that is full later
    does not end the run."""
    begun = False

    def write(text: str) -> None:
        nonlocal begun
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OutputError) if begun else nullcontext():
            append_line(path, f"{now} {printable(text, 2000)}")
        begun = True

    return write


class Both(Bar):
    """A bar, and lines in a log."""

    def __init__(self, *bars: Bar) -> None:
        super().__init__()
        self.bars = bars

    def __call__(self, done: int, total: int) -> None:
        for one in self.bars:
            one(done, total)

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        for one in self.bars:
            one.stage(text)


@contextmanager
def bar(*, enabled: bool, log: str | None = None, verbose: bool = False) -> Iterator[Bar]:
    """A bar; where stderr is no terminal, or `verbose`, lines on it. Lines in the file `log` too, with how the run
    ended."""
    if log is None:
        with _shown(enabled=enabled, verbose=verbose) as shown:
            yield shown
        return
    write = logged(log)
    write("begun")
    try:
        with _shown(enabled=enabled, verbose=verbose) as shown:
            yield Both(shown, Lines(EVERY_LOG, write))
    except Exception as error:
        write(f"ended: {error}")
        raise
    write("done")


@contextmanager
def aside() -> Iterator[None]:
    """Take the bar away while something else is printed: rich would print that in its place, on stderr."""
    for one in _live:
        one.stop()
    try:
        yield
    finally:
        for one in _live:
            one.start()


_live: list[Progress] = []  # on the terminal now


@contextmanager
def _shown(*, enabled: bool, verbose: bool) -> Iterator[Bar]:
    if verbose:
        yield Lines(EVERY_VERBOSE, lambda text: say("progress", text), stages=True)
        return
    if not enabled:
        yield Bar()
        return
    if not sys.stderr.isatty():
        yield Lines(EVERY, lambda text: say("progress", text))
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
    bar_column = BarColumn(bar_width=None)
    shown = Progress(said, bar_column, *figures, console=console, transient=True, redirect_stdout=False)
    _live.append(shown)
    try:
        with shown:
            yield Bar(shown)
    finally:
        _live.remove(shown)
