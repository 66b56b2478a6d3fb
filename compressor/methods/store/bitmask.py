"""One bit for every element, and the elements that are not zero.

    stored bytes ≈ rows · columns · (1/8 + density · bytes of an element)

It is the smallest layout between about 5 and 95 % of zeros: at 90 % a bfloat16 matrix takes 0.16 of its dense size.
Deep Compression (Han et al., arXiv 1510.00149) stores index differences instead; a mask is simpler to read by rows,
and is as small where an index would take 8 bits or more at every tenth weight.

Stored, for `NAME` [rows, columns]:

* `NAME.mask` U8 [rows, ⌈columns/8⌉]: bit j mod 8 of byte j div 8, the lowest first, is set where element j is not
  zero; the bits that fill the last byte are 0;
* `NAME.values`, one axis: these elements row after row, in the tensor's dtype. Of an inner encoder its integer
  codes: those of b < 8 bits as U8, a little-endian bit stream that begins on a byte for every row (two's complement
  where codes are signed);
* `NAME.rows` I32 (I64 where rows · columns ≥ 2^31) [rows + 1]: how many values lie before each row, and all;
* the inner encoder's other parts as they are.

Error: none, or that of the inner encoder.

    [[0, 3, 0, 0], [1, 0, 0, 2]] has the mask [[2], [9]], the values [3, 1, 2] and the rows [0, 1, 3]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.parts import Part
from compressor.methods.store._sparse import Sparse, SparseParts, damaged, occupied


@dataclass(frozen=True)
class BitmaskParts(SparseParts):
    """A bit for every element, and the non-zero ones."""

    id: ClassVar[str] = "bitmask"
    mask_suffix: ClassVar[str] = ".mask"
    values_suffix: ClassVar[str] = ".values"

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        mask = Part(self.mask_suffix, "U8", (rows, (columns + 7) // 8))
        return mask, self.ragged(self.values_suffix, spec), self.index_part(spec)

    def store(self, elements: Array, parts: Mapping[str, Array], block: Block) -> None:
        mask = occupied(elements, block.work)
        parts[self.mask_suffix][...] = np.packbits(mask, axis=1, bitorder="little")
        # places and not the mask itself as an index: that takes a third of the time
        self.put(elements.reshape(-1)[np.flatnonzero(mask)], parts[self.values_suffix], block)

    def load(
        self, parts: Mapping[str, Array], elements: Array, spec: TensorSpec, start: int, work: Workspace
    ) -> None:
        rows, columns = elements.shape
        mask = parts[self.mask_suffix]
        counts = np.add.reduce(np.bitwise_count(mask), axis=1, dtype=np.int64)
        if not np.array_equal(counts, np.diff(self.offsets[start : start + rows + 1])) or (
            columns % 8 and np.any(mask[:, -1] >> np.uint8(columns % 8))
        ):
            raise damaged(spec, "its mask marks other numbers of values than its rows have")
        places = np.flatnonzero(np.unpackbits(mask, axis=1, count=columns, bitorder="little").view(np.bool_))
        values = self.take(parts[self.values_suffix], spec, start, rows, work)
        elements.reshape(-1)[places] = values.reshape(-1)


@dataclass(frozen=True)
class Bitmask(Sparse):
    """A bit for every element, and the non-zero ones."""

    id: ClassVar[str] = "bitmask"
    read_by: ClassVar[type[SparseParts]] = BitmaskParts


METHOD = Bitmask
