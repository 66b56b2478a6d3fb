"""Scales from the range of a group, in float64, and storing scales so that nothing can go wrong.

A stored scale is never 0 (a group of zeros gets 1, a group of subnormals the smallest number of the dtype)
and never so large that a code times it leaves the range of the weight's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.core import kernels
from compressor.core.floats import largest, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace


@dataclass(frozen=True, slots=True)
class Chosen:
    """Scales as stored, unsigned zero points [rows or 1, groups], and scales as numbers [rows or 1, groups, 1]."""

    stored: Array
    zero: Array | None
    column: Array


def extent(grouped: Array, symmetric: bool, scratch: Array) -> tuple[Array, Array]:
    """Least and largest weight of each group of `grouped` [rows, groups, size], float64 [rows, groups].

    Symmetric: ∓ the largest magnitude. `scratch` has the shape of `grouped` and is overwritten.
    """
    rows, groups, size = grouped.shape
    magnitudes = kernels.largest_magnitudes(grouped) if symmetric else None
    if magnitudes is not None:
        high = magnitudes.astype(np.float64)
        return -high, high
    if size >= 1024:  # long rows reduce well
        low, high = np.minimum.reduce(grouped, axis=2), np.maximum.reduce(grouped, axis=2)
        low, high = low.astype(np.float64), high.astype(np.float64)
        if not symmetric:
            return low, high
        high = np.maximum(high, -low)
        return -high, high
    starts = np.arange(0, grouped.size, size)
    if symmetric:
        # magnitudes as integers: non-negative floats sort like their bit patterns, and `reduceat` of integers is
        # ten times as fast as reducing a short last axis of floats
        patterns = np.abs(grouped, out=scratch).reshape(-1).view(f"<i{scratch.itemsize}")
        high = np.maximum.reduceat(patterns, starts).view(scratch.dtype).astype(np.float64)
        high = high.reshape(rows, groups)
        return -high, high
    flat = grouped.reshape(-1)
    low, high = np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)
    return low.astype(np.float64).reshape(rows, groups), high.astype(np.float64).reshape(rows, groups)


def apply(ufunc: Any, grouped: Array, scale: Array, out: Array) -> None:
    """ufunc(grouped [rows, groups, size], scale [rows or 1, groups or 1, 1]) into `out`.

    NumPy copies a repeated operand into its buffer when a few rows fit there, which takes as long as the
    arithmetic; with the least buffer, long rows are taken one by one, each with its scale in a register.
    """
    if grouped.shape[-1] < 1024:
        ufunc(grouped, scale, out=out)
        return
    usual = np.setbufsize(16)
    try:
        ufunc(grouped, scale, out=out)
    finally:
        np.setbufsize(usual)


def symmetric_scale(high: Array, half: int) -> tuple[Array, int]:
    """compressed-tensors' rule: max|w| / ((2^b − 1)/2), and the largest magnitude of a code."""
    return _positive(high / (half - 0.5), high), half


def asymmetric_scale(low: Array, high: Array, half: int) -> tuple[Array, Array, Array]:
    """(max − min)/(2^b − 1) over a range extended to 0; the unsigned zero point; the largest |q − z|."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    steps = 2 * half - 1
    scale = _positive(high / steps - low / steps, np.maximum(high, -low))  # the difference could overflow
    zero = np.minimum(np.rint(-low / np.where(scale > 0, scale, 1)), steps)
    return scale, zero, np.maximum(steps - zero, zero)


def _positive(scale: Array, extent: Array) -> Array:
    """The scale, where it underflowed although there is an extent the smallest number."""
    if scale.all():
        return scale
    return np.where((scale == 0) & (extent > 0), smallest("F64"), scale)


def store_scale(scale: Array, reach: Array | int, dtype: str, weight_dtype: str) -> tuple[Array, Array]:
    """`scale` rounded to its stored `dtype` (storage type), so that reach · scale fits `weight_dtype`; and the
    numbers that it then stands for, in the type that is computed in. Negative scales keep their sign."""
    size, tiny = np.abs(scale), smallest(dtype)
    limit = np.minimum(largest(weight_dtype) / reach, largest(dtype))  # scales may be of a narrower dtype
    if weight_dtype == "F64":  # no wider type to divide in: the quotient may have been rounded up
        limit = np.nextafter(limit, 0)
    least = limit if isinstance(limit, float) else limit.min()
    if size.size and size.min() >= tiny and size.max() <= 0.99 * least:  # as ever: rounding cannot do harm
        stored = _rounded(scale, dtype)
        return stored, wide_scale(stored, dtype)
    wanted = np.minimum(np.maximum(size, tiny), limit)
    wanted[size == 0] = 1
    stored = _rounded(wanted, dtype)
    patterns = stored.view(f"<u{stored.itemsize}")  # positive floats step down as their bit patterns do
    np.subtract(patterns, 1, out=patterns, where=widen(stored, dtype, Workspace()) > limit)
    np.bitwise_or(patterns, 1 << (8 * stored.itemsize - 1), out=patterns, where=scale < 0)
    return stored, wide_scale(stored, dtype)


def _rounded(scale: Array, dtype: str) -> Array:
    values = scale.astype(DTYPES[dtype].compute)
    if dtype in ("F32", "F64"):
        return values
    stored = np.empty(scale.shape, DTYPES[dtype].storage)
    narrow(values, dtype, stored)
    return stored


def wide_scale(stored: Array, dtype: str) -> Array:
    """The numbers that stored scales stand for."""
    if dtype == "BF16":  # the upper half of a float32; quicker than `widen` for so few
        return (stored.astype("<u4") << 16).view("<f4")
    return widen(stored, dtype, Workspace())


def at_most(stored: Array, limit: float, dtype: str) -> Array:
    """Stored numbers with the magnitude held at the largest number of the dtype that is no more than `limit`."""
    magnitude = np.abs(widen(stored, dtype, Workspace()).astype(np.float64))
    above = magnitude > limit
    if above.any():
        held = np.full(1, limit, DTYPES[dtype].compute)
        top = np.empty(1, DTYPES[dtype].storage)
        narrow(held, dtype, top)
        patterns = top.view(f"<u{top.itemsize}")
        if float(widen(top, dtype, Workspace())[0]) > limit:
            patterns -= 1  # positive floats step down as their bit patterns do
        unsigned = stored.view(patterns.dtype)
        sign = unsigned & patterns.dtype.type(1 << (8 * top.itemsize - 1))
        unsigned[above] = (patterns[0] | sign)[above]
    return stored
