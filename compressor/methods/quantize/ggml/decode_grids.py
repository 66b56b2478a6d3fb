"""ggml's types whose codes are patterns of a grid: 256 weights (ggml-common.h: block_iq1_s … block_iq3_s).

A code of 8 to 11 bits is a pattern of 8 levels (4 in the IQ3 types), see `grids`; `s` is an integer of a sub-block.

    IQ1_S, IQ1_M              d · (2s + 1) · (level ± 1/8)
    IQ2_XXS, IQ2_XS, IQ2_S    d · (s + 1/2) / 4 · level · sign
    IQ3_XXS                   d · (s + 1/2) / 2 · level · sign
    IQ3_S                     d · (2s + 1) · level · sign

Signs are 8 bits of 8 weights, or 7 of which the eighth is the parity.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.decode_legacy import halves
from compressor.methods.quantize.ggml.grids import grid, signs

_DELTA = 0.125


def _words(blocks: Array, begin: int, end: int, dtype: str) -> Array:
    found: Array = np.ascontiguousarray(blocks[:, begin:end]).view(dtype)
    return found


def _shifted(words: Array, steps: tuple[int, ...], mask: int) -> Array:
    """Bit fields of each word, one after the other. [blocks, words · steps], in the words' type."""
    fields: Array = words[:, :, None] >> np.array(steps, words.dtype) & words.dtype.type(mask)
    return fields.reshape(len(words), -1)


def _signed(out: Array, name: str, codes: Array, scales: Array, sign: Array) -> None:
    """scale · level · sign; codes [blocks, patterns], scales [blocks, sub-blocks], signs [blocks, 32, 8]."""
    each = out.reshape(len(out), scales.shape[1], -1)
    grid(name).take(codes, axis=0, out=out.reshape(*codes.shape, -1), mode="clip")
    each *= scales[:, :, None]
    each *= sign.reshape(each.shape)


def _sign_bits(packed: Array) -> Array:
    """Signs of single bits, those of the first weights lowest. float32 [blocks, 256]."""
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    return np.where(bits, np.float32(-1), np.float32(1))


def iq2_xxs(blocks: Array, out: Array) -> None:
    """For each 32 weights four codes of 8 bits, four of 7 for signs, and a scale of 4."""
    words = _words(blocks, 2, 66, "<u4").reshape(-1, 8, 2)
    codes = np.ascontiguousarray(words[:, :, 0]).view(np.uint8)
    sign = signs()[_shifted(words[:, :, 1], (0, 7, 14, 21), 127)]
    scales = halves(blocks, 0) * (np.float32(0.5) + (words[:, :, 1] >> 28).astype(np.float32)) * np.float32(0.25)
    _signed(out, "IQ2_XXS", codes, scales, sign)


def iq2_xs(blocks: Array, out: Array) -> None:
    """Codes of 9 bits, each with 7 for signs, and a scale of 4 bits for 16 weights."""
    words = _words(blocks, 2, 66, "<u2")
    scales = _quarters(halves(blocks, 0), blocks[:, 66:74])
    _signed(out, "IQ2_XS", words & 511, scales, signs()[words >> 9])


def iq2_s(blocks: Array, out: Array) -> None:
    """Codes of 10 bits, the high two of which lie apart, signs, and a scale of 4 bits for 16 weights."""
    high = _shifted(blocks[:, 66:74], (0, 2, 4, 6), 3).astype(np.uint16)
    scales = _quarters(halves(blocks, 0), blocks[:, 74:82])
    _signed(out, "IQ2_S", blocks[:, 2:34] | high << 8, scales, _sign_bits(blocks[:, 34:66]))


def _quarters(d: Array, packed: Array) -> Array:
    """d · (s + 1/2) / 4 for scales of 4 bits, the low ones first."""
    found: Array = d * (np.float32(0.5) + _shifted(packed, (0, 4), 15).astype(np.float32)) * np.float32(0.25)
    return found


def iq3_xxs(blocks: Array, out: Array) -> None:
    """Codes of 8 bits; for each 32 weights four of 7 for signs, and a scale of 4."""
    words = _words(blocks, 66, 98, "<u4")
    sign = signs()[_shifted(words, (0, 7, 14, 21), 127)]
    scales = halves(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    _signed(out, "IQ3_XXS", blocks[:, 2:66], scales, sign)


def iq3_s(blocks: Array, out: Array) -> None:
    """Codes of 9 bits, the highest of which lies apart, signs, and a scale of 4 bits for 32 weights."""
    high = _shifted(blocks[:, 66:74], tuple(range(8)), 1).astype(np.uint16)
    scales = halves(blocks, 0) * (1 + 2 * _shifted(blocks[:, 106:110], (0, 4), 15)).astype(np.float32)
    _signed(out, "IQ3_S", blocks[:, 2:66] | high << 8, scales, _sign_bits(blocks[:, 74:106]))


def _ternary(out: Array, codes: Array, scales: Array, minus: Array) -> None:
    """scale · (level + 1/8, or − 1/8 where `minus`); `minus` [blocks, runs of weights]."""
    grid("IQ1_S").take(codes, axis=0, out=out.reshape(*codes.shape, -1), mode="clip")
    delta = np.where(minus, np.float32(-_DELTA), np.float32(_DELTA))
    runs = out.reshape(len(out), minus.shape[1], -1)
    runs += delta[:, :, None]
    each = out.reshape(len(out), scales.shape[1], -1)
    each *= scales[:, :, None]


def iq1_s(blocks: Array, out: Array) -> None:
    """Codes of 11 bits, the high three of which lie apart, with a scale of 3 bits and a sign for 32 weights."""
    words = _words(blocks, 34, 50, "<u2")
    codes = blocks[:, 2:34] | _shifted(words, (0, 3, 6, 9), 7) << 8
    scales = halves(blocks, 0) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    _ternary(out, codes, scales, words & 0x8000)


def iq1_m(blocks: Array, out: Array) -> None:
    """As IQ1_S, with a sign for 8 weights and a scale of 3 bits for 16. The float16 is the highest 4 bits of four
    words, whose others are the scales."""
    words = _words(blocks, 48, 56, "<u2")
    nibbles = words >> 12 << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(nibbles, axis=1, keepdims=True).view("<f2").astype(np.float32)
    high = _shifted(blocks[:, 32:48], (0, 4), 15)
    codes = blocks[:, :32] | (high & 7).astype(np.uint16) << 8
    scales = d * (2 * _shifted(words, (0, 3, 6, 9), 7) + 1).astype(np.float32)
    _ternary(out, codes, scales, high & 8)
