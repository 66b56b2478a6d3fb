"""Compiled inner loops, where they could be built; the callers have the same in NumPy.

The C files here are built when the package is installed and a C compiler is at hand (`hatch_build.py`).
Without it, or with `COMPRESSOR_KERNELS=0` in the environment, everything works the same and more slowly. A
function here returns None when its kernel cannot take the job: the caller then does it itself.
docs/architecture.md has what it gains.

The interpreter lock is free while a kernel runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_double,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from compressor.core import cleanup
from compressor.core.lazy import np
from compressor.core.workspace import Array

VERSION = 1160597666  # of the C files: their checksum, which tests/core/test_compiled.py tells
LIBRARY = Path(__file__).with_name("_kernels.so")
VECTORS = 2  # how wide the coder's vectors are where the processor has them: 2 AVX-512, 1 AVX2, 0 none

GGML_TYPES = (  # that are written here, and read by compiled loops
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "mxfp4", "tq1_0", "tq2_0"),
)

_SIGNATURES = {
    "widen_bf16": (c_void_p, c_size_t, c_void_p, POINTER(c_double), POINTER(c_int64)),
    "at_least": (c_void_p, c_size_t, c_float, c_void_p),
    "select_bf16": (c_void_p, c_void_p, c_size_t, c_void_p, POINTER(c_double), POINTER(c_int64)),
    "largest_magnitudes": (c_void_p, c_size_t, c_size_t, c_void_p),
    "round_codes": (
        *(c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p),
        POINTER(c_int64),
    ),
    "code_products": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_float, *(c_void_p,) * 3),
    "minifloat_codes": (
        *(c_void_p, c_size_t, c_size_t, c_size_t, c_void_p, c_size_t, c_int, c_int, c_float, c_float, c_uint32),
        *(c_void_p, c_void_p),
    ),
    "minifloat_errors": (
        *(c_void_p, c_size_t, c_size_t, c_size_t, c_void_p, c_size_t, c_size_t, c_int, c_float, c_float, c_void_p),
    ),
    "best_rungs": (
        *(c_void_p, c_size_t, c_size_t, c_void_p, c_int64, c_void_p, c_size_t, c_int, c_float, c_float),
        c_void_p,
    ),
    "count_below": (c_void_p, c_size_t, c_size_t, c_void_p, c_size_t, c_size_t, c_void_p),
    "pack_nibbles": (c_void_p, c_size_t, c_void_p),
    "unpack_nibbles": (c_void_p, c_size_t, c_void_p),
    "pack_bits": (c_void_p, c_size_t, c_size_t, c_int, c_size_t, c_void_p),
    "unpack_bits": (c_void_p, c_size_t, c_size_t, c_int, c_size_t, c_void_p),
    "scaled_codes": (c_void_p, c_size_t, c_size_t, c_void_p, c_int, c_void_p, c_int, c_void_p),
    "settle_bf16": (c_void_p, c_size_t, c_void_p, c_void_p, POINTER(c_double), POINTER(c_int64)),
    "squared_difference": (c_void_p, c_void_p, c_size_t, POINTER(c_double), POINTER(c_int64)),
    "compare_f32": (c_void_p, c_void_p, c_size_t, c_void_p, c_void_p, POINTER(c_float)),
    "keep_largest_f32": (c_void_p, c_size_t, c_size_t, c_int, c_int, c_void_p),
    "keep_largest_u32": (c_void_p, c_size_t, c_size_t, c_int, c_int, c_void_p),
    "search_scales": (c_void_p, c_size_t, c_size_t, *(c_void_p,) * 4, c_size_t, *(c_void_p,) * 3),
    "search_levels": (c_void_p, c_size_t, c_size_t, *(c_void_p,) * 3),
    "trellis_codes": (c_void_p, c_size_t, c_size_t, c_void_p, c_void_p),
    "trellis_points": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p),
    "trellis_numbers": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p),
    "rans_encode": (
        *(c_void_p, c_int, c_size_t, c_void_p, c_int, c_int, c_int, c_size_t, c_size_t, c_void_p, c_void_p, c_int),
        POINTER(c_int64),
    ),
    "rans_decode": (
        *(
            c_void_p,
            c_size_t,
            c_size_t,
            c_void_p,
            c_void_p,
            c_void_p,
            c_int,
            c_size_t,
            c_size_t,
            c_void_p,
            c_void_p,
        ),
        *(c_int, c_int, POINTER(c_int64)),
    ),
    "ans_decode": (*(c_void_p, POINTER(c_int64), POINTER(c_uint64), c_void_p, c_void_p, c_size_t, c_void_p),),
    "byte_counts": (c_void_p, c_size_t, c_void_p),
    "crc32_of": (c_void_p, c_size_t, c_int, POINTER(c_uint32), POINTER(c_int64)),
    "split_floats": (c_void_p, c_int, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "join_floats": (c_void_p, c_int, c_void_p, c_int, c_size_t, c_int, c_void_p),
    "delta_contexts": (c_void_p, c_int, c_int, c_int, c_size_t, c_void_p),
    "delta_symbols": (c_void_p, c_void_p, c_int, c_int, c_size_t, c_void_p),
    "delta_sort": (c_void_p, c_void_p, c_int, c_int, c_size_t, *(c_void_p,) * 5, POINTER(c_int64)),
    "delta_join": (c_void_p, c_int, c_int, c_size_t, *(c_void_p,) * 4, c_int64, c_void_p, POINTER(c_int64)),
    "adam": (*(c_void_p,) * 6, c_size_t, c_void_p, c_float, c_float),
    "dots_f32": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p),
    "dots_f64": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p),
    "logarithms": (c_void_p, c_size_t, c_void_p, c_size_t, c_void_p),
    "powers": (c_void_p, c_size_t, c_void_p, c_void_p, c_void_p),
    **{f"ggml_{name}": (c_void_p, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p) for name in GGML_TYPES},
    **{f"ggml_numbers_{name}": (c_void_p, c_size_t, c_void_p, POINTER(c_int64)) for name in GGML_TYPES},
}


@cache
def library() -> CDLL | None:
    """The kernels that were built of the C files here; None where there are none."""
    if os.environ.get("COMPRESSOR_KERNELS") == "0":
        return None
    try:
        found = CDLL(str(LIBRARY))
        if found.compressor_kernels_version() != VERSION:
            cleanup.doubt(
                "the compiled kernels were built of other sources and are not used, so that this took longer: "
                "install compressor again (pip install -e .)"
            )
            return None
    except (OSError, AttributeError):  # not built, or for another system
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


def _takes(*arrays: Array) -> Any:
    """The library, if it can have these arrays."""
    found = library()
    return found if found is not None and all(array.flags.c_contiguous for array in arrays) else None


def widen_bf16(raw: Array, out: Array) -> tuple[float, int] | None:
    """bfloat16 patterns (uint16) as float32 into `out`; Σ w² and how many are zero."""
    kernels = _takes(raw, out)
    if kernels is None:
        return None
    energy, zeros = c_double(), c_int64()
    kernels.widen_bf16(raw.ctypes.data, raw.size, out.ctypes.data, byref(energy), byref(zeros))
    return energy.value, zeros.value


def at_least(values: Array, level: float, out: Array) -> bool | None:
    """|values| ≥ level (float32) into `out`, bool."""
    kernels = _takes(values, out) if values.dtype == np.float32 else None
    if kernels is None:
        return None
    kernels.at_least(values.ctypes.data, values.size, level, out.ctypes.data)
    return True


def select_bf16(raw: Array, keep: Array, out: Array) -> tuple[float, int] | None:
    """bfloat16 patterns where `keep`, else +0, into `out`; Σ w² of those that went, and the zeros in `out`."""
    kernels = _takes(raw, keep, out)
    if kernels is None:
        return None
    lost, zeros = c_double(), c_int64()
    kernels.select_bf16(raw.ctypes.data, keep.ctypes.data, raw.size, out.ctypes.data, byref(lost), byref(zeros))
    return lost.value, zeros.value


def largest_magnitudes(grouped: Array) -> Array | None:
    """max|w| of each group of float32 [rows, groups, size], float32 [rows, groups]."""
    kernels = _takes(grouped) if grouped.dtype == np.float32 else None
    if kernels is None:
        return None
    rows, groups, size = grouped.shape
    out: Array = np.empty((rows, groups), np.float32)
    kernels.largest_magnitudes(grouped.ctypes.data, rows * groups, size, out.ctypes.data)
    return out


def round_codes(grouped: Array, scale: Array, zero: Array, levels: int, codes: Array) -> tuple[Array, int] | None:
    """Codes clip(round(w/s) + z, 0, levels − 1) of float32 `grouped` [rows, groups, size] into `codes`, uint8.

    `scale` and `zero` (float32): one a group, or one for all. Returns Σ (q − z − w/s)² of each group, float64
    [rows · groups], and how many codes are z.
    """
    kernels = (
        _takes(grouped, scale, zero, codes) if grouped.dtype == scale.dtype == zero.dtype == np.float32 else None
    )
    if kernels is None:
        return None
    rows, groups, size = grouped.shape
    lost: Array = np.empty(rows * groups, np.float64)
    zeros = c_int64()
    kernels.round_codes(
        grouped.ctypes.data,
        rows * groups,
        size,
        scale.ctypes.data,
        zero.ctypes.data,
        scale.size == 1,
        levels,
        codes.ctypes.data,
        lost.ctypes.data,
        byref(zeros),
    )
    return lost, zeros.value


def code_products(
    units: Array, chosen: Array | None, factors: Array, lowest: Array, span: int, weights: Array | None
) -> tuple[Array, Array] | None:
    """Σ c·u and Σ c² of groups u, float64, with c = clip(round(u/f), lowest, lowest + span), halves to even.

    The groups are the rows of `units` [groups, size], or those at the places `chosen`, in their order; `factors`
    and `lowest` have one number for each of them; `weights` [groups, size] count each term. All float32. Summed up
    as `core/sums.py` says.
    """
    given = (units,) if weights is None else (units, weights)
    kernels = _takes(*given) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None:
        return None
    count = len(units) if chosen is None else len(chosen)
    reciprocal = (1 / factors).astype(np.float32)
    lowest = lowest.astype(np.float32)
    places = None if chosen is None else np.ascontiguousarray(chosen, np.int64)
    out: Array = np.empty((2, count), np.float64)
    kernels.code_products(
        units.ctypes.data,
        None if places is None else places.ctypes.data,
        count,
        units.shape[1],
        reciprocal.ctypes.data,
        lowest.ctypes.data,
        span,
        None if weights is None else weights.ctypes.data,
        out[0].ctypes.data,
        out[1].ctypes.data,
    )
    return out[0], out[1]


def count_below(values: Array, limits: Array, out: Array) -> bool | None:
    """How many of the `limits` [rows or 1, at most 255] lie below each value [rows, columns], into `out`, uint8."""
    kernels = _takes(values, limits, out) if values.dtype == limits.dtype == np.float32 else None
    if kernels is None:
        return None
    count = limits.shape[1]
    kernels.count_below(
        values.ctypes.data,
        *values.shape,
        limits.ctypes.data,
        count,
        count if len(limits) > 1 else 0,
        out.ctypes.data,
    )
    return True


def dots(a: Array, b: Array) -> Array | None:
    """Σ a·b over each row of floats [rows, size] of one type, float64 [rows]; `core/sums.py` has the order."""
    kernels = _takes(a, b) if a.dtype == b.dtype and a.dtype in (np.float32, np.float64) else None
    if kernels is None:
        return None
    rows, size = a.shape
    out: Array = np.empty(rows, np.float64)
    run = kernels.dots_f32 if a.dtype == np.float32 else kernels.dots_f64
    run(a.ctypes.data, b.ctypes.data, rows, size, out.ctypes.data)
    return out


def logarithms(numbers: Array, terms: Array) -> Array | None:
    """log2 of positive finite float64, by the series that `core/elementary.py` has."""
    kernels = _takes(numbers, terms)
    if kernels is None:
        return None
    out: Array = np.empty_like(numbers)
    kernels.logarithms(numbers.ctypes.data, numbers.size, terms.ctypes.data, terms.size, out.ctypes.data)
    return out


def powers(values: Array, table: Array, terms: Array, out: Array) -> bool | None:
    """x^p of positive finite float32 `values` into `out`, by what `core/elementary.py` prepared for p."""
    kernels = _takes(values, table, terms, out)
    if kernels is None:
        return None
    kernels.powers(values.ctypes.data, values.size, table.ctypes.data, terms.ctypes.data, out.ctypes.data)
    return True


class Minifloat(NamedTuple):
    """A small float: its bits, those of its mantissa, its smallest normal number and its largest."""

    bits: int
    mantissa: int
    lowest: float
    largest: float


def minifloat_codes(
    values: Array, scales: Array, size: int, kind: Minifloat, first: int, codes: Array | None, restored: Array
) -> bool | None:
    """Codes (uint8, unless None) of values [rows, columns] over scales [rows or 1, segments], and the numbers
    code · scale in `restored`; all float32.

    Each scale is for `size` values of a row; `first` is the pattern of the anchor of subnormals.
    """
    given = (values, scales, restored)
    kernels = _takes(*given) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None or (codes is not None and not codes.flags.c_contiguous):
        return None
    kernels.minifloat_codes(
        values.ctypes.data,
        *values.shape,
        size,
        scales.ctypes.data,
        scales.shape[1] if len(scales) > 1 else 0,
        *kind,
        first,
        None if codes is None else codes.ctypes.data,
        restored.ctypes.data,
    )
    return True


def minifloat_errors(values: Array, reciprocals: Array, size: int, kind: Minifloat) -> Array | None:
    """Σ (w/s − q)² of values [rows, columns] over each `size` of a row, float64 [trials, rows, segments], where
    `reciprocals` [trials, rows or 1, segments] are the 1/s; float32. Summed up as `core/sums.py` says."""
    given = (values, reciprocals)
    kernels = _takes(*given) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None:
        return None
    rows, columns = values.shape
    trials, apart, segments = reciprocals.shape
    out: Array = np.empty((trials, rows, segments), np.float64)
    kernels.minifloat_errors(
        values.ctypes.data,
        rows,
        columns,
        size,
        reciprocals.ctypes.data,
        trials,
        apart,
        *kind[1:],
        out.ctypes.data,
    )
    return out


def best_rungs(
    blocks: Array, ladder: Array, top: int, tried: Sequence[int], kind: Minifloat, rungs: Array
) -> bool | None:
    """The rungs of a rising `ladder` (float32) that are the best scales for float32 `blocks` [blocks, 16 or 32].

    `rungs` (int64, 0 to `top`) are where to begin, and become the best of those that are `tried` away.
    """
    given = (blocks, ladder)
    kernels = _takes(*given, rungs) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None or rungs.dtype != np.int64 or blocks.shape[1] not in (16, 32):
        return None
    offsets = np.array(tried, np.int64)
    kernels.best_rungs(
        blocks.ctypes.data,
        *blocks.shape,
        ladder.ctypes.data,
        top,
        offsets.ctypes.data,
        offsets.size,
        *kind[1:],
        rungs.ctypes.data,
    )
    return True


def pack_nibbles(codes: Array, out: Array) -> bool | None:
    """Codes below 16 (uint8, an even number), two to a byte of `out`, the first in the low half."""
    kernels = _takes(codes, out)
    if kernels is None:
        return None
    kernels.pack_nibbles(codes.ctypes.data, codes.size, out.ctypes.data)
    return True


def unpack_nibbles(packed: Array, out: Array) -> bool | None:
    """The codes (uint8) that `pack_nibbles` packed, into `out`, of an even size."""
    kernels = _takes(packed, out)
    if kernels is None:
        return None
    kernels.unpack_nibbles(packed.ctypes.data, out.size, out.ctypes.data)
    return True


def pack_bits(codes: Array, bits: int, out: Array) -> bool | None:
    """Codes (uint8 [rows, columns], each below 2^bits, 1 to 7 bits) as a bit stream for each row of `out`, of which
    what is beyond its codes' bytes stays."""
    kernels = _takes(codes, out)
    if kernels is None:
        return None
    kernels.pack_bits(codes.ctypes.data, *codes.shape, bits, out.shape[1], out.ctypes.data)
    return True


def unpack_bits(packed: Array, bits: int, out: Array) -> bool | None:
    """Undo `pack_bits` into `out`, uint8 [rows, columns]."""
    kernels = _takes(packed, out)
    if kernels is None:
        return None
    kernels.unpack_bits(packed.ctypes.data, *out.shape, bits, packed.shape[1], out.ctypes.data)
    return True


def scaled_codes(codes: Array, scale: Array, zero: Array, out: Array) -> bool | None:
    """(q − z) · s of codes (uint8) into float32 `out` [rows, groups, size]; `scale` and `zero` (float32) have one
    number a group, or one for all."""
    floats = (scale, zero, out)
    kernels = _takes(codes, *floats) if all(array.dtype == np.float32 for array in floats) else None
    if kernels is None:
        return None
    rows, groups, size = out.shape
    kernels.scaled_codes(
        codes.ctypes.data,
        rows * groups,
        size,
        scale.ctypes.data,
        scale.size == 1,
        zero.ctypes.data,
        zero.size == 1,
        out.ctypes.data,
    )
    return True


def settle_bf16(values: Array, raw: Array, out: Array) -> tuple[float, int] | None:
    """float32 `values` rounded to bfloat16 patterns into `raw` (uint16), what these stand for into float32 `out`;
    Σ w² of that, and how many are zero."""
    kernels = _takes(values, raw, out) if values.dtype == out.dtype == np.float32 else None
    if kernels is None:
        return None
    energy, zeros = c_double(), c_int64()
    kernels.settle_bf16(
        values.ctypes.data, values.size, raw.ctypes.data, out.ctypes.data, byref(energy), byref(zeros)
    )
    return energy.value, zeros.value


def squared_difference(before: Array, after: Array) -> tuple[float, int] | None:
    """Σ (a − b)² of two float32 arrays, and how many of the second are zero. Summed up as `core/sums.py` says."""
    kernels = _takes(before, after) if before.dtype == after.dtype == np.float32 else None
    if kernels is None:
        return None
    lost, zeros = c_double(), c_int64()
    kernels.squared_difference(before.ctypes.data, after.ctypes.data, before.size, byref(lost), byref(zeros))
    return lost.value, zeros.value


class Compared(NamedTuple):
    """Of two arrays a and b: Σ (a − b)², Σ a², Σ b², Σ a·b; the zeros of each; the largest |a − b|."""

    lost: float
    energy: float
    energy_b: float
    product: float
    zeros: int
    zeros_b: int
    largest: float


def compare(a: Array, b: Array) -> Compared | None:
    """Two float32 arrays beside each other. Summed up as `core/sums.py` says."""
    kernels = _takes(a, b) if a.dtype == b.dtype == np.float32 else None
    if kernels is None:
        return None
    totals, zeros, largest = np.empty(4, np.float64), np.empty(2, np.int64), c_float()
    kernels.compare_f32(a.ctypes.data, b.ctypes.data, a.size, totals.ctypes.data, zeros.ctypes.data, byref(largest))
    lost, energy, energy_b, product = map(float, totals)
    return Compared(lost, energy, energy_b, product, int(zeros[0]), int(zeros[1]), largest.value)


def keep_largest(keys: Array, n: int, m: int, out: Array) -> bool | None:
    """Which of every `m` (at most 16) `keys` of a row are among their `n` largest, the first of equal ones, into
    `out`, bool; all that fill no block of `m` stay. Keys are float32 or uint32 [rows, columns]."""
    kernels = _takes(keys, out) if keys.dtype in (np.float32, np.uint32) and m <= 16 else None
    if kernels is None:
        return None
    run = kernels.keep_largest_f32 if keys.dtype == np.float32 else kernels.keep_largest_u32
    run(keys.ctypes.data, *keys.shape, n, m, out.ctypes.data)
    return True


class _IntRule(Structure):
    _fields_ = (
        *((name, c_double) for name in ("steps", "half", "least", "most", "still", "doubt", "noise")),
        *((name, c_double) for name in ("smallest", "largest", "range")),
        *((name, c_int64) for name in ("kind", "turns", "beside")),
    )


class SearchedScales(NamedTuple):
    """What a search of integers' scales goes by.

    Codes are `steps` more than the least, which is −`half` or set by a zero point; factors keep from `least` to
    `most`; a step of the share `still` is none; `doubt` and `noise` are what sums may be wrong by. Scales are of a
    `dtype` from `smallest` to `largest`, weights come back up to `range`. So many `turns` of refitting there are,
    and so many moves to a zero point `beside`.
    """

    steps: int
    half: int
    least: float
    most: float
    still: float
    doubt: float
    noise: float
    smallest: float
    largest: float
    range: float
    dtype: str
    turns: int
    beside: int


def search_scales(
    units: Array,
    base: Array,
    extent: tuple[Array, Array],
    factors: Sequence[float],
    rule: SearchedScales,
    zero: Array | None,
    scales: Array,
) -> bool | None:
    """Scales of least squared error of float32 `units` [groups, size], which are weights over `base` [groups].

    `factors` are the candidates, 1 first; `extent` the least and largest unit of each group. `zero` (None for
    symmetric codes) and `scales` (float32) are those of the range, and become those that are found; all others are
    float64.
    """
    wide = (base, *extent, *(() if zero is None else (zero,)))
    good = units.dtype == scales.dtype == np.float32 and all(array.dtype == np.float64 for array in wide)
    kernels = _takes(units, scales, *wide) if good and rule.dtype in ("F32", "BF16", "F16") else None
    if kernels is None:
        return None
    known = _IntRule(*rule[:10], ("F32", "BF16", "F16").index(rule.dtype), rule.turns, rule.beside)
    tried = np.array(factors, np.float64)
    kernels.search_scales(
        units.ctypes.data,
        *units.shape,
        *(array.ctypes.data for array in (base, *extent, tried)),
        tried.size,
        byref(known),
        None if zero is None else zero.ctypes.data,
        scales.ctypes.data,
    )
    return True


class _LevelRule(Structure):
    _fields_ = (
        ("starts", c_void_p),
        ("count", c_size_t),
        *((name, c_float) for name in ("least", "most", "limit")),
        ("turns", c_int64),
        *((name, c_void_p) for name in ("whole", "cells", "places", "levels", "grid")),
    )


class SearchedLevels(NamedTuple):
    """What a search of scales for 16 levels goes by: ratios to `starts` from, float32, which keep from `least` to
    `most`; scales of at most `limit`; so many `turns` of refitting. `levels` are float32, and `whole` the same in
    4096ths, int16. `grid` [4096] has the place of the nearest level for each 2048th of a scale, in two's complement
    of 12 bits, uint8; `cells` [3, 32] for each 16th, in two's complement of 5 bits, the midpoint in it (32767 where
    none is), the whole level below that and the one above, int16; `places` the same with the places of levels."""

    starts: Array
    least: float
    most: float
    limit: float
    turns: int
    whole: Array
    cells: Array
    places: Array
    levels: Array
    grid: Array


def search_levels(blocks: Array, absmax: Array, rule: SearchedLevels) -> Array | None:
    """The scales of least squared error of float32 `blocks` [blocks, 32 … 4096] of these largest magnitudes, which
    are near those; float32."""
    kernels = _takes(blocks, absmax) if blocks.dtype == absmax.dtype == np.float32 else None
    if kernels is None or blocks.shape[1] % 32 or blocks.shape[1] > 4096:
        return None
    starts, least, most, limit, turns, *tables = rule
    places = (table.ctypes.data for table in tables)
    known = _LevelRule(starts.ctypes.data, starts.size, least, most, limit, turns, *places)
    out: Array = np.empty(len(blocks), np.float32)
    kernels.search_levels(blocks.ctypes.data, *blocks.shape, absmax.ctypes.data, byref(known), out.ctypes.data)
    return out


def ggml_blocks(
    name: str, group: int, values: Array, importance: Array | None, blocks: Array, restored: Array
) -> bool | None:
    """float32 [rows, columns] as blocks of the ggml type of this name, uint8, and as what they stand for.

    `group` weights of a row share a scale; `importance` [columns] weighs their errors.
    methods/quantize/ggml/search.py has what is searched.
    """
    given = (values, restored, *(() if importance is None else (importance,)))
    kernels = _takes(*given, blocks) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None:
        return None
    weights = None if importance is None else importance.ctypes.data
    groups, per_row = values.size // group, values.shape[1] // group
    run = getattr(kernels, f"ggml_{name}")
    run(values.ctypes.data, weights, groups, per_row, blocks.ctypes.data, restored.ctypes.data)
    return True


def ggml_numbers(name: str, blocks: Array, out: Array) -> bool | None:
    """Blocks [blocks, bytes], uint8, of the ggml type of this name as float32 into `out`; whether all are finite.

    methods/quantize/ggml/decode_*.py say what they stand for.
    """
    kernels = _takes(blocks, out) if name in GGML_TYPES and out.dtype == np.float32 else None
    if kernels is None:
        return None
    finite = c_int64()
    run = getattr(kernels, f"ggml_numbers_{name}")
    run(blocks.ctypes.data, len(blocks), out.ctypes.data, byref(finite))
    return bool(finite.value)


def adam(
    weight: Array,
    gradients: Sequence[Array],
    keep: Array | None,
    moments: tuple[Array, Array],
    betas: Array,
    rate: float,
    epsilon: float,
) -> bool | None:
    """One step of Adam on a run of weights by the sum of one gradient or two, times `keep`; all float32.

    `betas` are β₁, 1 − β₁, β₂, 1 − β₂; `rate` and `epsilon` have the corrections for the moments' start in them.
    """
    given = (weight, *gradients, *moments, *(() if keep is None else (keep,)))
    kernels = _takes(*given) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None or len(gradients) > 2:
        return None
    more = gradients[1].ctypes.data if len(gradients) > 1 else None
    kernels.adam(
        weight.ctypes.data,
        gradients[0].ctypes.data,
        more,
        None if keep is None else keep.ctypes.data,
        moments[0].ctypes.data,
        moments[1].ctypes.data,
        weight.size,
        betas.ctypes.data,
        rate,
        epsilon,
    )
    return True


def trellis_codes(numbers: Array, costs: Array, out: Array) -> bool | None:
    """Codes of the best paths through float32 `numbers` [rows, columns] into `out`, int32, where `costs` [512] are
    what codes from -256 on cost; `methods/numerics/trellis.py` has what that means."""
    given = numbers.dtype == costs.dtype == np.float32 and out.dtype == np.int32
    kernels = _takes(numbers, costs, out) if given else None
    if kernels is None:
        return None
    kernels.trellis_codes(numbers.ctypes.data, *numbers.shape, costs.ctypes.data, out.ctypes.data)
    return True


def trellis_points(low: Array, high: Array | None, out: Array) -> bool | None:
    """What codes [rows, columns], in int8 planes, stand for in the states that they lead to, into `out`, int32."""
    kernels = _takes(low, out, *(() if high is None else (high,)))
    if kernels is None:
        return None
    kernels.trellis_points(low.ctypes.data, None if high is None else high.ctypes.data, *low.shape, out.ctypes.data)
    return True


def trellis_numbers(
    low: Array, high: Array | None, by_row: Array, by_column: Array | None, out: Array
) -> bool | None:
    """(Codes' numbers · `by_row` [rows or 1]) · `by_column` [columns], float32, into `out` [rows, columns]."""
    given = (by_row, out, *(() if by_column is None else (by_column,)))
    more = () if high is None else (high,)
    kernels = _takes(low, *more, *given) if all(array.dtype == np.float32 for array in given) else None
    if kernels is None:
        return None
    kernels.trellis_numbers(
        low.ctypes.data,
        None if high is None else high.ctypes.data,
        *low.shape,
        by_row.ctypes.data,
        1 if by_row.size > 1 else 0,
        None if by_column is None else by_column.ctypes.data,
        out.ctypes.data,
    )
    return True


class Slots(NamedTuple):
    """What each number below 2^bits stands for: its symbol, uint16 [2^bits]; of every symbol frequency · 2^16 +
    begin, uint32; and, where it fits, of each number frequency · 2^20 + place in the share · 2^8 + symbol."""

    symbols: Array
    shares: Array
    packed: Array | None


def rans_encode(symbols: Array, at: int, shares: Array, bits: int, states: Array, words: Array) -> int | None:
    """Code symbols (uint8 or uint16, the first the `at`-th of its stream) into the end of `words`, uint16: how many
    words. `shares` [alphabet] are records; files/entropy/rans.py says of what. `states` uint32 [lanes] change."""
    kernels = _takes(symbols, shares, states, words)
    if kernels is None:
        return None
    there = np.flatnonzero(shares["frequency"])
    written = c_int64()
    kernels.rans_encode(
        symbols.ctypes.data,
        symbols.itemsize - 1,
        symbols.size,
        shares.ctypes.data,
        int(there[0]),
        int(there[-1]),
        bits,
        at,
        states.size,
        states.ctypes.data,
        words.ctypes.data + words.nbytes,
        VECTORS,
        byref(written),
    )
    return written.value


def rans_decode(words: Array, slots: Slots, bits: int, at: int, states: Array, out: Array) -> int | None:
    """Decode symbols (the first the `at`-th of its stream) from `words`, uint16, into `out`, uint8 or uint16: how
    many words that took, or −1 where they were too few."""
    kernels = _takes(words, states, out)
    if kernels is None:
        return None
    taken = c_int64()
    kernels.rans_decode(
        words.ctypes.data,
        words.size,
        out.size,
        slots.symbols.ctypes.data,
        slots.shares.ctypes.data,
        None if slots.packed is None else slots.packed.ctypes.data,
        bits,
        at,
        states.size,
        states.ctypes.data,
        out.ctypes.data,
        out.itemsize - 1,
        VECTORS,
        byref(taken),
    )
    return taken.value


def ans_decode(
    words: Array, left: int, state: int, begins: Array, coarse: Array, out: Array
) -> tuple[int, int] | None:
    """Places of symbols into `out`, int64, by the coder of files/entropy/ans.py: words left, and state."""
    kernels = _takes(words, begins, coarse, out)
    if kernels is None:
        return None
    there, now = c_int64(left), c_uint64(state)
    kernels.ans_decode(
        words.ctypes.data,
        byref(there),
        byref(now),
        begins.ctypes.data,
        coarse.ctypes.data,
        out.size,
        out.ctypes.data,
    )
    return there.value, now.value


def crc32(data: Array) -> int | None:
    """The CRC-32 of bytes, as zlib has it."""
    kernels = _takes(data)
    if kernels is None:
        return None
    check, done = c_uint32(), c_int64()
    kernels.crc32_of(data.ctypes.data, data.nbytes, VECTORS, byref(check), byref(done))
    return check.value if done.value else None


def byte_counts(values: Array) -> Array | None:
    """How often each byte occurs, int64 [256]."""
    kernels = _takes(values)
    if kernels is None or values.dtype != np.uint8:
        return None
    out: Array = np.empty(256, np.int64)
    kernels.byte_counts(values.ctypes.data, values.size, out.ctypes.data)
    return out


def split_floats(floats: Array, low: int, symbols: Array, planes: Array) -> bool | None:
    """Patterns (unsigned) into symbols (uint8 or uint16) of all bits above the `low` lowest but for the sign, and
    these with the sign on top as planes of bytes [planes, floats]."""
    kernels = _takes(floats, symbols, planes)
    if kernels is None or (floats.itemsize == 8 and symbols.itemsize == 1):
        return None
    kernels.split_floats(
        floats.ctypes.data,
        floats.itemsize,
        floats.size,
        low,
        symbols.itemsize - 1,
        symbols.ctypes.data,
        planes.ctypes.data,
    )
    return True


def join_floats(symbols: Array, planes: Array, low: int, out: Array) -> bool | None:
    """Undo `split_floats` into `out`."""
    kernels = _takes(symbols, planes, out)
    if kernels is None or (out.itemsize == 8 and symbols.itemsize == 1):
        return None
    kernels.join_floats(
        symbols.ctypes.data,
        symbols.itemsize - 1,
        planes.ctypes.data,
        out.itemsize,
        out.size,
        low,
        out.ctypes.data,
    )
    return True


def delta_contexts(base: Array, exponent: int, top: int, out: Array) -> bool | None:
    """The context of each number of a base (unsigned; its exponent has so many bits) into `out`, uint8."""
    kernels = _takes(base, out)
    if kernels is None:
        return None
    kernels.delta_contexts(base.ctypes.data, base.itemsize, exponent, top, base.size, out.ctypes.data)
    return True


def delta_sorted(
    base: Array, now: Array, exponent: int, contexts: Array, places: Array, out: Array, extra: Array
) -> int | None:
    """Symbols of what numbers differ in from a base's into `out`, uint8, each at the next of the `places` (int64
    [contexts]) of its context; what symbols leave open into `extra`, bytes: how many bits."""
    kernels = _takes(base, now, contexts, out, extra)
    if kernels is None:
        return None
    symbols, bits = np.empty(base.size, np.uint8), c_int64()
    kernels.delta_symbols(
        base.ctypes.data, now.ctypes.data, base.itemsize, exponent, base.size, symbols.ctypes.data
    )
    kernels.delta_sort(
        base.ctypes.data,
        now.ctypes.data,
        base.itemsize,
        exponent,
        base.size,
        symbols.ctypes.data,
        contexts.ctypes.data,
        places.ctypes.data,
        out.ctypes.data,
        extra.ctypes.data,
        byref(bits),
    )
    return bits.value


def delta_joined(
    base: Array, exponent: int, contexts: Array, places: Array, symbols: Array, extra: Array, bits: int
) -> tuple[Array, int] | None:
    """Undo `delta_sorted`: the numbers, and how many of the `bits` in `extra` (with eight bytes more behind them)
    they took, −1 where these are too few."""
    kernels = _takes(base, contexts, symbols, extra)
    if kernels is None:
        return None
    out: Array = np.empty_like(base)
    used = c_int64()
    kernels.delta_join(
        base.ctypes.data,
        base.itemsize,
        exponent,
        base.size,
        contexts.ctypes.data,
        places.ctypes.data,
        symbols.ctypes.data,
        extra.ctypes.data,
        bits,
        out.ctypes.data,
        byref(used),
    )
    return out, used.value
