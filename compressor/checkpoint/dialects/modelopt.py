"""Folders that NVIDIA's ModelOpt quantized (`quant_method` "modelopt", or `hf_quant_config.json`): read only.

What `P.weight` [out, in] is, its dtype and that of `P.weight_scale` tell:

* NVFP4, W4A8_NVFP4_FP8: U8 [out, in/2], two E2M1 codes a byte, the first in its low half; the scale F8_E4M3
  [out, in/16] or [out, in/32], times the float `P.weight_scale_2` (compressed-tensors stores its reciprocal).
* W4A8_MXFP4_FP8: the same codes; the scale U8 [out, in/32], exponents with a bias of 127.
* W4A16_AWQ, W4A8_AWQ: U8 [out/2, in], two rows to a byte, the first in its low half, in two's complement; the scale
  a float [out, in/group].
* FP8: F8_E4M3 [out, in]; the scale one float, or, in FP8_PER_CHANNEL_PER_TOKEN, [out], or, in FP8_PB_WO,
  [out/128, in/128], perhaps with an axis of one behind each.
* MXFP8: F8_E4M3 [out, in]; the scale U8 [out, in/32], exponents with a bias of 127.
* W8A16, W8A8_SQ_PER_CHANNEL: I8 [out, in]; the scale a float [out].

`P.weight_scale_2` of integers (W4A8_AWQ) is what the kernel divides weights by before it rounds them to FP8, and
multiplies its sums by: the weight is without it. AWQ's forms have `P.pre_quant_scale` [in], by which loaders
multiply what enters the layer; so the weight's columns are multiplied by it here. (ModelOpt:
modelopt/torch/export/quant_utils.py, `to_quantized_weight`, `get_weight_scaling_factor`, `resmooth_and_get_scale`;
TensorRT-LLM: _torch/modules/linear.py, `W4A8_AWQ_LinearMethod`, `W4A8NVFP4FP8LinearMethod`; vLLM: its modelopt.py.)
Restored tensors have the dtype of the model (`dtype` in config.json; BF16 where it says none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from compressor.methods.quantize.mxfp4 import Mxfp4
from compressor.methods.quantize.mxfp8 import Mxfp8
from compressor.methods.quantize.nvfp4 import Nvfp4

NAME = "modelopt"
KEY = "quantization_config"
_METHODS = (NAME, "modelopt_fp4")
# dtypes and scales tell which of them a tensor is stored by, so a mixture needs no table
_ALGORITHMS = (
    *("NVFP4", "FP8", "W4A16_NVFP4", "NVFP4_W4A16", "MIXED_PRECISION", "W4A16_AWQ", "NVFP4_AWQ", "W4A8_AWQ"),
    *("W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8"),
    *("W8A16", "W8A8_SQ_PER_CHANNEL"),
)
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
        if not name.endswith(".weight") or stored.dtype not in _READERS:
            continue
        if scale is None:
            raise InputError(f"is {stored.dtype} and has no weight_scale beside it", file=source.path, tensor=name)
        spec, decoder = _READERS[stored.dtype](source, stored, scale.spec, dtype)
        found.append((spec, _scaled_before(spec, decoder, source)))
    taken = {part.name(spec.name) for spec, decoder in found for part in decoder.parts(spec)}
    orphans(source, (".weight_scale", ".weight_scale_2", f".{_BEFORE}"), taken | _of_kernels(source, found))
    return found


def _eight_bits(source: Source, stored: TensorSpec, scale: TensorSpec, dtype: str) -> tuple[TensorSpec, Decoder]:
    """A tensor of E4M3, by its scale."""
    spec, shape = TensorSpec(stored.name, dtype, stored.shape), scale.shape
    if len(stored.shape) == 2:
        rows, columns = stored.shape
        if scale.dtype == "U8" and shape == (rows, columns // Mxfp8.size) and columns % Mxfp8.size == 0:
            return spec, Mxfp8()
        scales = Scales("_scale", scale.dtype)
        if scale.dtype in _FLOATS and shape in ((rows,), (rows, 1)):
            return spec, ModeloptFp8(granularity="channel", scales=scales, shape=shape)
        high, wide = (-(-length // by) for length, by in zip(stored.shape, scales.block, strict=True))
        if scale.dtype in _FLOATS and shape in ((high, wide), (high, 1, wide, 1)):
            return spec, ModeloptFp8(granularity="block", scales=scales, shape=shape)
    scales = Scales("_scale", scale.dtype, single(source, f"{stored.name}_scale", stored.name))
    return spec, Fp8(granularity="tensor", scales=scales)


def _four_bits(source: Source, stored: TensorSpec, scale: TensorSpec, dtype: str) -> tuple[TensorSpec, Decoder]:
    """A tensor of two codes a byte, by its scale. InputError where they do not fit together."""
    name = stored.name
    if len(stored.shape) != 2:
        raise InputError(f"its codes have shape {list(stored.shape)}", file=source.path, tensor=name)
    if scale.dtype in _FLOATS:
        return _integers(TensorSpec(name, dtype, (2 * stored.shape[0], stored.shape[1])), scale, source)
    spec = TensorSpec(name, dtype, (stored.shape[0], 2 * stored.shape[1]))
    group = spec.shape[1] // scale.shape[1] if len(scale.shape) == 2 and scale.shape[1] else 0
    if scale.dtype == "U8" and group == Mxfp4.size:
        return spec, ModeloptMxfp4()
    of_tensor = source.tensors.get(f"{name}_scale_2")
    if of_tensor is None:
        raise InputError("has no weight_scale_2 beside it", file=source.path, tensor=name)
    made = ModeloptWideNvfp4 if group == ModeloptWideNvfp4.size else ModeloptNvfp4
    return spec, made(shape=single(source, f"{name}_scale_2", name), kind=of_tensor.spec.dtype)


def _bytes(source: Source, stored: TensorSpec, scale: TensorSpec, dtype: str) -> tuple[TensorSpec, Decoder]:
    """A tensor of whole bytes, with a scale for each row."""
    if len(stored.shape) != 2 or scale.dtype not in _FLOATS or scale.shape not in (stored.shape[:1], (1,), ()):
        raise InputError(
            f"its weight_scale is {scale.dtype} {list(scale.shape)}, where a float for each row belongs",
            file=source.path,
            tensor=stored.name,
        )
    return TensorSpec(stored.name, dtype, stored.shape), ModeloptBytes(8, scale.dtype, scale.shape)


_READERS = {"F8_E4M3": _eight_bits, "U8": _four_bits, "I8": _bytes}


def _integers(spec: TensorSpec, scale: TensorSpec, source: Source) -> tuple[TensorSpec, Decoder]:
    """A tensor of 4-bit integers, whose groups the shape of its scale tells."""
    rows, columns = spec.shape
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
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
    """Calibrated scales of activations and of a quantized cache, and those of kernels alone."""
    stems = {spec.name.removesuffix("weight") for spec, _ in stored}
    names = {stem + last for stem in stems for last in _ACTIVATIONS} & set(source.tensors)
    if (source.config or {})[KEY].get("kv_cache_quant_algo") is not None:
        names |= {name for name in source.tensors if name.endswith(_CACHE)}
    return names | _of_kernels(source, stored)


def _of_kernels(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """The `weight_scale_2` of integers, with which kernels put weights into FP8 and take their sums out again."""
    inner = ((spec, one.inner if isinstance(one, ScaledBefore) else one) for spec, one in stored)
    names = {f"{spec.name}_scale_2" for spec, one in inner if isinstance(one, ModeloptIntegers)}
    return names & set(source.tensors)


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
class ModeloptBytes(StoredCodes):
    """8-bit integers with a scale for each row, or one."""

    id: ClassVar[str] = "modelopt-int8"

    scale: str  # its dtype
    shape: tuple[int, ...]  # of the scale

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        by_row = self.shape == spec.shape[:1]
        return Part("", "I8", spec.shape), Part("_scale", self.scale, self.shape, every=int(by_row))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        np.copyto(out, parts[""].reshape(out.shape))
        scale = widen(parts["_scale"].reshape(-1, 1), self.scale, work, "modelopt.scale")
        np.multiply(out, scale.astype(out.dtype, copy=False), out=out)


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
class ModeloptFp8(Fp8):
    """FP8 with scales of rows or blocks in another `shape` than ours."""

    shape: tuple[int, ...] = ()

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        codes, scale = super().parts(spec)
        return codes, replace(scale, shape=self.shape)


@dataclass(frozen=True)
class ModeloptNvfp4(Nvfp4):
    """NVFP4 under ModelOpt's names; `shape` and `kind` (a dtype) are those of the scale for the tensor."""

    shape: tuple[int, ...] = ()
    kind: str = "F32"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = Part("", "U8", (rows, columns // 2))
        scale = Part("_scale", "F8_E4M3", (rows, columns // self.size))
        if self.kind not in _FLOATS:
            raise InputError(f"its weight_scale_2 is {self.kind}, no float", tensor=spec.name)
        return codes, scale, Part("_scale_2", self.kind, self.shape, every=0)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        super().decode({**parts, "_packed": parts[""]}, spec, out, start, work)

    def stored_scale(self, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        factor = widen(parts["_scale_2"].reshape(1), self.kind, Workspace()).reshape(())
        if not 0 < factor < np.inf:
            raise InputError(f"its weight_scale_2 is {float(factor):g}", tensor=spec.name, remedy="Fetch it again")
        found: Array = E4M3.table("<f4") * factor
        return found


@dataclass(frozen=True)
class ModeloptWideNvfp4(ModeloptNvfp4):
    """The same in groups of 32, as it is multiplied with FP8."""

    size: ClassVar[int] = 32


@dataclass(frozen=True)
class ModeloptMxfp4(Mxfp4):
    """MXFP4 whose codes are called as the weight is."""

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        codes, scale = super().parts(spec)
        return replace(codes, suffix=""), scale

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        super().decode({**parts, "_packed": parts[""]}, spec, out, start, work)
