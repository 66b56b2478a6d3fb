"""Writing ggml's ternary types, blocks of 256 weights (`decode_ternary.py` says how they are read)."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.encode_k import pairs
from compressor.methods.quantize.ggml.encode_legacy import as_bytes, half_bytes
from compressor.methods.quantize.ggml.search import Codes, Columns, as_half, search_scale, settle

_TERNARY = Codes(-1, 1)
_SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.5, 7.5, 10.0)  # what the largest magnitude may be, in units of d


def _found(columns: Columns) -> tuple[Array, Array, Array]:
    """d as bytes, codes of 0, 1, 2, and what they restore, as the columns lie."""
    scale = as_half(np.abs(search_scale(columns, _TERNARY, _SCALES)))
    q, restored = settle(columns.x, _TERNARY, scale, 0.0)
    return half_bytes(scale), as_bytes(q, -1), restored


def _thirds(codes: Array, count: int) -> Array:
    """Bytes of `count` digits in base 3, as fractions of 256; codes [blocks, count · bytes]."""
    digits = codes.reshape(len(codes), count, -1).astype(np.uint16)
    number = np.zeros(digits[:, 0].shape, np.uint32)
    for k in range(5):
        number *= 3
        number += digits[:, k] if k < count else 0
    return ((number * 256 + 242) // 243).astype(np.uint8)


def tq1_0(columns: Columns) -> tuple[Array, Array]:
    """Five weights to a byte. The blocks, uint8 [blocks, bytes], and what they restore, as the columns lie."""
    scale, codes, restored = _found(columns)
    packed = (_thirds(codes[:, :160], 5), _thirds(codes[:, 160:240], 5), _thirds(codes[:, 240:], 4))
    return np.hstack((*packed, scale)), restored


def tq2_0(columns: Columns) -> tuple[Array, Array]:
    """Four weights to a byte."""
    scale, codes, restored = _found(columns)
    return np.hstack((pairs(codes), scale)), restored
