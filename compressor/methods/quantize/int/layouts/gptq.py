"""GPTQ's first layout: words down the columns, the transpose of a row's bit stream, with scales in float16 whatever
the weights are, and each zero point less one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.errors import UsageError
from compressor.core.floats import largest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics.scales import at_most
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.contract import Scaled


@dataclass(frozen=True)
class Gptq(Scaled):
    """GPTQ's first format: words down the columns, scales in float16, zero points less one."""

    name: ClassVar[str] = "gptq"
    scale: ClassVar[str] = ".scales"
    dialect: ClassVar[str] = "gptq"
    trains: ClassVar[bool] = False  # scales are narrower than the weights
    own_scales: ClassVar[bool] = True

    @staticmethod
    def scale_dtype(spec: TensorSpec) -> str:
        return "F16"

    @staticmethod
    def check(bits: int, symmetric: bool, grain: str, group: int) -> None:
        if bits not in (4, 8) or not symmetric or grain == "tensor":
            raise UsageError("layout gptq holds symmetric codes of 4 or 8 bits by channel or group only")

    def config(self, grain: str, group: int) -> dict[str, Any] | None:
        return {"group_size": group if grain == "group" else -1, "bits": self.bits}

    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        word = 32 // self.bits
        if rows % word or columns % word:
            raise UsageError(
                f"layout gptq holds whole words of {word} codes both ways, and this has shape {list(spec.shape)}",
                tensor=spec.name,
                remedy="Use --layout pack-quantized or compressor, or --exclude it",
            )
        groups = scale_shape[1]
        return (
            Part(".qweight", "I32", (columns // word, rows), stem=True, across=True),
            Part(".qzeros", "I32", (groups, rows // word), every=word, stem=True, across=True),
            Part(".scales", "F16", (groups, rows), stem=True, across=True),
            Part(".g_idx", "I32", (columns,), every=0, stem=True),
        )

    def pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        rows, columns = codes.shape
        packed = work.array("gptq.packed", (rows, columns * self.bits // 8), "|u1")
        bitstream.pack(codes, self.bits, packed, work)
        parts[".qweight"][...] = packed.view("<i4").T
        parts[".scales"][...] = scale.T
        parts[".qzeros"][...] = _every_code((1 << (self.bits - 1)) - 1, self.bits)
        if first:
            groups = scale.shape[1]
            parts[".g_idx"][...] = np.arange(columns) // (columns // groups)

    def unpack(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        unpack_down(parts[".qweight"], self.bits, codes, work)
        return None

    def scales(self, parts: Mapping[str, Array]) -> Array:
        return parts[".scales"].T

    def settle(self, grouped: Array, scale: Array, zero: Array | None, dtype: str) -> tuple[Array, Array | None]:
        """Loaders compute in float16: no code times its scale may leave that."""
        return at_most(scale, largest("F16") / (1 << (self.bits - 1)), "F16"), zero

    def slack(self, weight: float, spec: TensorSpec) -> float:
        """What lies outside of float16, and what its smallest scale loses."""
        half = 1 << (self.bits - 1)
        return max(weight - largest("F16") * (half - 1) / half, 0)


def unpack_down(words: Array, bits: int, codes: Array, work: Workspace) -> None:
    """Words [columns·b/32, rows], each column a bit stream, into codes [rows, columns]."""
    turned = work.array("gptq.turned", (words.shape[1], words.shape[0]), "<i4")
    np.copyto(turned, words.T)
    bitstream.unpack(turned.view("|u1"), bits, codes, work)


def _every_code(code: int, bits: int) -> Any:
    """The word that holds this code everywhere."""
    word = sum(code << shift for shift in range(0, 32, bits))
    return np.uint32(word).astype(np.int32)
