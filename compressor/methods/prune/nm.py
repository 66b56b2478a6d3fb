"""Keep the N largest magnitudes of every M weights along the input dimension: N:M sparsity.

2:4 is what sparse tensor cores take (Mishra et al., arXiv 2104.08378); any N < M works. Of equal magnitudes
those that come first in the block are kept. Columns at the end of a row that do not fill a block stay, and the
report says so. A tensor of more dimensions is a matrix whose rows run over its first axis. Weights that lie
transposed (Conv1D of GPT-2 and its kin) are refused: their rows are no inputs.

Stored: the same dtype and shape. Error: every zeroed weight is at most the N-th largest of its block.

>>> NM(pattern="2:4").n, NM(pattern="2:4").m    # [1, -3, 2, 0.5] becomes [0, -3, 2, 0]
(2, 4)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, PlainSelection
from compressor.methods.numerics.nm_pattern import keep_pattern, parse_pattern, tail_of
from compressor.methods.numerics.smallest_keys import magnitudes
from compressor.methods.options import option


@dataclass(frozen=True)
class NM(PlainSelection):
    """Keep N of every M weights of a row."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "nm"
    rows_alone: ClassVar[bool] = True
    along_inputs: ClassVar[bool] = True

    pattern: str = option(help="N:M, such as 2:4: N of every M stay")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pattern(self.pattern)

    @property
    def n(self) -> int:
        """How many weights of a group stay."""
        return parse_pattern(self.pattern)[0]

    @property
    def m(self) -> int:
        """How many weights of a row are a group."""
        return parse_pattern(self.pattern)[1]

    def partial_treatment(self, spec: TensorSpec) -> str:
        return tail_of(spec, self.m)

    def keep(self, block: Block, out: Array) -> None:
        keys = magnitudes(block, "<u8" if block.values.itemsize == 8 else "<u4")
        keep_pattern(keys, self.n, self.m, out, block.work)


METHOD = NM
