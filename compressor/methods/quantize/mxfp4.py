"""MXFP4: 4-bit floats (E2M1) in blocks of 32 whose scale is a power of two (OCP Microscaling v1.0).

    w ≈ q · 2^(e − 127),  q ∈ ±{0, ½, 1, 1½, 2, 3, 4, 6}

`absmax` takes e from the largest magnitude a of the block, ⌊log2 a⌋ − 2 or one more where a is at least 1.75 of
its power of two, which is compressed-tensors' rule. `search` (the default) takes of the two the one with the
smaller squared error. Divided in float32 whatever the weight's dtype; halves to even. A zero stays exactly zero.

Stored, for `NAME` [rows, columns], as compressed-tensors' `mxfp4-pack-quantized`: `NAME_packed` U8
[rows, columns/2], two codes a byte, the first in its low half (bit 3 the sign, 0 to 7 the numbers above);
`NAME_scale` U8 [rows, columns/32], e in E8M0.

Error: at most a third of the block's largest magnitude, where that lies just under a power of two and is clipped;
11.2 % in the Frobenius norm on normally distributed weights. Weights beyond float32's range are refused.

    compressor quantize model -o small --scheme mxfp4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.methods.numerics.minifloat import E2M1, Minifloat
from compressor.methods.quantize._microscaling import Microscaling


@dataclass(frozen=True)
class Mxfp4(Microscaling):
    """4-bit floats in blocks of 32 with a power of two as scale."""

    id: ClassVar[str] = "mxfp4"
    format: ClassVar[str] = "mxfp4-pack-quantized"

    @property
    def element(self) -> Minifloat:
        return E2M1


METHOD = Mxfp4
