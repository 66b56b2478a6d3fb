"""ggml's types whose codes of 4 bits are numbers of uneven levels (ggml-common.h: block_iq4_nl, block_iq4_xs,
block_mxfp4, block_nvfp4).

    IQ4_NL, IQ4_XS   d · LEVELS[q]    d float16; IQ4_XS has 256 weights and scales of 6 bits for each 32
    MXFP4            2^(e − 127) · E2M1[q], e a byte of 32 weights (OCP microscaling formats)
    NVFP4            s · E2M1[q], s an unsigned E4M3 of 16 weights

Of a run of codes the low halves of its bytes come first, then the high ones.
"""

from __future__ import annotations

from functools import cache

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.decode_legacy import halves

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@cache
def _table(levels: tuple[int, ...]) -> Array:
    return np.array(levels, np.float32)


@cache
def half_powers() -> Array:
    """2^(e − 128) for each byte e, float32 [256]: half of what an E8M0 says, since the levels are doubled."""
    return np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


@cache
def half_scales() -> Array:
    """Half of what each byte is as an unsigned E4M3, float32 [256]; ggml takes 0x7F, which is NaN, for 0."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    found = np.where(exponent == 0, mantissa / 1024, normal).astype(np.float32)
    found[0x7F] = 0
    return found


def _levels(packed: Array, levels: tuple[int, ...], run: int) -> Array:
    """The levels of codes in `packed` [blocks, bytes], where a run of `run` bytes holds 2 · run of them. float32
    [blocks, runs, 2 · run]."""
    runs = packed.reshape(len(packed), -1, run)
    table = _table(levels)
    return np.concatenate((table[runs & 15], table[runs >> 4]), axis=2)


def iq4_nl(blocks: Array, out: Array) -> None:
    """32 weights with a scale."""
    np.multiply(_levels(blocks[:, 2:], LEVELS, 16)[:, 0], halves(blocks, 0), out=out)


def iq4_xs(blocks: Array, out: Array) -> None:
    """256 weights, sub-blocks of 32 with scales of 6 bits: the low 4 lie in 4 bytes, the others in 2."""
    low = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low | high << 4).astype(np.int8) - 32
    each = out.reshape(len(out), 8, 32)
    np.multiply(_levels(blocks[:, 8:], LEVELS, 16), (halves(blocks, 0) * scales)[:, :, None], out=each)


def mxfp4(blocks: Array, out: Array) -> None:
    """32 weights with a power of two."""
    np.multiply(_levels(blocks[:, 1:], TWICE_E2M1, 16)[:, 0], half_powers()[blocks[:, :1]], out=out)


def nvfp4(blocks: Array, out: Array) -> None:
    """64 weights, sub-blocks of 16 with scales in E4M3."""
    each = out.reshape(len(out), 4, 16)
    np.multiply(_levels(blocks[:, 4:], TWICE_E2M1, 8), half_scales()[blocks[:, :4]][:, :, None], out=each)
