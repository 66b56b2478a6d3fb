"""NVFP4: 4-bit floats (E2M1) in blocks of 16, each with an 8-bit float as scale, over a scale for the tensor.

    w ≈ q · s / g,  q ∈ ±{0, ½, 1, 1½, 2, 3, 4, 6},  s a float8 e4m3 number, g = 448 · 6 / max|w|

Parts that loaders fuse (q/k/v, gate/up, also of every expert, whatever shards they lie in) share g, that of the
largest of them. `absmax` takes s = g · (the block's largest magnitude) / 6, rounded to e4m3. `search` (the
default) tries the e4m3 numbers from one below it to six above, which is where the block's largest becomes 4, and
keeps the one of least squared error. Divided in float32 by s/g as stored; halves to even. A zero stays exactly
zero, s is never 0.

Stored, for `NAME` [rows, columns], as compressed-tensors' `nvfp4-pack-quantized`: `NAME_packed` U8
[rows, columns/2], two codes a byte, the first in its low half (bit 3 the sign, 0 to 7 the numbers above);
`NAME_scale` F8_E4M3 [rows, columns/16]; `NAME_global_scale` F32 [1], a divisor.

Error: at most a quarter of the largest magnitude; 8.1 % in the Frobenius norm on normally distributed
weights (9.5 % by `absmax`). Weights beyond float32's range are refused.

    compressor quantize model -o small --scheme nvfp4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from compressor.core.errors import InputError
from compressor.core.floats import epsilon, largest, smallest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder
from compressor.methods.numerics.largest_magnitude import Largest
from compressor.methods.numerics.minifloat import E2M1, E4M3, Minifloat
from compressor.methods.parts import Part
from compressor.methods.quantize._block_scaled import BlockScaled

_GLOBAL = "_global_scale"


@dataclass(frozen=True)
class Nvfp4(BlockScaled):
    """4-bit floats in blocks of 16 with 8-bit float scales."""

    id: ClassVar[str] = "nvfp4"
    size: ClassVar[int] = 16
    first: ClassVar[int] = 1  # a scale is never 0
    scale_dtype: ClassVar[str] = "F8_E4M3"
    tried: ClassVar[tuple[int, ...]] = (-1, 0, 1, 2, 3, 4, 5, 6)
    format: ClassVar[str] = "nvfp4-pack-quantized"
    weights: ClassVar[Mapping[str, Any]] = {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}

    @property
    def element(self) -> Minifloat:
        return E2M1

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model"

    def prepare(self, specs: Sequence[TensorSpec]) -> Largest:
        return Largest(partial(WithGlobals, self))

    def for_block(self, spec: TensorSpec, largest: float) -> WithGlobals:
        """The scale for the whole tensor is only the unit of its block scales, floats themselves: that of the
        block's largest weight gives nearly the same error."""
        return WithGlobals(self, {spec.name: largest})

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return *super().parts(spec), Part(_GLOBAL, "F32", (1,), every=0)

    def stored_scale(self, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        divisor = parts[_GLOBAL].reshape(())
        if not 0 < divisor < np.inf:
            raise InputError(f"its global scale is {float(divisor):g}", tensor=spec.name, remedy="Fetch it again")
        found: Array = E4M3.table("<f4") / divisor
        return found

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Rounding costs a fifth of a weight at most, clipping under a quarter of the largest, where the global
        scale is the tensor's own."""
        rounding = 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype) + 2.0**-137
        return (0.25 + self.further) * largest + rounding


@dataclass(frozen=True)
class WithGlobals(Encoder):
    """Blocks of 16 over a scale for the tensor that follows from its `largest` magnitude, by name."""

    scheme: Nvfp4
    largest: Mapping[str, float]

    @property
    def decoder(self) -> Nvfp4:
        return self.scheme

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        divisor = self._global(block.spec)

        def suggested(high: Array, work: Workspace) -> Array:
            wanted = np.multiply(high, divisor / np.float32(6))
            codes: Array = np.empty((1, high.size), np.uint8)
            restored = np.empty(codes.shape, np.float32)
            E4M3.quantize(wanted[None], np.ones((1, 1), np.float32), max(high.size, 1), codes, restored, work)
            rungs: Array = codes[0].astype(np.int64) - self.scheme.first
            return rungs

        self.scheme.encode_on(E4M3.table("<f4")[1:127] / divisor, suggested, block, parts, restored)
        if parts is not None and block.start == 0:
            parts[_GLOBAL][...] = divisor

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Where a fused partner is larger by far, scales are multiples of 2^-9 over the shared global."""
        return self.scheme.bound(largest, spec) + 9 * 2.0**-9 / float(self._global(spec))

    def _global(self, spec: TensorSpec) -> Any:
        """The divisor, float32: as large as it can be with which the largest scale reaches the largest weight."""
        extent = min(self.largest[spec.name], largest("F32"))
        if extent == 0:
            return np.float32(1)
        if extent * largest("F32") <= 448 * 6:
            return np.float32(largest("F32"))
        divisor = np.float32(448 * 6 / extent)
        while float(np.float32(448) / divisor) * 6 > extent:
            divisor = np.nextafter(divisor, np.float32(np.inf))
        return divisor


METHOD = Nvfp4
