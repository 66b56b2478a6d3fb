"""Floats of 4 and 8 bits: rounding to them and to their codes in a few passes of plain float arithmetic.

A number t is rounded to m bits of mantissa by adding and subtracting an anchor of 1.5 · 2^(e + p − m), where e is
t's exponent (at least that of the format's smallest normal, which makes the subnormals come out too) and p the
mantissa bits of the type that we compute in: the sum has no room for more bits, and rounds halves to even. Its
lowest bits are then the mantissa with its leading bit, so that the code needs the exponent only. ml_dtypes' cast
takes several times as long, and there is none for 4 bits in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.sums import dots
from compressor.core.workspace import Array, Workspace


@dataclass(frozen=True)
class Minifloat:
    """A format: its `bits`, those of its `mantissa`, the exponent of its `lowest` normal, its `largest` number."""

    bits: int
    mantissa: int
    lowest: int
    largest: float

    @property
    def limits(self) -> kernels.Minifloat:
        """The format as kernels take it."""
        return kernels.Minifloat(self.bits, self.mantissa, 2.0**self.lowest, self.largest)

    def nearest(self, magnitudes: Array, out: Array, work: Workspace) -> None:
        """Round magnitudes to the nearest number of the format, halves to even, those beyond its range to its
        largest, into `out`."""
        anchor = self._prepare(magnitudes, out, work)
        np.add(out, anchor, out=out)
        np.subtract(out, anchor, out=out)

    def errors(self, values: Array, scales: Array, size: int, work: Workspace) -> Array:
        """Σ (w/s − q)² of values [rows, columns] over each `size` of a row, float64 [trials, rows, segments].

        `scales` [trials, rows or 1, segments] are the s, of the values' type, which are multiplied by 1/s.
        """
        reciprocals = 1 / scales
        found = kernels.minifloat_errors(values, reciprocals, size, self.limits)
        if found is None:
            found = np.stack([self._errors(values, one, size, work) for one in reciprocals])
        return found

    def _errors(self, values: Array, reciprocals: Array, size: int, work: Workspace) -> Array:
        """The errors of one trial."""
        quotient, rounded = (
            work.array(f"minifloat.{name}", values.shape, values.dtype.str) for name in ("quotient", "rounded")
        )
        np.multiply(values, spread(reciprocals, values.shape[1], size), out=quotient)
        np.abs(quotient, out=quotient)
        self.nearest(quotient, rounded, work)
        np.subtract(quotient, rounded, out=quotient)
        rows, columns = values.shape
        whole = columns // size * size
        full = np.ascontiguousarray(quotient[:, :whole]).reshape(-1, size)
        rest = np.ascontiguousarray(quotient[:, whole:])
        errors = np.zeros((rows, reciprocals.shape[1]))
        errors[:, : columns // size] = dots(full, full).reshape(rows, -1)
        if rest.size:
            errors[:, -1] = dots(rest, rest)
        return errors

    def quantize(
        self, values: Array, scales: Array, size: int, codes: Array | None, restored: Array, work: Workspace
    ) -> None:
        """Round w/s of values [rows, columns] to codes (uint8, unless None), and give the numbers code · s in
        `restored`, memory of its own.

        `scales` [rows or 1, segments], of the values' type, are each for `size` values of a row. A negative zero
        keeps its sign.
        """
        p, _, unsigned = _layout(values.dtype.str)
        first = self.first_anchor(values.dtype.str)
        if kernels.minifloat_codes(values, scales, size, self.limits, first, codes, restored):
            return
        scale = spread(scales, values.shape[1], size)
        np.divide(values, scale, out=restored)
        np.abs(restored, out=restored)
        anchor = self._prepare(restored, restored, work)
        np.add(restored, anchor, out=restored)
        pattern, sign = values.view(unsigned), work.array("minifloat.integer", values.shape, unsigned)
        if codes is not None:
            np.right_shift(anchor.view(unsigned), p - self.mantissa, out=sign)
            np.add(sign, restored.view(unsigned), out=sign)
            np.copyto(codes, sign, casting="unsafe")  # the lowest byte, modulo 256 as all that follows
            np.subtract(codes, np.uint8(((first >> (p - self.mantissa)) + first) & 0xFF), out=codes)
            np.right_shift(pattern, values.itemsize * 8 - self.bits, out=sign)
            signs = work.array("minifloat.signs", values.shape, "|u1")
            np.copyto(signs, sign, casting="unsafe")
            np.bitwise_and(signs, 1 << (self.bits - 1), out=signs)
            np.bitwise_or(codes, signs, out=codes)
        np.subtract(restored, anchor, out=restored)
        np.multiply(restored, scale, out=restored)
        np.bitwise_and(pattern, 1 << (values.itemsize * 8 - 1), out=sign)
        np.bitwise_or(restored.view(unsigned), sign, out=restored.view(unsigned))

    def first_anchor(self, dtype: str) -> int:
        """The bit pattern of the anchor of subnormals."""
        p, _, unsigned = _layout(dtype)
        return int(np.array([1.5 * 2.0 ** (self.lowest + p - self.mantissa)], dtype).view(unsigned)[0])

    def _prepare(self, magnitudes: Array, out: Array, work: Workspace) -> Array:
        """Bring magnitudes into the format's range, in `out`; their anchors."""
        p, exponent, unsigned = _layout(out.dtype.str)
        np.clip(magnitudes, 0, self.largest, out=out)
        anchor = work.array("minifloat.anchor", out.shape, out.dtype.str)
        np.bitwise_and(out.view(unsigned), exponent, out=anchor.view(unsigned))
        np.clip(anchor, 2.0**self.lowest, self.largest, out=anchor)
        np.multiply(anchor, 1.5 * 2.0 ** (p - self.mantissa), out=anchor)
        return anchor

    @cache  # noqa: B019 - there are three formats
    def table(self, dtype: str) -> Array:
        """The number that each code stands for; NaN and infinite ones of 8 bits included."""
        code = np.arange(1 << self.bits)
        magnitude = code & ((1 << (self.bits - 1)) - 1)
        exponent, fraction = magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1)
        normal = np.where(exponent > 0, (1 << self.mantissa) + fraction, fraction)
        number = np.ldexp(normal.astype(np.float64), np.maximum(exponent, 1) - 1 + self.lowest - self.mantissa)
        number[number > self.largest] = np.nan
        if self.mantissa == 2:  # e5m2 has infinities
            number[(exponent == 31) & (fraction == 0)] = np.inf
        found: Array = np.where(code >> (self.bits - 1), -number, number).astype(dtype)
        found.setflags(write=False)
        return found

    @cache  # noqa: B019
    def pairs(self, dtype: str) -> Array:
        """Of a format of 4 bits: the two numbers that each byte holds (the first in its low bits), as one element
        of twice the size, so that one look-up gives both."""
        byte, table = np.arange(256), self.table(dtype)
        both = np.stack([table[byte & 15], table[byte >> 4]], axis=1)
        return both.view({"<f4": "<f8", "<f8": "<c16"}[dtype]).reshape(-1)


E2M1 = Minifloat(4, 1, 0, 6.0)
E4M3 = Minifloat(8, 3, -6, 448.0)
E5M2 = Minifloat(8, 2, -14, 57344.0)


@cache
def _layout(dtype: str) -> tuple[int, Any, str]:
    """Of float32 or float64: mantissa bits, the mask of the exponent, the unsigned type of the same size."""
    if dtype == "<f4":
        return 23, np.uint32(0x7F800000), "<u4"
    return 52, np.uint64(0x7FF0000000000000), "<u8"


def spread(scales: Array, columns: int, size: int) -> Array:
    """Scales [rows or 1, segments], each for `size` values, as they broadcast over values [rows, columns]."""
    if scales.shape[1] == 1:
        return scales
    return np.repeat(scales, size, axis=1)[:, :columns]


def powers_of_two() -> Array:
    """What the 256 codes of E8M0 stand for: 2^(code − 127), the last one NaN."""
    found: Array = np.ldexp(np.float32(1), np.minimum(np.arange(-127, 129), 127))
    found[255] = np.nan
    return found
