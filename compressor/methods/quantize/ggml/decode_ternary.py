"""ggml's ternary types: 256 weights of −d, 0 or d (ggml-common.h: block_tq1_0, block_tq2_0).

TQ1_0 has five weights in a byte b, as a fraction of 256 in base 3: weight k is ⌊3 · (3^k · b mod 256) / 256⌋. Bytes
of a run hold the first weights of the run, then the second ones, and so on; the last four bytes hold four each.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml.decode_legacy import halves

_RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # of TQ1_0: the bytes from, to, and the weights in each


def tq1_0(blocks: Array, out: Array) -> None:
    """Five weights to a byte."""
    done = 0
    for begin, end, count in _RUNS:
        powers = (3 ** np.arange(count)).astype(np.uint8)[:, None]
        fractions = blocks[:, None, begin:end] * powers  # modulo 256
        codes = (fractions.astype(np.uint16) * 3 >> 8).reshape(len(blocks), -1)
        out[:, done : done + codes.shape[1]] = codes
        done += codes.shape[1]
    out -= 1
    out *= halves(blocks, 52)


def tq2_0(blocks: Array, out: Array) -> None:
    """Four weights to a byte: 2 bits each, of runs of 32 bytes the lowest first."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes = (blocks[:, :64].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(len(blocks), -1)
    np.subtract(codes, np.float32(1), out=out)
    out *= halves(blocks, 64)
