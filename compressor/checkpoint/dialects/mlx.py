"""MLX's `quantization` in a folder's config.json: written for mlx-lm, read for `restore`.

One width and group size hold for the folder; modules that differ are named beside them. A module is quantized
where it has scales, so dense ones need no mention. The object stands in the config twice, as mlx-lm writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from compressor.architectures.conv1d import is_conv1d
from compressor.checkpoint.dialects._stored import StoredCodes, integer, shape_of
from compressor.core import bitpacking as bitstream
from compressor.core.errors import InputError
from compressor.core.floats import every_number
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.mlx import MLX_GROUPS, decode_affine

NAME = "mlx"
METADATA = "mlx"
KEY = "quantization"

_FLOAT_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits, group size
_E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)
_BITS = (1, 2, 3, 4, 5, 6, 8)


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    return _declared(config) is not None


def _declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for key in (KEY, "quantization_config"):
        found = config.get(key)
        if isinstance(found, dict) and "quant_method" not in found and {"bits", "group_size"} <= set(found):
            return found
    return None


# ---- writing -------------------------------------------------------------------------------------------


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Decoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization of a folder with these packed tensors; None where a tensor belongs to a
    module that is never quantized."""
    if any(is_conv1d(config, spec.name) for spec, _ in packed):
        return None
    modules = {}
    for spec, decoder in packed:
        said = decoder.config(spec) or {}
        modules[spec.name.removesuffix(".weight")] = (said["group_size"], said["bits"])
    counts = Counter(modules.values())
    usual = min(counts, key=lambda found: (-counts[found], found))
    declared: dict[str, Any] = _parameters(*usual)
    declared |= {name: _parameters(*found) for name, found in sorted(modules.items()) if found != usual}
    return {**config, KEY: declared, "quantization_config": declared}


def _parameters(group: int, bits: int) -> dict[str, Any]:
    return {"group_size": group, "bits": bits, "mode": "affine"}


# ---- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine(StoredCodes):
    """MLX's affine codes, whoever wrote them: any sign of the scale, any bias."""

    id: ClassVar[str] = "mlx"

    group_size: int  # weights of a row that share a scale and a bias

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        *rows, columns = spec.shape
        beside = (*rows, columns // self.group_size)
        return (
            Part("", "U32", (*rows, columns * self.bits // 32)),
            Part(".scales", spec.dtype, beside, stem=True),
            Part(".biases", spec.dtype, beside, stem=True),
        )

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        grouped = out.reshape(len(out), -1, self.group_size)
        decode_affine(parts, self.bits, grouped, spec.dtype, work)


@dataclass(frozen=True)
class Floats(StoredCodes):
    """MLX's codes of tiny floats: `mxfp4`, `mxfp8` with a power of two, `nvfp4` with an E4M3 scale a group."""

    id: ClassVar[str] = "mlx"

    mode: Literal["mxfp4", "mxfp8", "nvfp4"]  # which floats, and which scales

    @property
    def group_size(self) -> int:
        return _FLOAT_MODES[self.mode][1]

    @property
    def label(self) -> str:
        return self.mode

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        *rows, columns = spec.shape
        return (
            Part("", "U32", (*rows, columns * self.bits // 32)),
            Part(".scales", "U8", (*rows, columns // self.group_size), stem=True),
        )

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        rows = len(out)
        codes = work.array("mlx.codes", out.shape, "|u1")
        bitstream.unpack(parts[""].view("|u1").reshape(rows, -1), self.bits, codes, work)
        numbers = np.array(_E2M1, np.float32) if self.bits == 4 else every_number("F8_E4M3")
        numbers.take(codes, out=out, mode="wrap")
        scales = parts[".scales"].reshape(rows, -1, 1)
        wide = every_number("F8_E4M3")[scales] if self.mode == "nvfp4" else _power_of_two(scales)
        grouped = out.reshape(rows, -1, self.group_size)
        np.multiply(grouped, wide, out=grouped)


def _power_of_two(exponents: Array) -> Array:
    """E8M0: 2^(e − 127), the last one NaN."""
    wide = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    wide[exponents == 255] = np.nan
    return wide


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that an MLX folder stores as codes."""
    declared = _declared(source.config or {}) or {}
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, stored in source.tensors.items():
        if stored.spec.dtype == "U32" and name.endswith(".weight"):
            found.append(_stored(name, declared, source))
    return found


def _stored(name: str, declared: Mapping[str, Any], source: Source) -> tuple[TensorSpec, Decoder]:
    module = name.removesuffix(".weight")
    own = declared.get(module, True)
    if own is not True and not isinstance(own, dict):
        raise InputError("is stored as codes, and config.json says that it is not", file=source.path, tensor=name)
    parameters = own if isinstance(own, dict) else declared
    where = f"{KEY} " if parameters is declared else f"{KEY} of {printable(module, 80)} "
    mode = str(parameters.get("mode", "affine"))
    if mode in _FLOAT_MODES:
        return _stored_floats(name, mode, source)
    if mode != "affine":
        raise InputError(
            f"is in MLX's mode {printable(mode, 40)!r}, which is not read here", file=source.path, tensor=name
        )
    bits = integer(parameters, "bits", _BITS, where, source)
    group = integer(parameters, "group_size", MLX_GROUPS, where, source)
    *rows, words = shape_of(source, name, ("U32",), name)
    *others, groups = shape_of(source, f"{module}.scales", ("F32", "F16", "BF16"), name)
    if rows != others or words * 32 != groups * group * bits:
        raise InputError(
            f"its codes {[*rows, words]} and scales {[*others, groups]} do not make {bits} bits "
            f"in groups of {group}, as config.json says",
            file=source.path,
            tensor=name,
        )
    dtype = source.tensors[f"{module}.scales"].spec.dtype
    return TensorSpec(name, dtype, (*rows, groups * group)), Affine(bits, group)


def _stored_floats(name: str, mode: str, source: Source) -> tuple[TensorSpec, Decoder]:
    module = name.removesuffix(".weight")
    bits, group = _FLOAT_MODES[mode]
    *rows, words = shape_of(source, name, ("U32",), name)
    *others, groups = shape_of(source, f"{module}.scales", ("U8",), name)
    if rows != others or words * 32 != groups * group * bits:
        raise InputError(
            f"its codes {[*rows, words]} and scales {[*others, groups]} do not fit together in mode {mode}",
            file=source.path,
            tensor=name,
        )
    if f"{module}.global_scale" in source.tensors:
        raise InputError("has a global scale, which is not read here", file=source.path, tensor=name)
    # every product of these few digits is a bfloat16, which is what MLX gives where nothing else is asked
    return TensorSpec(name, "BF16", (*rows, groups * group)), Floats(bits, cast("Any", mode))
