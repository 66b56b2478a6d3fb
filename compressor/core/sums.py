"""Sums of products in a stated order, so that every processor gives the same bits.

BLAS, `np.vecdot` and `np.einsum` add up in an order that depends on the processor's registers; what they give must
decide no stored byte. Here, whatever the processor, and with or without the compiled kernels:

1. a row is cut into runs of `RUN` elements, and products are rounded to the arrays' own type;
2. the i-th product of a run is added to lane i mod `LANES`, in that type, from the first on;
3. the lanes are added up in float64, the upper half to the lower until one is left;
4. and so are the runs, from the first on.

Of NumPy's own, `np.add.reduce`, `accumulate`, `reduceat` and `bincount` have a fixed order too: pairwise along a
contiguous axis (blocks of 128 in eight partial sums), else one after the other. `tests/test_processors.py` holds
both to it.
"""

from __future__ import annotations

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array

LANES, RUN = 32, 4096  # as in kernels.c


def dot(a: Array, b: Array) -> float:
    """Σ a·b over all elements."""
    return float(dots(a.reshape(1, -1), b.reshape(1, -1))[0])


def dots(a: Array, b: Array) -> Array:
    """Σ a·b over each row of floats [rows, size], float64 [rows]."""
    if a.dtype != b.dtype:
        kind = np.promote_types(a.dtype, b.dtype)
        a, b = a.astype(kind, copy=False), b.astype(kind, copy=False)
    found = kernels.dots(a, b)
    return _in_lanes(np.multiply(a, b)) if found is None else found


def _in_lanes(products: Array) -> Array:
    """Σ over each row, in the order above."""
    rows, size = products.shape
    whole = size // RUN
    runs = np.zeros((rows, whole + 1))
    if whole:
        long = np.ascontiguousarray(products[:, : whole * RUN]).reshape(rows * whole, RUN // LANES, LANES)
        runs[:, :whole] = _gathered(np.add.reduce(long, axis=1)).reshape(rows, whole)
    rest = products[:, whole * RUN :]
    sets, width = divmod(rest.shape[1], LANES)
    lanes = np.zeros((rows, LANES if sets else 1 << max(width - 1, 0).bit_length()), products.dtype)
    for number in range(sets):
        lanes += rest[:, number * LANES :][:, :LANES]
    lanes[:, :width] += rest[:, sets * LANES :]
    runs[:, whole] = _gathered(lanes)
    total: Array = np.add.accumulate(runs, axis=1)[:, -1]
    return total


def _gathered(lanes: Array) -> Array:
    """The lanes [rows, a power of two] added up, float64 [rows]. What lacks of all lanes would be zeros."""
    wide = lanes.astype(np.float64)
    while wide.shape[1] > 1:
        half = wide.shape[1] // 2
        wide = wide[:, :half] + wide[:, half:]
    found: Array = wide[:, 0]
    return found
