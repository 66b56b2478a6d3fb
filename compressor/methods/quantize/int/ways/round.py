"""Scales from the range of each group, the rule of compressed-tensors: nothing is clipped, nothing searched."""

from __future__ import annotations

from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.scales import Chosen, extent
from compressor.methods.quantize.int.ways.contract import Grid


def choose(grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen:
    """Scales and zero points [rows, groups] that the least and the largest weight of each group ask for."""
    scale, zero = grid.rule.absmax(*extent(grouped, grid.rule.symmetric, scratch))
    return grid.settled(grouped, grid.rule.store(scale, zero)[0], zero)
