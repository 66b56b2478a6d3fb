"""Frequencies of symbols: small as stored, exact as coded.

A table gives each of its symbols a level ℓ ≥ 1, which stands for the weight 2^(−(ℓ − 1)/q), where q levels are an
octave: 4 in small planes and 16 in large ones, which cost about 0.002 and 0.0001 bits a symbol over the exact
frequencies. Level 0: the symbol does not occur. The weights are scaled to sum to 2^24, none below one, in integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compressor.core.elementary import log2
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.files.entropy.bitio import BitReader, BitWriter, number_bits
from compressor.files.entropy.damage import Damaged

PRECISION = 24
FINE, COARSE = 16, 4  # levels to an octave
_OCTAVES = 22  # no symbol is rarer than that beside the commonest
# floor(2^(30 − k/16)) for k = 0 … 15
_WEIGHTS = (
    *(1073741824, 1028218693, 984625593, 942880699, 902905650, 864625413, 827968132, 792864999),
    *(759250124, 727060410, 696235434, 666717336, 638450708, 611382492, 585461880, 560640217),
)


@dataclass(frozen=True)
class Table:
    """The levels of one context's symbols, by symbol, at so many to an octave."""

    levels: tuple[int, ...]
    octave: int

    @cached_property
    def symbols(self) -> Array:
        """The symbols that occur, ascending."""
        found: Array = np.flatnonzero(np.array(self.levels))
        return found

    @cached_property
    def frequencies(self) -> Array:
        """Of the symbols that occur; int64, they sum to 2^24."""
        levels = np.array(self.levels, np.int64)[self.symbols] - 1
        steps = np.array(_WEIGHTS[:: FINE // self.octave], np.int64)
        weights = steps[levels % self.octave] >> (levels // self.octave)
        found: Array = np.maximum((weights << PRECISION) // weights.sum(), 1)
        found[found.argmax()] += (1 << PRECISION) - found.sum()
        return found

    @cached_property
    def cumulative(self) -> Array:
        """Where each symbol's share of [0, 2^24) begins, and the end: the coder reserves one for every symbol,
        and divides the rest by the frequencies."""
        count = len(self.symbols)
        sums = np.zeros(count + 1, np.int64)
        np.cumsum(self.frequencies, out=sums[1:])
        found: Array = np.arange(count + 1) + (sums * ((1 << PRECISION) - count) >> PRECISION)
        return found

    def shares(self, alphabet: int) -> Array:
        """Of every symbol the probability that it is coded with; float64 [alphabet]."""
        found = np.zeros(alphabet)
        if len(self.symbols):  # a context without a table has none
            found[self.symbols] = np.diff(self.cumulative) / (1 << PRECISION)
        return found

    @cached_property
    def model(self) -> Any:
        """This table as constriction's model."""
        from compressor.files.entropy.damage import constriction

        return constriction().stream.model.Categorical(self.frequencies.astype(np.float64), perfect=False)


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
    folded = [2 * value if value >= 0 else -2 * value - 1 for row in rows for value in row]
    order = min(range(8), key=lambda order: sum(number_bits(value, order) for value in folded))
    out.bits(order, 3)
    for row in rows:
        if len(tables) > 1:
            out.bits(bool(row), 1)
        for value in row:
            out.signed(value, order)


def read_tables(source: BitReader, count: int, alphabet: int) -> list[Table]:
    """Undo `write_tables` of so many tables. Raises Damaged."""
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
            found.append(Table((), octave))
            continue
        row: list[int] = []
        for place in range(high - low + 1):
            last = before[place] if before else (row[-1] if row else 0)
            row.append(last + source.signed(order))
        if min(row) < 0 or max(row) > 1 + octave * _OCTAVES or not any(row):
            raise Damaged("its tables hold a level out of range")
        before = row
        found.append(Table((*(0,) * low, *row), octave))
    return found


def _differences(row: list[int], before: list[int]) -> list[int]:
    """From the table before, or in the first one from the symbol before."""
    return [level - last for level, last in zip(row, before or [0, *row[:-1]], strict=True)]
