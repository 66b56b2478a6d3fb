"""The nearest of a few ascending numbers, for every weight of a block: exact, and of two as near the lower."""

from __future__ import annotations

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace

_COMPARED = 32  # borders up to which comparing with each is the fastest
_TABLE = 1 << 16  # weights from which a table of their highest 16 bits pays


def borders(books: Array) -> Array:
    """Of each ascending row [books, entries], the largest floats that are not nearer to the upper one of two
    neighbours, [books, entries − 1]. (Of float64 numbers the middle itself is rounded.)"""
    low, high = (books[:, cut].astype(np.float64) / 2 for cut in (slice(None, -1), slice(1, None)))
    middle = low + high
    part = middle - low
    error = (low - (middle - part)) + (high - part)  # middle + error is exact
    found = middle.astype(books.dtype)
    above = (found > middle) | ((found == middle) & (error < 0))
    with np.errstate(over="ignore"):  # below the least float there is −Inf
        found = np.where(above, np.nextafter(found, books.dtype.type(-np.inf)), found)
        # a middle may round to the upper number itself, which is to keep its own code
        below: Array = np.nextafter(books[:, 1:], books.dtype.type(-np.inf))
    return np.where(books[:, 1:] > books[:, :-1], np.minimum(found, below), found)


def nearest(values: Array, books: Array, codes: Array, work: Workspace) -> None:
    """Fill `codes` [books, n] with the places of the nearest numbers of `books` [books, entries], ascending."""
    found = borders(books)
    if found.shape[1] <= _COMPARED:
        _compare(values, found, codes, work)
        return
    for row, limits, out in zip(values, found, codes, strict=True):
        if row.size < _TABLE or not _look_up(row, limits, out, work):
            np.copyto(out, np.searchsorted(limits, row), casting="unsafe")


def _compare(values: Array, limits: Array, codes: Array, work: Workspace) -> None:
    """Count the borders below each weight. With the least buffer NumPy takes long rows one by one, each with its
    border in a register, rather than copy the borders beside the weights."""
    if kernels.count_below(values, limits, codes):
        return
    above = work.array("nearest.above", values.shape, "|b1")
    usual = np.setbufsize(16) if values.shape[1] >= 1024 else np.getbufsize()
    try:
        np.greater(values, limits[:, :1], out=codes.view("|b1"))
        for number in range(1, limits.shape[1]):
            np.greater(values, limits[:, number : number + 1], out=above)
            np.add(codes, above.view("|u1"), out=codes)
    finally:
        np.setbufsize(usual)


def _look_up(values: Array, limits: Array, codes: Array, work: Workspace) -> bool:
    """A table by the highest 16 bits gives the code of the least float that has them; a few comparisons with the
    next border finish it. False, and nothing done, where a float's highest bits leave too many borders open."""
    kind = f"<u{values.itemsize}"
    shift = 8 * values.itemsize - 16
    tops = np.arange(1 << 16, dtype=kind) << _unsigned(kind, shift)
    ends = np.stack([tops, tops | _unsigned(kind, (1 << shift) - 1)]).view(values.dtype)
    ends = np.where(np.isfinite(ends), ends, 0)
    least, most = np.searchsorted(limits, np.minimum(*ends)), np.searchsorted(limits, np.maximum(*ends))
    open_ = int((most - least).max())
    if open_ > 8:
        return False
    keys = work.array("nearest.keys", values.shape, "<u2")
    np.right_shift(values.view(kind), _unsigned(kind, shift), out=keys, casting="unsafe")
    least.astype(np.uint8).take(keys, out=codes, mode="clip")
    following = np.append(limits, values.dtype.type(np.inf))
    border = work.array("nearest.border", values.shape, values.dtype.str)
    above = work.array("nearest.above", values.shape, "|b1")
    for _ in range(open_):
        following.take(codes, out=border, mode="clip")
        np.greater(values, border, out=above)
        np.add(codes, above.view("|u1"), out=codes)
    return True


def _unsigned(kind: str, number: int) -> Array:
    """A number of an unsigned type."""
    scalar: Array = np.dtype(kind).type(number)
    return scalar
