"""Between stored bytes and the numbers that methods compute with.

Methods see float32, or float64 where the source is float64. Widening is exact for every dtype; narrowing
rounds to nearest, ties to even. Throughput is why bfloat16 goes through ml_dtypes (vectorised both ways,
and it releases the interpreter lock) and float16 and FP8 through tables (NumPy's own float16 cast is
several times slower).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from compressor.core import kernels
from compressor.core.lazy import ml_dtypes, np
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace


@cache
def _types() -> dict[str, Any]:
    """The NumPy or ml_dtypes scalar types of floats that are stored as bit patterns."""
    return {
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,  # read only: scales of others, and what `inspect` shows
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F16": np.float16,
    }


def is_float(dtype: str) -> bool:
    """Whether `widen` takes a dtype: scales of others may be of any that it does."""
    return dtype in ("F32", "F64") or dtype in _types()


@cache
def _table(dtype: str) -> Array:
    codes = np.arange(1 << DTYPES[dtype].bits, dtype=DTYPES[dtype].storage)
    if dtype == "F16":
        codes = np.arange(1 << 16, dtype=np.uint16)
    table: Array = codes.view(_types()[dtype]).astype(np.float32)
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
    target = out if dtype in ("F32", "F64") else out.view(_types()[dtype])
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


def _info(dtype: str) -> Any:
    if dtype in ("F32", "F64"):
        return np.finfo(DTYPES[dtype].compute)
    return ml_dtypes.finfo(_types()[dtype])  # type: ignore[no-untyped-call]  # ml_dtypes leaves it untyped


@cache
def largest(dtype: str) -> float:
    """The largest finite number of a float dtype."""
    return float(_info(dtype).max)


@cache
def smallest(dtype: str) -> float:
    """The smallest positive number of a float dtype, a subnormal."""
    return float(_info(dtype).smallest_subnormal)


@cache
def epsilon(dtype: str) -> float:
    """Half a unit in the last place, relative: what one rounding to `dtype` can cost a normal number."""
    return float(_info(dtype).eps) / 2
