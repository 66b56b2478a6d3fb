"""Weights under a mask whose outputs are nearest to given ones: many rows at once.

For a row t [columns] and the places S where it may be other than zero, with H the damped gram,

    w_S = argmin (t − w) H (t − w)ᵀ,   that is   H_SS w_S = (t H)_S

Rows of few places are solved exactly, each by LAPACK. The others are solved together by conjugate gradients with
the diagonal for a preconditioner, in float32, 128 rows to a product. What a round gains is known from the step that
it takes (Hestenes, Stiefel 1952), so a row stops when its last four rounds together gained less than 3 % of what it
still loses. What is then left to be gained is 1 to 3 %, for a tenth of the rounds that an exact
solution takes.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.numerics.hessian import ROWS

TOLERANCE = 1e-6  # of a residual, by what it began with: as far as float32 goes
_GAIN = 0.03  # of what a row still loses: less by the last rounds together is not worth another one
_LAST = 4  # rounds whose gains are taken together, since single ones may stall
_ROUNDS = 2000  # of conjugate gradients at most; ten to twenty are usual
_FEW = 160  # places that are solved exactly
_LEAST = 16  # rows of a product
_EXACT = 8  # products' worth of operations for which an exact solution is taken


def masked(wanted: Array, keep: Array, gram: Array, near: Array | None = None) -> Array:
    """Rows [rows, columns] that are zero where `keep` is not, float64, for `wanted` ones of the same shape and a
    positive definite `gram` [columns, columns]. Numbers are about 1. `near` are rows to begin with, float64, and
    become those; unset: the wanted ones where they may be."""
    rows, columns = wanted.shape
    found = np.where(keep, wanted, 0.0) if near is None else near
    counts = np.count_nonzero(keep, axis=1)
    free = (counts > 0) & (counts < columns)  # else nothing can move, or nothing is lost
    few = (counts <= _FEW) | (counts**3 <= _EXACT * columns**2)
    narrow = gram.astype(np.float32) if (free & ~few).any() else gram
    for first in range(0, rows, ROWS):
        here = slice(first, min(first + ROWS, rows))
        if not free[here].any():
            continue
        apart = wanted[here] - found[here]
        lacks = _product(apart, gram)
        for row in first + np.flatnonzero((free & few)[here]):
            places = np.flatnonzero(keep[row])
            found[row, places] += np.linalg.solve(gram[np.ix_(places, places)], lacks[row - first, places])
        many = np.flatnonzero((free & ~few)[here])
        if len(many):
            loses = np.vecdot(apart[many], lacks[many])
            found[first + many] += _gradients(lacks[many], loses, keep[first + many], narrow)
    return found


def _product(rows: Array, gram: Array) -> Array:
    """Rows times the gram, as many to a product as there are halves of 128, so that a row is treated alike."""
    count = ROWS
    while count // 2 >= max(len(rows), _LEAST):
        count //= 2
    if len(rows) == count:
        found: Array = rows @ gram
        return found
    filled = np.zeros((count, rows.shape[1]), rows.dtype)
    filled[: len(rows)] = rows
    part: Array = (filled @ gram)[: len(rows)]
    return part


def _gradients(lacks: Array, loses: Array, keep: Array, gram: Array) -> Array:
    """What is to be added to rows, float32, by conjugate gradients: `lacks` is what they are from the wanted ones,
    times the gram, and `loses` that times what they are from them."""
    inverse = np.where(keep, 1 / gram.diagonal(), np.float32(0))
    left = np.where(keep, lacks, 0.0).astype(np.float32)
    solved, places = np.zeros_like(left), np.arange(len(left))
    along, found = left * inverse, np.zeros_like(left)
    size = np.vecdot(left, along).astype(np.float64)
    enough = TOLERANCE**2 * size
    active = size > 0
    gains = np.full((_LAST, len(loses)), np.inf)
    for number in range(_ROUNDS):
        if 2 * np.count_nonzero(active) <= len(active):  # rows that are done leave when half of them are
            solved[places] = found
            if not active.any():
                break
            found, left, along, inverse, keep = (one[active] for one in (found, left, along, inverse, keep))
            places, loses, size, enough = (one[active] for one in (places, loses, size, enough))
            gains, active = gains[:, active], active[active]
        pushed = _product(along, gram)
        np.multiply(pushed, keep, out=pushed)
        curve = np.vecdot(along, pushed).astype(np.float64)
        active &= curve > 0
        step = np.where(active, size / np.where(active, curve, 1), 0.0)
        found += step.astype(np.float32)[:, None] * along
        left -= step.astype(np.float32)[:, None] * pushed
        gains[number % _LAST] = step * size
        loses = loses - step * size
        eased = left * inverse
        now = np.vecdot(left, eased).astype(np.float64)
        turn = np.where(active, now / np.where(active, size, 1), 0.0).astype(np.float32)[:, None]
        along *= turn
        along += eased
        size = np.where(active, now, size)
        active &= (size > enough) & (gains.sum(axis=0) >= _GAIN * loses)
    solved[places] = found
    return solved
