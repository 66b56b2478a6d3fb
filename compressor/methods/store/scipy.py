"""Compressed sparse rows as SciPy saves them: an `.npz` that `scipy.sparse.load_npz` opens.

    stored bytes ≈ rows · columns · density · (4 + bytes of an element)

The members are those of `scipy.sparse.save_npz` for a `csr_matrix`; beside them lies our own record, which SciPy
does not look at, and from which `restore` gives back the `.npy`.

Stored, for a matrix [rows, columns] of float32 or float64:

* `data`, one axis: the elements that are not zero, row after row, in the matrix's dtype;
* `indices`, one axis: their columns, ascending in each row; int32 (int64 where rows · columns ≥ 2^31);
* `indptr` [rows + 1], of that type: how many of them lie before each row, and all;
* `format`: the bytes `csr`; `shape` int64 [2].

Error: none.

    [[0, 3, 0, 0], [1, 0, 0, 2]] has the indices [1, 0, 3], the data [3, 1, 2] and the indptr [0, 1, 3]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.parts import Part
from compressor.methods.store._sparse import SparseParts, index_dtype
from compressor.methods.store.csr import Csr, CsrParts


@dataclass(frozen=True)
class ScipyParts(CsrParts):
    """The members of `scipy.sparse.save_npz`."""

    id: ClassVar[str] = "scipy"
    columns_suffix: ClassVar[str] = ".indices"
    values_suffix: ClassVar[str] = ".data"
    index_suffix: ClassVar[str] = ".indptr"
    members: ClassVar[Mapping[str, bytes]] = {"format": b"csr"}

    def column_dtype(self, spec: TensorSpec) -> str:
        return index_dtype(*spec.matrix)

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (*super().layout(spec), Part(".shape", "I64", (2,), every=0, value=spec.matrix))


@dataclass(frozen=True)
class Scipy(Csr):
    """The members of `scipy.sparse.save_npz`."""

    id: ClassVar[str] = "scipy"
    read_by: ClassVar[type[SparseParts]] = ScipyParts

    def check(self, spec: TensorSpec) -> None:
        super().check(spec)
        if spec.dtype not in ("F32", "F64") or self.inner is not None:
            raise UsageError(
                f"SciPy's sparse matrices hold F32 and F64, not {'codes' if self.inner else spec.dtype}",
                tensor=spec.name,
                remedy="Write .safetensors",
            )


METHOD = Scipy
