"""Between stored bytes and the numbers that methods compute with.

Methods see float32, or float64 where the source is float64. Widening is exact for every dtype; narrowing
rounds to nearest, ties to even. Throughput is why bfloat16 goes through kernels or, where there are none, through
ml_dtypes (vectorised both ways, and it releases the interpreter lock), and float16 and FP8 through tables
(NumPy's own float16 cast is several times slower).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from compressor.core import kernels
from compressor.core.lazy import ml_dtypes, np
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace

# The types of ml_dtypes by the dtypes that they store. It takes longer to import than NumPy, and most runs do
# without.
_TYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",  # read only: scales of others, and what `inspect` shows
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
# The largest number of a dtype, its smallest positive one and the step after 1
_LIMITS = {
    "BF16": (2.0**128 - 2.0**120, 2.0**-133, 2.0**-7),
    "F8_E4M3": (448.0, 2.0**-9, 2.0**-3),
    "F8_E5M2": (57344.0, 2.0**-16, 2.0**-2),
    "F8_E8M0": (2.0**127, 2.0**-127, 1.0),
    "F8_E4M3FNUZ": (240.0, 2.0**-10, 2.0**-3),
    "F8_E5M2FNUZ": (57344.0, 2.0**-17, 2.0**-2),
    "F16": (65504.0, 2.0**-24, 2.0**-10),
    "F32": (2.0**128 - 2.0**104, 2.0**-149, 2.0**-23),
    "F64": (2.0**1023 * (2.0 - 2.0**-52), 5e-324, 2.0**-52),
}


def _type(dtype: str) -> Any:
    """The NumPy or ml_dtypes scalar type of a float that is stored as a bit pattern."""
    return np.float16 if dtype == "F16" else getattr(ml_dtypes, _TYPES[dtype])


def is_float(dtype: str) -> bool:
    """Whether `widen` takes a dtype: scales of others may be of any that it does."""
    return dtype in _LIMITS


@cache
def _table(dtype: str) -> Array:
    codes = np.arange(1 << DTYPES[dtype].bits, dtype=DTYPES[dtype].storage)
    if dtype == "F16":
        codes = np.arange(1 << 16, dtype=np.uint16)
    table: Array = codes.view(_type(dtype)).astype(np.float32)
    table.setflags(write=False)
    return table


def every_number(dtype: str) -> Array:
    """What each bit pattern of a float of at most 16 bits stands for, in float32."""
    return _table(dtype)


def widen(raw: Array, dtype: str, work: Workspace, key: str = "wide") -> Array:
    """The numbers stored in `raw`, exactly. May be `raw` itself; treat it as read-only."""
    return widen_counted(raw, dtype, work, key)[0]


def widen_counted(
    raw: Array, dtype: str, work: Workspace, key: str = "wide"
) -> tuple[Array, tuple[float, int] | None]:
    """`widen`, and where they are to be had in the same pass Σ w², in about float32, and the count of zeros."""
    if dtype in ("F32", "F64"):
        return raw, None
    out = work.array(key, raw.shape, "<f4")
    if dtype == "BF16":
        counted = kernels.widen_bf16(raw, out)
        if counted is not None:
            return out, counted
        with np.errstate(invalid="ignore"):  # a signalling NaN is still a NaN, and who reads looks for those
            np.copyto(out, raw.view(ml_dtypes.bfloat16))
    else:
        codes = raw.view(np.uint16) if dtype == "F16" else raw
        _table(dtype).take(codes, out=out, mode="wrap")
    return out, None


def narrow(values: Array, dtype: str, out: Array) -> None:
    """Round `values` to `dtype` into `out` (its storage type).

    What exceeds the range becomes an infinity or NaN, as the casts of every framework do: who writes the
    result looks for it (the runner refuses it by name) rather than store a saturated number silently.
    """
    plain = dtype == "BF16" and values.dtype == np.float32 and values.shape == out.shape
    # by a kernel, if there is one, that gives the numbers too
    if plain and kernels.settle_bf16(values, out, np.empty(values.shape, np.float32)) is not None:
        return
    target = out if dtype in ("F32", "F64") else out.view(_type(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(target, values, casting="unsafe")


def narrow_exact(values: Array, dtype: str, out: Array, work: Workspace) -> None:
    """`narrow` for numbers that `dtype` is known to hold: bfloat16 is then the upper half of a float32."""
    if dtype != "BF16":
        narrow(values, dtype, out)
        return
    shifted = work.array("narrow.shifted", values.shape, "<u4")
    np.right_shift(values.view("<u4"), 16, out=shifted)
    np.copyto(out, shifted, casting="unsafe")


def settle(values: Array, dtype: str, out: Array, work: Workspace) -> Array:
    """Narrow `values` into `out` and return the numbers that `out` now holds."""
    return settle_counted(values, dtype, out, work)[0]


def settle_counted(
    values: Array, dtype: str, out: Array, work: Workspace, key: str = "settled"
) -> tuple[Array, tuple[float, int] | None]:
    """`settle`, and what `widen_counted` tells of the numbers."""
    if dtype == "BF16":
        wide = work.array(key, values.shape, "<f4")
        counted = kernels.settle_bf16(values, out, wide)
        if counted is not None:
            return wide, counted
    narrow(values, dtype, out)
    return widen_counted(out, dtype, work, key)


def add_base(numbers: Array, base: Array, dtype: str) -> None:
    """Add the numbers of a base to differences from it, in place; what leaves the range of `dtype` is its largest
    number."""
    with np.errstate(over="ignore"):
        np.add(numbers, base, out=numbers, casting="same_kind")
    np.clip(numbers, -largest(dtype), largest(dtype), out=numbers)


def largest(dtype: str) -> float:
    """The largest finite number of a float dtype."""
    return _LIMITS[dtype][0]


def smallest(dtype: str) -> float:
    """The smallest positive number of a float dtype, a subnormal."""
    return _LIMITS[dtype][1]


def epsilon(dtype: str) -> float:
    """Half a unit in the last place, relative: what one rounding to `dtype` can cost a normal number."""
    return _LIMITS[dtype][2] / 2
