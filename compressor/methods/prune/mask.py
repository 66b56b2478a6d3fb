"""Zero what another file has as zero: a mask that was saved, trained under, or made by another tool.

    S = 0 where M = 0, else W

The mask is any input with tensors of the same names and shapes, paired as a teacher's are: what `--save-mask` wrote
(a bit a weight), or a checkpoint whose zeros are to be taken over. What its other elements are is no matter.

Stored: the same dtype and shape. Error: every zeroed weight is zero in the mask, and no other is touched.

    W = [0.5, −2, 3] under M = [1, 0, 7] becomes [0.5, 0, 3]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block, PlainSelection


@dataclass(frozen=True)
class Mask(PlainSelection):
    """Zero what is zero in the file that --mask names."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "mask"
    elementwise: ClassVar[bool] = True
    rows_alone: ClassVar[bool] = True
    partners: ClassVar[tuple[str, ...]] = ("mask",)

    def keep(self, block: Block, out: Array) -> None:
        np.not_equal(block.partners["mask"], 0, out=out)


METHOD = Mask
