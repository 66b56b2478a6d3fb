"""Two of four: of every four neighbours in a row the two that may differ from zero, and where they stand.

    stored bytes = rows · columns · (bytes of an element / 2 + 1/8)

What 2:4 pruning leaves (Mishra et al., arXiv 2104.08378): a bfloat16 matrix takes 0.5625 of its dense size, int4
codes 0.75. A tensor with more than two values in any group of four is refused by name.

Stored, for `NAME` [rows, columns], with q = ⌊columns/4⌋ groups a row and a tail of t = columns − 4q:

* `NAME.values` [rows, 2q + t]: the two elements of every group in their order, then the tail as it is; in the
  tensor's dtype, codes of an inner encoder of b < 8 bits as U8 [rows, ⌈(2q + t)·b/8⌉], a little-endian bit stream
  a row;
* `NAME.positions` U8 [rows, ⌈q/2⌉]: four bits a group, the first group in the lower half of a byte: the place of
  the first element in bits 0 and 1, of the second in bits 2 and 3. Where a group has fewer values, its first zeros
  are taken;
* an inner encoder's other parts as they are.

Error: none, or that of the inner encoder.

    [0, 3, 0, 5] has the values [3, 5] and the positions [0b1101]; [0, 0, 7, 0] has [0, 7] and [0b1000]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core import bitpacking as bitstream
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block
from compressor.methods.parts import Part
from compressor.methods.store._sparse import Sparse, SparseParts, damaged, occupied
from compressor.methods.store._two_of_four import fours


@dataclass(frozen=True)
class NMParts(SparseParts):
    """Two of four elements and their positions."""

    id: ClassVar[str] = "nm"

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        width = columns // 4 * 2 + columns % 4
        if self.bits is not None:
            values = Part(".values", "U8", (rows, bitstream.row_bytes(width, self.bits)))
        else:
            values = Part(".values", self.element_dtype(spec), (rows, width))
        return values, Part(".positions", "U8", (rows, (columns // 4 + 1) // 2))

    def store(self, elements: Array, parts: Mapping[str, Array], block: Block) -> None:
        work = block.work
        rows, columns = elements.shape
        groups = columns // 4
        mask = np.packbits(occupied(elements[:, : groups * 4], work), axis=1, bitorder="little")
        if not fours().fits[mask].all():
            raise InputError(
                "has more than two values in a group of four",
                tensor=block.spec.name,
                remedy="Prune it with --pattern 2:4, or use --store auto",
            )
        positions = fours().places[mask]
        if groups % 2:
            positions[:, -1] &= 15
        parts[".positions"][...] = positions
        places = self.places(fours().full[mask], groups)
        width = groups * 2 + columns % 4
        values = work.array("store.values", (rows, width), elements.dtype.str)
        values[:, : groups * 2] = (
            np.ascontiguousarray(elements[:, : groups * 4]).reshape(-1)[places].reshape(rows, groups * 2)
        )
        values[:, groups * 2 :] = elements[:, groups * 4 :]
        if self.bits is None:
            parts[".values"].view(elements.dtype)[...] = values
        else:
            np.bitwise_and(values, np.uint8((1 << self.bits) - 1), out=values)
            bitstream.pack(values, self.bits, parts[".values"], work)

    def load(
        self, parts: Mapping[str, Array], elements: Array, spec: TensorSpec, start: int, work: Workspace
    ) -> None:
        rows, columns = elements.shape
        groups = columns // 4
        positions = parts[".positions"]
        if groups % 2:
            if np.any(positions[:, -1] >> np.uint8(4)):
                raise damaged(spec, "its positions do not end with zeros")
            positions = positions.copy()
            positions[:, -1] |= fours().places[0] & np.uint8(0xF0)
        if not fours().valid[positions].all():
            raise damaged(spec, "its positions are not two different ones of a group, in their order")
        values = parts[".values"]
        if self.bits is not None:
            codes = work.array("store.values", (rows, groups * 2 + columns % 4), "|u1")
            bitstream.unpack(values, self.bits, codes, work)
            values = self.signed(codes, spec)
        values = values.view(elements.dtype)
        places = self.places(fours().masks[positions], groups)
        if columns % 4:
            places += np.repeat(np.arange(rows) * (columns % 4), groups * 2)
            elements[:, groups * 4 :] = values[:, groups * 2 :]
        elements.reshape(-1)[places] = values[:, : groups * 2].reshape(-1)

    def places(self, masks: Array, groups: int) -> Array:
        """Where the bits of a mask of so many groups a row are set, counted through all rows."""
        return np.flatnonzero(np.unpackbits(masks, axis=1, count=groups * 4, bitorder="little").view(np.bool_))


@dataclass(frozen=True)
class NM(Sparse):
    """Two of four elements and their positions."""

    id: ClassVar[str] = "nm"
    read_by: ClassVar[type[SparseParts]] = NMParts
    counts: ClassVar[bool] = False


METHOD = NM
