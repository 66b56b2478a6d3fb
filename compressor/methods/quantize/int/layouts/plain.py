"""Codes one to an element, which other tools and the sparse layouts work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.own import Own


@dataclass(frozen=True)
class Plain(Own):
    """One element a code: the integer matrix that `--store codes` writes."""

    name: ClassVar[str] = "plain"
    own_scales: ClassVar[bool] = True  # as wide as the weights: NumPy has no bfloat16

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        codes = Part(".codes", "I8" if self.symmetric else "U8", spec.shape)
        return codes, *self._beside(scale_dtype, scale_shape)

    def pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        np.subtract(codes, self._shift, out=parts[".codes"].reshape(codes.shape).view("|u1"))
        self._store_beside(scale, zero, parts, first)

    def unpack(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        np.add(parts[".codes"].reshape(codes.shape).view("|u1"), self._shift, out=codes)
        return self._zero_points(parts, len(codes))

    @property
    def _shift(self) -> int:
        """Symmetric codes are stored signed; bytes wrap around, as two's complement does."""
        return 1 << (self.bits - 1) if self.symmetric else 0
