"""Compressed sparse rows: of every element that is not zero its column and itself.

    stored bytes ≈ rows · columns · density · (bytes of a column index + bytes of an element)

The layout of sparse linear algebra (Yale format; SciPy's `csr`), with the narrowest unsigned column indices that
reach the last column. It is the smallest layout above about 95 % of zeros, earlier for rows of up to 256 columns.

Stored, for `NAME` [rows, columns]:

* `NAME.columns`, one axis: the columns of these elements, ascending in each row, row after row; U8 up to 256
  columns, U16 up to 65,536, else U32;
* `NAME.values`, `NAME.rows` and an inner encoder's other parts as in the layout `bitmask`.

Error: none, or that of the inner encoder.

    [[0, 3, 0, 0], [1, 0, 0, 2]] has the columns [1, 0, 3], the values [3, 1, 2] and the rows [0, 1, 3]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.parts import Part
from compressor.methods.store._sparse import Sparse, SparseParts, damaged, occupied


@dataclass(frozen=True)
class CsrParts(SparseParts):
    """Columns and values of the non-zero elements, row by row."""

    id: ClassVar[str] = "csr"
    columns_suffix: ClassVar[str] = ".columns"
    values_suffix: ClassVar[str] = ".values"

    def column_dtype(self, spec: TensorSpec) -> str:
        """The narrowest dtype that holds a column number."""
        columns = spec.matrix[1]
        return "U8" if columns <= 1 << 8 else "U16" if columns <= 1 << 16 else "U32"

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        starts = self.offsets
        columns = Part(self.columns_suffix, self.column_dtype(spec), (int(starts[-1]),), bounds=starts)
        return columns, self.ragged(self.values_suffix, spec), self.index_part(spec)

    def store(self, elements: Array, parts: Mapping[str, Array], block: Block) -> None:
        rows, columns = elements.shape
        places = np.flatnonzero(occupied(elements, block.work))
        self.put(elements.reshape(-1)[places], parts[self.values_suffix], block)
        counts = np.diff(self.offsets[block.start : block.start + rows + 1])
        np.subtract(places, np.repeat(np.arange(rows) * columns, counts), out=places)
        np.copyto(parts[self.columns_suffix], places, casting="unsafe")

    def load(
        self, parts: Mapping[str, Array], elements: Array, spec: TensorSpec, start: int, work: Workspace
    ) -> None:
        rows, columns = elements.shape
        within = parts[self.columns_suffix]
        counts = np.diff(self.offsets[start : start + rows + 1])
        places = np.repeat(np.arange(rows) * columns, counts)
        np.add(places, within, out=places, casting="unsafe")
        # ascending in the rows' order, and each within its row: so each place occurs once
        wrong = np.any(within >= columns) or np.any(within < 0) or np.any(places[1:] <= places[:-1])
        if wrong:
            raise damaged(spec, "its columns do not ascend within each row")
        elements.reshape(-1)[places] = self.take(parts[self.values_suffix], spec, start, rows, work)


@dataclass(frozen=True)
class Csr(Sparse):
    """Columns and values of the non-zero elements, row by row."""

    id: ClassVar[str] = "csr"
    read_by: ClassVar[type[SparseParts]] = CsrParts
    longest: ClassVar[int] = 1 << 26

    def check(self, spec: TensorSpec) -> None:
        super().check(spec)
        if spec.matrix[1] > self.longest:  # of a stranger's file a few bytes would become any memory
            raise UsageError("csr holds rows of up to 2^26 columns", tensor=spec.name, remedy="Use --store bitmask")


METHOD: type[Sparse] = Csr
