"""One bit a weight: its sign, times the mean magnitude of its row or group (XNOR-Net).

    w ≈ α · sign(w),   α = Σ|w| / n over the row, or the group

Rastegari et al., arXiv 1603.05279; that no α loses less is theirs too. The sign of a zero is +, so a pruned weight
would not stay zero: binarizing what was pruned is refused (`ternary` keeps zeros). It is made for training with the
signs in the loop. Applied afterwards it loses √(1 − 2/π) = 0.603 of normally distributed weights, and the report
says so.

Stored, for `NAME` [rows, columns]: `NAME.codes` U8 [rows, ⌈columns/8⌉], a bit a weight, the first in the lowest
bit, 1 for + and 0 for −; `NAME.scale` [rows, groups], α in the weights' dtype (F32 for FP8 weights), never 0.
Error: at most the largest magnitude.

    [[1, -2], [3, 6]] becomes [[+, -], [+, +]] with α = 1.5 and 4.5, and comes back as [[1.5, -1.5], [4.5, 4.5]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.quantize._signs import Signs

if TYPE_CHECKING:
    from compressor.core.metrics import Change


@dataclass(frozen=True)
class Binary(Signs):
    """The sign of each weight times the mean magnitude of its row or group."""

    id: ClassVar[str] = "binary"
    keeps_zeros: ClassVar[bool] = False

    def row_bytes(self, columns: int) -> int:
        return bitstream.row_bytes(columns, 1)

    def fit(self, grouped: Array, work: Workspace) -> Array:
        wide = work.array("binary.wide", grouped.shape, "<f8")
        np.abs(grouped, out=wide)
        size = grouped.shape[2]
        with np.errstate(over="ignore"):
            mean: Array = np.add.reduce(wide, axis=2) / size
            over = np.isinf(mean)
            if over.any():  # float64 only: the sum leaves the range though the mean does not
                mean[over] = np.add.reduce(wide[over] / size, axis=1)
        return mean

    def to_codes(self, grouped: Array, scale: Array, codes: Array, signs: Array, work: Workspace) -> None:
        np.greater_equal(grouped, 0, out=codes.view("|b1"))
        _signs(codes, signs)

    def store_codes(self, codes: Array, packed: Array, work: Workspace) -> None:
        bitstream.pack(codes, 1, packed, work)

    def load_signs(self, packed: Array, signs: Array, spec: TensorSpec, work: Workspace) -> None:
        codes = work.array("signs.codes", signs.shape, "|u1")
        bitstream.unpack(packed, 1, codes, work)
        _signs(codes, signs)

    def warning(self, change: Change) -> str | None:
        if change.energy > 0:
            return (
                "one bit a weight loses √(1 − 2/π) = 0.603 of normally distributed weights: it is made for "
                "training with the signs in the loop"
            )
        return None


def _signs(codes: Array, out: Array) -> None:
    """1 and 0 as 1 and −1."""
    np.copyto(out, codes)
    np.multiply(out, 2, out=out)
    np.subtract(out, 1, out=out)


METHOD = Binary
