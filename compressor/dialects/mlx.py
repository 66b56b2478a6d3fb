"""MLX's `quantization` in a folder's config.json: written for mlx-lm, read for `restore`.

One width and group size hold for the folder; modules that differ are named beside them. A module is quantized
where it has scales, so dense ones need no mention. The object stands in the config twice, as mlx-lm writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.dialects._stored import StoredCodes, integer, shape_of
from compressor.dialects.compressed_tensors import holds_transposed
from compressor.errors import InputError
from compressor.files.source import Source
from compressor.method import Encoder, Part, option
from compressor.methods.quantize._layouts_foreign import MLX_GROUPS, decode_affine
from compressor.methods.quantize.int import Int
from compressor.tensor import TensorSpec
from compressor.text import printable
from compressor.workspace import Array, Workspace

NAME = "mlx"
METADATA = "mlx"
KEY = "quantization"

_BITS = (1, 2, 3, 4, 5, 6, 8)


def speaks(config: Mapping[str, Any]) -> bool:
    return _declared(config) is not None


def _declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for key in (KEY, "quantization_config"):
        found = config.get(key)
        if isinstance(found, dict) and "quant_method" not in found and {"bits", "group_size"} <= set(found):
            return found
    return None


# ---- writing -------------------------------------------------------------------------------------------


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Encoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization of a folder with these packed tensors; None where a tensor belongs to a
    module that is never quantized."""
    if holds_transposed(config, packed):
        return None
    modules = {}
    for spec, encoder in packed:
        assert isinstance(encoder, Int)  # noqa: S101 - it said that this dialect takes its parts
        modules[spec.name.removesuffix(".weight")] = (encoder.group, encoder.bits)
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

    group_size: int = option(help="weights of a row that share a scale and a bias")

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


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Encoder]]:
    """The tensors that an MLX folder stores as codes."""
    declared = _declared(source.config or {}) or {}
    found: list[tuple[TensorSpec, Encoder]] = []
    for name, stored in source.tensors.items():
        if stored.spec.dtype == "U32" and name.endswith(".weight"):
            found.append(_stored(name, declared, source))
    return found


def _stored(name: str, declared: Mapping[str, Any], source: Source) -> tuple[TensorSpec, Encoder]:
    module = name.removesuffix(".weight")
    own = declared.get(module, True)
    if own is not True and not isinstance(own, dict):
        raise InputError("is stored as codes, and config.json says that it is not", file=source.path, tensor=name)
    parameters = own if isinstance(own, dict) else declared
    where = f"{KEY} " if parameters is declared else f"{KEY} of {printable(module, 80)} "
    mode = parameters.get("mode", "affine")
    if mode != "affine":
        raise InputError(
            f"is in MLX's mode {printable(str(mode), 40)!r}, which is not read here", file=source.path, tensor=name
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
