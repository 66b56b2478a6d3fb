"""Integers by a step that the bit width names: the second rule of the founding document.

    code = round(W / 2^(b−1)), halves to even;   back: code · 2^(b−1)

The step is at least 1, so on a real network nearly every weight becomes zero. The rule is kept for what it
is; the report warns. The scaled scheme `int` is the one to use.
Stored: `NAME.codes`, one integer to a weight, and `NAME.step` [1]. Error: half a step, where the codes fit.

    b = 3: [[1, 2], [3, 4]] becomes [[0, 0], [1, 1]] and comes back as [[0, 0], [4, 4]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.options import option
from compressor.methods.quantize._fixed_unit import Rule


@dataclass(frozen=True)
class Step(Rule):
    """Divide by 2^(bits−1) and round."""

    id: ClassVar[str] = "step"
    unit: ClassVar[str] = "step"

    bits: int = option(help="bit width b; the step is 2^(b-1)", low=1, high=32)
    code_bits: Literal[8, 16, 32] = option(16, help="width of a stored integer code")

    @property
    def constant(self) -> int:
        return 1 << (self.bits - 1)

    def to_codes(self, values: Array, out: Array) -> None:
        np.multiply(values, out.dtype.type(1 / self.constant), out=out)  # exact: a power of two
        np.rint(out, out=out)

    def from_codes(self, codes: Array, out: Array) -> None:
        with np.errstate(over="ignore"):
            np.multiply(codes, out.dtype.type(self.constant), out=out, casting="same_kind")

    @property
    def half_unit(self) -> float:
        return self.constant / 2


METHOD = Step
