"""The coder of archives of version 1, which are read and no longer written: asymmetric numeral systems.

A stack of 32-bit words under a 64-bit state, as the default coder of the library constriction has it:

    q = state mod 2^24;  the symbol s with begin(s) ≤ q < begin(s + 1)
    state = ⌊state / 2^24⌋ · (begin(s + 1) − begin(s)) + q − begin(s), and below 2^32 the next word goes under it
"""

from __future__ import annotations

from functools import lru_cache

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.tables import Table

PRECISION = 24
_WORD = 32
_SKIP = 14  # what is left of the precision where places are looked up coarsely first


class AnsReader:
    """Decodes a stream of version 1."""

    def __init__(self, raw: memoryview) -> None:
        """Raises Damaged."""
        if len(raw) % 4:
            raise Damaged("it is too short")
        self.words = np.frombuffer(bytes(raw), "<u4").astype(np.uint32, copy=False)
        self.left, self.state = len(self.words), 0
        while self.left and self.state < 1 << _WORD:
            self.left -= 1
            self.state = self.state << _WORD | int(self.words[self.left])

    def take(self, table: Table, count: int, scratch: str = "") -> Array:
        """The next `count` symbols of a table; in no memory called `scratch`."""
        if len(table.symbols) == 1:
            return np.full(count, table.symbols[0])
        begins, coarse = _begins(table)
        out: Array = np.empty(count, np.int64)
        found = kernels.ans_decode(self.words, self.left, self.state, begins, coarse, out)
        if found is None:
            self._take(begins.tolist(), coarse.tolist(), out)
        else:
            self.left, self.state = found
        symbols: Array = table.symbols[out]
        return symbols

    def finish(self) -> None:
        """A stream of version 1 may have words that nobody takes."""

    def _take(self, begins: list[int], coarse: list[int], out: Array) -> None:
        state, left, mask = self.state, self.left, (1 << PRECISION) - 1
        for number in range(len(out)):
            point = state & mask
            place = coarse[point >> _SKIP]
            while begins[place + 1] <= point:
                place += 1
            state = (state >> PRECISION) * (begins[place + 1] - begins[place]) + point - begins[place]
            if state < 1 << _WORD and left:
                left -= 1
                state = state << _WORD | int(self.words[left])
            out[number] = place
        self.state, self.left = state, left


@lru_cache(maxsize=256)
def _begins(table: Table) -> tuple[Array, Array]:
    """Where each symbol's share of [0, 2^24) begins, and the end: one is reserved for every symbol, and the rest
    divided by the frequencies. And the place at the beginning of each of 2^10 equal pieces."""
    count, weights = len(table.symbols), table.weights
    frequencies = np.maximum((weights << PRECISION) // weights.sum(), 1)
    frequencies[frequencies.argmax()] += (1 << PRECISION) - frequencies.sum()
    sums = np.zeros(count + 1, np.int64)
    np.cumsum(frequencies, out=sums[1:])
    begins = np.arange(count + 1) + (sums * ((1 << PRECISION) - count) >> PRECISION)
    points = np.arange(1 << (PRECISION - _SKIP)) << _SKIP
    coarse = np.searchsorted(begins, points, side="right") - 1
    return begins.astype(np.uint32), coarse.astype(np.int32)
