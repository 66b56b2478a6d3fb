"""Move a student's weights towards its teacher's.

    W' = (1 − α)·W + α·T

α = 0 keeps the student, α = 1 gives the teacher. Stored: the same dtype and shape; each weight lies between
the two it was made from. A zero of the student takes the teacher's share, so pruning comes after, not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block, PlainTransform
from compressor.methods.options import option


@dataclass(frozen=True)
class Blend(PlainTransform):
    """The straight line between student and teacher."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "blend"
    elementwise: ClassVar[bool] = True
    partners: ClassVar[tuple[str, ...]] = ("teacher",)
    keeps_zeros: ClassVar[bool] = False

    alpha: float = option(0.5, help="share of the teacher", low=0, high=1)

    def apply(self, block: Block, out: Array) -> None:
        teacher = block.work.array("blend.teacher", out.shape, out.dtype.str)
        with np.errstate(over="ignore"):  # a float64 teacher may be too large for a float32 student: infinite
            np.copyto(teacher, block.partners["teacher"], casting="same_kind")
        # Two products, not W + α(T − W): the difference of two large numbers could overflow.
        np.multiply(teacher, out.dtype.type(self.alpha), out=out)
        own = block.work.array("blend.own", out.shape, out.dtype.str)
        np.multiply(block.values, out.dtype.type(1 - self.alpha), out=own)
        np.add(out, own, out=out)
        # Rounding could step over either end.
        np.minimum(block.values, teacher, out=own)
        np.maximum(out, own, out=out)
        np.maximum(block.values, teacher, out=own)
        np.minimum(out, own, out=out)
        # Which is the greater of +0 and −0 depends on the processor: a zero is that of an end, the teacher's first.
        zero = np.equal(out, 0, out=block.work.array("blend.zero", out.shape, "|b1"))
        if zero.any():
            for end in (block.values, teacher):
                np.copyto(out, end, where=zero & (end == 0))


METHOD = Blend
