"""compressed-tensors' `int-quantized`: symmetric codes of 8 bits, one to an element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.contract import Scaled


@dataclass(frozen=True)
class IntQuantized(Scaled):
    """compressed-tensors' plain int8 matrix under the weight's own name, symmetric."""

    name: ClassVar[str] = "int-quantized"

    @staticmethod
    def check(bits: int, symmetric: bool, grain: str, group: int) -> None:
        if bits != 8 or not symmetric or grain == "group":
            raise UsageError("layout int-quantized holds symmetric 8-bit codes by tensor or channel only")

    def config(self, grain: str, group: int) -> dict[str, Any] | None:
        return self._scheme(grain, group, rounds_inputs=True)  # it means W8A8

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        return Part("", "I8", spec.shape), self._scale_part(scale_dtype, scale_shape)

    def pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        np.bitwise_xor(codes, 0x80, out=parts[""].view("|u1"))  # offset-binary to two's complement
        self._store_scale(scale, parts, first)

    def unpack(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        np.bitwise_xor(parts[""].view("|u1"), 0x80, out=codes)
        return None
