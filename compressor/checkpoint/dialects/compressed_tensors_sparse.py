"""compressed-tensors' old formats of sparse floats, read only: `sparse-bitmask` and `sparse-24-bitmask`.

Versions up to 0.14 wrote them; later ones and all loaders dropped them. `sparsity_config` names the format, at the
top level of config.json or inside `quantization_config` (`compression_config` before that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core.errors import InputError, UsageError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source, StoredTensor
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part
from compressor.methods.store.bitmask import BitmaskParts

NAME = "compressed-tensors-sparse"
SAID = "stored sparse (compressed-tensors)"
METADATA = "pt"
KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class SparseBitmask(BitmaskParts):
    """Values of unequal rows. `shape_of` is the shape of the part that holds the shape."""

    id: ClassVar[str] = "sparse-bitmask"
    mask_suffix: ClassVar[str] = ".bitmask"
    values_suffix: ClassVar[str] = ".compressed"
    index_suffix: ClassVar[str] = ".row_offsets"

    shape_of: tuple[int, ...] = (2,)

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        mask, values, _ = super().layout(spec)
        offsets = Part(self.index_suffix, "I64", (spec.matrix[0],))
        return mask, values, offsets, Part(".shape", "I64", self.shape_of, every=0)


@dataclass(frozen=True)
class Sparse24Bitmask(SparseBitmask):
    """Two values of every four, zero or not."""

    id: ClassVar[str] = "sparse-24-bitmask"

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        mask, _, _, shape = super().layout(spec)
        rows, columns = spec.matrix
        return mask, Part(self.values_suffix, spec.dtype, (rows, columns // 2)), shape


_FORMATS: Mapping[str, type[SparseBitmask]] = {kind.id: kind for kind in (SparseBitmask, Sparse24Bitmask)}


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    return _format(config) in _FORMATS


def _format(config: Mapping[str, Any]) -> str:
    for holder in (*(config.get(key) for key in KEYS), config):
        declared = holder.get("sparsity_config") if isinstance(holder, dict) else None
        if isinstance(declared, dict) and isinstance(declared.get("format"), str):
            return str(declared["format"])
    return ""


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that the folder stores sparse. InputError when their parts contradict each other."""
    config = source.config or {}
    for key in KEYS:
        if isinstance(config.get(key), dict) and config[key].get("config_groups"):
            raise InputError("is stored sparse and quantized at once, which is not read here", file=source.path)
    kind = _FORMATS[_format(config)]
    found: list[tuple[TensorSpec, Decoder]] = []
    for part_name, values in source.tensors.items():
        name = part_name.removesuffix(".compressed")
        if name == part_name:
            continue
        shape_of = source.tensors.get(f"{name}.shape")
        if shape_of is None or shape_of.spec.dtype != "I64" or shape_of.spec.shape not in ((2,), (2, 1)):
            raise InputError("its part .shape is not two integers", file=source.path, tensor=name)
        rows, columns = _integers(shape_of).tolist()
        if not (0 <= rows < 2**40 and 0 < columns < 2**40) or not values.spec.is_float:
            raise InputError("its shape or dtype makes no sense", file=source.path, tensor=name)
        spec = TensorSpec(name, values.spec.dtype, (rows, columns))
        offsets = _offsets(kind, spec, values, source)
        found.append((spec, kind(None, offsets, shape_of=shape_of.spec.shape)))
    return found


def _offsets(kind: type[SparseBitmask], spec: TensorSpec, values: StoredTensor, source: Source) -> Array:
    """How many values lie before each row, and all; checked against the parts before anything of a row's size is
    made of them."""
    rows, columns = spec.shape
    if kind is Sparse24Bitmask:
        if values.spec.shape != (rows, columns // 2) or columns % 4:
            raise InputError(
                f"its part .compressed has shape {list(values.spec.shape)}, not two of four of {[rows, columns]}",
                file=source.path,
                tensor=spec.name,
            )
        return np.arange(rows + 1) * (columns // 2)
    stored = source.tensors.get(f"{spec.name}.row_offsets")
    if stored is None or stored.spec.dtype != "I64" or stored.spec.shape != (rows,):
        raise InputError(f"its part .row_offsets is not {rows} integers", file=source.path, tensor=spec.name)
    try:
        return kind.offsets_of(spec, np.append(_integers(stored), values.spec.size))
    except UsageError as error:
        raise InputError(error.reason, file=source.path, tensor=spec.name) from error


def _integers(stored: StoredTensor) -> Array:
    return stored.read_rows(stored.spec.size, 0, 1, Workspace(), "integers").reshape(-1).copy()
