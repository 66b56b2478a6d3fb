"""Zero weights where a layer's outputs lose least, and make up for them in the weights that stay (SparseGPT).

    Frantar, Alistarh, arXiv 2301.00774; for inputs x with H = E[x xᵀ], column by column:

    a weight w_k that goes costs w_k² / [H⁻¹]_kk, the columns before it being settled;
    the columns after it take over what they can of its part of the outputs

Columns are taken 128 at a time. Of such a block (of all rows) the round(sparsity · weights) go that cost least as
it stands when its first column comes; or `pattern` N:M keeps N of every M neighbours, chosen when the first of them
comes (blocks are then of whole groups). Of equal ones the first go, or with a pattern the last. The gram is damped
by `damp` times its mean diagonal, more where it then still has no Cholesky factor (`hessian.py`). What was zero
stays zero, and counts as pruned. The error that is reported is of the weights, which move: it says little of the
outputs'.

Stored: the same dtype and shape. Error: no bound, since weights that stay take over from others.

    W = [[1, 1]], inputs that are always alike: at sparsity 0.5 it becomes about [[0, 2]]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.errors import UsageError
from compressor.core.floats import largest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.numerics.hessian import COLUMNS, Compensation, compensation_memory, factor_of
from compressor.methods.numerics.largest_in_rows import keep_largest
from compressor.methods.numerics.nm_pattern import keep_pattern, parse_pattern
from compressor.methods.prune._by_gram import ByGram


@dataclass(frozen=True)
class SparseGpt(ByGram):
    """Zero what costs a layer's outputs least, and let the other weights make up for it."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "sparsegpt"
    at_once: ClassVar[int] = 1 << 21
    usual: ClassVar[str] = "0.5"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None and parse_pattern(self.pattern)[1] > COLUMNS:
            raise UsageError(f"sparsegpt takes patterns of at most {COLUMNS}, not '{self.pattern}'")

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return self.pattern is None  # all rows of a block of columns are compared

    def memory(self, spec: TensorSpec) -> int:
        block = spec.size if self.whole else max(self.at_once, spec.matrix[1])
        return compensation_memory(spec, block)

    def apply(self, block: Block, out: Array) -> None:
        assert block.inputs is not None  # noqa: S101 - the method asked for them
        factor = factor_of(block.inputs, self.damp, False, block.work, block.spec.name)
        factor.of.tell(block)
        state, work = Compensation(block.values, factor, block.work), block.work
        columns, rows = state.weights.shape
        there = state.weights != 0
        keep = work.array("sparsegpt.keep", (columns, rows), "|b1")
        n, m = parse_pattern(self.pattern) if self.pattern is not None else (0, 0)
        for start, stop in _chunks(columns, m):
            if not m:
                self._choose(state, start, stop, keep[start:stop], work)
            for column in range(start, stop):
                if m and column % m == 0:
                    size = min(m, columns - column)
                    _keep_group(state, column, size, n, m, keep[column : column + size], work)
                stays = keep[column] & there[column]
                state.settle(column, np.where(stays, state.targets[column], 0.0), start, stop)
                state.targets[column][~stays] = 0
            state.tell(start, stop)
        found = state.targets.T
        with np.errstate(over="ignore"):
            found = found if state.lift is None else np.ldexp(found, state.lift[:, None])
        top = largest(block.spec.dtype)
        np.add(np.clip(found, -top, top), 0.0, out=out, casting="same_kind")  # no −0

    def _choose(self, state: Compensation, start: int, stop: int, keep: Array, work: Workspace) -> None:
        """Which of a block of columns stay [columns, rows]: all that cost more than the others."""
        costs = _costs(state, start, stop - start)
        flat = np.ascontiguousarray(costs.T).reshape(1, -1)
        chosen = work.array("sparsegpt.chosen", flat.shape, "|b1")
        keep_largest(flat, flat.size - round((self.sparsity or 0) * flat.size), chosen, work)
        keep[...] = chosen.reshape(costs.shape[1], costs.shape[0]).T


def _costs(state: Compensation, column: int, size: int) -> Array:
    """|w_k| R_kk [size, rows], the root of what a weight costs that goes: 1 / R_kk² is the paper's [H⁻¹]_kk."""
    best = state.best(column, size)
    best[state.weights[column : column + size] == 0] = 0
    return np.abs(best, out=best) * state.factor.diagonal[column : column + size, None]


def _keep_group(state: Compensation, column: int, size: int, n: int, m: int, keep: Array, work: Workspace) -> None:
    """Which weights of a group stay [size, rows]; all of one that is not full."""
    if size < m:
        keep[...] = True
        return
    costs = np.ascontiguousarray(_costs(state, column, m).T)
    chosen = work.array("sparsegpt.chosen", costs.shape, "|b1")
    keep_pattern(costs, n, m, chosen, work)
    keep[...] = chosen.T


def _chunks(columns: int, m: int) -> Iterator[tuple[int, int]]:
    """Columns that are settled together: 128, or as many groups of `m` as that holds."""
    step = COLUMNS // m * m if m else COLUMNS
    for start in range(0, columns, step):
        yield start, min(start + step, columns)


METHOD = SparseGpt
