"""compressed-tensors' codes in activation order (`actorder: group`): beside them `NAME_g_idx` I32 [columns] says
which group each column belongs to, as AutoGPTQ's does; scales and zero points are those of the groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.checkpoint.dialects._stored import StoredCodes
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.numerics.scales import wide_scale
from compressor.methods.parts import Part
from compressor.methods.quantize.int import Int

SUFFIX = "_g_idx"
_UNSET = -1  # of a model that was never calibrated: its columns are in order


def has_order(spec: TensorSpec, source: Source) -> bool:
    """Whether the columns of a tensor name their groups. InputError for an index that is none."""
    index = source.tensors.get(f"{spec.name}{SUFFIX}")
    if index is None:
        return False
    columns = spec.matrix[1]
    if (index.spec.dtype, index.spec.shape) != ("I32", (columns,)):
        raise InputError(
            f"its g_idx is {index.spec.dtype} {list(index.spec.shape)}, where I32 [{columns}] belongs",
            file=source.path,
            tensor=spec.name,
        )
    return not np.any(_index(spec, source) == _UNSET)


def check_order(spec: TensorSpec, decoder: Decoder, source: Source) -> None:
    """InputError for codes whose columns name groups and are in none, or name another number of each."""
    if not has_order(spec, source):
        return
    if not isinstance(decoder, ActivationOrder):
        raise InputError(
            "has a g_idx, and its codes are in no groups of columns", file=source.path, tensor=spec.name
        )
    size = decoder.group_size
    values, groups = _index(spec, source), spec.matrix[1] // size
    inside = bool(np.all((values >= 0) & (values < groups)))
    if not inside or np.any(np.bincount(values, minlength=groups) != size):
        raise InputError(
            f"its g_idx does not name each of {groups} groups for {size} columns",
            file=source.path,
            tensor=spec.name,
        )


def _index(spec: TensorSpec, source: Source) -> Array:
    index = source.tensors[f"{spec.name}{SUFFIX}"]
    return index.read_rows(index.spec.size, 0, 1, Workspace(), "index").reshape(-1)


@dataclass(frozen=True)
class ActivationOrder(StoredCodes):
    """Codes as `layout` stores them, in groups of `group_size` columns that each column names."""

    id: ClassVar[str] = "int"

    group_size: int
    layout: Int

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (*self.layout.parts(spec), Part(SUFFIX, "I32", (spec.matrix[1],), every=0))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        form, index = self.layout.scaled_form(spec), parts[SUFFIX].reshape(-1)
        codes = work.array("g_idx.codes", out.shape, "|u1")
        zero = form.unpack(parts, codes, work)
        np.copyto(out, codes)
        spread = work.array("g_idx.spread", out.shape, out.dtype.str)
        if zero is None:
            np.subtract(out, out.dtype.type(1 << (self.bits - 1)), out=out)
        else:
            np.ascontiguousarray(zero, out.dtype).take(index, axis=1, out=spread, mode="clip")
            np.subtract(out, spread, out=out)
        scale = wide_scale(form.scales(parts), self.layout.scale_dtype(spec)).astype(out.dtype, copy=False)
        np.multiply(out, scale.take(index, axis=1, out=spread, mode="clip"), out=out)

    def describe(self) -> dict[str, Any]:
        return self.layout.describe()
