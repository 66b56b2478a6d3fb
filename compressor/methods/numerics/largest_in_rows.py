"""Keeping exactly the largest of each row, ties decided by place."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace


def keep_largest(keys: Array, count: int, out: Array, work: Workspace) -> None:
    """Write to `out` [rows, columns], bool, which `count` of each row of `keys` are the largest. Of equal keys the
    later ones of a row are kept."""
    columns = keys.shape[1]
    if count >= columns or count <= 0:
        out[...] = count > 0
        return
    ordered = work.array("rows.ordered", keys.shape, keys.dtype.str)
    np.copyto(ordered, keys)
    ordered.partition(columns - count - 1, axis=1)
    level = ordered[:, columns - count - 1, None]  # the largest that goes, where all keys differ
    np.greater(keys, level, out=out)
    missing = count - np.count_nonzero(out, axis=1)
    short = np.flatnonzero(missing)
    if short.size:
        equal = keys[short] == level[short]
        from_the_end = np.cumsum(equal[:, ::-1], axis=1)[:, ::-1]
        out[short] |= equal & (from_the_end <= missing[short, None])
