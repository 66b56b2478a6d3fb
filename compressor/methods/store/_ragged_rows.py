"""Codes of few bits in rows of unequal length, each a bit stream that begins on a byte."""

from __future__ import annotations

from compressor.core import bitpacking as bitstream
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace

_LONG = 64  # elements of a row from which copying row by row takes less time than making an index


def pack_rows(values: Array, starts: Array, bits: int, out: Array, work: Workspace) -> None:
    """Pack codes (uint8, their lowest `bits`) of rows that begin at `starts` [rows + 1] into `out`."""
    counts = np.diff(starts)
    octets = (counts + 7) // 8  # each row is packed in whole octets, and what fills them is left out again
    total = int(octets.sum())
    padded = work.array("store.padded", (1, total * 8), "|u1")
    padded[...] = 0
    _move(values, padded[0], counts, octets * 8, spread=True)
    np.bitwise_and(padded, np.uint8((1 << bits) - 1), out=padded)
    packed = work.array("store.packed", (1, total * bits), "|u1")
    bitstream.pack(padded, bits, packed, work)
    _move(packed[0], out, (counts * bits + 7) // 8, octets * bits, spread=False)


def unpack_rows(packed: Array, starts: Array, bits: int, work: Workspace) -> Array:
    """Undo `pack_rows`; valid until the next call."""
    counts = np.diff(starts)
    octets = (counts + 7) // 8
    total = int(octets.sum())
    padded = work.array("store.packed", (1, total * bits), "|u1")
    padded[...] = 0
    _move(packed, padded[0], (counts * bits + 7) // 8, octets * bits, spread=True)
    codes = work.array("store.padded", (1, total * 8), "|u1")
    bitstream.unpack(padded, bits, codes, work)
    found = work.array("store.unpacked", (int(counts.sum()),), "|u1")
    _move(codes[0], found, counts, octets * 8, spread=False)
    return found


def _move(source: Array, target: Array, counts: Array, rooms: Array, *, spread: bool) -> None:
    """Copy rows of `counts` elements that lie one after the other to the beginnings of as many `rooms`; without
    `spread` from there to one after the other."""
    dense, roomy = np.cumsum(counts) - counts, np.cumsum(rooms) - rooms
    if len(target) >= _LONG * len(counts):
        for count, place, room in zip(counts.tolist(), dense.tolist(), roomy.tolist(), strict=True):
            if spread:
                target[room : room + count] = source[place : place + count]
            else:
                target[place : place + count] = source[room : room + count]
        return
    places = np.repeat(roomy - dense, counts)
    places += np.arange(len(places))
    if spread:
        target[places] = source
    else:
        np.take(source, places, out=target, mode="clip")
