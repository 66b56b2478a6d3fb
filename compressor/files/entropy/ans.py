"""The coder: asymmetric numeral systems (Duda, arXiv 1311.2540), as the library constriction implements it.

A stack of 32-bit words under a 64-bit state: what is coded last is decoded first, so a chunk's symbols are coded in
reverse. Writing takes constriction; reading has a decoder of its own, in case that is not installed:

    q = state mod 2^24;  the symbol s with begin(s) ≤ q < begin(s + 1)
    state = ⌊state / 2^24⌋ · (begin(s + 1) − begin(s)) + q − begin(s), and below 2^32 the next word goes under it
"""

from __future__ import annotations

from typing import Protocol

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.files.entropy.damage import Damaged, NeedsPackage, constriction
from compressor.files.entropy.tables import PRECISION, Table

_WORD = 32


class AnsWriter:
    """Collects runs of symbols, each with its table, and codes them all at the end."""

    def __init__(self) -> None:
        self.runs: list[tuple[Array, Table]] = []

    def put(self, symbols: Array, table: Table) -> None:
        """Symbols of a table, in the order in which `AnsReader.take` gives them."""
        if len(table.symbols) > 1 and len(symbols):
            self.runs.append((np.searchsorted(table.symbols, symbols).astype(np.int32), table))

    def to_bytes(self) -> bytes:
        """The words, the first one in front."""
        if not self.runs:
            return b""
        coder = constriction().stream.stack.AnsCoder()
        for places, table in reversed(self.runs):
            coder.encode_reverse(places, table.model)
        words: bytes = coder.get_compressed().astype("<u4").tobytes()
        return words


class Decoder(Protocol):
    """What a decoder offers: the next symbols' places in their table."""

    def take(self, table: Table, count: int) -> Array: ...


class AnsReader:
    """Decodes what an `AnsWriter` coded, whoever does it."""

    def __init__(self, raw: bytes) -> None:
        words = np.frombuffer(raw, "<u4")
        try:
            self.decoder: Decoder = _Library(words)
        except NeedsPackage:
            self.decoder = OwnDecoder(words)

    def take(self, table: Table, count: int) -> Array:
        """The next `count` symbols of a table."""
        if len(table.symbols) == 1:
            return np.full(count, table.symbols[0])
        found: Array = table.symbols[self.decoder.take(table, count)]
        return found


class _Library:
    """constriction's decoder."""

    def __init__(self, words: Array) -> None:
        library = constriction()
        try:
            self.coder = library.stream.stack.AnsCoder(words.astype(np.uint32))
        except ValueError as error:
            raise Damaged("its words are none of the coder's") from error

    def take(self, table: Table, count: int) -> Array:
        found: Array = self.coder.decode(table.model, count)
        return found


class OwnDecoder:
    """The decoder of an ANS stream in plain Python: slow, and there whatever is installed."""

    def __init__(self, words: Array) -> None:
        self.words: list[int] = words.tolist()
        self.state = 0
        while self.words and self.state < 1 << _WORD:
            self.state = self.state << _WORD | self.words.pop()

    def take(self, table: Table, count: int) -> Array:
        """The places in `table` of the next `count` symbols."""
        begins = table.cumulative.tolist()
        shares = np.diff(table.cumulative).tolist()
        coarse = _coarse(table.cumulative)
        state, words, mask = self.state, self.words, (1 << PRECISION) - 1
        out = np.empty(count, np.int64)
        for number in range(count):
            point = state & mask
            place = coarse[point >> _SKIP]
            while begins[place + 1] <= point:
                place += 1
            state = (state >> PRECISION) * shares[place] + point - begins[place]
            if state < 1 << _WORD and words:
                state = state << _WORD | words.pop()
            out[number] = place
        self.state = state
        return out


_SKIP = 14


def _coarse(cumulative: Array) -> list[int]:
    """For each of 2^10 equal pieces of [0, 2^24): the symbol at its beginning."""
    points = np.arange(1 << (PRECISION - _SKIP)) << _SKIP
    places: list[int] = (np.searchsorted(cumulative, points, side="right") - 1).tolist()
    return places
