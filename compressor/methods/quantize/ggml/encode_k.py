"""Writing ggml's K types, blocks of 256 weights in sub-blocks (`decode_k.py` says how they are read)."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.encode_legacy import as_bytes, half_bytes, nibbles
from compressor.methods.quantize.ggml.search import (
    Codes,
    Columns,
    Found,
    SubBlocks,
    search_block,
    search_range,
    search_scale,
    settle,
)

_BLOCK = 256
# codes that the weight of largest magnitude may have; steps that the least and the largest weight may lie from the
# first and the last code
_SCALES_3 = (
    *(-5.5, -5.0, -4.75, -4.5, -4.25, -4.0, -3.75, -3.5, -3.25, -3.0, -2.75, -2.5, -2.0),
    *(2.5, 2.75, 3.0, 3.25, 3.5, 4.0),
)
_SCALES_6 = (-33.0, -32.5, -32.0, -31.5, -31.0, -30.5, -30.0, -29.5, -29.0, -28.0)
_RANGES = tuple((first, last) for first in (-0.6, -0.3, 0, 0.3) for last in (0.6, 0.3, 0, -0.3))


def _settled(columns: Columns, codes: Codes, kind: SubBlocks, found: Found) -> tuple[Array, Array]:
    """The codes from 0 on, uint8 [blocks, 256], and what they restore, as the columns lie."""
    q, restored = settle(columns.x, codes, found.d * found.s, found.e * found.n)
    return as_bytes(q, codes.low).reshape(-1, _BLOCK), restored


def _of_block(values: Array, kind: SubBlocks) -> Array:
    return half_bytes(values[:: kind.subs])


def _integers(values: Array, kind: SubBlocks, low: int) -> Array:
    """Those of each sub-block less `low`, uint8 [blocks, sub-blocks]."""
    return (values - np.float32(low)).astype(np.int16).astype(np.uint8).reshape(-1, kind.subs)


def pairs(codes: Array) -> Array:
    """Two bits of each of 256 codes, uint8 [blocks, 64]: 32 bytes hold 128 of them, the lowest bits first."""
    runs = codes.reshape(len(codes), 2, 4, 32) & 3
    packed: Array = runs[:, :, 0] | runs[:, :, 1] << 2 | runs[:, :, 2] << 4 | runs[:, :, 3] << 6
    return packed.reshape(len(codes), 64)


def _planes(bits: Array) -> Array:
    """One bit of each of 256 codes, uint8 [blocks, 32]: byte i holds those of i, i + 32, …, the lowest first."""
    return np.packbits(bits.reshape(len(bits), 8, 32), axis=1, bitorder="little").reshape(len(bits), 32)


def _sixes(s: Array, n: Array) -> Array:
    """Eight scales and least values of 6 bits, uint8 [blocks, 12]."""
    return np.hstack(
        (
            s[:, :4] | s[:, 4:] >> 4 << 6,
            n[:, :4] | n[:, 4:] >> 4 << 6,
            (s[:, 4:] & 15) | (n[:, 4:] & 15) << 4,
        )
    )


def _ranged(columns: Columns, codes: Codes, kind: SubBlocks) -> tuple[Array, Array, Array, Array, Array]:
    """d and e as bytes, the integers, the codes, and what they restore."""
    found = search_block(columns, codes, kind, *search_range(columns, codes, True, _RANGES))
    units = np.hstack((_of_block(found.d, kind), _of_block(found.e, kind)))
    return units, _integers(found.s, kind, 0), _integers(found.n, kind, 0), *_settled(columns, codes, kind, found)


def scaled(
    columns: Columns, codes: Codes, kind: SubBlocks, candidates: tuple[float, ...]
) -> tuple[Array, Array, Found]:
    """d as bytes, the integers from 0 on, and what was found."""
    scale = search_scale(columns, codes, candidates)
    found = search_block(columns, codes, kind, scale, np.zeros_like(scale))
    return _of_block(found.d, kind), _integers(found.s, kind, kind.bottom), found


def q2_k(columns: Columns) -> tuple[Array, Array]:
    """2 bits, sub-blocks of 16. The blocks, uint8 [blocks, bytes], and what they restore, as the columns lie."""
    units, s, n, codes, restored = _ranged(columns, Codes(0, 3), SubBlocks(16, 0, 15, True))
    return np.hstack((s | n << 4, pairs(codes), units)), restored


def q3_k(columns: Columns) -> tuple[Array, Array]:
    """3 bits, sub-blocks of 16."""
    kind, grid = SubBlocks(16, -32, 31, False), Codes(-4, 3)
    unit, s, found = scaled(columns, grid, kind, _SCALES_3)
    codes, restored = _settled(columns, grid, kind, found)
    low = (s[:, :8] & 15) | (s[:, 8:] & 15) << 4
    high = s[:, :4] >> 4 | s[:, 4:8] >> 4 << 2 | s[:, 8:12] >> 4 << 4 | s[:, 12:] >> 4 << 6
    return np.hstack((_planes(codes >> 2), pairs(codes), low, high, unit)), restored


def q4_k(columns: Columns) -> tuple[Array, Array]:
    """4 bits, sub-blocks of 32."""
    units, s, n, codes, restored = _ranged(columns, Codes(0, 15), SubBlocks(8, 0, 63, True))
    packed = nibbles(codes.reshape(-1, 64)).reshape(-1, 128)
    return np.hstack((units, _sixes(s, n), packed)), restored


def q5_k(columns: Columns) -> tuple[Array, Array]:
    """5 bits, sub-blocks of 32."""
    units, s, n, codes, restored = _ranged(columns, Codes(0, 31), SubBlocks(8, 0, 63, True))
    packed = nibbles(codes.reshape(-1, 64)).reshape(-1, 128)
    return np.hstack((units, _sixes(s, n), _planes(codes >> 4), packed)), restored


def q6_k(columns: Columns) -> tuple[Array, Array]:
    """6 bits, sub-blocks of 16."""
    kind, grid = SubBlocks(16, -128, 127, False), Codes(-32, 31)
    unit, s, found = scaled(columns, grid, kind, _SCALES_6)
    codes, restored = _settled(columns, grid, kind, found)
    low = nibbles(codes.reshape(-1, 128)).reshape(-1, 128)
    return np.hstack((low, pairs(codes >> 4), s ^ 128, unit)), restored
