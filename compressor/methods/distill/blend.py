"""Move a student's weights towards its teacher's.

    W' = (1 − α)·W + α·T

α = 0 keeps the student, α = 1 gives the teacher. Stored: the same dtype and shape; each weight lies between
the two it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.lazy import np
from compressor.method import Block, Transform, option
from compressor.workspace import Array


@dataclass(frozen=True)
class Blend(Transform):
    """The straight line between student and teacher."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "blend"
    elementwise: ClassVar[bool] = True
    partners: ClassVar[tuple[str, ...]] = ("teacher",)

    alpha: float = option(0.5, help="share of the teacher", low=0, high=1)

    def apply(self, block: Block, out: Array) -> None:
        # Two products, not W + α(T − W): the difference of two large numbers could overflow.
        np.multiply(block.partners["teacher"], out.dtype.type(self.alpha), out=out, casting="same_kind")
        own = block.work.array("blend.own", out.shape, out.dtype.str)
        np.multiply(block.values, out.dtype.type(1 - self.alpha), out=own)
        np.add(out, own, out=out)


METHOD = Blend
