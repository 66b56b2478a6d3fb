"""N:M: the pattern as users write it, and keeping the N largest keys of every M of a row.

The rank of a weight is how many of its block are larger; all M(M − 1)/2 comparisons of a block are made on planes
of the i-th weight of every block, for M up to 16, above that rows are partitioned.
"""

from __future__ import annotations

import re

from compressor.core import kernels
from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics.largest_in_rows import keep_largest

_PLANES = 16


def parse_pattern(text: str) -> tuple[int, int]:
    """N and M; UsageError unless 0 < N < M."""
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text)
    n, m = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < n < m:
        raise UsageError(f"pattern must be N:M with 0 < N < M, not {text!r}", remedy="2:4, say: 2 of every 4 stay")
    return n, m


def tail_of(spec: TensorSpec, m: int) -> str:
    """What of a tensor fills no block, in words; "" when nothing."""
    tail = spec.matrix[1] % m
    return f"the last {tail} columns of a row fill no block of {m}, and stay" if tail else ""


def keep_pattern(keys: Array, n: int, m: int, out: Array, work: Workspace) -> None:
    """Write to `out` [rows, columns], bool, the `n` largest `keys` of every `m` of a row, the first of equal ones;
    and all that fill no block."""
    if kernels.keep_largest(keys, n, m, out):
        return
    columns = keys.shape[1] // m * m
    if columns < keys.shape[1]:
        out[:, columns:] = True
    if not columns:
        return
    blocks, kept = keys[:, :columns].reshape(-1, m), out[:, :columns].reshape(-1, m)
    if m > _PLANES:
        # kept are the later of equal keys, and here the first are to stay
        keep_largest(blocks[:, ::-1], n, kept[:, ::-1], work)
    else:
        _by_planes(blocks, n, kept, work)
    if kept.base is not out and not np.shares_memory(kept, out):
        out[:, :columns] = kept.reshape(len(out), columns)


def _by_planes(blocks: Array, n: int, kept: Array, work: Workspace) -> None:
    """Count for every weight of `blocks` [count, m] how many beat it; those with fewer than n stay."""
    count, m = blocks.shape
    planes = work.array("nm.planes", (m, count), blocks.dtype.str)
    for place in range(m):
        np.copyto(planes[place], blocks[:, place])
    ranks = work.array("nm.ranks", (m, count), "|u1")
    ranks[...] = 0
    beats = work.array("nm.beats", (count,), "|b1")
    loses = work.array("nm.loses", (count,), "|b1")
    for one in range(m):
        for other in range(one + 1, m):
            np.greater_equal(planes[one], planes[other], out=beats)  # of equals the first stays
            ranks[other] += beats
            np.logical_not(beats, out=loses)
            ranks[one] += loses
    stays = work.array("nm.stays", (m, count), "|b1")
    np.less(ranks, n, out=stays)
    for place in range(m):
        np.copyto(kept[:, place], stays[place])
