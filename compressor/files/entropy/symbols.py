"""Symbols of which one is the rule: where the others stand, and what they are.

Positions are a plane of bits, or the gaps between them: how many of the rule's symbols lie before each other one,
row after row, where 255 stands for so many and no end. The smaller is taken.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.planes import Chosen, Input, Output, choose, read_plane, write_plane

_LONG = 255
_ALL, _BITS, _GAPS = range(3)


def write_symbols(out: Output, symbols: Array, alphabet: int) -> None:
    """Add a matrix [rows, columns] of symbols below `alphabet`, as one plane or as positions and the others."""
    whole = choose(symbols, alphabet, "spread", out.effort)
    mode, common = whole.model.mode, int(whole.counts.sum(axis=0).max())
    if alphabet > 2 and common * 2 > symbols.size:
        there = symbols != mode
        others = symbols[there].reshape(1, -1)
        values = choose(others, alphabet, "spread", out.effort)
        form, marks, chosen = _positions(there, out)
        if chosen.bits + values.bits < whole.bits:
            out.head.bits(form, 2)
            out.head.bits(mode, (alphabet - 1).bit_length())
            _write_marks(out, form, marks, chosen)
            write_plane(out, others, alphabet, chosen=values)
            return
    out.head.bits(_ALL, 2)
    write_plane(out, symbols, alphabet, chosen=whole)


def read_symbols(source: Input, shape: tuple[int, int], alphabet: int) -> Array:
    """Undo `write_symbols`. Raises Damaged."""
    form = source.head.bits(2)
    if form == _ALL:
        return read_plane(source, shape, alphabet, "mixed")
    mode = source.head.bits((alphabet - 1).bit_length())
    there = _read_marks(source, form, shape)
    out = np.full(shape, mode, np.uint8 if alphabet <= 256 else np.uint16)
    out[there] = read_plane(source, (1, int(np.count_nonzero(there))), alphabet)[0]
    return out


def write_positions(out: Output, there: Array) -> None:
    """Add a matrix of bits [rows, columns], bool."""
    form, marks, chosen = _positions(there, out)
    out.head.bits(form, 2)
    _write_marks(out, form, marks, chosen)


def read_positions(source: Input, shape: tuple[int, int]) -> Array:
    """Undo `write_positions`. Raises Damaged."""
    return _read_marks(source, source.head.bits(2), shape)


def _positions(there: Array, out: Output) -> tuple[int, Array, Chosen]:
    """The smaller form of positions, what is stored of them, and its model."""
    marks = there.astype(np.uint8)
    bits = choose(marks, 2, "spread", out.effort)
    gaps = _gaps(np.flatnonzero(there)).reshape(1, -1)
    between = choose(gaps, _LONG + 1, "spread", out.effort)
    return (_GAPS, gaps, between) if between.bits < bits.bits else (_BITS, marks, bits)


def _write_marks(out: Output, form: int, marks: Array, chosen: Chosen) -> None:
    if form == _GAPS:
        out.head.number(marks.size, 8)
    write_plane(out, marks, 2 if form == _BITS else _LONG + 1, chosen=chosen)


def _read_marks(source: Input, form: int, shape: tuple[int, int]) -> Array:
    if form == _BITS:
        return read_plane(source, shape, 2, "positions").view(np.bool_)
    if form != _GAPS:
        raise Damaged("its positions are of a form that is not known")
    size, count = shape[0] * shape[1], source.head.number(8)
    if count > size:
        raise Damaged("it has more positions than places")
    gaps = read_plane(source, (1, count), _LONG + 1, "positions")[0]
    ends = gaps != _LONG
    places = np.cumsum(gaps.astype(np.int64) + ends)[ends] - 1
    if len(places) and places[-1] >= size:
        raise Damaged("its positions leave the tensor")
    there = np.zeros(size, np.bool_)
    there[places] = True
    return there.reshape(shape)


def _gaps(places: Array) -> Array:
    """The gaps before each of these ascending places, uint8; 255 for so many, as often as it takes."""
    between = np.diff(places, prepend=-1) - 1
    longs = between // _LONG
    out = np.full(len(places) + int(longs.sum()), _LONG, np.uint8)
    out[np.cumsum(longs + 1) - 1] = between % _LONG
    return out
