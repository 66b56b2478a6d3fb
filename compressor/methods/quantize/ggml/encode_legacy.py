"""Writing ggml's oldest types, blocks of 32 weights (`decode_legacy.py` says how they are read)."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.search import Codes, Columns, as_half, search_range, search_scale, settle

# codes that the weight of largest magnitude may have; steps that the least and the largest weight may lie from the
# first and the last code
_SCALES_4 = (-8.7, -8.2, -7.7, -7.2)
_SCALES_5 = (-17.0, -16.5, -16.0, -15.5, -15.0, -14.0)
# ggml does not search for these two: no more than this can be tried in half of its time
_RANGES_4 = ((-0.15, 0.15),)
_RANGES_5 = ((0.15, 0.2), (-0.3, -0.15))
_RANGES_WEIGHED = tuple((first, last) for first in (-0.6, -0.3, 0, 0.3) for last in (0.6, 0.3, 0, -0.3))


def half_bytes(values: Array) -> Array:
    """float32 numbers as float16, uint8 [numbers, 2]."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def as_bytes(codes: Array, low: int) -> Array:
    """Codes [size, groups] less `low`, uint8 [groups, size]."""
    return np.ascontiguousarray((codes.T - np.float32(low)).astype(np.int16).astype(np.uint8))


def nibbles(codes: Array) -> Array:
    """Low halves of bytes the first half of the codes [blocks, codes], high ones the others."""
    half = codes.shape[1] // 2
    found: Array = (codes[:, :half] & 15) | (codes[:, half:] << 4)
    return found


def _fifth_bits(codes: Array) -> Array:
    return np.packbits(codes >> 4 & 1, axis=1, bitorder="little")


def _scaled(columns: Columns, codes: Codes, candidates: tuple[float, ...]) -> tuple[Array, Array, Array]:
    scale = as_half(search_scale(columns, codes, candidates))
    q, restored = settle(columns.x, codes, scale, 0.0)
    return half_bytes(scale), as_bytes(q, codes.low), restored


def _ranged(
    columns: Columns, codes: Codes, candidates: tuple[tuple[float, float], ...]
) -> tuple[Array, Array, Array]:
    again = columns.w is not None
    candidates = _RANGES_WEIGHED if again else candidates
    scale, least = (as_half(found) for found in search_range(columns, codes, False, candidates, again))
    q, restored = settle(columns.x, codes, scale, -least)
    return np.hstack((half_bytes(scale), half_bytes(least))), as_bytes(q, 0), restored


def q4_0(columns: Columns) -> tuple[Array, Array]:
    """16 even steps around zero. The blocks, uint8 [blocks, bytes], and what they restore, as the columns lie."""
    scale, codes, restored = _scaled(columns, Codes(-8, 7), _SCALES_4)
    return np.hstack((scale, nibbles(codes))), restored


def q4_1(columns: Columns) -> tuple[Array, Array]:
    """16 even steps from a least value."""
    scale, codes, restored = _ranged(columns, Codes(0, 15), _RANGES_4)
    return np.hstack((scale, nibbles(codes))), restored


def q5_0(columns: Columns) -> tuple[Array, Array]:
    """32 even steps around zero."""
    scale, codes, restored = _scaled(columns, Codes(-16, 15), _SCALES_5)
    return np.hstack((scale, _fifth_bits(codes), nibbles(codes))), restored


def q5_1(columns: Columns) -> tuple[Array, Array]:
    """32 even steps from a least value."""
    scale, codes, restored = _ranged(columns, Codes(0, 31), _RANGES_5)
    return np.hstack((scale, _fifth_bits(codes), nibbles(codes))), restored


def q8_0(columns: Columns) -> tuple[Array, Array]:
    """255 even steps around zero, the largest magnitude the last of them."""
    scale = as_half(np.abs(columns.x).max(axis=0) / np.float32(127))
    q, restored = settle(columns.x, Codes(-127, 127), scale, 0.0)
    return np.hstack((half_bytes(scale), as_bytes(q, 0))), restored
