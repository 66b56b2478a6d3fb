"""Trellis-coded quantization: numbers that a path through a trellis chooses from two interleaved even steps.

Marcellin and Fischer (IEEE Trans. Comm. 38, 1990); codes that are entropy-coded: Fischer and Wang (1992). Whole
numbers n fall into four subsets by n mod 4. In each of eight states the even ones, or the odd ones, are to choose
from, two subsets, and which of the two is taken leads to one of two next states:

    state s = (b₃ b₂ b₁), the last three branches, the last one lowest:   n = 2 · code + b₁
    branch  b = (code mod 2) ⊕ b₂ ⊕ b₃,   next state (b₂ b₁ b)

(the code of Ungerboeck's for eight states). A code says a number out of a set that is twice as coarse as the
numbers are; the path makes up for most of that. The path is that of least Σ (x − n)² + costs[code] (Viterbi), in
float32, the least total taken off at every column. It begins in state 0, and again every `SEGMENT` columns.
"""

from __future__ import annotations

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array

SEGMENT, FAR = 4096, 256  # as in trellis.c
_STATES = 8


def codes_of(numbers: Array, costs: Array) -> Array:
    """The codes, int32 [rows, columns], of float32 numbers; `costs` float32 [512], of codes from −256 on; those
    beyond cost as much as the last."""
    out: Array = np.empty(numbers.shape, np.int32)
    if not kernels.trellis_codes(numbers, costs, out):
        for start in range(0, numbers.shape[1], SEGMENT):
            part = slice(start, start + SEGMENT)
            out[:, part] = _paths(numbers[:, part].T, costs).T
    return out


def points_of(low: Array, high: Array | None) -> Array:
    """The numbers that codes stand for, int32 [rows, columns], by their int8 planes (code = low + 256 · high)."""
    out: Array = np.empty(low.shape, np.int32)
    if not kernels.trellis_points(low, high, out):
        parity = low.T & 1
        np.copyto(out, low)
        if high is not None:
            out += 256 * high.astype(np.int32)
        out *= 2
        for start in range(0, low.shape[1], SEGMENT):
            out[:, start : start + SEGMENT] += _lowest(parity[start : start + SEGMENT]).T
    return out


def numbers_of(low: Array, high: Array | None, by_row: Array, by_column: Array | None, out: Array) -> None:
    """(What codes stand for · `by_row` [rows or 1, 1]) · `by_column` [1, columns] into `out`, in its floats."""
    if kernels.trellis_numbers(low, high, by_row, by_column, out):
        return
    with np.errstate(over="ignore"):
        np.multiply(points_of(low, high).astype(out.dtype), by_row, out=out)
        if by_column is not None:
            np.multiply(out, by_column, out=out)


def _lowest(parity: Array) -> Array:
    """The last branch before each code, by the codes' parity [columns, rows]: rows side by side in one number."""
    count = parity.shape[1]
    packed = np.packbits(parity.astype(np.uint8), axis=1)
    one = two = three = 0
    lowest = bytearray()
    for column in packed:
        lowest += one.to_bytes(packed.shape[1], "big")
        branch = int.from_bytes(column.tobytes(), "big") ^ two ^ three
        one, two, three = branch, one, two
    found = np.frombuffer(bytes(lowest), np.uint8).reshape(packed.shape)
    return np.unpackbits(found, axis=1)[:, :count]


def _paths(x: Array, costs: Array) -> Array:
    """The best paths along the first axis of float32 [columns, rows]: their codes."""
    columns, rows = x.shape
    codes, own = _nearest(x, costs)
    before = np.arange(_STATES) >> 1
    low, high = (_subset(state) for state in (before, before + 4))
    total = np.full((_STATES, rows), 1e30, np.float32)
    total[0] = 0
    later = np.empty((columns, _STATES, rows), np.bool_)
    for number in range(columns):
        one, other = total[before] + own[number][low], total[before + 4] + own[number][high]
        np.less(other, one, out=later[number])
        total = np.where(later[number], other, one)
        total -= total.min(axis=0)
    state, places = total.argmin(axis=0), np.arange(rows)
    found: Array = np.empty((columns, rows), np.int32)
    for number in range(columns - 1, -1, -1):
        previous = (state >> 1) + 4 * later[number, state, places]
        subset = previous & 1 | ((state & 1) ^ _turned(previous)) << 1
        found[number] = codes[number, subset, places]
        state = previous
    return found


def _turned(state: Array) -> Array:
    """Whether the branch is the other one of the code's parity."""
    found: Array = (state >> 1 ^ state >> 2) & 1
    return found


def _subset(before: Array) -> Array:
    """The subset that leads from a state to each of the eight."""
    found: Array = before & 1 | ((np.arange(_STATES) & 1) ^ _turned(before)) << 1
    return found


def _nearest(x: Array, costs: Array) -> tuple[Array, Array]:
    """The cheapest code of every subset, int32 [columns, 4, rows], and what it costs, float32."""
    columns, rows = x.shape
    codes, found = np.empty((columns, 4, rows), np.int32), np.empty((columns, 4, rows), np.float32)
    for subset in range(4):
        below = np.floor((x - np.float32(subset)) * np.float32(0.25)).astype(np.int32)
        low = 2 * below + (subset >> 1)
        one, other = (
            np.square(x - (2 * code + (subset & 1)).astype(np.float32)) + costs[np.clip(code + FAR, 0, 2 * FAR - 1)]
            for code in (low, low + 2)
        )
        codes[:, subset] = np.where(other < one, low + 2, low)
        found[:, subset] = np.where(other < one, other, one)
    return codes, found
