"""The project's own layout, which only `restore` reads: codes of any width, of tensors of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.contract import Scaled


@dataclass(frozen=True)
class Own(Scaled):
    """The project's own: a byte stream a row, for widths and shapes that the others do not hold."""

    name: ClassVar[str] = "compressor"
    scale: ClassVar[str] = ".scale"
    matrices: ClassVar[bool] = False

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = Part(".codes", "U8", (rows, bitstream.row_bytes(columns, self.bits)))
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
        bitstream.pack(codes, self.bits, parts[".codes"], work)
        self._store_beside(scale, zero, parts, first)

    def unpack(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        bitstream.unpack(parts[".codes"], self.bits, codes, work)
        return self._zero_points(parts, len(codes))

    def _beside(self, scale_dtype: str, shape: tuple[int, ...]) -> list[Part]:
        every = 0 if self.whole else 1
        zero = [] if self.symmetric else [Part(".zero_point", "U8", shape, every)]
        return [self._scale_part(scale_dtype, shape), *zero]

    def _store_beside(self, scale: Array, zero: Array | None, parts: Mapping[str, Array], first: bool) -> None:
        self._store_scale(scale, parts, first)
        if zero is not None and (first or not self.whole):
            parts[".zero_point"][...] = zero.reshape(parts[".zero_point"].shape)

    def _zero_points(self, parts: Mapping[str, Array], rows: int) -> Array | None:
        return None if self.symmetric else parts[".zero_point"].reshape(1 if self.whole else rows, -1)
