"""compressed-tensors' `pack-quantized`: codes in words of 32 bits, for weights alone.

Codes of 2, 4 and 8 bits fill whole words. Of others versions from 0.20 on have a bit stream without gaps; older
ones have as many whole codes in a word as there is room for, in more words, so that they refuse the bit stream by
its shape: but for rows so short that both take as many words. Such rows are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.contract import Scaled


@dataclass(frozen=True)
class PackQuantized(Scaled):
    """compressed-tensors' weight-only layout: words of 32 bits, zero points packed along the rows."""

    name: ClassVar[str] = "pack-quantized"

    @staticmethod
    def check(bits: int, symmetric: bool, grain: str, group: int) -> None:
        if not symmetric and 32 % bits:
            raise UsageError(
                f"layout pack-quantized holds zero points of 2, 4 or 8 bits here, not {bits}",
                remedy="Use --symmetric, or --layout compressor, which `restore` reads",
            )

    def config(self, grain: str, group: int) -> dict[str, Any] | None:
        return self._scheme(grain, group, rounds_inputs=False)

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        words = (columns * self.bits + 31) // 32
        if words > 1 and 32 % self.bits and words == -(-columns // (32 // self.bits)):
            raise UsageError(
                f"layout pack-quantized: compressed-tensors before 0.20 would read other numbers from a row of "
                f"{columns} codes of {self.bits} bits",
                tensor=spec.name,
                remedy="Use --bits 4, or --layout compressor, which `restore` reads, or --exclude it",
            )
        found = (
            Part("_packed", "I32", (rows, words)),
            self._scale_part(scale_dtype, scale_shape),
            Part("_shape", "I64", (2,), every=0, value=(rows, columns)),
        )
        if self.symmetric:
            return found
        per_word = 32 // self.bits
        if self.whole:  # compressed-tensors packs the zero points of channels and groups only
            return (*found, Part("_zero_point", "I8", (1,), every=0))
        return (*found, Part("_zero_point", "I32", (-(-rows // per_word), scale_shape[1]), every=per_word))

    def pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        bitstream.pack(codes, self.bits, _bytes(parts["_packed"]), work)
        self._store_scale(scale, parts, first)
        if zero is None:
            return
        if self.whole:
            if first:
                np.subtract(zero.reshape(1), self._half, out=parts["_zero_point"].view("|u1"))
        else:
            words = parts["_zero_point"]
            packed = np.zeros((words.shape[1], words.shape[0] * 4), np.uint8)
            bitstream.pack(np.ascontiguousarray(zero.T), self.bits, packed, work)
            words[...] = packed.view("<i4").T

    def unpack(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        bitstream.unpack(_bytes(parts["_packed"]), self.bits, codes, work)
        if self.symmetric:
            return None
        if self.whole:
            point: Array = parts["_zero_point"].view("|u1") + self._half
            return point.reshape(1, 1)
        words = np.ascontiguousarray(parts["_zero_point"].T)
        zero = np.empty((words.shape[0], len(codes)), np.uint8)
        bitstream.unpack(_bytes(words), self.bits, zero, work)
        return zero.T

    @property
    def _half(self) -> np.uint8:
        """Between signed and unsigned zero points; bytes wrap around, as two's complement does."""
        return np.uint8(1 << (self.bits - 1))


def _bytes(words: Array) -> Array:
    return words.view("|u1").reshape(len(words), -1)
