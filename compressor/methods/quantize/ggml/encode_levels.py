"""Writing ggml's types of uneven levels (`decode_levels.py` says how they are read)."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.encode_k import scaled
from compressor.methods.quantize.ggml.encode_legacy import half_bytes, nibbles
from compressor.methods.quantize.ggml.search import (
    LEVELS,
    Codes,
    Columns,
    SubBlocks,
    as_half,
    down,
    search_scale,
    settle,
)

# levels that the weight of largest magnitude may have
_SCALES = (-136.0, -127.0, -118.0, -110.0, -103.0, 120.0, 113.0, 106.0)
_UNEVEN = Codes(-127, 113, uneven=True)

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1
_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_HIGHEST = 252  # with which 6 is a float32


def _numbers(levels: Array) -> Array:
    """The numbers of levels [size, groups], uint8 [groups, size]."""
    return np.searchsorted(np.array(LEVELS, np.float32), np.ascontiguousarray(levels.T)).astype(np.uint8)


def iq4_nl(columns: Columns) -> tuple[Array, Array]:
    """16 levels and a scale for 32 weights. The blocks, uint8 [blocks, bytes], and what they restore, as the
    columns lie."""
    scale = as_half(search_scale(columns, _UNEVEN, _SCALES))
    levels, restored = settle(columns.x, _UNEVEN, scale, 0.0)
    return np.hstack((half_bytes(scale), nibbles(_numbers(levels)))), restored


def iq4_xs(columns: Columns) -> tuple[Array, Array]:
    """16 levels, 256 weights in sub-blocks of 32 with scales of 6 bits."""
    kind = SubBlocks(8, -32, 31, False)
    unit, s, found = scaled(columns, _UNEVEN, kind, _SCALES)
    levels, restored = settle(columns.x, _UNEVEN, found.d * found.s, 0.0)
    high = np.bitwise_or.reduce((s >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
    low = (s[:, 0::2] & 15) | (s[:, 1::2] & 15) << 4
    packed = nibbles(_numbers(levels)).reshape(-1, 128)
    return np.hstack((unit, high.astype("<u2").view(np.uint8).reshape(-1, 2), low, packed)), restored


def _power(biased: Array) -> Array:
    """2^(e − 127), float32."""
    return np.where(biased > 0, biased.astype(np.uint32) << 23, np.uint32(0x00400000)).view(np.float32)


def mxfp4(columns: Columns) -> tuple[Array, Array]:
    """4-bit floats by a power of two: of two that the largest magnitude suggests the one that loses less."""
    magnitudes = np.abs(columns.x)
    middles, levels = np.array(_MIDDLES, np.float32), np.array(_MAGNITUDES, np.float32)
    suggested = (magnitudes.max(axis=0).view(np.uint32) >> 23).astype(np.int32) - 2
    first = _power(np.maximum(suggested, 0))
    best, fewest = suggested, np.full(first.shape, np.inf, np.float32)
    for step in (0, 1):
        trial = np.clip(suggested + np.int32(step), 0, _HIGHEST)
        scale = _power(trial)
        sizes = magnitudes * (np.float32(1) / scale)
        off = levels[np.searchsorted(middles, sizes)] - sizes
        unit = scale / first
        lost = down(columns.times(off) * off) * (unit * unit)
        best, fewest = np.where(lost < fewest, trial, best), np.minimum(lost, fewest)
    scale = _power(best)
    codes = np.searchsorted(middles, magnitudes / scale)
    negative = (columns.x < 0) & (codes > 0)
    restored = np.where(negative, -levels[codes], levels[codes]) * scale
    packed = nibbles(np.ascontiguousarray((codes + np.where(negative, 8, 0)).T.astype(np.uint8)))
    return np.hstack((best.astype(np.uint8)[:, None], packed)), restored
