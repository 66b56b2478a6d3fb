"""Reading a file that is fetched by ranges as if it lay on a disk, with little memory and few waits.

What is read in a row, as rows of tensors are, comes in segments that are fetched ahead of it, and so do small ones
that lie one behind the other; any other run is fetched as it is asked for, several at a time, neighbours with what
lies between them. All files of a process share
the segments that are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache, partial
from mmap import mmap
from typing import Protocol

from compressor.core.parallel.ahead import Ahead
from compressor.core.parallel.threads import available_workers

SEGMENT = 1 << 22  # bytes that are fetched at a time
FURTHER = 4  # segments that are on their way before they are asked for
_LONG = 1 << 16  # bytes of a run for which more is fetched ahead, if it goes on where another ended
_BETWEEN = 1 << 16  # bytes between two runs that are fetched with them
_THREADS = 8  # requests at a time, beside those of who waits for one
_ENDS = 64

Run = tuple[memoryview, int]  # a buffer, and from where it is filled


class Fetched(Protocol):
    """A file elsewhere, as it was when first seen."""

    path: str
    size: int

    def fetch_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset. InputError if that cannot be, or the file was changed."""

    def check_unchanged(self) -> None:
        """InputError if the file was replaced since it was first seen."""


@cache
def _segments() -> Ahead[mmap]:
    return Ahead(_THREADS, 3 * FURTHER + 4 * available_workers())


class Ranged:
    """The origin of an input file: reads what is `fetched` by ranges."""

    def __init__(self, fetched: Fetched) -> None:
        self.fetched = fetched
        self._ends: deque[int] = deque(maxlen=_ENDS)  # of the last runs
        self._key = object()  # of its segments

    def __getstate__(self) -> Fetched:
        """For a process elsewhere, which fetches for itself."""
        return self.fetched

    def __setstate__(self, state: Fetched) -> None:
        self.__init__(state)  # type: ignore[misc]

    def check_unchanged(self) -> None:
        """InputError if the file was replaced since it was first seen."""
        self.fetched.check_unchanged()

    def read_runs(self, runs: Iterable[Run]) -> None:
        """Fill several buffers, each from its offset. InputError where the file ends before, cannot be fetched, or
        was changed."""
        windows = []
        for window in _windows(runs):
            if len(window) > 1 or not self._read_in_a_row(*window[0]):
                windows.append(window)
            if len(windows) >= 4 * _THREADS:
                self._fetch_all(windows)
                windows = []
        self._fetch_all(windows)

    def _read_in_a_row(self, buffer: memoryview, offset: int) -> bool:
        """Read from segments, if this run goes on where another ended, or lies in what is there already."""
        end = offset + len(buffer)
        long = len(buffer) >= _LONG
        goes_on = len(buffer) > 0 and offset in self._ends
        if buffer:
            self._ends.append(end)
        numbers = range(offset // SEGMENT, max(end - 1, offset) // SEGMENT + 1)
        held = _segments()
        if not goes_on and not all(held.known((self._key, number)) for number in numbers):
            return False
        if goes_on:
            # of short ones, as small tensors are, none ahead: they may be few
            self._begin(numbers.start, numbers.stop - 1 + (FURTHER if long else 0))
        for number in numbers:
            segment = held.get((self._key, number), partial(self._segment, number))
            first = number * SEGMENT
            start, stop = max(offset, first), min(end, first + len(segment))
            buffer[start - offset : stop - offset] = memoryview(segment)[start - first : stop - first]
        return True

    def _begin(self, first: int, last: int) -> None:
        """Have segments fetched, but for the first, which is fetched by who asks for it."""
        last = min(last, (self.fetched.size - 1) // SEGMENT)
        for number in range(first + 1, last + 1):
            _segments().begin((self._key, number), partial(self._segment, number))

    def _segment(self, number: int) -> mmap:
        start = number * SEGMENT
        found = mmap(-1, min(SEGMENT, self.fetched.size - start))  # given back whole, whichever thread took it
        self.fetched.fetch_into(memoryview(found), start)
        return found

    def _fetch_all(self, windows: list[list[Run]]) -> None:
        _segments().together([partial(self._fetch, window) for window in windows])

    def _fetch(self, window: list[Run]) -> None:
        """Fetch neighbouring runs with what lies between them."""
        if len(window) == 1:
            self.fetched.fetch_into(*window[0])
            return
        start = window[0][1]
        last, offset = window[-1]
        whole = memoryview(bytearray(offset + len(last) - start))
        self.fetched.fetch_into(whole, start)
        for buffer, offset in window:
            buffer[:] = whole[offset - start : offset - start + len(buffer)]


def _windows(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Neighbouring runs together, as far as they lie within a segment's length; long ones in pieces."""
    window: list[Run] = []
    for run in runs:
        for buffer, offset in _pieces(*run):  # none of an empty run
            if window:
                before, begin = window[-1]
                gap = offset - begin - len(before)
                reach = offset + len(buffer) - window[0][1]
                if not 0 <= gap <= _BETWEEN or reach > SEGMENT:
                    yield window
                    window = []
            window.append((buffer, offset))
    if window:
        yield window


def _pieces(buffer: memoryview, offset: int) -> Iterator[Run]:
    for start in range(0, len(buffer), SEGMENT):
        yield buffer[start : start + SEGMENT], offset + start
