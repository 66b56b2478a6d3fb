"""What has to be undone when the process is stopped, and what stays that the user should know of.

Whoever makes something that must not outlive a stopped run (a half-written file, a worker, a command) registers it
here before it exists, and forgets it when it is done. A signal has all of it undone, the last first.

Once a finished output is being given its name, a signal comes too late: nothing is undone any more. That lasts
until the next output is begun, or until what has its name turns out to be a step on the way (`as_unfinished`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def _nothing() -> None:
    """There is nothing to undo."""


def _silence() -> str:
    """There is nothing to tell."""
    return ""


class Entry:
    """Something to undo, and a sentence about what stays of it ("" for nothing). While it is `publishing` what it
    stands for is being given its name."""

    def __init__(self, undo: Callable[[], None], leftover: Callable[[], str]) -> None:
        self.undo = undo
        self.leftover = leftover
        self.publishing = False

    def forget(self) -> None:
        """Strike the entry off: what it would undo is done, or undone already."""
        with suppress(ValueError):
            _entries.remove(self)


_entries: list[Entry] = []
_published = False  # whether the output that was begun last has its name
_doubts: list[str] = []  # of what is written
_beside = ""  # an output that is whole, for which another is being made: its path as the user may read it


def add(undo: Callable[[], None] = _nothing, *, leftover: Callable[[], str] = _silence) -> Entry:
    """Register something to undo, or to tell of, until its entry is forgotten."""
    entry = Entry(undo, leftover)
    _entries.append(entry)
    return entry


@contextmanager
def registered(undo: Callable[[], None], *, leftover: Callable[[], str] = _silence) -> Iterator[Entry]:
    """Have something undone if a signal comes within the block."""
    entry = add(undo, leftover=leftover)
    try:
        yield entry
    finally:
        entry.forget()


def begin() -> None:
    """A run begins: nothing is written yet, and what an earlier one left is not its own."""
    global _beside
    as_unfinished()
    _beside = ""
    for entry in [entry for entry in _entries if entry.undo is _nothing]:
        entry.forget()


def begin_output() -> None:
    """Another output is begun: from here on it is the one that a signal discards."""
    global _published
    _published = False


def published(*, final: bool) -> None:
    """An output has its name; not `final`: it only helps to make another."""
    global _published, _beside
    _published = final
    _beside = "" if final else _beside


def doubt(said: str) -> None:
    """What has its name is whole, but not all is as it should be: a sentence for the user."""
    _doubts.append(said)


def doubts() -> list[str]:
    """What there is to say of finished outputs; each sentence is given once."""
    said = list(dict.fromkeys(_doubts))
    _doubts.clear()
    return said


def as_unfinished(beside: str = "") -> None:
    """What has its name is only a step on the way: a signal discards it with the rest, or, where it is an output
    of its own `beside` the one that comes, leaves it."""
    global _published, _beside
    _published, _beside = False, beside


def is_published() -> bool:
    """Whether the output that was begun last has its name."""
    return _published


def run() -> bool:
    """For a signal: undo everything, the last first. False, and nothing is undone, where it comes too late because
    an output has its name or is getting it right now."""
    if _published or any(entry.publishing for entry in _entries):
        return False
    for entry in reversed(list(_entries)):
        entry.undo()
    return True


def beside() -> str:
    """For who is stopped: what is written already that the output is for; "" where nothing is."""
    return f"only {_beside} was written" if _beside else ""


def leftovers() -> str:
    """For who is stopped: what is kept and how to go on from it, or what is written; "" where nothing is."""
    told = (entry.leftover() for entry in reversed(list(_entries)))
    return next(filter(None, told), "") or beside()
