"""Zero weights where a layer's outputs lose least, all of a tensor looked at together: ADMM (ALPS).

    Meng, Behdin, Wang, Mazumder, arXiv 2406.07831; for a weight T and inputs x with H = E[x xᵀ]

    min tr (T − W) H (T − W)ᵀ with W = D and D of so many weights; V are the multipliers, ρ the penalty:
    W = (T H − V + ρ D)(H + ρ I)⁻¹,   D = the largest of W + V / ρ,   V = V + ρ (W − D)

W may have all weights at first and D few, and ρ drives them together: every three rounds it grows by 30 %, 20 % or
10 %, as more than a tenth, more than a two-hundredth or fewer of the places of D changed, from 0.1 on, until none
does. Then the weights of these places are solved for the outputs (`masked_least_squares.py`). Columns are taken in
units of the root mean square of their inputs, so that H has a diagonal of ones, and sizes mean what they cost.

Of a tensor exactly round(sparsity · weights) go, or with `pattern` N:M all but N of every M neighbours. The gram is
damped by `damp` times its mean diagonal (`hessian.py`). What was zero stays zero, and counts as pruned. Where the
places take more than 300 rounds to settle, those of the last are taken.

Stored: the same dtype and shape. Error: no bound, since weights that stay take over from others.

    W = [[1, 2]], inputs that are always alike: at sparsity 0.5 it becomes about [[0, 3]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.core.floats import largest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.hessian import ROWS, conditioned, conditioned_memory
from compressor.methods.numerics.largest_in_rows import keep_largest
from compressor.methods.numerics.masked_least_squares import masked
from compressor.methods.numerics.nm_pattern import keep_pattern, parse_pattern
from compressor.methods.prune._by_gram import ByGram

_PENALTY = 0.1  # at first, where the gram's diagonal is of ones
_EVERY = 3  # rounds that a penalty is for
_ROUNDS = 300
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # above this share of changed places the penalty grows by that


@dataclass(frozen=True)
class Alps(ByGram):
    """Zero what costs a layer's outputs least, of all weights together, and solve the others for the outputs."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "alps"
    whole: ClassVar[bool] = True
    usual: ClassVar[str] = "0.7"

    def memory(self, spec: TensorSpec) -> int:
        """Weights, their product with the gram, W, D, V and keys in float32, twice of them in float64; grams."""
        return 10 * 4 * spec.size + conditioned_memory(spec.matrix[1]) + 3 * 8 * spec.matrix[1] ** 2

    def apply(self, block: Block, out: Array) -> None:
        assert block.inputs is not None  # noqa: S101 - the method asked for them
        of = conditioned(block.inputs, self.damp, block.spec.name)
        of.tell(block)
        weights = block.values.astype(np.float64)
        power = np.frexp(np.abs(weights).max(initial=0.0))[1]
        weights = np.ldexp(weights, -power)
        scale = np.sqrt(of.gram.diagonal())
        gram = of.gram / np.outer(scale, scale)
        weights *= scale
        keep = np.empty(weights.shape, bool)
        near = self._split(weights, gram, keep, block)
        keep &= weights != 0
        found = masked(weights, keep, gram, np.where(keep, near, 0.0).astype(np.float64))
        found /= scale
        with np.errstate(over="ignore"):
            found = np.ldexp(found, power)
        top = largest(block.spec.dtype)
        np.add(np.clip(found, -top, top), 0.0, out=out, casting="same_kind")  # no −0

    def _split(self, weights: Array, gram: Array, keep: Array, block: Block) -> Array:
        """Which weights stay, written to `keep` [rows, columns], and about what they are, for weights and a gram
        whose diagonal is of ones."""
        wanted = _product(weights.astype(np.float32), gram.astype(np.float32))
        sparse, before = weights.astype(np.float32), np.ones(weights.shape, bool)
        push = np.zeros_like(wanted)
        penalty, identity = _PENALTY, np.eye(len(gram))
        for _ in range(_ROUNDS // _EVERY):
            inverse = np.linalg.inv(gram + penalty * identity).astype(np.float32)
            rho = np.float32(penalty)
            for _ in range(_EVERY):
                free = _product(wanted - push + rho * sparse, inverse)
                np.divide(push, rho, out=sparse)
                sparse += free
                self._choose(np.where(weights == 0, np.float32(0), np.abs(sparse)), keep, block)
                sparse *= keep
                push += rho * (free - sparse)
            changed = int(np.count_nonzero(before != keep))
            if not changed:
                break
            share = changed / max(int(np.count_nonzero(keep)), 1)
            penalty *= next(by for above, by in _GROWTH if share > above)
            before = keep.copy()
        return sparse

    def _choose(self, keys: Array, keep: Array, block: Block) -> None:
        """Which weights stay, by their keys [rows, columns]: the largest."""
        if self.pattern is not None:
            keep_pattern(keys, *parse_pattern(self.pattern), keep, block.work)
            return
        count = keys.size - round((self.sparsity or 0) * keys.size)
        keep_largest(keys.reshape(1, -1), count, keep.reshape(1, -1), block.work)


def _product(rows: Array, matrix: Array) -> Array:
    """Rows times a matrix, 128 to a product."""
    found = np.empty_like(rows)
    for first in range(0, len(rows), ROWS):
        np.matmul(rows[first : first + ROWS], matrix, out=found[first : first + ROWS])
    return found


METHOD = Alps
