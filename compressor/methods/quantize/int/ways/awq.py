"""What an error of a weight counts where inputs differ in size: Σ_j E[x_j²] (w_j − q_j)² is what outputs lose, as
far as the inputs do not vary together."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize.int.ways.contract import Grid
from compressor.methods.quantize.int.ways.search import choose as choose_searched

_LEAST = 1e-3  # of the mean: an input that calibration did not see active may be so later


def heed(block: Block, grouped: Array) -> Array:
    """E[x²] for weights [rows, groups, size], 1 on average in each group, as [rows · groups, size]."""
    assert block.inputs is not None  # noqa: S101 - the method asked for them
    square = block.inputs.square.reshape(grouped.shape[1:])
    mean = square.mean(axis=1, keepdims=True)
    size = np.maximum(np.where(mean > 0, square / np.where(mean > 0, mean, 1), 1), _LEAST).astype(grouped.dtype)
    found: Array = np.broadcast_to(size, grouped.shape).reshape(-1, grouped.shape[2])
    return found


def choose(grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen:
    """Scales and zero points [rows, groups] of least squared error, weighed by the layer's inputs."""
    return choose_searched(grouped, block, grid, scratch, heed(block, grouped))
