"""Codes of least error of a layer's outputs, column by column (GPTQ, Frantar et al., arXiv 2210.17323).

Columns are rounded one after another, each to the nearest code of what it would best be by then (`hessian.py`).
Scales of a group are searched when its first column comes, for the weights as they would best be by then; or all
before, where columns come in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.numerics.hessian import COLUMNS, Compensation, Factor, factor_of
from compressor.methods.numerics.scales import Chosen
from compressor.methods.quantize.int.ways.contract import Grid
from compressor.methods.quantize.int.ways.search import choose as choose_searched

REACH = 8  # times the largest weight: more than any error can be, see `_held` and the range of scales

Choose = Callable[[Array, Array], Chosen]  # for weights [rows, groups, size], and scratch memory like them


def choose(grouped: Array, block: Block, grid: Grid, scratch: Array) -> Chosen:
    """Scales and zero points [rows, groups], and in `scratch` the codes q − z, chosen together; scales by the
    search for the least squared error. InputError where the gram of the layer's inputs cannot be used."""
    assert block.inputs is not None  # noqa: S101 - the method asked for them
    factor = factor_of(block.inputs, grid.damp, grid.act_order, block.work, block.spec.name)
    factor.of.tell(block)

    def searched(weights: Array, room: Array) -> Chosen:
        return choose_searched(weights, block, grid, room)

    state = Compensated(
        block.values, grouped.shape[2], grid.rule.half, factor, grid.act_order, searched, block.work
    )
    return state.run(scratch.reshape(block.values.shape))


@dataclass
class Compensated:
    """The rounding of one block [rows, columns] in groups of `size`, all scales before (`static`) or each group's
    when its first column comes. `half` is 2^(b−1)."""

    values: Array
    size: int
    half: int
    factor: Factor
    static: bool
    choose: Choose
    work: Workspace

    def run(self, out: Array) -> Chosen:
        """Scales and zero points; q − z as numbers is written to `out` [rows, columns]."""
        rows, columns = self.values.shape
        order = self.factor.order
        self.state = state = Compensation(self.values, self.factor, self.work)
        zeros = state.weights == 0
        self.zeros = zeros if zeros.any() else None
        self.top = 2 * np.abs(state.weights).max(axis=0)
        groups: list[Chosen] = []
        if self.static:
            groups.append(self._chosen(self.values.reshape(rows, -1, self.size)))
        for start, stop in self._chunks(columns):
            for column in range(start, stop):
                if not self.static and column % self.size == 0:
                    groups.append(self._chosen(self._group(column)))
                place = column if order is None else int(order[column])
                group = groups[0] if self.static else groups[-1]
                target = self._held(state.targets[column], column)
                restored = self._round(target, group, place // self.size, out[:, place])
                state.settle(column, restored, start, stop)
            state.tell(start, stop)
        zero = None if groups[0].zero is None else np.concatenate([group.zero for group in groups], axis=1)
        stored, numbers = (
            np.concatenate([getattr(group, name) for group in groups], axis=1) for name in ("stored", "column")
        )
        return Chosen(stored, zero, numbers)

    def _chosen(self, grouped: Array) -> Chosen:
        return self.choose(grouped, self.work.array("gptq.scratch", grouped.shape, grouped.dtype.str))

    def _chunks(self, columns: int) -> Iterator[tuple[int, int]]:
        """Columns that are rounded together; a group begins where they do, or lies within."""
        inside = self.static or self.size <= COLUMNS
        whole = columns if inside else self.size
        step = COLUMNS if self.static or not inside else COLUMNS // self.size * self.size
        for first in range(0, columns, whole):
            for start in range(first, first + whole, step):
                yield start, min(start + step, first + whole)

    def _held(self, target: Array, columns: int | slice) -> Array:
        """What columns should be [.., rows], in place: no more than twice the largest weight of the row, and zero
        where they were."""
        np.minimum(np.maximum(target, -self.top, out=target), self.top, out=target)
        if self.zeros is not None:
            target[self.zeros[columns]] = 0
        return target

    def _group(self, column: int) -> Array:
        """The weights [rows, 1, size] of a group as they would best be by now, if none of it were rounded."""
        best = self._held(self.state.best(column, self.size), slice(column, column + self.size))
        lift = self.state.lift
        with np.errstate(over="ignore"):  # twice the largest
            target = best.T if lift is None else np.ldexp(best.T, lift[:, None])
        limit = np.finfo(self.values.dtype).max
        return np.ascontiguousarray(np.clip(target, -limit, limit), self.values.dtype)[:, None, :]

    def _round(self, target: Array, chosen: Chosen, group: int, out: Array) -> Array:
        """The codes of a column of this group into `out`, and what they stand for."""
        group, lift = group if self.static else 0, self.state.lift
        scale = chosen.column[:, group, 0].astype(np.float64)
        low = np.float64(-self.half) if chosen.zero is None else -chosen.zero[:, group].astype(np.float64)
        with np.errstate(over="ignore"):  # codes are clipped
            if lift is not None:
                target = np.ldexp(target, lift)
            codes = np.rint(target / scale)
        codes = np.minimum(np.maximum(codes, low), low + (2 * self.half - 1))
        np.add(codes, 0.0, out=out, casting="same_kind")  # no −0
        restored: Array = codes * scale
        return restored if lift is None else np.ldexp(restored, -lift)
