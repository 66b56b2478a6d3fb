"""What errors of weights cost a layer's outputs, and making up in later columns for what earlier ones lost.

For inputs x with H = E[x xᵀ] a row w that becomes q loses (w − q) H (w − q)ᵀ. Columns are settled one after
another; what those before lost is made up for in the next ones, exactly as far as these are still free to take any
value. With H = R Rᵀ, R upper triangular, the loss is ‖(w − q) R‖², and column k best at

    w'_k = w_k + Σ_{i<k} (w_i − q_i) R_ik / R_kk

which is the update by the Cholesky factor of H⁻¹ in GPTQ (Frantar et al., arXiv 2210.17323) and SparseGPT (arXiv
2301.00774), without the inverse: the diagonal of theirs is 1 / R_kk. What a column lost is told to those of its own
128 at once, to others by BLAS when all 128 are done. Arithmetic is float64.

A gram of fewer inputs than it has columns is singular. So λ is added to its diagonal, in units of the mean of that;
an input that is never active gets one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.core.errors import InputError
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block

DAMP = 0.01
COLUMNS = 128  # that are settled before the columns after them hear of it
ROWS = 128  # of a product: always as many, so that BLAS treats a row alike in whatever block it comes
_FEW = 16  # columns that are substituted one by one


@dataclass(frozen=True)
class Conditioned:
    """A layer's gram [in, in] over its mean diagonal, with `damp` on the diagonal so that it has a Cholesky factor
    `lower`; `layer` is kept so that its id stays its own."""

    gram: Array
    lower: Array
    damp: float
    asked: float
    layer: Layer = field(repr=False)

    def tell(self, block: Block) -> None:
        """Say what was done to a gram that is singular."""
        block.remarks.extend(self.remarks())

    def remarks(self) -> list[str]:
        """What was done to a gram that is singular, in a sentence; nothing of others."""
        width, count = self.layer.width, self.layer.count
        if self.damp > self.asked:
            why = f"its inputs' gram has no Cholesky factor at damp {self.asked:g}"
        elif count < width:
            why = f"{count} rows of {width} inputs leave their gram singular"
        else:
            return []
        return [f"{why}: {self.damp:g} of its mean diagonal was added to it"]


def conditioned(
    layer: Layer,
    damp: float | None,
    tensor: str,
    order: Array | None = None,
    *,
    centred: bool = False,
    dead: float | None = None,
) -> Conditioned:
    """The gram with its columns in this order, of the inputs less their mean where `centred`. An input that is
    never active weighs 1 more than the damping; or `dead`, at least as much as that. InputError where a given
    `damp` is too little; unset it is as much as is needed, 0.01 at least."""
    assert layer.gram is not None  # noqa: S101 - the method asked for it
    taken = np.arange(layer.width) if order is None else order
    gram = layer.gram[np.ix_(taken, taken)]
    if centred:
        mean = layer.mean[taken]
        gram -= np.outer(mean, mean)
    size = gram.diagonal()
    idle = np.flatnonzero(size <= 0)
    gram /= np.maximum(size, 0).mean() or 1.0
    gram[idle, :], gram[:, idle] = 0, 0
    gram[idle, idle] = 1 if dead is None else dead
    least = given = DAMP if damp is None else damp
    diagonal = gram.diagonal().copy()
    while True:
        np.fill_diagonal(gram, diagonal + least)
        try:
            return Conditioned(gram, np.linalg.cholesky(gram), least, given, layer)
        except np.linalg.LinAlgError:
            if damp is not None or least > 1e6:
                raise InputError(
                    f"the gram of its inputs is singular at damp {given:g}",
                    tensor=tensor,
                    remedy=f"Give --damp {DAMP} or more, or calibrate with more inputs",
                ) from None
            least *= 10


def conditioned_memory(width: int) -> int:
    """Bytes that it takes to condition a gram: itself, its factor, and what LAPACK and NumPy copy."""
    return 4 * 8 * width * width


@dataclass(frozen=True)
class Factor:
    """R_ik / R_kk of a layer and R_kk, whose columns are taken in this `order` (None: as they stand)."""

    ratios: Array
    diagonal: Array
    order: Array | None
    of: Conditioned = field(repr=False)


def factor_of(layer: Layer, damp: float | None, act_order: bool, work: Workspace, tensor: str) -> Factor:
    """The factor of a layer, kept for the blocks to come; with `act_order` the columns of the largest inputs come
    first. InputError where a given `damp` is too little."""
    return work.once(
        "hessian.factor", (id(layer), damp, act_order), lambda: _factor(layer, damp, act_order, tensor)
    )


def _factor(layer: Layer, damp: float | None, act_order: bool, tensor: str) -> Factor:
    assert layer.gram is not None  # noqa: S101 - the method asked for it
    order = np.argsort(-layer.gram.diagonal(), kind="stable") if act_order else None
    # both ends are turned round: the lower factor of that is the upper one of the gram
    turned = np.arange(layer.width)[::-1] if order is None else order[::-1]
    found = conditioned(layer, damp, tensor, turned)
    upper = found.lower[::-1, ::-1]
    diagonal = upper.diagonal().copy()
    empty = np.empty((0, 0))
    kept = Conditioned(empty, empty, found.damp, found.asked, layer)
    return Factor(np.ascontiguousarray(upper / diagonal), diagonal, order, kept)


class Compensation:
    """The columns of a block [rows, columns] on their way, in the factor's order and turned [columns, rows]:
    `weights` as they were, `targets` what each of the next would best be, as far as it has heard."""

    def __init__(self, values: Array, factor: Factor, work: Workspace) -> None:
        rows, columns = values.shape
        self.factor, self.work = factor, work
        self.lift = _lift(values)
        self.weights = work.array("hessian.weights", (columns, rows), "<f8")
        np.copyto(self.weights, values.T if factor.order is None else values.T[factor.order])
        if self.lift is not None:
            np.ldexp(self.weights, -self.lift, out=self.weights)
        self.targets = work.array("hessian.targets", (columns, rows), "<f8")
        np.copyto(self.targets, self.weights)
        self.lost = work.array("hessian.lost", (COLUMNS, -(-rows // ROWS) * ROWS), "<f8")
        self.lost[:, rows:] = 0

    def settle(self, column: int, restored: Array, start: int, stop: int) -> None:
        """A column of those from `start` to `stop`, 128 at most, has become `restored` [rows]."""
        lost = self.lost[column - start, : len(restored)]
        np.subtract(self.weights[column], restored, out=lost)
        self.targets[column + 1 : stop] += self.factor.ratios[column, column + 1 : stop, None] * lost

    def tell(self, start: int, stop: int) -> None:
        """Add to the targets after `stop` what the columns from `start` lost."""
        after = self.targets[stop:]
        if not len(after):
            return
        rows, ratios = after.shape[1], self.factor.ratios[start:stop, stop:].T
        room = self.work.array("hessian.room", (len(after), ROWS), "<f8")
        for first in range(0, rows, ROWS):
            here = np.ascontiguousarray(self.lost[: stop - start, first : first + ROWS])
            np.matmul(ratios, here, out=room)
            after[:, first : first + ROWS] += room[:, : rows - first]

    def best(self, column: int, size: int) -> Array:
        """The weights [size, rows] from `column` on as they would best be by now, if none of them had to change.

        Each then makes up for changes of those before it: w' = w + s A⁻¹, where s is what columns before them
        lost, as they hear of it, and A their part of the ratios.
        """
        here = slice(column, column + size)
        ratios, best = self.factor.ratios[here, here], self.targets[here] - self.weights[here]
        if size <= _FEW:
            for place in range(1, size):
                for before in range(place):
                    best[place] -= ratios[before, place] * best[before]
        else:
            inverse = np.linalg.inv(ratios).T
            for first in range(0, best.shape[1], ROWS):
                part = best[:, first : first + ROWS]
                heard = np.zeros((size, ROWS))
                heard[:, : part.shape[1]] = part
                part[...] = (inverse @ heard)[:, : part.shape[1]]
        best += self.weights[here]
        return best


def _lift(values: Array) -> Array | None:
    """Powers of two by which rows of float64 are divided, where products could overflow."""
    if values.itemsize < 8:
        return None
    power = np.frexp(np.abs(values).max(axis=1))[1]
    return np.where(power > 512, power, 0) if power.max() > 512 else None


def compensation_memory(spec: TensorSpec, block: int) -> int:
    """Bytes that settling columns takes beside the block itself: `block` weights and targets in float64, and what
    the factor takes."""
    return 2 * 8 * min(block, spec.size) + conditioned_memory(spec.matrix[1])
