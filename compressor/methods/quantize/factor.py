"""Integers by a factor: the first rule of the founding document.

    code = round(W · Q), halves to even;   back: code / Q

No scale is fitted to the weights, so a small factor loses small weights: with Q = 64 every weight under
1/128 becomes zero. The scaled scheme `int` loses far less at equal bits.
Stored: `NAME.codes`, one integer to a weight, and `NAME.factor` [1]. Error: 1/(2Q), where the codes fit.

    Q = 10: [[0.11, −0.26]] becomes [[1, −3]] and comes back as [[0.1, −0.3]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.options import option
from compressor.methods.quantize._fixed_unit import Rule


@dataclass(frozen=True)
class Factor(Rule):
    """Multiply by an integer factor and round."""

    id: ClassVar[str] = "factor"
    unit: ClassVar[str] = "factor"

    factor: int = option(help="the integer that weights are multiplied by", low=1, high=2**31 - 1)
    code_bits: Literal[8, 16, 32] = option(16, help="width of a stored integer code")

    @property
    def constant(self) -> int:
        return self.factor

    def to_codes(self, values: Array, out: Array) -> None:
        with np.errstate(over="ignore"):  # an overflow is refused with the other codes that do not fit
            np.multiply(values, out.dtype.type(self.factor), out=out)
        np.rint(out, out=out)

    def from_codes(self, codes: Array, out: Array) -> None:
        np.divide(codes, out.dtype.type(self.factor), out=out, casting="same_kind")

    @property
    def half_unit(self) -> float:
        return 0.5 / self.factor


METHOD = Factor
