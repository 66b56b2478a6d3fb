"""Scales of least squared error, weighed by the layer's inputs, as a search with statistics has them too; awq's
inputs were scaled before (`workflows/awq.py`)."""

from __future__ import annotations

from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize._importance import importance
from compressor.methods.quantize.int.ways.contract import Grid
from compressor.methods.quantize.int.ways.search import choose as choose_searched


def choose(grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen:
    """Scales and zero points [rows, groups] of least squared error, weighed by the layer's inputs."""
    heed = importance(block, grouped.shape[2], grouped.dtype.str)
    return choose_searched(grouped, block, grid, scratch, heed)
