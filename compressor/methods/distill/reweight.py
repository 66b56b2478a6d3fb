"""Scale a student's weights by the share that each has in its teacher's row.

    W'[i,j] = W[i,j] · T[i,j] / Σ_j T[i,j]

The teacher has the student's shape; the sum runs along the teacher's row (for tensors of more dimensions,
along everything but the first axis). A row whose sum is zero or not finite has no answer.
Stored: the same dtype and shape.

    W = T = [[1, 2], [3, 4]]  gives  [[1/3, 4/3], [9/7, 16/7]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block, PlainTransform


@dataclass(frozen=True)
class Reweight(PlainTransform):
    """`W · T / Σ_j T`, row by row."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "reweight"
    partners: ClassVar[tuple[str, ...]] = ("teacher",)

    def apply(self, block: Block, out: Array) -> None:
        """Raises InputError naming the row whose teacher sum is zero, or whose sum or result is too large."""
        teacher = block.partners["teacher"]
        with np.errstate(over="ignore", invalid="ignore"):
            sums: Array = np.add.reduce(teacher, axis=1, keepdims=True, dtype=np.float64)
        self._check(
            np.not_equal(sums, 0), block, "the teacher's row {row} sums to zero, so its shares are undefined"
        )
        self._check(
            np.isfinite(sums),
            block,
            "the sum of the teacher's row {row} leaves the range of floats, as its shares do",
        )
        with np.errstate(over="ignore"):
            shares = teacher / sums
            np.multiply(block.values, shares, out=out, casting="same_kind")
        self._check(
            np.logical_and.reduce(np.isfinite(out), axis=1),
            block,
            "row {row} leaves the range of floats when weighted by the teacher, whose row nearly cancels",
        )

    @staticmethod
    def _check(good: Array, block: Block, sentence: str) -> None:
        bad = np.flatnonzero(~good.reshape(-1))
        if bad.size:
            raise InputError(
                sentence.format(row=block.start + int(bad[0])),
                tensor=block.spec.name,
                remedy="Use --method blend, or --exclude this tensor",
            )


METHOD = Reweight
