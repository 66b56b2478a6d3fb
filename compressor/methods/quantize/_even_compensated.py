"""Codes of an even step for the least error of a layer's outputs, column by column (GPTQ, arXiv 2210.17323).

Each column is rounded, by rate or to the nearest, from what it would best be once those before it are codes
(`numerics/compensated.py`). What rounding costs in the end is R_kk² of a column, which stands in the place of its
inputs' mean square where its factor is found.

Weights that make up for what others lost spread further, and their codes take more bits, the more the coarser the
step is: `Settling` tells how many, by some rows of each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, Prepared, Survey
from compressor.methods.numerics.compensated import by_columns
from compressor.methods.numerics.even_steps import FAR, Coding, entropy_of
from compressor.methods.numerics.factors import Factors

_ROWS = 64  # of a tensor that codes are counted of, at least, if it has so many
_CODES = 1 << 11  # codes that are told apart on either side


@dataclass(frozen=True)
class Columns:
    """Columns of a block over `by_row` [rows] and `by_column` [columns], both float64; the codes, at most `top`, go
    to `codes` [rows, columns]."""

    coding: Coding
    by_row: Array
    by_column: Array
    top: int
    codes: Array

    def round(self, target: Array, place: int) -> Array:
        unit = self.by_row * self.by_column[place]
        ratio = np.clip(target / unit, -self.top, self.top)
        below = np.floor(ratio).astype(np.int64)
        near = (below >= -FAR) & (below < FAR)
        raised = np.where(near, np.array(self.coding.rounds).take(below + FAR, mode="clip"), 0.5)
        codes = np.clip(np.floor(ratio + raised), -self.top, self.top)
        np.copyto(self.codes[:, place], codes, casting="unsafe")
        limit = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            restored: Array = np.clip(codes * unit, -limit, limit)
        return restored


def compensated(block: Block, columns: Columns, *, damp: float | None, act_order: bool) -> None:
    """Choose the codes of a block. InputError where the gram of its inputs cannot be used."""
    width = block.values.shape[1]
    by_columns(block, block.values, width, lambda _, __: columns, damp=damp, act_order=act_order)


class Stepped(Protocol):
    """What is known of a tensor once its step is."""

    @property
    def coding(self) -> Coding: ...

    @property
    def factors(self) -> Factors | None: ...


@dataclass(frozen=True)
class Settling(Survey[dict[str, Array]]):
    """How many more bits the codes of each tensor take than those of its weights alone: what follows is `again` for
    these excesses by name. Counts [2, codes] are of the codes chosen together and of those alone."""

    steps: Mapping[str, Stepped]
    damp: float | None
    act_order: bool
    again: Callable[[Mapping[str, float]], Prepared]

    def start(self) -> dict[str, Array]:
        return {}

    def wants(self, spec: TensorSpec) -> bool:
        return spec.size > 0

    def observe(self, block: Block, stats: dict[str, Array]) -> dict[str, Array]:
        spec, found = block.spec, self.steps[block.spec.name]
        every = max(spec.matrix[0] // _ROWS, 1)
        taken = np.arange(-block.start % every, len(block.values), every)
        if not taken.size or not block.values.size:
            return stats
        values = np.ascontiguousarray(block.values[taken])
        by_row, by_column = np.full(len(taken), found.coding.step), np.ones(values.shape[1])
        if found.factors is not None:
            by_row *= found.factors.by_row(block.start, len(block.values), "<f8")[taken, 0]
            by_column *= found.factors.by_column("<f8")
        codes = np.empty((2, *values.shape))
        columns = Columns(found.coding, by_row, by_column, _CODES, codes[0])
        some = replace(block, values=values, remarks=[])
        compensated(some, columns, damp=self.damp, act_order=self.act_order)
        alone = replace(columns, codes=codes[1])
        for place in range(values.shape[1]):
            alone.round(values[:, place].astype(np.float64), place)
        places = codes.reshape(2, -1).astype(np.int64) + _CODES
        counts = np.stack([np.bincount(one, minlength=2 * _CODES + 1) for one in places])
        return self.merge(stats, {spec.name: counts})

    def merge(self, stats: dict[str, Array], more: dict[str, Array]) -> dict[str, Array]:
        for name, counts in more.items():
            stats[name] = stats[name] + counts if name in stats else counts
        return stats

    def conclude(self, stats: dict[str, Array]) -> Prepared:
        return self.again({name: entropy_of(one[0]) - entropy_of(one[1]) for name, one in stats.items()})
