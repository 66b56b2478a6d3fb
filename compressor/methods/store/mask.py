"""Which weights are not zero, a bit each, and nothing of the weights themselves: what `--save-mask` writes.

    stored bytes = rows · ⌈columns/8⌉

A framework trains under it after `numpy.unpackbits(mask, axis=1, count=columns, bitorder="little")`; `prune --mask`
takes it as it is. Read as numbers it is 1 where a weight was stored and 0 elsewhere.

Stored, for `NAME` [rows, columns]: `NAME.mask` U8 [rows, ⌈columns/8⌉], as in the layout `bitmask`.

Error: of the numbers everything but whether they are zero.

    [[0, 3, 0, 0], [1, 0, 0, 2]] has the mask [[2], [9]] and reads as [[0, 1, 0, 0], [1, 0, 0, 1]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, PlainEncoder
from compressor.methods.parts import Part


@dataclass(frozen=True)
class Mask(PlainEncoder):
    """A bit for every weight."""

    verb: ClassVar[str] = "store"
    id: ClassVar[str] = "mask"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        return (Part(".mask", "U8", (rows, (columns + 7) // 8)),)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        kept = block.work.array("mask.kept", restored.shape, "|b1")
        np.not_equal(block.values, 0, out=kept)
        np.copyto(restored, kept)
        if parts is not None:
            parts[".mask"][...] = np.packbits(kept, axis=1, bitorder="little")

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        np.copyto(out, np.unpackbits(parts[".mask"], axis=1, count=out.shape[1], bitorder="little"))

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return largest + 1


METHOD = Mask
