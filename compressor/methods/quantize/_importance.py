"""What an error of a weight counts where inputs differ in size: Σ_j E[x_j²] (w_j − q_j)² is what outputs lose, as
far as the inputs do not vary together."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block

_LEAST = 1e-3  # of the mean: an input that calibration did not see active may be so later


def importance(block: Block, size: int, kind: str) -> Array | None:
    """E[x²] of the weights of a block, 1 on average in each group of `size` of a row, as [rows · groups, size] of
    this dtype; None where nothing is known of its inputs. Where groups go on in the next row, 1 on average in all
    columns; a last group that is short is filled up with ones."""
    if block.inputs is None:
        return None
    rows, columns = block.values.shape
    square = block.inputs.square
    grouped = square.reshape((-1, size) if columns % size == 0 else (1, -1))
    mean = grouped.mean(axis=1, keepdims=True)
    found = np.maximum(np.where(mean > 0, grouped / np.where(mean > 0, mean, 1), 1), _LEAST).astype(kind)
    if columns % size == 0:
        alike: Array = np.broadcast_to(found, (rows, *found.shape)).reshape(-1, size)
        return alike
    flat = np.ones(-(-rows * columns // size) * size, kind)
    flat[: rows * columns] = np.broadcast_to(found.reshape(-1), (rows, columns)).reshape(-1)
    return flat.reshape(-1, size)
