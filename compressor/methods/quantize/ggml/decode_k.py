"""ggml's K types: blocks of 256 weights whose sub-blocks have quantized scales (ggml-common.h: block_q2_K …).

`d` and `least` are float16 of the block, `s` and `n` small integers of a sub-block, `q` codes.

    Q2_K, Q4_K, Q5_K   d · s · q − least · n        16, 32, 32 weights to a sub-block
    Q3_K, Q6_K         d · s · (q − 4 or 32)        16
    Q8_K               d · q                        d is float32, beside sums of the codes

Products are taken in the order in which they stand, in float32.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.decode_legacy import halves


def _planes(packed: Array, run: int, bits: int) -> Array:
    """Codes of so many bits out of bytes: runs of `run` bytes hold 8 / bits planes of `run` codes each, the lowest
    bits first. uint8 [blocks, codes]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return (runs >> shifts & (1 << bits) - 1).reshape(len(packed), -1)


def _pairs(blocks: Array, at: int) -> tuple[Array, Array]:
    """Of Q4_K and Q5_K the scales and the least values of 8 sub-blocks, 6 bits each, in 12 bytes: four of each in
    the low 6 bits of 8 bytes, the others' low halves in the last four and their high bits above the first ones."""
    low, least, mixed = blocks[:, at : at + 4], blocks[:, at + 4 : at + 8], blocks[:, at + 8 : at + 12]
    scales = np.concatenate((low & 63, mixed & 15 | low >> 2 & 48), axis=1)
    leasts = np.concatenate((least & 63, mixed >> 4 | least >> 2 & 48), axis=1)
    return scales, leasts


def _scaled(codes: Array, d: Array, scales: Array, out: Array) -> Array:
    """d · scales · codes into `out`; it is returned by sub-blocks."""
    each = out.reshape(len(out), scales.shape[1], -1)
    np.multiply(codes.reshape(each.shape), (d * scales)[:, :, None], out=each)
    return each


def q2_k(blocks: Array, out: Array) -> None:
    """2 bits, sub-blocks of 16 with scale and least value of 4 bits each."""
    scales = blocks[:, :16]
    each = _scaled(_planes(blocks[:, 16:80], 32, 2), halves(blocks, 80), scales & 15, out)
    each -= (halves(blocks, 82) * (scales >> 4))[:, :, None]


def q3_k(blocks: Array, out: Array) -> None:
    """3 bits, sub-blocks of 16 with scales of 6 bits and a sign."""
    low, high = _planes(blocks[:, 96:104], 8, 4), _planes(blocks[:, 104:108], 4, 2)
    scales = (low | high << 4).astype(np.int8) - 32
    codes = (_planes(blocks[:, 32:96], 32, 2) | _planes(blocks[:, :32], 32, 1) << 2).astype(np.int8) - 4
    _scaled(codes, halves(blocks, 108), scales, out)


def q4_k(blocks: Array, out: Array) -> None:
    """4 bits, sub-blocks of 32 with scale and least value of 6 bits each."""
    scales, leasts = _pairs(blocks, 4)
    each = _scaled(_planes(blocks[:, 16:144], 32, 4), halves(blocks, 0), scales, out)
    each -= (halves(blocks, 2) * leasts)[:, :, None]


def q5_k(blocks: Array, out: Array) -> None:
    """5 bits, sub-blocks of 32 with scale and least value of 6 bits each."""
    scales, leasts = _pairs(blocks, 4)
    codes = _planes(blocks[:, 48:176], 32, 4) | _planes(blocks[:, 16:48], 32, 1) << 4
    each = _scaled(codes, halves(blocks, 0), scales, out)
    each -= (halves(blocks, 2) * leasts)[:, :, None]


def q6_k(blocks: Array, out: Array) -> None:
    """6 bits, sub-blocks of 16 with scales of 8 bits."""
    codes = _planes(blocks[:, :128], 64, 4) | _planes(blocks[:, 128:192], 32, 2) << 4
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    _scaled(codes.astype(np.int8) - 32, halves(blocks, 208), scales, out)


def q8_k(blocks: Array, out: Array) -> None:
    """Bytes with a sign."""
    d = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    np.multiply(blocks[:, 4:260].view(np.int8), d, out=out)
