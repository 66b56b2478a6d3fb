"""MLX's affine layout.

MLX stores w = s·q + β with unsigned codes, and its `dequantize` computes in the scales' dtype: the product is
rounded, then the sum. So what comes back is not s·(q − z): at 8 bits in bfloat16 the rounded product costs as much
as the codes do. Its matrix products keep more digits; codes are therefore chosen as everywhere, nearest in real
numbers. β is −z·s. Where z is a power of two (symmetric codes) that is a number of the dtype, and a zero weight
comes back as zero however the sum is computed. Where it is not, the rounded product and β cancel all the same, but
a fused multiply-add would leave a crumb; so in groups that hold a zero, scale and zero point move a little, until
z·s is a number of the dtype (bfloat16: 1.7 % more scale at 4 bits, 4 % at 8, at most 18 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any, ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.errors import UsageError
from compressor.core.floats import epsilon, largest, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics.scales import at_most
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.contract import CodeLayout

MLX_BITS = (2, 3, 4, 5, 6, 8)
MLX_GROUPS = (32, 64, 128)
_DIGITS = {"F32": 24, "F16": 11, "BF16": 8}  # of a number of the dtype, in binary


@dataclass(frozen=True)
class Mlx(CodeLayout):
    """MLX's affine mode: codes as U32 words of a row's bit stream, a scale and a bias a group."""

    name: ClassVar[str] = "mlx"
    scale: ClassVar[str] = ".scales"
    dialect: ClassVar[str] = "mlx"
    own_scales: ClassVar[bool] = True
    plain: ClassVar[bool] = False

    @staticmethod
    def scale_dtype(spec: TensorSpec) -> str:
        return spec.dtype if spec.dtype in _DIGITS else "F32"  # MLX has neither FP8 weights nor float64

    @staticmethod
    def check(bits: int, symmetric: bool, grain: str, group: int) -> None:
        if bits not in MLX_BITS:
            raise UsageError(f"layout mlx holds 2, 3, 4, 5, 6 or 8 bits, not {bits}")
        if grain != "group" or group not in MLX_GROUPS:
            asked = f"groups of {group}" if grain == "group" else f"one scale a {grain}"
            raise UsageError(f"layout mlx holds groups of 32, 64 or 128, not {asked}")

    def config(self, grain: str, group: int) -> dict[str, Any] | None:
        return {"group_size": group, "bits": self.bits}

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        return (
            Part("", "U32", (rows, columns * self.bits // 32)),
            Part(".scales", scale_dtype, scale_shape, stem=True),
            Part(".biases", scale_dtype, scale_shape, stem=True),
        )

    def pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        bitstream.pack(codes, self.bits, parts[""].view("|u1").reshape(len(codes), -1), work)
        parts[".scales"][...] = scale
        dtype = _dtype_of(scale)
        narrow(-self._shift(widen(scale, dtype, work, "mlx.scale"), zero), dtype, parts[".biases"])

    def settle(self, grouped: Array, scale: Array, zero: Array | None, dtype: str) -> tuple[Array, Array | None]:
        """No product of a scale and a code may leave the dtype; and z·s is exact where the group holds a zero."""
        scale = at_most(scale, largest(dtype) / self._top, dtype)
        if zero is None:
            return scale, None
        chosen = np.nonzero(_holds_zero(grouped))
        if chosen[0].size:
            wide = widen(scale[chosen], dtype, Workspace()).astype(np.float64)
            better, points = _exact_shift(wide, zero[chosen], self.bits, dtype)
            zero[chosen] = points
            patterns = np.empty(better.shape, scale.dtype)
            narrow(better.astype(DTYPES[dtype].compute), dtype, patterns)
            scale[chosen] = patterns
        return scale, zero

    def numbers(self, centred: Array, scale: Array, zero: Array | None, dtype: str, work: Workspace) -> None:
        """s·q + β as MLX rounds it; `centred` holds q − z and becomes the numbers."""
        shift = np.array(self._half) if zero is None else zero[..., None]
        np.add(centred, shift.astype(centred.dtype), out=centred)
        affine(centred, scale, -_rounded(self._shift(scale, shift), dtype), dtype, work)

    def decode(self, parts: Mapping[str, Array], grouped: Array, dtype: str, work: Workspace) -> None:
        decode_affine(parts, self.bits, grouped, dtype, work)

    def slack(self, weight: float, spec: TensorSpec) -> float:
        """What clamped scales, rounded products and sums, and moved zero points add to half a scale."""
        dtype = self.scale_dtype(spec)
        scale = max(weight / (self._half - 0.5), smallest(dtype))
        rounding = 2 * epsilon(dtype) * (self._top + 1) * scale + epsilon(dtype) * weight + 3 * smallest(dtype)
        clipped = max(weight - (self._half - 1) * (largest(dtype) / self._top), 0)
        return rounding + clipped + (0 if self.symmetric else 0.25 * scale)

    def _shift(self, scale: Array, zero: Array | None) -> Array:
        """z·s, not yet rounded."""
        product: Array = scale * (self._half if zero is None else zero.astype(scale.dtype))
        return product

    @property
    def _half(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def _top(self) -> int:
        return (1 << self.bits) - 1


# ---- arithmetic ----------------------------------------------------------------------------------------


def affine(codes: Array, scale: Array, bias: Array, dtype: str, work: Workspace) -> None:
    """Codes [rows, groups, size] to scale·code + bias [rows, groups, 1], product and sum rounded to `dtype`.

    In float32 the product of a code and a narrower scale is exact, and the sum of two narrower numbers close
    enough to exact that rounding twice rounds once; likewise in float64 for float32.
    """
    np.multiply(codes, scale, out=codes)
    _round(codes, dtype, work)
    np.add(codes, bias, out=codes)
    _round(codes, dtype, work)


def decode_affine(parts: Mapping[str, Array], bits: int, grouped: Array, dtype: str, work: Workspace) -> None:
    """Restore [rows, groups, size] from MLX's parts, whose scales and biases have this dtype."""
    rows, groups, size = grouped.shape
    codes = work.array("mlx.codes", (rows, groups * size), "|u1")
    bitstream.unpack(parts[""].view("|u1").reshape(rows, -1), bits, codes, work)
    np.copyto(grouped, codes.reshape(grouped.shape))
    scale, bias = (
        widen(parts[suffix].reshape(rows, groups, 1), dtype, work, f"mlx{suffix}").astype(grouped.dtype, copy=False)
        for suffix in (".scales", ".biases")
    )
    affine(grouped, scale, bias, dtype, work)


def _round(values: Array, dtype: str, work: Workspace) -> None:
    """Round numbers to `dtype` in place."""
    if DTYPES[dtype].compute == values.dtype.str and dtype in ("F32", "F64"):
        return  # they are
    stored = work.array("mlx.stored", values.shape, DTYPES[dtype].storage)
    narrow(values, dtype, stored)
    np.copyto(values, widen(stored, dtype, work, "mlx.rounded"))


def _rounded(values: Array, dtype: str) -> Array:
    copied = np.array(values)
    _round(copied, dtype, Workspace())
    return copied


def _dtype_of(stored: Array) -> str:
    """The dtype of MLX's scales by their storage type."""
    return {"<f4": "F32", "<f2": "F16", "<u2": "BF16"}[stored.dtype.str]


def _holds_zero(grouped: Array) -> Array:
    """Which groups of [rows, groups, size] hold a zero; sizes are multiples of 8."""
    zero = grouped == 0
    if not zero.any():
        return np.zeros(grouped.shape[:2], np.bool_)
    found: Array = np.bitwise_or.reduce(np.ascontiguousarray(zero).view("<u8"), axis=2) != 0
    return found


def _exact_shift(scale: Array, zero: Array, bits: int, dtype: str) -> tuple[Array, Array]:
    """Scales and zero points near these, whose product is a number of `dtype`; they cover the same range.

    A product needs no more binary digits than both factors together. For each number of trailing zeros that the
    zero point may be rounded to, the scale that covers the range is rounded up to the digits left;
    the least wins.
    """
    top, digits = (1 << bits) - 1, _DIGITS[dtype]
    limit, least = largest(dtype) / top, np.full(scale.shape, np.inf)
    best, point = np.array(scale), np.array(zero)
    for step in (1 << shift for shift in range(bits)):
        moved = np.minimum(np.rint(zero / step) * step, top // step * step)
        with np.errstate(divide="ignore", invalid="ignore"):
            below = np.where(zero > 0, zero / moved, 1)
            above = np.where(zero < top, (top - zero) / (top - moved), 1)
        left = np.maximum(digits - _digits()[moved.astype(np.intp)], 1)
        wanted = np.maximum(np.maximum(below, above) * scale, smallest(dtype))
        fraction, exponent = np.frexp(np.minimum(wanted, limit))
        fit = np.ldexp(np.ceil(np.ldexp(fraction, left)), exponent - left)
        over = fit > limit  # nothing above is left: clip rather than overflow
        fit[over] = np.ldexp(np.floor(np.ldexp(fraction, left)), exponent - left)[over]
        # the smallest numbers have fewer digits
        cost = np.where(over, limit * (wanted / fit), fit)
        better = (wanted < np.inf) & (fit % smallest(dtype) == 0) & (cost < least)
        least[better], best[better], point[better] = cost[better], fit[better], moved[better]
    return best, point


@cache
def _digits() -> Array:
    """Binary digits of each byte without its trailing zeros; none of powers of two, which cost a product none."""
    odd = [0] + [n // gcd(n, 256) for n in range(1, 256)]
    return np.array([n.bit_length() if n > 1 else 0 for n in odd])
