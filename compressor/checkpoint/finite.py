"""Tensors with NaN or infinity in them, found before a run."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.rows import BLOCK, CHUNK, Rows
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace


def blocks_of(tensor: Tensor, work: Workspace, align: int) -> Iterator[Array]:
    """The numbers of a tensor, block by block; of integers the stored elements, and bytes of types that are
    narrower than one."""
    spec = tensor.spec
    rows, columns = spec.matrix
    if spec.size == 0:
        return
    if not DTYPES[spec.dtype].storage:
        for start in range(0, spec.nbytes, CHUNK):
            yield tensor.whole.read_bytes(start, min(start + CHUNK, spec.nbytes), work, "scan")
        return
    if not spec.is_float:
        step = max(CHUNK // columns, 1)
        for start in range(0, rows, step):
            raw = tensor.whole.read_rows(columns, start, min(start + step, rows), work, "scan")
            yield widen(raw, spec.dtype, work, "scan.numbers") if spec.dtype.startswith("F8") else raw
        return
    block = max(BLOCK // columns // align, 1) * align
    chunk = max(CHUNK // columns // block, 1) * block
    for start in range(0, rows, chunk):
        stop = min(start + chunk, rows)
        read = Rows(tensor, columns, start, stop, work, "scan")
        for first in range(start, stop, block):
            yield read.block(first, min(first + block, stop))


def count_non_finite(tensor: Tensor) -> int:
    """NaN and infinite values of a tensor, read on its own."""
    blocks = blocks_of(tensor, Workspace(), tensor.align)
    return sum(block.size - int(np.count_nonzero(np.isfinite(block))) for block in blocks)
