"""The ways in which scaled integer codes lie in a file. `int.py` has the table of their parts.

Each layout declares its parts from the tensor's spec and moves (unsigned codes, stored scales, unsigned zero
points) into them and out again. Codes are uint8 [rows, columns], offset by half their range; scales have
their storage type and the part's shape; zero points are uint8 [rows or 1, groups], None where symmetric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics import scales
from compressor.methods.parts import Part


def config(layout: str, bits: int, symmetric: bool, grain: str, group: int) -> dict[str, Any] | None:
    """The compressed-tensors scheme of codes in this layout; None where its loaders take none such."""
    if layout not in ("pack-quantized", "int-quantized"):
        return None
    common = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    weights = {
        **common,
        "group_size": group if grain == "group" else None,
        "strategy": grain,
        "dynamic": False,
    }
    # int-quantized means W8A8: loaders quantize activations too, token by token
    activations = {**common, "group_size": None, "strategy": "token", "dynamic": True}
    return {
        "format": layout,
        "weights": weights,
        "input_activations": activations if layout == "int-quantized" else None,
        "output_activations": None,
    }


@dataclass(frozen=True)
class CodeLayout:
    """`bits` a code; `symmetric` codes have no zero points; `whole`: one scale for the tensor."""

    bits: int
    symmetric: bool
    whole: bool
    scale: ClassVar[str] = "_scale"
    dialect: ClassVar[str] = ""  # whose loaders take the layout, where compressed-tensors' do not
    plain: ClassVar[bool] = True  # whether loaders compute s·(q − z), unrounded

    @staticmethod
    def scale_dtype(spec: TensorSpec) -> str:
        """The dtype of the scales of this tensor."""
        return "F32" if spec.dtype.startswith("F8") else spec.dtype

    @staticmethod
    def check(bits: int, symmetric: bool, grain: str, group: int) -> None:
        """UsageError where the layout cannot hold such codes of any tensor."""

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        """All parts of the tensor; `scale_shape` is [rows, groups] or [1]."""
        raise NotImplementedError

    def store(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        """Fill the rows of `parts` that belong to these codes; `first`: the tensor's first rows are among them."""
        raise NotImplementedError

    def load(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        """Fill `codes` and return the zero points."""
        raise NotImplementedError

    def scales(self, parts: Mapping[str, Array]) -> Array:
        """The stored scales, [rows, groups] or [1]."""
        return parts[self.scale]

    def settle(self, grouped: Array, scale: Array, zero: Array | None, dtype: str) -> tuple[Array, Array | None]:
        """Chosen scales (of `dtype`, stored type) and zero points as far as the layout's arithmetic allows them,
        for these weights [rows, groups, size]. May change both in place."""
        return scale, zero

    def numbers(self, centred: Array, scale: Array, zero: Array | None, dtype: str, work: Workspace) -> None:
        """What loaders make of q − z, in place [rows, groups, size]; `scale` broadcasts and is of `dtype`."""
        scales.apply(np.multiply, centred, scale, centred)

    def decode(self, parts: Mapping[str, Array], grouped: Array, work: Workspace) -> bool:
        """Restore [rows, groups, size] from the parts, where that is not s·(q − z); False where it is."""
        return False

    def slack(self, weight: float, spec: TensorSpec) -> float:
        """What the layout's arithmetic may add to the error, where no weight of the tensor exceeds `weight`."""
        return 0.0

    def _store_scale(self, scale: Array, parts: Mapping[str, Array], first: bool) -> None:
        if first or not self.whole:
            parts[self.scale][...] = scale.reshape(parts[self.scale].shape)

    def _scale_part(self, dtype: str, shape: tuple[int, ...]) -> Part:
        return Part(self.scale, dtype, shape, every=0 if self.whole else 1)


@dataclass(frozen=True)
class PackQuantized(CodeLayout):
    """compressed-tensors' weight-only layout: words of 32 bits, zero points packed along the rows."""

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        found = (
            Part("_packed", "I32", (rows, (columns * self.bits + 31) // 32)),
            self._scale_part(scale_dtype, scale_shape),
            Part("_shape", "I64", (2,), every=0, value=(rows, columns)),
        )
        if self.symmetric:
            return found
        per_word = 32 // self.bits
        if self.whole:  # compressed-tensors packs the zero points of channels and groups only
            return (*found, Part("_zero_point", "I8", (1,), every=0))
        return (*found, Part("_zero_point", "I32", (-(-rows // per_word), scale_shape[1]), every=per_word))

    def store(
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

    def load(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
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


@dataclass(frozen=True)
class IntQuantized(CodeLayout):
    """compressed-tensors' plain int8 matrix under the weight's own name, symmetric."""

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        return Part("", "I8", spec.shape), self._scale_part(scale_dtype, scale_shape)

    def store(
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

    def load(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        np.bitwise_xor(parts[""].view("|u1"), 0x80, out=codes)
        return None


@dataclass(frozen=True)
class Own(CodeLayout):
    """The project's own: a byte stream a row, for widths and shapes that the others do not hold."""

    scale: ClassVar[str] = ".scale"

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = Part(".codes", "U8", (rows, bitstream.row_bytes(columns, self.bits)))
        return codes, *self._beside(scale_dtype, scale_shape)

    def store(
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

    def load(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
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


@dataclass(frozen=True)
class Plain(Own):
    """One element a code: the integer matrix that `--store codes` writes."""

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        codes = Part(".codes", "I8" if self.symmetric else "U8", spec.shape)
        return codes, *self._beside(scale_dtype, scale_shape)

    def store(
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

    def load(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        np.add(parts[".codes"].reshape(codes.shape).view("|u1"), self._shift, out=codes)
        return self._zero_points(parts, len(codes))

    @property
    def _shift(self) -> int:
        """Symmetric codes are stored signed; bytes wrap around, as two's complement does."""
        return 1 << (self.bits - 1) if self.symmetric else 0


LAYOUTS: dict[str, type[CodeLayout]] = {
    "pack-quantized": PackQuantized,
    "int-quantized": IntQuantized,
    "compressor": Own,
    "plain": Plain,
}


def _bytes(words: Array) -> Array:
    return words.view("|u1").reshape(len(words), -1)
