"""Frequencies of symbols: small as stored, exact as coded.

A table gives each of its symbols a level ℓ ≥ 1, which stands for the weight 2^(−(ℓ − 1)/q), where q levels are an
octave: 4 in small planes and 16 in large ones, which cost about 0.002 and 0.0001 bits a symbol over the exact
frequencies. Level 0: the symbol does not occur. The weights are scaled to sum to 2^bits, none below one,
in integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from compressor.core.elementary import log2
from compressor.core.kernels import Slots
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.workspace import Array
from compressor.files.entropy.bitio import BitReader, BitWriter, shortest
from compressor.files.entropy.damage import Damaged

LEAST_BITS, MOST_BITS = 12, 15  # of frequencies
FINE, COARSE = 16, 4  # levels to an octave
_OCTAVES = 22  # no symbol is rarer than that beside the commonest
LOSS = 1e-4  # share of a stream that frequencies of fewer bits may cost
_SHARE = [("reciprocal", "<u8"), ("frequency", "<u4"), ("begin", "<u4")]
# floor(2^(30 − k/16)) for k = 0 … 15
_WEIGHTS = (
    *(1073741824, 1028218693, 984625593, 942880699, 902905650, 864625413, 827968132, 792864999),
    *(759250124, 727060410, 696235434, 666717336, 638450708, 611382492, 585461880, 560640217),
)


@dataclass(frozen=True)
class Table:
    """The levels of one context's symbols, by symbol, at so many to an octave; frequencies sum to 2^bits."""

    levels: tuple[int, ...]
    octave: int
    bits: int = LEAST_BITS

    @cached_property
    def symbols(self) -> Array:
        """The symbols that occur, ascending."""
        found: Array = np.flatnonzero(np.array(self.levels))
        return found

    @cached_property
    def weights(self) -> Array:
        """Of the symbols that occur, int64."""
        levels = np.array(self.levels, np.int64)[self.symbols] - 1
        steps = np.array(_WEIGHTS[:: FINE // self.octave], np.int64)
        found: Array = steps[levels % self.octave] >> (levels // self.octave)
        return found

    @cached_property
    def frequencies(self) -> Array:
        """Of the symbols that occur, int64: what is lacking to 2^bits goes to the first of the largest; what is too
        much is taken from it, half of it at most, then from what is the largest now."""
        weights = self.weights
        found: Array = np.maximum(((weights << self.bits) + weights.sum() // 2) // weights.sum(), 1)
        lacking = (1 << self.bits) - int(found.sum())
        while lacking:
            place = found.argmax()
            more = max(lacking, -(int(found[place]) // 2))
            found[place] += more
            lacking -= more
        return found

    def shares(self, alphabet: int) -> Array:
        """Of every symbol the probability that it is coded with; float64 [alphabet]."""
        found = np.zeros(alphabet)
        if len(self.symbols):  # a context without a table has none
            found[self.symbols] = self.frequencies / (1 << self.bits)
        return found

    @cached_property
    def coding_shares(self) -> Array:
        """Of every symbol what `kernels.rans_encode` wants of it."""
        found = np.zeros(len(self.levels), _SHARE)
        begins = np.cumsum(self.frequencies) - self.frequencies
        found["frequency"][self.symbols], found["begin"][self.symbols] = self.frequencies, begins
        found["reciprocal"][self.symbols] = (1 << (32 + self.bits)) // self.frequencies + 1
        return found

    @cached_property
    def slots(self) -> Slots:
        """What each number below 2^bits stands for."""
        frequencies = self.frequencies
        slots = np.repeat(self.symbols, frequencies)
        shares = self.coding_shares
        packed = None
        if self.bits == LEAST_BITS and len(self.levels) <= 256:
            begins = np.cumsum(frequencies) - frequencies
            first = np.repeat(frequencies << 20 | self.symbols, frequencies)
            packed = (first + ((np.arange(1 << self.bits) - np.repeat(begins, frequencies)) << 8)).astype(np.uint32)
        return Slots(
            slots.astype(np.uint16),
            (shares["frequency"] << np.uint32(16) | shares["begin"]).astype(np.uint32),
            packed,
        )

    def cost(self, counts: Array) -> float:
        """Bits that symbols with these counts, all of them in the table, take."""
        there = counts[self.symbols].astype(np.float64)
        return self.bits * float(there.sum()) - dot(there, log2(self.frequencies.astype(np.float64)))


def fitted(tables: Sequence[Table], counts: Array, loss: float = LOSS) -> list[Table]:
    """The tables with frequencies of as few bits as cost only this share more than more bits would; `counts`
    [tables, alphabet] are those of the symbols that they code."""
    pairs = [(table, own) for table, own in zip(tables, counts, strict=True) if len(table.symbols) > 1]
    most = sum(replace(table, bits=MOST_BITS).cost(own) for table, own in pairs)
    for bits in range(LEAST_BITS, MOST_BITS):
        if sum(replace(table, bits=bits).cost(own) for table, own in pairs) <= (1 + loss) * most:
            break
    else:
        bits = MOST_BITS
    return [replace(table, bits=bits) for table in tables]


def table_of(counts: Array, octave: int) -> Table:
    """The table nearest to these counts of symbols."""
    levels = np.zeros(len(counts), np.int64)
    there = counts > 0
    if there.any():
        rarity = log2(counts.max() / counts[there])
        levels[there] = 1 + np.minimum(np.rint(rarity * octave), octave * _OCTAVES).astype(np.int64)
    return Table(tuple(levels.tolist()), octave)


def write_tables(out: BitWriter, tables: Sequence[Table], alphabet: int) -> None:
    """Tables of one alphabet, each as what it differs in from the last one that was not empty."""
    used = [symbol for table in tables for symbol, level in enumerate(table.levels) if level]
    low, high = (min(used), max(used)) if used else (0, 0)
    out.bits(tables[0].octave == FINE, 1)
    width = (alphabet - 1).bit_length()
    out.bits(low, width)
    out.bits(high, width)
    before: list[int] = []
    rows: list[list[int]] = []
    for table in tables:
        row = list(table.levels[low : high + 1])
        rows.append(_differences(row, before) if any(row) else [])
        before = row if any(row) else before
    order = shortest(np.array([value for row in rows for value in row], np.int64))
    out.bits(order, 3)
    for row in rows:
        if len(tables) > 1:
            out.bits(bool(row), 1)
        for value in row:
            out.signed(value, order)


def read_tables(source: BitReader, count: int, alphabet: int, bits: int = LEAST_BITS) -> list[Table]:
    """Undo `write_tables` of so many tables, whose frequencies have so many bits. Raises Damaged."""
    octave = FINE if source.bits(1) else COARSE
    width = (alphabet - 1).bit_length()
    low, high = source.bits(width), source.bits(width)
    if not low <= high < alphabet:
        raise Damaged("its tables are of other symbols than it has")
    order = source.bits(3)
    before: list[int] = []
    found = []
    for _ in range(count):
        if count > 1 and not source.bits(1):
            found.append(Table((), octave, bits))
            continue
        row: list[int] = []
        for place in range(high - low + 1):
            last = before[place] if before else (row[-1] if row else 0)
            row.append(last + source.signed(order))
        if min(row) < 0 or max(row) > 1 + octave * _OCTAVES or not any(row):
            raise Damaged("its tables hold a level out of range")
        before = row
        found.append(Table((*(0,) * low, *row, *(0,) * (alphabet - 1 - high)), octave, bits))
    return found


def _differences(row: list[int], before: list[int]) -> list[int]:
    """From the table before, or in the first one from the symbol before."""
    return [level - last for level, last in zip(row, before or [0, *row[:-1]], strict=True)]
