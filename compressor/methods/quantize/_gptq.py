"""Codes of least error of a layer's outputs, column by column (GPTQ, Frantar et al., arXiv 2210.17323).

For inputs x with H = E[x xᵀ] (plus λ on its diagonal) a row w stored as q loses (w − q) H (w − q)ᵀ. Columns are
rounded one after another; what is lost in those before is made up for in the next ones, exactly as far as they
were still free to take any value. With H = R Rᵀ, R upper triangular, the loss is ‖(w − q) R‖², and column k best at

    w'_k = w_k + Σ_{i<k} (w_i − q_i) R_ik / R_kk

which is the paper's update by the Cholesky factor of H⁻¹, without the inverse. What a column lost is told to
those of its own 128 at once, to others by BLAS when all 128 are done. Arithmetic is float64, which targets fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from compressor.errors import InputError
from compressor.inputs import Layer
from compressor.lazy import np
from compressor.methods.quantize._scales import Chosen
from compressor.workspace import Array, Workspace

DAMP = 0.01
REACH = 8  # times the largest weight: more than any error can be, see `targets` and the range of scales
_COLUMNS = 128  # rounded before the columns after them hear of it
_ROWS = 128  # of a product: always as many, so that BLAS treats a row alike in whatever block it comes

Choose = Callable[[Array, Array], Chosen]  # for weights [rows, groups, size], and scratch memory like them


@dataclass(frozen=True)
class Factor:
    """R_ik / R_kk of a layer, whose columns are taken in this `order` (None: as they stand); `damp` is λ in mean
    diagonals."""

    ratios: Array
    order: Array | None
    damp: float
    layer: Layer = field(repr=False)  # kept, so that its id stays its own


def factor_of(layer: Layer, damp: float | None, act_order: bool, work: Workspace, tensor: str) -> Factor:
    """The factor of a layer, kept for the blocks to come. InputError where a given `damp` is too little."""
    return work.once("gptq.factor", (id(layer), damp, act_order), lambda: _factor(layer, damp, act_order, tensor))


def _factor(layer: Layer, damp: float | None, act_order: bool, tensor: str) -> Factor:
    assert layer.gram is not None  # noqa: S101 - the method asked for it
    size = layer.gram.diagonal()
    mean = size.mean() or 1.0
    order = np.argsort(-size, kind="stable") if act_order else None
    # both ends are turned round: the lower factor of that is the upper one of the gram
    turned = np.arange(len(size))[::-1] if order is None else order[::-1]
    gram = layer.gram[np.ix_(turned, turned)] / mean
    dead = np.flatnonzero(size[turned] == 0)
    gram[dead, :], gram[:, dead] = 0, 0
    gram[dead, dead] = 1
    least = given = DAMP if damp is None else damp
    while True:
        damped = gram.copy()
        damped.flat[:: len(gram) + 1] += least
        try:
            lower = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            if damp is not None or least > 1e6:
                raise InputError(
                    f"the gram of its inputs is singular at damp {given:g}",
                    tensor=tensor,
                    remedy=f"Give --damp {DAMP} or more, or calibrate with more inputs",
                ) from None
            least *= 10
            continue
        upper = lower[::-1, ::-1]
        return Factor(np.ascontiguousarray(upper / upper.diagonal()), order, least, layer)


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
        order, ratios = self.factor.order, self.factor.ratios
        self.lift = self._lift()
        weights = self.work.array("gptq.weights", (columns, rows), "<f8")
        np.copyto(weights, self.values.T if order is None else self.values.T[order])
        if self.lift is not None:
            np.ldexp(weights, -self.lift, out=weights)
        zeros = weights == 0
        self.zeros = zeros if zeros.any() else None
        self.top = 2 * np.abs(weights).max(axis=0)
        self.targets = self.work.array("gptq.targets", (columns, rows), "<f8")
        np.copyto(self.targets, weights)
        lost = self.work.array("gptq.lost", (_COLUMNS, -(-rows // _ROWS) * _ROWS), "<f8")
        lost[:, rows:] = 0
        groups: list[Chosen] = []
        if self.static:
            groups.append(self._chosen(self.values.reshape(rows, -1, self.size)))
        for start, stop in self._chunks(columns):
            for column in range(start, stop):
                if not self.static and column % self.size == 0:
                    groups.append(self._chosen(self._group(column, weights)))
                place = column if order is None else int(order[column])
                group = groups[0] if self.static else groups[-1]
                restored = self._round(self._target(column), group, place // self.size, out[:, place])
                gone = np.subtract(weights[column], restored, out=lost[column - start, :rows])
                self.targets[column + 1 : stop] += ratios[column, column + 1 : stop, None] * gone
            self._tell(start, stop, lost)
        zero = None if groups[0].zero is None else np.concatenate([group.zero for group in groups], axis=1)
        stored, numbers = (
            np.concatenate([getattr(group, name) for group in groups], axis=1) for name in ("stored", "column")
        )
        return Chosen(stored, zero, numbers)

    def _chosen(self, grouped: Array) -> Chosen:
        return self.choose(grouped, self.work.array("gptq.scratch", grouped.shape, grouped.dtype.str))

    def _lift(self) -> Array | None:
        """Powers of two by which rows of float64 are divided, where products could overflow."""
        if self.values.itemsize < 8:
            return None
        power = np.frexp(np.abs(self.values).max(axis=1))[1]
        return np.where(power > 512, power, 0) if power.max() > 512 else None

    def _chunks(self, columns: int) -> Iterator[tuple[int, int]]:
        """Columns that are rounded together; a group begins where they do, or lies within."""
        inside = self.static or self.size <= _COLUMNS
        whole = columns if inside else self.size
        step = _COLUMNS if self.static or not inside else _COLUMNS // self.size * self.size
        for first in range(0, columns, whole):
            for start in range(first, first + whole, step):
                yield start, min(start + step, first + whole)

    def _target(self, column: int) -> Array:
        """What a column should be: no more than twice the largest weight of the row, and zero where it was."""
        target: Array = self.targets[column]
        np.minimum(np.maximum(target, -self.top, out=target), self.top, out=target)
        if self.zeros is not None:
            target[self.zeros[column]] = 0
        return target

    def _group(self, column: int, weights: Array) -> Array:
        """The weights [rows, 1, size] of a group as they would best be by now, if none of it were rounded.

        Each then makes up for changes of those before it: w' = w + s A⁻¹, where s is what columns before the
        group lost, as its own hear of it, and A the group's part of the ratios.
        """
        here = slice(column, column + self.size)
        inverse = np.linalg.inv(self.factor.ratios[here, here]).T
        best = self.targets[here] - weights[here]
        for first in range(0, best.shape[1], _ROWS):
            part = best[:, first : first + _ROWS]
            heard = np.zeros((self.size, _ROWS))
            heard[:, : part.shape[1]] = part
            part[...] = (inverse @ heard)[:, : part.shape[1]]
        best += weights[here]
        np.minimum(np.maximum(best, -self.top, out=best), self.top, out=best)
        if self.zeros is not None:
            best[self.zeros[here]] = 0
        with np.errstate(over="ignore"):  # twice the largest
            target = best.T if self.lift is None else np.ldexp(best.T, self.lift[:, None])
        limit = np.finfo(self.values.dtype).max
        return np.ascontiguousarray(np.clip(target, -limit, limit), self.values.dtype)[:, None, :]

    def _round(self, target: Array, chosen: Chosen, group: int, out: Array) -> Array:
        """The codes of a column of this group into `out`, and what they stand for."""
        group = group if self.static else 0
        scale = chosen.column[:, group, 0].astype(np.float64)
        low = np.float64(-self.half) if chosen.zero is None else -chosen.zero[:, group].astype(np.float64)
        with np.errstate(over="ignore"):  # codes are clipped
            if self.lift is not None:
                target = np.ldexp(target, self.lift)
            codes = np.rint(target / scale)
        codes = np.minimum(np.maximum(codes, low), low + (2 * self.half - 1))
        np.add(codes, 0.0, out=out, casting="same_kind")  # no −0
        restored: Array = codes * scale
        return restored if self.lift is None else np.ldexp(restored, -self.lift)

    def _tell(self, start: int, stop: int, lost: Array) -> None:
        """Add to the targets after `stop` what the columns from `start` lost."""
        after = self.targets[stop:]
        if not len(after):
            return
        rows, ratios = after.shape[1], self.factor.ratios[start:stop, stop:].T
        room = self.work.array("gptq.room", (len(after), _ROWS), "<f8")
        for first in range(0, rows, _ROWS):
            here = np.ascontiguousarray(lost[: stop - start, first : first + _ROWS])
            np.matmul(ratios, here, out=room)
            after[:, first : first + _ROWS] += room[:, : rows - first]
