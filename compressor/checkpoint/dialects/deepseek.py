"""DeepSeek's own names for FP8 and FP4 weights, in files that the inference code of its models reads: read only.

`P.weight` F8_E4M3 [out, in] with `P.scale` beside it, F8_E8M0 or F32 [⌈out/128⌉, ⌈in/128⌉], which multiplies; or
two E2M1 codes a byte, `P.weight` I8 or U8 [out, in/2], the first in its low half, with `P.scale` F8_E8M0 [out,
in/32].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.checkpoint.dialects._scales import model_dtype
from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part
from compressor.methods.quantize.fp8 import Fp8, Scales
from compressor.methods.quantize.mxfp4 import Mxfp4

NAME = "DeepSeek's FP8"
_BLOCK = 128


def speaks(config: Mapping[str, Any]) -> bool:
    """No config.json declares it: names tell (`found_in`)."""
    return False


def found_in(source: Source) -> bool:
    """Whether FP8 or packed FP4 weights stand beside scales called so, whatever a config says."""
    return any(_scaled(source, name) for name in source.tensors)


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """Such weights, in the dtype of the model (BF16 where nothing says it). InputError where scales do not fit."""
    dtype = model_dtype(source.config or {}) or "BF16"
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, tensor in source.tensors.items():
        if not _scaled(source, name):
            continue
        rows, columns = tensor.spec.shape
        scale = source.tensors[f"{name.removesuffix('weight')}scale"].spec
        if tensor.spec.dtype == "F8_E4M3":
            shape = (-(-rows // _BLOCK), -(-columns // _BLOCK))
            scales = Scales(".scale", scale.dtype, block=(_BLOCK, _BLOCK), stem=True)
            entry: tuple[TensorSpec, Decoder] = (
                TensorSpec(name, dtype, (rows, columns)),
                Fp8(granularity="block", scales=scales),
            )
        else:
            shape = (rows, columns // 16)
            entry = TensorSpec(name, dtype, (rows, 2 * columns)), PackedFp4(bytes_are=tensor.spec.dtype)
        if scale.shape != shape:
            raise InputError(
                f"its scale is {list(scale.shape)}, where {list(shape)} belongs", file=source.path, tensor=name
            )
        found.append(entry)
    return found


def _scaled(source: Source, name: str) -> bool:
    if not name.endswith(".weight"):
        return False
    spec, scale = source.tensors[name].spec, source.tensors.get(f"{name.removesuffix('weight')}scale")
    if scale is None or len(spec.shape) != 2:
        return False
    fp8 = spec.dtype == "F8_E4M3" and scale.spec.dtype in ("F8_E8M0", "F32")
    return fp8 or (spec.dtype in ("I8", "U8") and scale.spec.dtype == "F8_E8M0" and spec.shape[1] % 16 == 0)


@dataclass(frozen=True)
class PackedFp4(Mxfp4):
    """MXFP4 under DeepSeek's names; `bytes_are` is their dtype."""

    bytes_are: str = "I8"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        scale = Part(".scale", "F8_E8M0", (rows, columns // self.size), stem=True)
        return Part("", self.bytes_are, (rows, columns // 2)), scale

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        codes, scale = parts[""].view("|u1"), parts[".scale"].view("|u1")
        super().decode({"_packed": codes, "_scale": scale}, spec, out, start, work)
