"""What the OCP Microscaling formats have in common: blocks of 32 whose scale is a power of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp
from typing import Any, ClassVar

from compressor.core.floats import epsilon, smallest
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, PlainEncoder
from compressor.methods.numerics.minifloat import powers_of_two
from compressor.methods.quantize._block_scaled import BlockScaled


@dataclass(frozen=True)
class Microscaling(BlockScaled, PlainEncoder):
    """A scale is stored as its biased exponent, E8M0, in a byte."""

    rows_alone: ClassVar[bool] = True
    weighs: ClassVar[bool] = False  # of two powers of two: on MiniLM nothing was gained
    size: ClassVar[int] = 32
    scale_dtype: ClassVar[str] = "U8"
    tried: ClassVar[tuple[int, ...]] = (0, 1)
    weights: ClassVar[Mapping[str, Any]] = {"strategy": "group", "scale_dtype": "torch.uint8"}

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        self.encode_on(powers_of_two()[:255], self._suggested, block, parts, restored)

    def stored_scale(self, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        return powers_of_two()

    def _suggested(self, high: Array, work: Workspace) -> Array:
        """The exponent with which the largest weight has that of the format's largest number.

        Under `absmax` magnitudes of mantissa 1.75 and more count as the next power of two, which is
        compressed-tensors' rule; the search tries both.
        """
        patterns = high.view("<i4") + (1 << 21 if self.method == "absmax" else 0)
        rungs = (patterns >> 23) - (frexp(self.element.largest)[1] - 1)
        rungs[high == 0] = 127
        found: Array = rungs
        return found

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """The largest weight of a block is at most 2^(e+1) in units of a scale of which 2^e is within range, so
        clipping costs 2^(e+1) minus the largest number, which is also no less than half a step anywhere."""
        top = self.element.largest
        lost = 2.0 ** frexp(top)[1] / top - 1
        rounding = 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype) + 2.0**-127
        return (lost + self.further) * largest + rounding
