"""Keep the N largest magnitudes of every M weights along the input dimension: N:M sparsity.

2:4 is what sparse tensor cores take (Mishra et al., arXiv 2104.08378); any N < M works. Of equal magnitudes
those that come first in the block are kept. Columns at the end of a row that do not fill a block stay, and the
report says so. A tensor of more dimensions is a matrix whose rows run over its first axis.

The rank of a weight is how many of its block are larger; all M(M − 1)/2 comparisons of a block are made on planes
of the i-th weight of every block, for M up to 16, above that rows are partitioned.

Stored: the same dtype and shape. Error: every zeroed weight is at most the N-th largest of its block.

>>> NM(pattern="2:4").n, NM(pattern="2:4").m    # [1, -3, 2, 0.5] becomes [0, -3, 2, 0]
(2, 4)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from compressor.errors import UsageError
from compressor.lazy import np
from compressor.method import Block, Selection, option
from compressor.methods.prune._rows import keep_largest
from compressor.methods.prune._smallest import magnitudes
from compressor.tensor import TensorSpec
from compressor.workspace import Array, Workspace

_PLANES = 16


@dataclass(frozen=True)
class NM(Selection):
    """Keep N of every M weights of a row."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "nm"
    nameless: ClassVar[bool] = True

    pattern: str = option(help="N:M, such as 2:4: N of every M stay")

    def __post_init__(self) -> None:
        super().__post_init__()
        if re.fullmatch(r"[0-9]{1,6}:[0-9]{1,6}", self.pattern) is None or not 0 < self.n < self.m:
            raise UsageError(
                f"pattern must be N:M with 0 < N < M, not {self.pattern!r}", remedy="2:4, say: 2 of every 4 stay"
            )

    @property
    def n(self) -> int:
        return int(self.pattern.partition(":")[0])

    @property
    def m(self) -> int:
        return int(self.pattern.partition(":")[2])

    def shortfall(self, spec: TensorSpec) -> str:
        tail = spec.matrix[1] % self.m
        return f"the last {tail} columns of a row fill no block of {self.m}, and stay" if tail else ""

    def keep(self, block: Block, out: Array) -> None:
        columns = block.values.shape[1] // self.m * self.m
        if columns < block.values.shape[1]:
            out[:, columns:] = True
        if not columns:
            return
        keys = magnitudes(block, "<u8" if block.values.itemsize == 8 else "<u4")[:, :columns]
        blocks, kept = keys.reshape(-1, self.m), out[:, :columns].reshape(-1, self.m)
        if self.m > _PLANES:
            # kept are the later of equal keys, and here the first are to stay
            keep_largest(blocks[:, ::-1], self.n, kept[:, ::-1], block.work)
        else:
            _by_planes(blocks, self.n, kept, block.work)
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


METHOD = NM
