"""What tells a model from another one by little reading: names, shapes and some rows."""

from __future__ import annotations

from hashlib import sha256

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.rows import Rows
from compressor.core.workspace import Array, Workspace

_TENSORS = 1000  # that a fingerprint looks into


def fingerprint(checkpoint: Checkpoint) -> tuple[str, str]:
    """SHA-256 of a model's names and shapes of float tensors of two or more dimensions, and of a sample of their
    numbers: the first 64 of the first, the middle and the last row. Neither depends on how they are stored."""
    matrices = [
        tensor for tensor in checkpoint.tensors.values() if tensor.spec.is_float and len(tensor.spec.shape) > 1
    ]
    model, weights = sha256(), sha256()
    for tensor in sorted(matrices, key=lambda tensor: tensor.spec.name):
        model.update(f"{tensor.spec.name}\0{','.join(map(str, tensor.spec.shape))}\0".encode())
    work = Workspace()
    for tensor in matrices[:: -(-len(matrices) // _TENSORS) or 1]:
        rows, columns = tensor.spec.matrix
        for row in sorted({0, rows // 2, rows - 1}) if tensor.spec.size else ():
            weights.update(_row(tensor, row, min(columns, 64), work).astype("<f8").tobytes())
    return model.hexdigest(), weights.hexdigest()


def _row(tensor: Tensor, row: int, count: int, work: Workspace) -> Array:
    """The first numbers of a row."""
    rows, columns = tensor.spec.matrix
    if tensor.seekable:  # a row may be a whole expert
        place = row * columns
        return Rows(tensor, 1, place, place + count, work, "sample").block(place, place + count)
    start = row // tensor.align * tensor.align
    stop = min(start + tensor.align, rows)
    found: Array = Rows(tensor, columns, start, stop, work, "sample").block(start, stop)[row - start, :count]
    return found
