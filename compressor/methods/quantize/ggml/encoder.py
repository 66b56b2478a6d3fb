"""Encoding weights as ggml's blocks: compiled where it could be built, in NumPy elsewhere, with the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.quantize.ggml import encode_k, encode_legacy, encode_levels, encode_ternary
from compressor.methods.quantize.ggml.search import LARGEST_HALF, Columns

_AT_ONCE = 1 << 15  # weights that NumPy treats in one call, so that what lies between stays in the cache


class BlockEncoder(NamedTuple):
    """How a type is written: how many weights share a scale, in NumPy; the largest magnitude that it holds, and
    whether a zero stays one."""

    group: int
    encode: Callable[[Columns], tuple[Array, Array]]
    largest: float
    keeps_zeros: bool


_FLOAT_MAX = 3.0e38

ENCODERS: Mapping[str, BlockEncoder] = {
    "Q4_0": BlockEncoder(32, encode_legacy.q4_0, 7 * LARGEST_HALF, True),
    "Q4_1": BlockEncoder(32, encode_legacy.q4_1, LARGEST_HALF, False),
    "Q5_0": BlockEncoder(32, encode_legacy.q5_0, 15 * LARGEST_HALF, True),
    "Q5_1": BlockEncoder(32, encode_legacy.q5_1, LARGEST_HALF, False),
    "Q8_0": BlockEncoder(32, encode_legacy.q8_0, 127 * LARGEST_HALF, True),
    "Q2_K": BlockEncoder(16, encode_k.q2_k, LARGEST_HALF, False),
    "Q3_K": BlockEncoder(16, encode_k.q3_k, LARGEST_HALF, True),
    "Q4_K": BlockEncoder(32, encode_k.q4_k, LARGEST_HALF, False),
    "Q5_K": BlockEncoder(32, encode_k.q5_k, LARGEST_HALF, False),
    "Q6_K": BlockEncoder(16, encode_k.q6_k, LARGEST_HALF, True),
    "IQ4_NL": BlockEncoder(32, encode_levels.iq4_nl, 100 * LARGEST_HALF, False),
    "IQ4_XS": BlockEncoder(32, encode_levels.iq4_xs, 100 * LARGEST_HALF, False),
    "MXFP4": BlockEncoder(32, encode_levels.mxfp4, _FLOAT_MAX, True),
    "TQ1_0": BlockEncoder(256, encode_ternary.tq1_0, LARGEST_HALF, True),
    "TQ2_0": BlockEncoder(256, encode_ternary.tq2_0, LARGEST_HALF, True),
}


def encode_blocks(name: str, values: Array, importance: Array | None, blocks: Array, restored: Array) -> None:
    """The weights `values` [rows, columns], float32 and C-ordered, in rows of whole blocks, as a type that is
    called so: its bytes into `blocks`, uint8 [rows, bytes], and what they stand for into `restored`, as `values`.

    `importance` [columns], float32, weighs squared errors. All weights are finite, and none exceeds the encoder's
    `largest`.
    """
    own = ENCODERS[name]
    if kernels.ggml_blocks(name.lower(), own.group, values, importance, blocks, restored) is not None:
        return
    rows, columns = values.shape
    step = max(_AT_ONCE // columns, 1)
    for first in range(0, rows, step):
        here = values[first : first + step]
        weights = None if importance is None else _upright(np.broadcast_to(importance, here.shape), own.group)
        found, back = own.encode(Columns(_upright(here, own.group), weights))
        blocks[first : first + step] = found.reshape(len(here), -1)
        restored[first : first + step] = back.T.reshape(here.shape)


def _upright(values: Array, group: int) -> Array:
    """Groups of [rows, columns] as columns."""
    return np.ascontiguousarray(values.reshape(-1, group).T)
