"""Folders that NVIDIA's ModelOpt quantized (`quant_method` "modelopt", or `hf_quant_config.json`): read only.

NVFP4: `P.weight` U8 [out, in/2] with two E2M1 codes a byte, the first in its low half; `P.weight_scale` F8_E4M3
[out, in/16]; `P.weight_scale_2` F32, which multiplies (compressed-tensors' global scale is its reciprocal). FP8:
`P.weight` F8_E4M3, `P.weight_scale` F32, one for the tensor. Restored tensors have the dtype of the model (`dtype`
in config.json; BF16 where it says none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.checkpoint.dialects._scales import model_dtype, orphans, single
from compressor.core.errors import InputError, UnreadCodes
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.numerics.minifloat import E4M3
from compressor.methods.parts import Part
from compressor.methods.quantize.fp8 import Fp8, Scales
from compressor.methods.quantize.nvfp4 import Nvfp4

NAME = "modelopt"
KEY = "quantization_config"
_METHODS = (NAME, "modelopt_fp4")
# dtypes and scales tell which of them a tensor is stored by, so a mixture needs no table
_ALGORITHMS = ("NVFP4", "FP8", "W4A16_NVFP4", "NVFP4_W4A16", "MIXED_PRECISION")
_ACTIVATIONS = ("input_scale", "output_scale")
_CACHE = (".k_scale", ".v_scale")


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    declared = config.get(KEY)
    return isinstance(declared, dict) and declared.get("quant_method") in _METHODS


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The quantized weights of such a folder. InputError for what is not read here, and for lone scales."""
    config = source.config or {}
    algorithm = config[KEY].get("quant_algo", "NVFP4")
    if algorithm not in _ALGORITHMS:
        raise UnreadCodes(
            f"is quantized by ModelOpt's {printable(str(algorithm), 40)}, which is not read here",
            file=source.path,
            remedy=f"These are: {', '.join(_ALGORITHMS)}",
        )
    dtype = model_dtype(config) or "BF16"
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, tensor in source.tensors.items():
        stored, scale = tensor.spec, source.tensors.get(f"{name}_scale")
        if not name.endswith(".weight") or stored.dtype not in ("U8", "F8_E4M3"):
            continue
        if scale is None:
            raise InputError(f"is {stored.dtype} and has no weight_scale beside it", file=source.path, tensor=name)
        if f"{name.removesuffix('weight')}pre_quant_scale" in source.tensors:
            raise InputError(
                "its columns were scaled before (AWQ), which is not read here", file=source.path, tensor=name
            )
        if stored.dtype == "F8_E4M3":
            scales = Scales("_scale", scale.spec.dtype, single(source, f"{name}_scale", name))
            found.append((TensorSpec(name, dtype, stored.shape), Fp8(granularity="tensor", scales=scales)))
            continue
        if f"{name}_scale_2" not in source.tensors:
            raise InputError("has no weight_scale_2 beside it", file=source.path, tensor=name)
        if len(stored.shape) != 2:
            raise InputError(f"its codes have shape {list(stored.shape)}", file=source.path, tensor=name)
        shape = single(source, f"{name}_scale_2", name)
        found.append((TensorSpec(name, dtype, (stored.shape[0], 2 * stored.shape[1])), ModeloptNvfp4(shape=shape)))
    taken = {part.name(spec.name) for spec, decoder in found for part in decoder.parts(spec)}
    orphans(source, (".weight_scale", ".weight_scale_2"), taken)
    return found


def leftovers(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """Calibrated scales of activations and of a quantized cache."""
    stems = {spec.name.removesuffix("weight") for spec, _ in stored}
    names = {stem + last for stem in stems for last in _ACTIVATIONS} & set(source.tensors)
    if (source.config or {})[KEY].get("kv_cache_quant_algo") is not None:
        names |= {name for name in source.tensors if name.endswith(_CACHE)}
    return names


@dataclass(frozen=True)
class ModeloptNvfp4(Nvfp4):
    """NVFP4 under ModelOpt's names; `shape` is that of the scale for the tensor, `[]` or `[1]`."""

    shape: tuple[int, ...] = ()

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = Part("", "U8", (rows, columns // 2))
        scale = Part("_scale", "F8_E4M3", (rows, columns // self.size))
        return codes, scale, Part("_scale_2", "F32", self.shape, every=0)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        super().decode({**parts, "_packed": parts[""]}, spec, out, start, work)

    def stored_scale(self, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        factor = parts["_scale_2"].reshape(())
        if not 0 < factor < np.inf:
            raise InputError(f"its weight_scale_2 is {float(factor):g}", tensor=spec.name, remedy="Fetch it again")
        found: Array = E4M3.table("<f4") * factor
        return found
