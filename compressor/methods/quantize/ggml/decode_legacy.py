"""ggml's oldest types: 32 weights (Q1_0 128, Q2_0 64) with a scale, or a scale and a least value.

`d`, `m` are float16, `q` codes. Two codes of 4 bits share a byte: the low halves are the first 16 weights of a
block, the high ones the others; a fifth bit is bit j of a word of 32 (ggml-common.h: block_q4_0 and what follows).

    Q1_0  d · (2q − 1)    Q2_0  d · (q − 1)     Q4_0  d · (q − 8)      Q4_1  d · q + m
    Q5_0  d · (q − 16)    Q5_1  d · q + m       Q8_0, Q8_1  d · q      (Q8_1 holds a sum of its codes too)
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array


def halves(blocks: Array, at: int) -> Array:
    """The float16 at byte `at` of each block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Array, out: Array) -> None:
    """The codes of 4 bits in `packed` [blocks, 16], written to `out` [blocks, 32]."""
    np.bitwise_and(packed, 15, out=out[:, :16], casting="unsafe")
    np.right_shift(packed, 4, out=out[:, 16:], casting="unsafe")


def _fifth_bits(words: Array, out: Array) -> None:
    """Add 16 to those of `out` [blocks, 32] whose bit in `words` [blocks, 4] is set."""
    bits = np.unpackbits(np.ascontiguousarray(words), axis=1, bitorder="little")
    out += np.multiply(bits, 16, dtype=np.float32)


def q1_0(blocks: Array, out: Array) -> None:
    """Signs of one bit."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, 2:]), axis=1, bitorder="little")
    np.multiply(bits.astype(np.float32) * 2 - 1, halves(blocks, 0), out=out)


def q2_0(blocks: Array, out: Array) -> None:
    """−1, 0, 1 or 2 times the scale; four neighbours share a byte."""
    codes = (blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(out.shape)
    np.multiply(codes.astype(np.float32) - 1, halves(blocks, 0), out=out)


def q4_0(blocks: Array, out: Array) -> None:
    """16 even steps around zero."""
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= halves(blocks, 0)


def q4_1(blocks: Array, out: Array) -> None:
    """16 even steps from a least value."""
    _nibbles(blocks[:, 4:], out)
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def q5_0(blocks: Array, out: Array) -> None:
    """32 even steps around zero."""
    _nibbles(blocks[:, 6:], out)
    _fifth_bits(blocks[:, 2:6], out)
    out -= 16
    out *= halves(blocks, 0)


def q5_1(blocks: Array, out: Array) -> None:
    """32 even steps from a least value."""
    _nibbles(blocks[:, 8:], out)
    _fifth_bits(blocks[:, 4:8], out)
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def q8_0(blocks: Array, out: Array) -> None:
    """Bytes with a sign."""
    np.multiply(blocks[:, 2:].view(np.int8), halves(blocks, 0), out=out)


def q8_1(blocks: Array, out: Array) -> None:
    """Bytes with a sign, beside their sum."""
    np.multiply(blocks[:, 4:].view(np.int8), halves(blocks, 0), out=out)
