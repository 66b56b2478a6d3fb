"""Rounding a block column by column, each column to what makes up for what those before it lost (GPTQ, Frantar et
al., arXiv 2210.17323; `hessian.py` has the arithmetic).

Columns share scales in groups of a row. Those of a group are chosen when its first column comes, for the weights as
they would best be by then; or all before, where columns come in another order, or where scales are known already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.numerics.hessian import COLUMNS, Compensation, Factor, factor_of

REACH = 8  # times the largest weight: more than any error can be, see `_held` and the range of scales


class Columns(Protocol):
    """What columns of some groups are rounded to, once their scales are chosen."""

    def round(self, target: Array, place: int) -> Array:
        """The numbers [rows], float64, that the codes nearest to `target` [rows] stand for, of the column with this
        place in the matrix; keeps the codes."""
        ...


C = TypeVar("C", bound=Columns)


def by_columns(
    block: Block,
    values: Array,
    size: int,
    choose: Callable[[Array, int], C],
    *,
    damp: float | None,
    act_order: bool,
    static: bool = False,
) -> list[C]:
    """Round `values` [rows, columns], those of the block in the type that they are rounded in, in groups of `size`;
    `choose` gives what has the scales of weights [rows, groups, size], of which the first stand at a column of the
    matrix. With `act_order` columns of the largest inputs come first, with that or `static` all scales. What was
    chosen, group after group, or once for all. InputError where the gram of the layer's inputs cannot be used."""
    assert block.inputs is not None  # noqa: S101 - the method asked for them
    factor = factor_of(block.inputs, damp, act_order, block.work, block.spec.name)
    factor.of.tell(block)
    return _Compensated(values, size, factor, static or act_order, choose, block.work).run()


def costs_of(block: Block, *, damp: float | None, act_order: bool) -> Array:
    """What a square of rounding's error costs in each column [columns], once those after it have made up for it."""
    assert block.inputs is not None  # noqa: S101 - the method asked for them
    factor = factor_of(block.inputs, damp, act_order, block.work, block.spec.name)
    costs = np.empty(len(factor.diagonal))
    costs[slice(None) if factor.order is None else factor.order] = np.square(factor.diagonal)
    return costs


@dataclass
class _Compensated(Generic[C]):
    """The rounding of one block [rows, columns] in groups of `size`, all scales before (`static`) or each group's
    when its first column comes."""

    values: Array
    size: int
    factor: Factor
    static: bool
    choose: Callable[[Array, int], C]
    work: Workspace

    def run(self) -> list[C]:
        """Round all columns. What was chosen."""
        rows, columns = self.values.shape
        order = self.factor.order
        self.state = state = Compensation(self.values, self.factor, self.work)
        zeros = state.weights == 0
        self.zeros = zeros if zeros.any() else None
        self.top = 2 * np.abs(state.weights).max(axis=0)
        groups: list[C] = []
        if self.static:
            groups.append(self.choose(self.values.reshape(rows, -1, self.size), 0))
        for start, stop in self._chunks(columns):
            for column in range(start, stop):
                if not self.static and column % self.size == 0:
                    groups.append(self.choose(self._group(column), column))
                place = column if order is None else int(order[column])
                target = self._lifted(self._held(state.targets[column], column))
                restored = groups[-1].round(target, place)
                if state.lift is not None:
                    restored = np.ldexp(restored, -state.lift)
                state.settle(column, restored, start, stop)
            state.tell(start, stop)
        return groups

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

    def _lifted(self, target: Array) -> Array:
        """Columns [.., rows] in the range that the weights have."""
        if self.state.lift is None:
            return target
        with np.errstate(over="ignore"):  # twice the largest
            lifted: Array = np.ldexp(target, self.state.lift)
        return lifted

    def _group(self, column: int) -> Array:
        """The weights [rows, 1, size] of a group as they would best be by now, if none of it were rounded."""
        best = self._held(self.state.best(column, self.size), slice(column, column + self.size))
        limit = np.finfo(self.values.dtype).max
        target = np.clip(self._lifted(best).T, -limit, limit)
        return np.ascontiguousarray(target, self.values.dtype)[:, None, :]
