"""Codes of least error of a layer's outputs, column by column (GPTQ, Frantar et al., arXiv 2210.17323).

Columns are rounded one after another, each to the nearest code of what it would best be by then
(`numerics/compensated.py`), by scales and zero points that are searched: with errors counted by what they cost once
all columns after them have made up for them, R_kk² (`numerics/hessian.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.compensated import by_columns, costs_of
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize._importance import weighed
from compressor.methods.quantize.int.ways.contract import Grid
from compressor.methods.quantize.int.ways.search import choose as choose_searched


def choose(grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen:
    """Scales and zero points [rows, groups], and in `scratch` the codes q − z, chosen together; scales by the
    search for the least squared error. InputError where the gram of the layer's inputs cannot be used."""
    size, out = grouped.shape[2], scratch.reshape(block.values.shape)
    costs = costs_of(block, damp=grid.damp, act_order=grid.act_order)

    def searched(weights: Array, first: int) -> _Columns:
        room = block.work.array("gptq.scratch", weights.shape, weights.dtype.str)
        heed = weighed(costs[first : first + weights.shape[1] * size], weights)
        return _Columns(choose_searched(weights, block, grid, room, heed), grid.rule.half, size, first, out)

    found = by_columns(block, block.values, size, searched, damp=grid.damp, act_order=grid.act_order)
    groups = [columns.chosen for columns in found]
    zero = None if groups[0].zero is None else np.concatenate([group.zero for group in groups], axis=1)
    stored, numbers = (
        np.concatenate([getattr(group, name) for group in groups], axis=1) for name in ("stored", "column")
    )
    return Chosen(stored, zero, numbers)


@dataclass(frozen=True)
class _Columns:
    """Groups of `size` from the column `first` on; q − z goes to `out` [rows, columns]. `half` is 2^(b−1)."""

    chosen: Chosen
    half: int
    size: int
    first: int
    out: Array

    def round(self, target: Array, place: int) -> Array:
        group = (place - self.first) // self.size
        scale = self.chosen.column[:, group, 0].astype(np.float64)
        zero = self.chosen.zero
        low = np.float64(-self.half) if zero is None else -zero[:, group].astype(np.float64)
        with np.errstate(over="ignore"):  # codes are clipped
            codes = np.rint(target / scale)
        codes = np.minimum(np.maximum(codes, low), low + (2 * self.half - 1))
        np.add(codes, 0.0, out=self.out[:, place], casting="same_kind")  # no −0
        restored: Array = codes * scale
        return restored
