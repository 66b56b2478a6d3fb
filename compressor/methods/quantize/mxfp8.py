"""MXFP8: 8-bit floats (E4M3) in blocks of 32 whose scale is a power of two (OCP Microscaling v1.0).

    w ≈ q · 2^(e − 127),  q a float8 e4m3 number of at most 448

`absmax` takes e from the largest magnitude a of the block, ⌊log2 a⌋ − 8 or one more where a is at least 1.75 of
its power of two (compressed-tensors' rule), so that nothing is clipped. `search` (the default) takes of the two
the one with the smaller squared error. Divided in float32 whatever the weight's dtype, clamped before it is
rounded, halves to even. A zero stays exactly zero.

Stored, for `NAME` [rows, columns], as compressed-tensors' `mxfp8-quantized`: `NAME` F8_E4M3 [rows, columns];
`NAME_scale` U8 [rows, columns/32], e in E8M0.

Error: at most a seventh of the block's largest magnitude, where that is clipped, and else a sixteenth of the
weight; 2.7 % in the Frobenius norm on normally distributed weights. Weights beyond float32's range are refused.

    compressor quantize model -o small --scheme mxfp8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.methods.numerics.minifloat import E4M3, Minifloat
from compressor.methods.quantize._microscaling import Microscaling


@dataclass(frozen=True)
class Mxfp8(Microscaling):
    """8-bit floats in blocks of 32 with a power of two as scale."""

    id: ClassVar[str] = "mxfp8"
    format: ClassVar[str] = "mxfp8-quantized"

    @property
    def element(self) -> Minifloat:
        return E4M3


METHOD = Mxfp8
