"""Codes of 1 to 8 bits as a little-endian bit stream per row.

Element i of a row occupies bits [i·b, i·b+b) of its row, first element in the lowest bits, and a row starts
on a byte. This is the stream of compressed-tensors' pack-quantized words (since 0.18 for all widths, always
for 2, 4 and 8) and of MLX's. Eight codes of b bits are b bytes, so three merging steps on 64-bit words do it.
"""

from __future__ import annotations

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace

# The lanes that hold finished codes before each merging step: bytes, then 16-bit, then 32-bit lanes.
_LANES = (0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF)


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a packed row of `columns` codes."""
    return (columns * bits + 7) // 8


def pack(codes: Array, bits: int, out: Array, work: Workspace) -> None:
    """Pack uint8 `codes` [rows, columns], each below 2**bits, into uint8 `out` [rows, ≥ row_bytes].

    Bytes of `out` beyond the row's are set to zero.
    """
    rows, columns = codes.shape
    used = row_bytes(columns, bits)
    if bits == 8:
        out[:, :columns] = codes
    elif bits != 4 and kernels.pack_bits(codes, bits, out):
        pass
    elif bits == 4 and columns % 2 == 0 and codes.flags.c_contiguous:
        if out.shape[1] == used and kernels.pack_nibbles(codes, out):
            return
        pairs = codes.view("<u2")
        merged = work.array("bits.pairs", pairs.shape, "<u2")
        np.right_shift(pairs, 4, out=merged)
        np.bitwise_or(merged, pairs, out=merged)
        np.copyto(out[:, :used], merged, casting="unsafe")
    else:
        octets = (columns + 7) // 8
        padded = work.array("bits.padded", (rows, octets * 8), "|u1")
        padded[:, :columns] = codes
        padded[:, columns:] = 0
        words = padded.view("<u8")
        high = work.array("bits.high", words.shape, "<u8")
        for step, lane in enumerate(_LANES):
            width = 8 << step
            np.bitwise_and(words, np.uint64(lane << width & 0xFFFFFFFFFFFFFFFF), out=high)
            np.right_shift(high, np.uint64(width - (bits << step)), out=high)
            np.bitwise_and(words, np.uint64(lane), out=words)
            np.bitwise_or(words, high, out=words)
        stream = padded.reshape(rows, octets, 8)[:, :, :bits].reshape(rows, octets * bits)
        out[:, :used] = stream[:, :used]
    out[:, used:] = 0


def unpack(packed: Array, bits: int, out: Array, work: Workspace) -> None:
    """Undo `pack`: uint8 `packed` [rows, ≥ row_bytes] into uint8 `out` [rows, columns]."""
    rows, columns = out.shape
    if bits == 8:
        out[...] = packed[:, :columns]
        return
    if bits == 4 and packed.shape[1] * 2 == columns and kernels.unpack_nibbles(packed, out):
        return
    if kernels.unpack_bits(packed, bits, out):
        return
    octets = (columns + 7) // 8
    used = row_bytes(columns, bits)
    stream = work.array("bits.stream", (rows, octets * bits), "|u1")
    stream[:, :used] = packed[:, :used]
    stream[:, used:] = 0
    padded = work.array("bits.padded", (rows, octets, 8), "|u1")
    padded[:, :, :bits] = stream.reshape(rows, octets, bits)
    padded[:, :, bits:] = 0
    words = padded.reshape(rows, octets * 8).view("<u8")
    high = work.array("bits.high", words.shape, "<u8")
    for step in (2, 1, 0):
        lane, width, kept = _LANES[step], 8 << step, bits << step
        np.left_shift(words, np.uint64(width - kept), out=high)
        np.bitwise_and(high, np.uint64(lane << width & 0xFFFFFFFFFFFFFFFF), out=high)
        # the low half of each lane keeps its first `kept` bits
        low = sum(((1 << kept) - 1) << shift for shift in range(0, 64, 2 * width))
        np.bitwise_and(words, np.uint64(low), out=words)
        np.bitwise_or(words, high, out=words)
    out[...] = words.view("|u1")[:, :columns]
