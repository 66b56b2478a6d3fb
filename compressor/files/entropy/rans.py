"""The coder: range asymmetric numeral systems (Duda, arXiv 1311.2540; Giesen, arXiv 1402.3392, interleaved).

Symbols go round 2^k lanes (k = 0 … 5), the n-th to lane n mod 2^k. Each lane has a state x in [2^16, 2^32), which
begins at 2^16. A symbol whose share of [0, 2^b) is f from c on takes log2(2^b / f) bits, b = 12 … 15:

    x ≥ f · 2^(32 − b):  the lower 16 bits of x are put out as a word, x ← ⌊x / 2^16⌋
    x ← ⌊x / f⌋ · 2^b + c + x mod f

What is coded last is decoded first, so the symbols are coded from the last to the first and the words lie in the
order in which they are decoded, behind the states, all little-endian:

    q = x mod 2^b, of the symbol with c ≤ q < c + f
    x ← f · ⌊x / 2^b⌋ + q − c, and below 2^16:  x ← 2^16 · x + the next word

At the end all states are 2^16 again and no word is left, or something is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.tables import Table

MOST_LANES = 5  # as a power of two
_LEAST = 1 << 16  # of a state
_STATE_BITS = 24_000  # bits of a stream for each lane, whose state costs about 24
_ALL_LANES = 1 << MOST_LANES


class Run(NamedTuple):
    """Symbols of one table, the first of which has the number `at` in the stream."""

    symbols: Array
    table: Table
    at: int


class RansWriter:
    """Collects runs of symbols, each with its table, and codes them all at the end."""

    def __init__(self, work: Workspace | None = None) -> None:
        """What `to_bytes` gives may be in the memory of `work`."""
        self.work = work or Workspace()
        self.runs: list[Run] = []
        self.count = 0
        self.expected = 0.0  # bits that it will take, about

    def put(self, symbols: Array, table: Table) -> None:
        """Symbols of a table, in the order in which `RansReader.take` gives them."""
        if len(table.symbols) > 1 and len(symbols):
            narrow = np.uint8 if len(table.levels) <= 256 else np.uint16
            self.runs.append(Run(np.ascontiguousarray(symbols, narrow), table, self.count))
            self.count += len(symbols)

    @property
    def lanes(self) -> int:
        """How many lanes it has, as a power of two."""
        many = int(self.expected / _STATE_BITS)
        return min(max(many.bit_length() - 1, 0), MOST_LANES)

    def to_bytes(self) -> tuple[Array, Array]:
        """The states and the words, both as bytes."""
        if not self.runs:
            return np.zeros(0, np.uint8), np.zeros(0, np.uint8)
        states = np.full(1 << self.lanes, _LEAST, np.uint32)
        words = self.work.array("rans.words", (self.count,), "=u2")
        end = self.count
        for run in reversed(self.runs):
            end -= _push(run, states, words, end)
        return states.astype("<u4", copy=False).view(np.uint8), words[end:].astype("<u2", copy=False).view(np.uint8)


class RansReader:
    """Decodes what a `RansWriter` coded."""

    def __init__(self, raw: memoryview, lanes: int, work: Workspace | None = None) -> None:
        """`lanes` as a power of two. Raises Damaged."""
        self.at, self.work = 0, work or Workspace()
        self.states: Array | None = None
        self.words: Array = np.zeros(0, np.uint16)
        if not len(raw):
            return
        if lanes > MOST_LANES or len(raw) < 4 << lanes or len(raw) % 2:
            raise Damaged("its coded symbols are too short")
        found = self.work.array("rans.words", (len(raw),), "|u1")
        np.copyto(found, np.frombuffer(raw, np.uint8))  # they lie at any address
        self.states = found[: 4 << lanes].view("<u4").astype(np.uint32, copy=False)
        self.words = found[4 << lanes :].view("<u2").astype(np.uint16, copy=False)
        if self.states.min() < _LEAST:
            raise Damaged("a state of its coder is out of range")

    def take(self, table: Table, count: int, scratch: str = "") -> Array:
        """The next `count` symbols of a table, uint8, or uint16 where it has more than 256; in memory called
        `scratch`, if that has a name. Raises Damaged."""
        narrow = np.uint8 if len(table.levels) <= 256 else np.uint16
        if len(table.symbols) == 1:
            return np.full(count, table.symbols[0], narrow)
        out: Array = (
            self.work.array(scratch, (count,), np.dtype(narrow).str) if scratch else np.empty(count, narrow)
        )
        if not count:
            return out
        taken = -1 if self.states is None else _pull(Run(out, table, self.at), self.states, self.words)
        if taken < 0:
            raise Damaged("its coded symbols are too short")
        self.words = self.words[taken:]
        self.at += count
        return out

    def finish(self) -> None:
        """Raises Damaged where something is left, or the states are not what they began as."""
        if self.words.size or (self.states is not None and (self.states != _LEAST).any()):
            raise Damaged("its coded symbols do not end where they should")


def _push(run: Run, states: Array, words: Array, end: int) -> int:
    """Code a run, its words before the place `end` of `words`: how many."""
    table = run.table
    shares = table.coding_shares
    written = kernels.rans_encode(run.symbols, run.at, shares, table.bits, states, words[:end])
    if written is not None:
        return written
    frequency, begin = (shares[name].astype(np.int64) for name in ("frequency", "begin"))
    begun = end
    for part, lanes in reversed(list(_rounds(run, len(states)))):
        f, c = frequency[run.symbols[part]], begin[run.symbols[part]]
        x = states[lanes].astype(np.int64)
        full = x >= f << (32 - table.bits)
        out = x[full]
        words[end - len(out) : end] = out & 0xFFFF
        end -= len(out)
        x[full] >>= 16
        quotient, rest = np.divmod(x, f)
        states[lanes] = (quotient << table.bits) + c + rest
    return begun - end


def _pull(run: Run, states: Array, words: Array) -> int:
    """Decode into a run's symbols: how many words it took, or −1 where they were too few."""
    table = run.table
    taken = kernels.rans_decode(words, table.slots, table.bits, run.at, states, run.symbols)
    if taken is not None:
        return taken
    at, mask = 0, (1 << table.bits) - 1
    frequency, begin = (table.coding_shares[name].astype(np.int64) for name in ("frequency", "begin"))
    for part, lanes in _rounds(run, len(states)):
        x = states[lanes].astype(np.int64)
        point = x & mask
        symbols = table.slots.symbols[point]
        x = frequency[symbols] * (x >> table.bits) + point - begin[symbols]
        low = np.flatnonzero(x < _LEAST)
        if at + len(low) > len(words):
            return -1
        x[low] = x[low] << 16 | words[at : at + len(low)]
        at += len(low)
        states[lanes], run.symbols[part] = x, symbols
    return at


def _rounds(run: Run, lanes: int) -> Iterator[tuple[slice, slice]]:
    """The symbols of a run that lie side by side in the lanes, and in which."""
    start, count = 0, len(run.symbols)
    while start < count:
        first = (run.at + start) % lanes
        stop = min(count, start + lanes - first)
        yield slice(start, stop), slice(first, first + stop - start)
        start = stop
