"""Folders that NVIDIA's ModelOpt quantized (`quant_method` "modelopt", or `hf_quant_config.json`): read only.

NVFP4: `P.weight` U8 [out, in/2] with two E2M1 codes a byte, the first in its low half; `P.weight_scale` F8_E4M3
[out, in/16]; `P.weight_scale_2` F32, which multiplies (compressed-tensors' global scale is its reciprocal). FP8:
`P.weight` F8_E4M3, `P.weight_scale` F32, one for the tensor. W4A16_AWQ: `P.weight` U8 [out/2, in], two rows to a
byte, the first in its low half, in two's complement; `P.weight_scale` [out, in/group], a float. AWQ's forms, also
NVFP4_AWQ, have `P.pre_quant_scale` [in], by which loaders multiply what enters the layer; so the weight's columns
are multiplied by it here (`pack_int4_in_uint8`, `resmooth_and_get_scale`: modelopt/torch/export/quant_utils.py).
Restored tensors have the dtype of the model (`dtype` in config.json; BF16 where it says none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from compressor.checkpoint.dialects._scales import model_dtype, orphans, single
from compressor.checkpoint.dialects._stored import StoredCodes
from compressor.core.errors import InputError, UnreadCodes
from compressor.core.floats import widen
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
_ALGORITHMS = ("NVFP4", "FP8", "W4A16_NVFP4", "NVFP4_W4A16", "MIXED_PRECISION", "W4A16_AWQ", "NVFP4_AWQ")
_BEFORE = "pre_quant_scale"
_FLOATS = ("F32", "BF16", "F16")
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
        if stored.dtype == "F8_E4M3":
            scales = Scales("_scale", scale.spec.dtype, single(source, f"{name}_scale", name))
            spec: TensorSpec = TensorSpec(name, dtype, stored.shape)
            decoder: Decoder = Fp8(granularity="tensor", scales=scales)
        elif len(stored.shape) != 2:
            raise InputError(f"its codes have shape {list(stored.shape)}", file=source.path, tensor=name)
        elif scale.spec.dtype in _FLOATS:
            spec, decoder = _integers(
                TensorSpec(name, dtype, (2 * stored.shape[0], stored.shape[1])), scale.spec, source
            )
        elif f"{name}_scale_2" not in source.tensors:
            raise InputError("has no weight_scale_2 beside it", file=source.path, tensor=name)
        else:
            spec = TensorSpec(name, dtype, (stored.shape[0], 2 * stored.shape[1]))
            decoder = ModeloptNvfp4(shape=single(source, f"{name}_scale_2", name))
        found.append((spec, _scaled_before(spec, decoder, source)))
    taken = {part.name(spec.name) for spec, decoder in found for part in decoder.parts(spec)}
    orphans(source, (".weight_scale", ".weight_scale_2", f".{_BEFORE}"), taken)
    return found


def _integers(spec: TensorSpec, scale: TensorSpec, source: Source) -> tuple[TensorSpec, Decoder]:
    """A tensor of 4-bit integers, whose groups the shape of its scale tells."""
    rows, columns = spec.shape
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    if f"{spec.name}_scale_2" in source.tensors:
        raise UnreadCodes(
            "its 4-bit integers go with 8-bit floats (W4A8_AWQ), which is not read here",
            file=source.path,
            tensor=spec.name,
            remedy="Give the model before it was quantized",
        )
    if not groups or columns % groups or scale.shape != (rows, groups):
        raise InputError(
            f"its weight_scale is {scale.dtype} {list(scale.shape)}, which fits no groups of {columns} columns",
            file=source.path,
            tensor=spec.name,
        )
    return spec, ModeloptIntegers(4, columns // groups, scale.dtype)


def _scaled_before(spec: TensorSpec, decoder: Decoder, source: Source) -> Decoder:
    """What decodes a tensor whose columns may have been scaled before (AWQ)."""
    before = source.tensors.get(f"{spec.name.removesuffix('weight')}{_BEFORE}")
    if before is None:
        return decoder
    kind, shape = before.spec.dtype, before.spec.shape
    if kind not in _FLOATS or shape not in ((spec.shape[1],), (1, spec.shape[1])):
        raise InputError(
            f"its {_BEFORE} is {kind} {list(shape)}, where a float for each of {spec.shape[1]} columns belongs",
            file=source.path,
            tensor=spec.name,
        )
    return ScaledBefore(4, decoder, kind, shape)


def leftovers(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """Calibrated scales of activations and of a quantized cache."""
    stems = {spec.name.removesuffix("weight") for spec, _ in stored}
    names = {stem + last for stem in stems for last in _ACTIVATIONS} & set(source.tensors)
    if (source.config or {})[KEY].get("kv_cache_quant_algo") is not None:
        names |= {name for name in source.tensors if name.endswith(_CACHE)}
    return names


@dataclass(frozen=True)
class ModeloptIntegers(StoredCodes):
    """4-bit integers without zero points, two rows to a byte."""

    id: ClassVar[str] = "modelopt-int4"

    group_size: int  # columns that share a scale
    scale: str  # its dtype

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.shape
        codes = Part("", "U8", (rows // 2, columns), every=2)
        return codes, Part("_scale", self.scale, (rows, columns // self.group_size))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        half = work.array("modelopt.half", parts[""].shape, "|u1")
        for row, place in enumerate((0, 4)):
            np.right_shift(parts[""], place, out=half)
            np.bitwise_and(half, 15, out=half)
            np.bitwise_xor(half, 8, out=half)  # two's complement, offset by 8
            np.copyto(out[row::2], half)
        np.subtract(out, out.dtype.type(8), out=out)
        grouped = out.reshape(len(out), -1, self.group_size)
        scale = widen(parts["_scale"], self.scale, work, "modelopt.scale").astype(out.dtype, copy=False)
        np.multiply(grouped, scale[..., None], out=grouped)


@dataclass(frozen=True)
class ScaledBefore(StoredCodes):
    """What `inner` decodes, with its columns multiplied by the scale of what enters the layer."""

    id: ClassVar[str] = "modelopt-awq"

    inner: Decoder
    dtype: str  # of that scale
    shape: tuple[int, ...] = field(default=())

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (*self.inner.parts(spec), Part(f".{_BEFORE}", self.dtype, self.shape, every=0, stem=True))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        self.inner.decode(parts, spec, out, start, work)
        before = widen(parts[f".{_BEFORE}"].reshape(1, -1), self.dtype, work, "modelopt.before")
        np.multiply(out, before.astype(out.dtype, copy=False), out=out)

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "scheme": self.id}

    @property
    def label(self) -> str:
        return self.inner.label


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
