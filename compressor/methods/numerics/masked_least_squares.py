"""Weights under a mask whose outputs are nearest to given ones: many rows at once.

For a row t [columns] and the places S where it may be other than zero, with H the damped gram,

    w_S = argmin (t − w) H (t − w)ᵀ,   that is   H_SS w_S = (t H)_S

Rows of few places are solved exactly, each by LAPACK. The others are solved together by conjugate gradients with
the diagonal for a preconditioner, 128 rows to a product; each stops when its residual is 10⁻⁶ of what it began with
(in the preconditioner's norm), and what it is then does not depend on the rows beside it.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.numerics.hessian import ROWS

TOLERANCE = 1e-6
_ROUNDS = 2000  # of conjugate gradients at most; a hundred is usual
_EXACT = 120  # products' worth of operations for which an exact solution is taken


def masked(wanted: Array, keep: Array, gram: Array) -> Array:
    """Rows [rows, columns] that are zero where `keep` is not, float64, for `wanted` ones of the same shape and a
    positive definite `gram` [columns, columns]. Numbers are about 1."""
    rows, columns = wanted.shape
    found = np.where(keep, wanted, 0.0)
    counts = np.count_nonzero(keep, axis=1)
    few = counts**3 <= _EXACT * columns**2
    for first in range(0, rows, ROWS):
        here = slice(first, min(first + ROWS, rows))
        open_rows = (counts[here] > 0) & (counts[here] < columns)  # else nothing is free, or nothing lost
        if open_rows.any():
            toward = _product(wanted[here], gram)
            many = first + np.flatnonzero(open_rows & ~few[here])
            for row in first + np.flatnonzero(open_rows & few[here]):
                places = np.flatnonzero(keep[row])
                found[row, places] = np.linalg.solve(gram[np.ix_(places, places)], toward[row - first, places])
            if len(many):
                found[many] = _gradients(toward[many - first], found[many], keep[many], gram)
    return found


def _product(rows: Array, gram: Array) -> Array:
    """Rows times the gram, always as many to a product."""
    if len(rows) == ROWS:
        found: Array = rows @ gram
        return found
    filled = np.zeros((ROWS, rows.shape[1]))
    filled[: len(rows)] = rows
    part: Array = (filled @ gram)[: len(rows)]
    return part


def _gradients(toward: Array, start: Array, keep: Array, gram: Array) -> Array:
    """Conjugate gradients for `toward` = t H from `start`, which is zero where `keep` is not."""
    inverse = np.where(keep, 1 / gram.diagonal(), 0.0)
    left = np.where(keep, toward - _product(start, gram), 0.0)
    found, along = start.copy(), left * inverse
    size = np.vecdot(left, along)
    enough = TOLERANCE**2 * size
    active = size > 0
    for _ in range(_ROUNDS):
        if not active.any():
            break
        pushed = np.where(keep, _product(along, gram), 0.0)
        curve = np.vecdot(along, pushed)
        active &= curve > 0
        step = np.where(active, size / np.where(active, curve, 1), 0.0)[:, None]
        found += step * along
        left -= step * pushed
        eased = left * inverse
        now = np.vecdot(left, eased)
        turn = np.where(active, now / np.where(active, size, 1), 0.0)[:, None]
        along = np.where(active[:, None], eased + turn * along, along)
        size = np.where(active, now, size)
        active &= size > enough
    return found
