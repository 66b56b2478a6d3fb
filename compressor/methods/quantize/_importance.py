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
    if columns % size == 0:
        return _alike(square.reshape(-1, size), rows, kind)
    flat = np.ones(-(-rows * columns // size) * size, kind)
    flat[: rows * columns] = _alike(square[None], rows, kind).reshape(-1)
    return flat.reshape(-1, size)


def weighed(costs: Array, weights: Array) -> Array:
    """What errors cost by column, `costs` [groups · size], for weights [rows, groups, size]: 1 on average in each
    group, as [rows · groups, size]."""
    rows, groups, size = weights.shape
    return _alike(costs.reshape(groups, size), rows, weights.dtype.str)


def _alike(square: Array, rows: int, kind: str) -> Array:
    """Groups [groups, size] over their means, the same for all rows."""
    mean = square.mean(axis=1, keepdims=True)
    found = np.maximum(np.where(mean > 0, square / np.where(mean > 0, mean, 1), 1), _LEAST).astype(kind)
    alike: Array = np.broadcast_to(found, (rows, *found.shape)).reshape(-1, square.shape[1])
    return alike
